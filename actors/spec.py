"""The description of an agent, shared by any number of sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

from ropewalk.actors.conversation import RUNGS, ConversationManager, NullConversationManager, SlidingWindowConversationManager, overrides_any
from ropewalk.actors.limits import Limits
from ropewalk.actors.models import Model, resolve
from ropewalk.actors.tools import ToolRegistry
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.errors import InvalidHandler, InvalidOption
from ropewalk.runtime.kind import Actor

if TYPE_CHECKING:
    from ropewalk.actors.session.handle import Session
    from ropewalk.runtime.journal import Codec

__all__ = ["WHEN_BUSY", "AgentSpec", "Resume", "WhenBusy", "check_when_busy"]

WhenBusy: TypeAlias = Literal["queue", "reject"]
"""What a prompt does that finds its session at work: wait its turn, or raise `SessionBusy`."""

Resume: TypeAlias = Literal["continue", "fail"]
"""What becomes of a turn whose process died: it goes on from its last record, or it ends failed."""

WHEN_BUSY: tuple[WhenBusy, ...] = ("queue", "reject")


def check_when_busy(value: object) -> WhenBusy:
    """The policy itself; raises `InvalidOption` when it is none."""
    for policy in WHEN_BUSY:
        if policy == value:
            return policy
    raise InvalidOption(f"when_busy is one of {', '.join(map(repr, WHEN_BUSY))}, not {value!r:.200}")


def _manager(value: ConversationManager | None) -> ConversationManager:
    manager = SlidingWindowConversationManager() if value is None else value
    if not all(callable(getattr(manager, name, None)) for name in ("apply_management", "reduce_context")):
        raise InvalidOption(f"a conversation manager has apply_management and reduce_context, which {value!r:.200} does not; subclass ConversationManager")
    # The bare base leaves all to the ladder. A class derived from it that has neither method was meant to have one.
    if not isinstance(manager, NullConversationManager) and type(manager) is not ConversationManager and not overrides_any(manager):
        raise InvalidOption(
            f"{type(manager).__name__} overrides no method of ConversationManager, so it would do nothing: write apply_management(self, messages), called "
            "after each turn, or reduce_context(self, messages, e=None), called when the messages do not fit the model, or both; "
            "NullConversationManager is the one that does nothing"
        )
    return manager


def _handlers(value: Iterable[Callable[[Any], Any]]) -> tuple[Callable[[Any], Any], ...]:
    if not isinstance(value, Iterable):
        raise InvalidHandler(f"handlers is a list of callables, such as [handler], not {value!r:.200}")
    handlers = tuple(value)
    for handler in handlers:
        if not callable(handler):
            raise InvalidHandler(f"a handler is called with each event; {handler!r:.200} is not callable, give a function or an object with __call__")
    return handlers


def _ladder(value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidOption(f"ladder is a sequence of rungs, such as ('clip', 'window'), not {value!r:.200}")
    for rung in value:
        if rung not in RUNGS:
            raise InvalidOption(f"a rung of the ladder is one of {', '.join(map(repr, RUNGS))}, not {rung!r:.200}")
    return tuple(value)


def _registry(value: ToolRegistry | Iterable[Any] | None) -> ToolRegistry:
    return value if isinstance(value, ToolRegistry) else ToolRegistry(value or ())


def _bound(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int or value < 1:
        raise InvalidOption(f"{attribute.name} is a whole number of at least 1, not {value!r:.200}")


def _name(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidOption(f"name is text, by which sessions find their agent again, not {value!r:.200}")


def _resume(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in ("continue", "fail"):
        raise InvalidOption(f"resume is 'continue' or 'fail', not {value!r:.200}")


def _limits(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Limits):
        raise InvalidOption(f"limits is a Limits, such as Limits(cycles=10), not {value!r:.200}")


def _text(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise InvalidOption(f"{attribute.name} is text, not {value!r:.200}")


@attrs.frozen(eq=False, kw_only=True)
class AgentSpec:
    """What an agent is: its model, tools, prompt, and how its history is kept. Sessions find theirs again by `name`.

    :param model: an object that keeps the `Model` protocol; None takes what ``$ROPEWALK_MODEL`` names. Raises `NoModel`.
    :param tools: functions decorated with `tool`, and `Tool` objects.
    :param conversation_manager: how the view is kept small; None is `SlidingWindowConversationManager()`.
    :param handlers: called in line with every event of every session of this spec.
    :param limits: how far a turn may go.
    :param when_busy: what a prompt does that finds a turn running.
    :param mailbox: how many prompts may wait in a session.
    :param model_concurrency: how many of this spec's sessions may call the model at once in a runtime; None is no bound.
    :param ladder: what is tried, in order, when the model refuses the size of a conversation and the manager did not help.
    :param context: the live object tools get when a prompt brings none.
    :param resume: what becomes of a turn whose process died and that the session owns: ``"continue"`` from its last record, or ``"fail"``.
    """

    name: str = attrs.field(default="agent", validator=_name)
    model: Model = attrs.field(default=None, converter=resolve)
    tools: ToolRegistry = attrs.field(factory=ToolRegistry, converter=_registry)
    system_prompt: str | None = attrs.field(default=None, validator=_text)
    conversation_manager: ConversationManager = attrs.field(default=None, converter=_manager)
    handlers: tuple[Callable[[Any], Any], ...] = attrs.field(default=(), converter=_handlers)
    limits: Limits = attrs.field(factory=Limits, validator=_limits)
    when_busy: WhenBusy = attrs.field(default="queue", converter=check_when_busy)
    mailbox: int = attrs.field(default=64, validator=_bound)
    model_concurrency: int | None = attrs.field(default=None, validator=attrs.validators.optional(_bound))
    ladder: tuple[str, ...] = attrs.field(default=("clip", "drop_bodies", "window", "digest"), converter=_ladder)
    context: Any = None
    resume: Resume = attrs.field(default="continue", validator=_resume)

    async def activate(self, cell: Cell, *, create: bool, **seed: Any) -> Actor:
        """Make a session's incarnation from its journal; see `ActorKind.activate`. `seed` may be ``messages=[...]``."""
        from ropewalk.actors.session.activation import activate

        return await activate(self, cell, create=create, **seed)

    @property
    def codec(self) -> Codec:
        """How a session's records are kept outside this process."""
        from ropewalk.actors.session.codec import RECORDS

        return RECORDS

    def handle(self, cell: Cell) -> Session:
        """The session's face."""
        from ropewalk.actors.session.handle import Session

        return Session(cell)

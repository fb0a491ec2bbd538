"""What every event has, and the events any actor may publish."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import msgspec

__all__ = ["Event", "Gap", "HandlerFailed", "SessionPassivated", "StepRestarted"]


DEPTH = 100
"""How deep what cannot be shown whole is shown."""


class Event(msgspec.Struct, frozen=True, tag_field="type", tag=True, gc=False):
    """A typed record of something that happened in a session.

    `session_id` says where, `at` when (seconds since 1970), `seq` counts the session's events from 1 without a gap in each
    `epoch` (activation). Inside a turn `turn_id` names it and `request_state` is the turn's own dict, the very object that
    handlers and tools change; outside both are None.

    Events are msgspec structs because one is built for every delta: a tenth of a microsecond here, five for an attrs class
    with validation. They take no part in cyclic garbage collection: nothing an event holds may point back at it.
    """

    session_id: str
    epoch: int
    seq: int
    at: float
    turn_id: str | None
    request_state: dict[str, Any] | None

    droppable: ClassVar[bool] = False
    """Whether a reader that cannot keep up may lose this event (deltas and raw chunks only)."""
    numbered: ClassVar[bool] = True
    """Whether the event takes a number of its own; one that does not is built only for those who name its kind."""

    @property
    def cursor(self) -> str:
        """Where a late reader goes on after this event: ``subscribe(after=event.cursor)``."""
        return f"{self.epoch}:{self.seq}"

    def joined(self, later: Event) -> Self | None:
        """This event and the one right after it as one, None when they do not join."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """The event as JSON values, its kind under ``"type"``; bytes become base64 text, what JSON cannot hold becomes the name of its type.

        So does a dict or list that holds itself, as handlers may make of a request state, or lies deeper than a hundred levels.
        """
        try:
            return msgspec.to_builtins(self, enc_hook=_named)  # type: ignore[no-any-return]
        except RecursionError:
            fields = {name: _cut(value, ()) for name, value in msgspec.structs.asdict(self).items()}
            return msgspec.to_builtins({"type": type(self).__struct_config__.tag, **fields}, enc_hook=_named)  # type: ignore[no-any-return]


def _cut(value: Any, around: tuple[int, ...]) -> Any:
    """JSON data with its name in place of each container that holds itself or lies too deep."""
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) in around or len(around) == DEPTH:
        return _named(value)
    around = (*around, id(value))
    return {key: _cut(item, around) for key, item in value.items()} if isinstance(value, dict) else [_cut(item, around) for item in value]


def _named(value: Any) -> str:
    return f"<<non-serializable: {type(value).__name__}>>"


class Gap(Event, frozen=True, gc=False):
    """Events a slow reader did not get, put where they are missing. `dropped` is how many; `seq` is the last one lost."""

    dropped: int

    numbered: ClassVar[bool] = False


class HandlerFailed(Event, frozen=True, gc=False):
    """A handler raised or overran its timeout. `handler` is its name, `error` the type of what it raised; never the text, which may hold secrets."""

    handler: str
    error: str
    kind: str
    """The kind of the event it was given."""


class SessionPassivated(Event, frozen=True, gc=False):
    """A session was let go from memory; its next message brings it back."""


class StepRestarted(Event, frozen=True, gc=False):
    """A supervised step (a reduction, a model call) failed and is tried again. `attempt` counts from 2; `error` is a type's name."""

    step: str
    attempt: int
    error: str

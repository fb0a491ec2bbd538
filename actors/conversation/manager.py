"""Conversation managers: a spec's own policy for keeping the view small, and how a user's policy is run without trusting it.

The shipped policies are data for plain functions and run in line. A manager of the user's own gets a draft of copies, in
a worker thread when it is not async; what it leaves in the draft becomes a list of messages again, in which everything it
did not touch is the original object. Whether that list is any good is for the caller to check.
"""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeAlias

import attrs

from ropewalk.actors.conversation.exchanges import has_words, slide, window
from ropewalk.actors.conversation.rungs import clip
from ropewalk.actors.conversation.tokens import estimate, estimate_all
from ropewalk.actors.errors import InvalidConversation
from ropewalk.actors.messages import Message, tool_results
from ropewalk.actors.validity import copied, is_dict, is_list
from ropewalk.runtime.errors import InvalidOption

__all__ = [
    "ConversationManager",
    "Draft",
    "NullConversationManager",
    "RunSync",
    "SlidingWindowConversationManager",
    "Step",
    "has_policy",
    "overrides_any",
    "policy_of",
    "run_custom",
]

RunSync: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]
Step: TypeAlias = Literal["apply", "reduce"]


class ConversationManager:
    """The base of managers: override one method or both, sync or async, and change the list of messages in place.

    The list holds copies. What is left in it replaces the view if it is a valid conversation, and at overflow if it also
    keeps the running prompt and open calls and is smaller; otherwise the view stays as it was. A manager written as
    ``(agent, **kwargs)`` and ``(agent, e=None, **kwargs)`` gets a `Draft` in place of the list.
    """

    def apply_management(self, messages: Any, /) -> Awaitable[None] | None:
        """Called after each turn. Does nothing unless overridden."""
        return None

    def reduce_context(self, messages: Any, /, e: Exception | None = None) -> Awaitable[None] | None:
        """Called when the messages do not fit the model's context; `e` says how that was noticed. Does nothing unless overridden."""
        return None


class NullConversationManager(ConversationManager):
    """Reduces nothing, and has no ladder: a turn whose messages do not fit ends ``context_overflow``."""


class SlidingWindowConversationManager(ConversationManager):
    """Keeps the newest messages, at most `window_size` of them, from the start of an exchange on; the default.

    At overflow it first clips long tool results, if `should_truncate_results`, then drops the oldest exchanges. Raises
    `InvalidOption` for a `window_size` that is not a whole number from 0 on.
    """

    window_size: int = 40
    should_truncate_results: bool = True

    def __init__(self, window_size: int = 40, should_truncate_results: bool = True) -> None:
        if type(window_size) is not int or window_size < 0:
            raise InvalidOption(f"window_size is {window_size!r}; it is a number of messages, a whole number from 0 on")
        if type(should_truncate_results) is not bool:
            raise InvalidOption(f"should_truncate_results is {should_truncate_results!r}; it is True or False")
        self.window_size = window_size
        self.should_truncate_results = should_truncate_results

    def apply_management(self, messages: Any, /, **kwargs: Any) -> Awaitable[None] | None:
        """Slide the window over a list, or a `Draft`, in place."""
        listed = _listed(messages)
        listed[:] = slide(listed, self.window_size)
        return None

    def reduce_context(self, messages: Any, /, e: Exception | None = None, **kwargs: Any) -> Awaitable[None] | None:
        """Bring a list, or a `Draft`, to half its tokens in place, as far as its last prompt and unread tool results let it."""
        listed = _listed(messages)
        target = estimate_all(listed) // 2
        if self.should_truncate_results:
            listed[:] = clip(listed, _unread(listed), target, estimate)
        listed[:] = window(listed, _unread(listed), target, estimate)
        return None


@attrs.define
class Draft:
    """What a manager written for an agent gets in its place: copies of the messages, to change in place or replace."""

    messages: list[Message]
    system_prompt: str | None


def policy_of(manager: ConversationManager, step: Step) -> Literal["none", "window", "custom"]:
    """Whose method a manager has for a step: the base's, which does nothing, the shipped window's, or its own."""
    name = _METHODS[step]
    method = getattr(manager, name)
    function = getattr(method, "__func__", method)
    if function is getattr(ConversationManager, name):
        return "none"
    return "window" if function is getattr(SlidingWindowConversationManager, name) else "custom"


def overrides_any(manager: ConversationManager) -> bool:
    """Whether a manager has a method of its own for any step."""
    return any(policy_of(manager, step) != "none" for step in _METHODS)


def has_policy(manager: ConversationManager, count: int) -> bool:
    """Whether a manager has anything to say of `count` messages after a turn; asked after every turn, so it costs next to nothing."""
    policy = policy_of(manager, "apply")
    return policy == "custom" or (isinstance(manager, SlidingWindowConversationManager) and count > manager.window_size)


async def run_custom(
    manager: ConversationManager, step: Step, messages: Sequence[Message], *, system_prompt: str | None, error: Exception | None, run_sync: RunSync
) -> list[Message]:
    """What a manager of the user's own makes of these messages.

    `run_sync` runs a plain function in a worker thread and returns an awaitable of its result. Messages the manager kept
    as they were are the original objects in the result; others are copies that it has no hold on. Raises whatever the
    manager raises, and `InvalidConversation` when it leaves something other than a list of dicts.
    """
    copies = copied(messages)
    draft = Draft(list(copies), system_prompt)
    method = getattr(manager, _METHODS[step])
    left = draft.messages
    parameters = list(inspect.signature(method).parameters.values())
    wants_agent = _wants_agent(parameters)
    call = functools.partial(method, draft if wants_agent else left)
    if step == "reduce":
        call = _with_error(call, parameters, error)
    outcome = call() if _is_async(method) else await run_sync(call)
    if inspect.isawaitable(outcome):
        await outcome
    return _recognised(draft.messages if wants_agent else left, copies, messages)


_METHODS: dict[Step, str] = {"apply": "apply_management", "reduce": "reduce_context"}


def _listed(messages: Any) -> list[Message]:
    listed: list[Message] = messages if is_list(messages) else messages.messages
    return listed


def _unread(messages: list[Message]) -> frozenset[int]:
    """The last prompt, and the last calls with their results when the model has not answered those."""
    prompts = (index for index in range(len(messages) - 1, -1, -1) if has_words(messages[index]))
    unread = {*range(len(messages) - 2, len(messages))} if messages and tool_results(messages[-1]) else set[int]()
    return frozenset(unread.union([index] if (index := next(prompts, None)) is not None else []))


def _is_async(method: Any) -> bool:
    return inspect.iscoroutinefunction(method) or inspect.iscoroutinefunction(getattr(method, "__call__", None))  # noqa: B004  # not whether, but how it can be called


def _wants_agent(parameters: list[inspect.Parameter]) -> bool:
    """Whether a method is written for an agent: it says so, or takes keywords and does not call its first argument messages."""
    first = next((parameter.name for parameter in parameters if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)), None)
    return first == "agent" or (first not in (None, "messages") and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters))


def _with_error(call: functools.partial[Any], parameters: list[inspect.Parameter], error: Exception | None) -> functools.partial[Any]:
    """The call with the error in the place its method has for one: ``e``, any keyword, a second argument, or none."""
    kinds = {parameter.kind for parameter in parameters}
    named = any(parameter.name == "e" and parameter.kind is not parameter.POSITIONAL_ONLY for parameter in parameters)
    if named or inspect.Parameter.VAR_KEYWORD in kinds:
        return functools.partial(call, e=error)
    positional = [parameter for parameter in parameters if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)]
    return functools.partial(call, error) if len(positional) > 1 or inspect.Parameter.VAR_POSITIONAL in kinds else call


def _recognised(left: Any, copies: list[Message], originals: Sequence[Message]) -> list[Message]:
    """What a manager left, with each unchanged copy, or copy of a copy, once in place of its original, the rest copied."""
    if not is_list(left) or not all(map(is_dict, left)):
        raise InvalidConversation(f"a conversation manager left something other than a list of messages: {type(left).__name__}")
    places = {id(copy): index for index, copy in enumerate(copies)}
    fresh = copied(left)
    found: list[Message | None] = []
    for item, new in zip(left, fresh, strict=True):
        place = places.pop(id(item), None)
        found.append(None if place is None or new != originals[place] else originals[place])
    if any(original is None for original in found) and places:
        _recognise_equals(found, fresh, [originals[place] for place in places.values()])
    return [original if original is not None else new for original, new in zip(found, fresh, strict=True)]


def _recognise_equals(found: list[Message | None], fresh: list[Message], unused: list[Message]) -> None:
    """Fill the gaps in `found` with originals not yet used that say the same, in order."""
    same: defaultdict[str, list[Message]] = defaultdict(list)
    for original in reversed(unused):
        same[repr(original)].append(original)
    for index, new in enumerate(fresh):
        if found[index] is None and (candidates := same.get(repr(new))):
            found[index] = candidates.pop()

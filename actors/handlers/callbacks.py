"""Typed events as the keyword events of Strands-style callbacks: the one place where anything here speaks keywords.

`CallbackAdapter` is pure: events in, dicts out. `TurnCallbacks` calls a user's handler with them, in line with the turn. A
dict holds what the event says under keys of ours; a user's own keys stand inside ``request_state`` and nowhere else, so
they can replace nothing. Request state comes with deltas only, as users of that SDK know it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from ropewalk.actors.errors import TurnFailed
from ropewalk.actors.events import (
    CycleStarted,
    Event,
    MessageAdded,
    ModelChunk,
    ModelRetry,
    ReasoningDelta,
    ReductionEnded,
    ReductionStarted,
    TextDelta,
    ToolInputDelta,
    ToolProgress,
    TurnEnded,
    TurnStarted,
)
from ropewalk.actors.messages import Message
from ropewalk.actors.result import AgentResult
from ropewalk.actors.validity import copied, is_dict

__all__ = ["CALLBACK_KINDS", "CallbackAdapter", "Keywords", "TurnCallbacks", "ending"]

Keywords: TypeAlias = dict[str, Any]
Ending: TypeAlias = AgentResult | BaseException
"""What a turn came to: its result, or what failed it."""


def ending(outcome: Ending) -> Keywords:
    """The last dict of a turn: its ``result``, or ``force_stop`` with the text of what failed it."""
    if isinstance(outcome, AgentResult):
        return {"result": outcome}
    while isinstance(outcome, TurnFailed) and outcome.__cause__ is not None:
        outcome = outcome.__cause__
    return _stopped(str(outcome) or type(outcome).__name__)


class CallbackAdapter:
    """The dicts that the events of one session make, turn by turn. `unfinished` says whether the last turn still lacks its end."""

    __slots__ = ("_answering", "_inputs", "unfinished")

    def __init__(self) -> None:
        self._answering = False
        self._inputs: dict[str, str] = {}
        self.unfinished = False

    def feed(self, event: Event) -> Sequence[Keywords]:
        """The dicts of one event, in order; none for most kinds. How a turn ended is not in its last event: see `ending`."""
        make = _DICTS.get(type(event))
        return () if make is None else make(self, event)

    def _turn_started(self, event: TurnStarted) -> Sequence[Keywords]:
        self._answering = False
        self._inputs.clear()
        self.unfinished = True
        return ({"init_event_loop": True},)

    def _turn_ended(self, event: TurnEnded) -> Sequence[Keywords]:
        self.unfinished = False
        return ()

    def _cycle_started(self, event: CycleStarted) -> Sequence[Keywords]:
        self._answering = True
        # One more start between two cycles: the SDK's loop calls itself there, and its users have seen both.
        again = () if event.cycle == 1 else ({"start": True},)
        return (*again, *_started())

    def _chunk(self, event: ModelChunk) -> Sequence[Keywords]:
        raw: Keywords = {"event": event.chunk}
        said = _said_beside_text(event.chunk)
        return (raw,) if said is None else (raw, {**said, "request_state": event.request_state})

    def _text(self, event: TextDelta) -> Sequence[Keywords]:
        return ({"data": event.text, "delta": {"text": event.text}, "request_state": event.request_state},)

    def _reasoning(self, event: ReasoningDelta) -> Sequence[Keywords]:
        delta = {"reasoningContent": {"text": event.text}}
        return ({"reasoningText": event.text, "delta": delta, "reasoning": True, "request_state": event.request_state},)

    def _tool_input(self, event: ToolInputDelta) -> Sequence[Keywords]:
        so_far = self._inputs[event.tool_use_id] = self._inputs.get(event.tool_use_id, "") + event.text
        current = {"toolUseId": event.tool_use_id, "name": event.name, "input": so_far}
        delta = {"toolUse": {"input": event.text}}
        return ({"type": "tool_use_stream", "delta": delta, "current_tool_use": current, "request_state": event.request_state},)

    def _progress(self, event: ToolProgress) -> Sequence[Keywords]:
        return ({"type": "tool_stream", "tool_stream_event": {"tool_use": _own(event.tool_use), "data": event.data}},)

    def _message(self, event: MessageAdded) -> Sequence[Keywords]:
        # What the turn begins with is the caller's own prompt.
        return ({"message": _own(event.message)},) if self._answering else ()

    def _retry(self, event: ModelRetry) -> Sequence[Keywords]:
        return ({"event_loop_throttled_delay": event.delay},)

    def _reducing(self, event: ReductionStarted) -> Sequence[Keywords]:
        return (_stopped(f"the conversation does not fit the model's context window ({event.reason}, about {event.tokens_before} tokens)"),)

    def _reduced(self, event: ReductionEnded) -> Sequence[Keywords]:
        return _started() if event.rung is not None else ()


_DICTS: dict[type[Event], Callable[[CallbackAdapter, Any], Sequence[Keywords]]] = {
    TurnStarted: CallbackAdapter._turn_started,
    CycleStarted: CallbackAdapter._cycle_started,
    ModelChunk: CallbackAdapter._chunk,
    TextDelta: CallbackAdapter._text,
    ReasoningDelta: CallbackAdapter._reasoning,
    ToolInputDelta: CallbackAdapter._tool_input,
    ToolProgress: CallbackAdapter._progress,
    MessageAdded: CallbackAdapter._message,
    ModelRetry: CallbackAdapter._retry,
    ReductionStarted: CallbackAdapter._reducing,
    ReductionEnded: CallbackAdapter._reduced,
    TurnEnded: CallbackAdapter._turn_ended,
}

CALLBACK_KINDS: frozenset[type[Event]] = frozenset(_DICTS)
"""The kinds of event that make dicts."""


class TurnCallbacks:
    """Calls a Strands-style callback for the events it is called with: a handler of events, for one session.

    :param callback: called with keywords; what it returns is awaited if it can be.
    :param outcome: gives what the turn that is just ending came to.
    """

    def __init__(self, callback: Callable[..., Any], outcome: Callable[[], Ending | None]) -> None:
        self.__qualname__ = getattr(callback, "__qualname__", None) or type(callback).__qualname__  # what a failure is reported under
        self._adapter = CallbackAdapter()
        self._callback = callback
        self._outcome = outcome

    def __call__(self, event: Event) -> Awaitable[None] | None:
        """Call the callback with what the event makes; what comes back, if anything, is to be awaited."""
        made = self._adapter.feed(event)
        if type(event) is TurnEnded:
            outcome = self._outcome()
            made = () if outcome is None else (ending(outcome),)
        return self._tell(made) if made else None

    def broke_off(self, error: BaseException) -> Awaitable[None] | None:
        """Tell of a turn that will publish no end any more, because its journal or its runtime failed."""
        if not self._adapter.unfinished:
            return None
        self._adapter.unfinished = False
        return self._tell((ending(error),))

    def _tell(self, made: Sequence[Keywords]) -> Awaitable[None] | None:
        for place, keywords in enumerate(made):
            result = self._callback(**keywords)
            if result is not None and inspect.isawaitable(result):
                return self._tell_rest(result, made[place + 1 :])
        return None

    async def _tell_rest(self, result: Awaitable[Any], made: Sequence[Keywords]) -> None:
        await result
        rest = self._tell(made)
        if rest is not None:
            await rest


def _started() -> tuple[Keywords, ...]:
    return ({"start": True}, {"start_event_loop": True})


def _stopped(reason: str) -> Keywords:
    return {"force_stop": True, "force_stop_reason": reason}


def _own(message: Message) -> Message:
    """A copy for somebody who may change it."""
    [own] = copied([message])
    return own


def _said_beside_text(chunk: Any) -> Keywords | None:
    """What a raw chunk says that no typed delta does: signatures, redacted reasoning, citations."""
    delta = _inside(_inside(chunk, "contentBlockDelta"), "delta")
    if "citation" in delta:
        return {"citation": delta["citation"], "delta": delta}
    reasoning = _inside(delta, "reasoningContent")
    for key, name in (("signature", "reasoning_signature"), ("redactedContent", "reasoningRedactedContent")):
        if key in reasoning:
            return {name: reasoning[key], "delta": delta, "reasoning": True}
    return None


def _inside(value: Any, key: str) -> dict[str, Any]:
    inner = value.get(key) if is_dict(value) else None
    return inner if is_dict(inner) else {}

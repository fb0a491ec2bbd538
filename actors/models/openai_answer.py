"""A streamed chat completion, turned into Converse chunks.

Pure: fed the chunks of a ``chat.completion.chunk`` stream as dicts, an `Answer` gives what a model's `stream` yields.

Converse blocks come one after the other, while a server may stream several tool calls at once. So one call at a time is
*open* and handed on as it comes, and what the others get waits. The open call is closed when another has something to say
and its own input is one complete JSON object: then nothing can follow. As servers that stream one call after the other
are the rule, little ever waits, and the calls always come out in the order of their indexes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from ropewalk.actors.errors import ModelError, ModelThrottled
from ropewalk.actors.models.openai_errors import stream_error
from ropewalk.runtime.supervision import contain

__all__ = ["Answer"]

T = TypeVar("T")
Chunk: TypeAlias = dict[str, Any]
Said: TypeAlias = tuple[Literal["text", "reasoning"], str]

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "content_filtered",
}
"""What servers say of how an answer ended, as a Converse stop reason; anything else they say is an end like any other."""

FAILED = ("error", "abort")
OVERLOADED = "insufficient_system_resource"
"""Finish reasons that say an answer was given up, so that half of it is not taken for a whole one."""


class Call:
    """A tool call being streamed: what the server calls it, and its input so far. `begun` once its block was opened."""

    __slots__ = ("begun", "id", "index", "name", "parts")

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = ""
        self.name = ""
        self.parts: list[str] = []
        self.begun = False

    @property
    def is_complete(self) -> bool:
        """Whether its input is one JSON object, after which nothing can come."""
        text = "".join(self.parts)
        return text.rstrip().endswith("}") and isinstance(contain(msgspec.json.decode, text), dict)


class Answer:
    """One answer being streamed.

    `feed` takes a chunk and gives the Converse chunks it comes to; `finish`, called once at the stream's end, gives the rest.
    Both raise `ModelError` for what is no answer; a server's error in the middle of the stream is raised as the error it is.

    :param model: the model's name, for the texts of errors.
    """

    __slots__ = ("_calls", "_closed", "_held", "_latest", "_model", "_open", "_reason", "_started", "_usage")

    def __init__(self, model: str) -> None:
        self._model = model
        self._started = False
        self._open: Call | Literal["text", "reasoning"] | None = None
        self._calls: list[Call] = []  # those not closed yet, in the order they came
        self._closed: list[Call] = []
        self._latest: Call | None = None
        self._held: list[Said] = []  # said while a call's input was incomplete
        self._reason: str | None = None
        self._usage: dict[str, int] | None = None

    def feed(self, chunk: Any) -> list[Chunk]:
        """What a chunk of the server's comes to."""
        _of("a chunk of a chat completion", dict, chunk)
        if chunk.get("error") or chunk.get("object") == "error":
            raise stream_error(chunk, model=self._model)
        self._account(chunk)
        made: list[Chunk] = []
        if not self._started:
            self._started = True
            made.append({"messageStart": {"role": "assistant"}})
        for choice in _of("choices", list, chunk.get("choices") or []):
            _of("a choice", dict, choice)
            if not choice.get("index"):  # a second answer would need a second message
                made += self._choice(choice)
        return made

    def finish(self) -> list[Chunk]:
        """What is left to say at the stream's end. Raises `ModelError` when the server never said that the answer is complete."""
        if self._reason is None:
            raise ModelError(f"{self._model}: the server's stream ended without a finish reason, so the answer may be incomplete")
        if self._reason == OVERLOADED:
            raise ModelThrottled(f"{self._model}: the server gave the answer up for want of resources (finish reason {self._reason!r})")
        if self._reason in FAILED:
            raise ModelError(f"{self._model}: the server gave the answer up in the middle (finish reason {self._reason!r}); try again")
        stop_reason = STOP_REASONS.get(self._reason, "end_turn")
        made = [*self._last_blocks(cut=stop_reason in ("max_tokens", "content_filtered"))]
        if stop_reason in ("end_turn", "tool_use"):
            stop_reason = "tool_use" if self._closed else "end_turn"
        made.append({"messageStop": {"stopReason": stop_reason}})
        if self._usage is not None:
            made.append({"metadata": {"usage": self._usage}})
        return made

    # What a chunk says.

    def _choice(self, choice: dict[str, Any]) -> Iterator[Chunk]:
        # An answer that was not streamed after all has its message in one.
        delta = _of("delta", dict, (choice["delta"] if "delta" in choice else choice.get("message")) or {})
        for said in _said(delta):
            yield from self._say(said)
        for part in _of("tool_calls", list, delta.get("tool_calls") or []):
            yield from self._call(_of("a tool call", dict, part))
        if delta.get("function_call"):  # what tool calls were called before there could be several
            yield from self._call({"index": 0, "function": delta["function_call"]})
        if choice.get("finish_reason"):
            self._reason = _of("finish_reason", str, choice["finish_reason"])

    def _say(self, said: Said) -> Iterator[Chunk]:
        kind, text = said
        if isinstance(self._open, Call):
            if not self._open.is_complete:
                self._held.append(said)
                return
            yield from self._close_call(self._open)
        if self._open is not None and self._open != kind:
            yield self._close()
        self._open = kind
        yield {"contentBlockDelta": {"delta": {"text": text} if kind == "text" else {"reasoningContent": {"text": text}}}}

    def _call(self, part: dict[str, Any]) -> Iterator[Chunk]:
        function = _of("function", dict, part.get("function") or {})
        call = self._latest = self._called(part, function)
        call.id = call.id or _text("the id of a tool call", part.get("id"))
        name = _text("the name of a tool", function.get("name"))
        if name != call.name and not call.begun:
            call.name += name  # some send a name in pieces, some send all of it with every piece of the input
        text = _input(function.get("arguments"))
        if call in self._closed:
            if text.strip() and text != "".join(call.parts):
                raise ModelError(f"{self._model}: the server went on with the input of a call to {call.name!r} after another call, and after it was complete")
            return
        call.parts.append(text)
        yield from self._hand_on(call, text)

    def _called(self, part: dict[str, Any], function: dict[str, Any]) -> Call:
        """The call that a part belongs to, by its index, else by its id, else the latest; a new one if it begins one."""
        index, given_id, latest = part.get("index"), part.get("id"), self._latest
        if index is not None:
            index = _of("the index of a tool call", int, index)
            known = [call for call in (*self._closed, *self._calls) if call.index == index]
        elif given_id:
            known = [call for call in (*self._closed, *self._calls) if call.id == given_id]
        else:
            known = [latest] if latest is not None else []
        if known and not _begins_another(known[-1], given_id, index, function):
            return known[-1]
        if index is None:
            index = max((call.index for call in (*self._closed, *self._calls)), default=-1) + 1
        call = Call(index)
        self._calls.append(call)
        return call

    # Blocks, one after the other.

    def _hand_on(self, call: Call, text: str) -> Iterator[Chunk]:
        """Stream a call's new input if its turn has come; else it waits among `_calls`."""
        if self._open is call:
            if text:
                yield _input_delta(text)
            return
        while self._calls:
            if isinstance(self._open, Call):
                if len(self._calls) == 1 or not self._open.is_complete:
                    return
                yield from self._close_call(self._open)
            following = min(self._calls, key=_order)
            if not self._may_begin(following):
                return
            yield from self._begin(following)

    def _may_begin(self, call: Call) -> bool:
        """Whether its name is all there, which its input shows, and no call with a lower index can come any more."""
        highest = max((closed.index for closed in self._closed), default=-1)
        return bool(call.name) and any(call.parts) and call.index <= highest + 1

    def _begin(self, call: Call) -> Iterator[Chunk]:
        if self._open is not None:
            yield self._close()
        self._open = call
        call.begun = True
        yield {"contentBlockStart": {"start": {"toolUse": {"toolUseId": call.id, "name": call.name}}}}
        if text := "".join(call.parts):
            yield _input_delta(text)

    def _close(self) -> Chunk:
        self._open = None
        return {"contentBlockStop": {}}

    def _close_call(self, call: Call) -> Iterator[Chunk]:
        """End the open call's block, and say what was held because of it."""
        self._calls.remove(call)
        self._closed.append(call)
        yield self._close()
        held, self._held = self._held, []
        for said in held:
            yield from self._say(said)

    def _last_blocks(self, cut: bool) -> Iterator[Chunk]:
        """The blocks that are left. Where the answer was `cut` off, a call whose input is incomplete is none: it stays open, or unsaid."""
        if isinstance(self._open, Call):
            if cut and not self._open.is_complete:
                self._calls.remove(self._open)
                self._open = None
            else:
                yield from self._close_call(self._open)
        held, self._held = self._held, []
        for said in held:
            yield from self._say(said)
        for call in sorted(self._calls, key=_order):
            if call.is_complete or not cut:
                if not call.name:
                    raise ModelError(f"{self._model}: the server streamed a tool call that names no tool")
                yield from self._begin(call)
                yield from self._close_call(call)
        if self._open is not None:
            yield self._close()

    def _account(self, chunk: dict[str, Any]) -> None:
        """Usage comes last, or with every chunk, each a total so far. What is no count is none: accounts are not worth an answer."""
        usage = chunk.get("usage")
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else usage.get("prompt_cache_hit_tokens")
        counts = {
            "inputTokens": usage.get("prompt_tokens"),
            "outputTokens": usage.get("completion_tokens"),
            "totalTokens": usage.get("total_tokens"),
            "cacheReadInputTokens": cached,
        }
        self._usage = {name: count for name, count in counts.items() if type(count) is int and count >= 0} or self._usage


def _said(delta: Mapping[str, Any]) -> Iterator[Said]:
    """What a delta says: reasoning before text, as they come in an answer."""
    reasoning = delta.get("reasoning_content") or delta.get("reasoning")  # two names of one thing; some servers send both
    if isinstance(reasoning, str) and reasoning:
        yield "reasoning", reasoning
    content = delta.get("content")
    if isinstance(content, list):
        for part in content:
            yield from _part(_of("a part of the content", dict, part))
    elif text := _text("content", content):
        yield "text", text
    if refusal := _text("refusal", delta.get("refusal")):
        yield "text", refusal


def _part(part: dict[str, Any]) -> Iterator[Said]:
    """A part of content that comes as a list, as reasoning models of some servers stream it."""
    if part.get("type") == "thinking":
        thinking = part.get("thinking") or []
        for inner in [{"text": thinking}] if isinstance(thinking, str) else _of("thinking", list, thinking):
            if text := _text("the text of reasoning", _of("a part of reasoning", dict, inner).get("text")):
                yield "reasoning", text
    elif text := _text("the text of a part", part.get("text")):
        yield "text", text


def _begins_another(call: Call, given_id: object, index: int | None, function: Mapping[str, Any]) -> bool:
    """Whether a part that seems to go on with a call begins a new one: servers that give all calls one index, or none, leave it to be seen."""
    name = function.get("name")
    if not name or (given_id and given_id == call.id):
        return False  # some give every piece of one call an id of its own, but none of them a name
    if given_id and call.id:
        return call.is_complete or not any(call.parts)
    if name == call.name:
        return index is None and call.is_complete and bool(_input(function.get("arguments")).strip())
    return any(call.parts)


def _order(call: Call) -> int:
    return call.index


def _input(arguments: object) -> str:
    """A piece of a call's input as text; some servers send the whole of it as an object."""
    return json.dumps(arguments) if isinstance(arguments, dict) else _text("the arguments of a tool call", arguments)


def _input_delta(text: str) -> Chunk:
    return {"contentBlockDelta": {"delta": {"toolUse": {"input": text}}}}


def _text(what: str, value: object) -> str:
    return "" if value is None else _of(what, str, value)


def _of(what: str, kind: type[T], value: object) -> T:
    """The value, if it is of this kind; raises `ModelError` otherwise."""
    if isinstance(value, kind):
        return value
    raise ModelError(f"the server's stream is malformed: {what} is of type {type(value).__name__}, not {kind.__name__}")

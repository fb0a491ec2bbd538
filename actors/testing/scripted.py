"""A model that plays a script: what tests and examples talk to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import anyio
import attrs

from ropewalk.actors.errors import ModelError
from ropewalk.actors.messages import Message
from ropewalk.runtime.errors import InvalidOption

__all__ = ["Reply", "Request", "Script", "ScriptedModel", "ToolUse"]


@attrs.frozen
class ToolUse:
    """A call the scripted model makes. `input` may be a string: it is streamed as it stands, so it need not be JSON."""

    name: str
    input: dict[str, Any] | str = attrs.field(factory=dict[str, Any])
    id: str | None = None


@attrs.frozen(kw_only=True)
class Reply:
    """One answer of the scripted model.

    :param text: the text; a sequence of strings is streamed piece by piece as it stands.
    :param reasoning: streamed before the text, unsigned.
    :param tool_uses: calls, streamed after the text.
    :param usage: token counts as ``{"inputTokens": ..., "outputTokens": ...}``; None is one token for each piece.
    :param delay: seconds before the first chunk; `pace`: seconds between chunks.
    :param stop_reason: None is ``tool_use`` where there are calls, else ``end_turn``.
    :param error: raised after everything else was streamed: a model that dies in mid-answer.
    """

    text: str | Sequence[str] = ""
    reasoning: str = ""
    tool_uses: Sequence[ToolUse] = ()
    usage: dict[str, int] | None = None
    delay: float = 0.0
    pace: float = 0.0
    stop_reason: str | None = None
    error: Exception | None = None


Script: TypeAlias = str | Reply | Exception | Callable[[Sequence[Message]], Any]
"""One step of a script: text, a `Reply`, an exception to raise, or a function of the messages that gives one of these."""


@attrs.frozen
class Request:
    """What the model was called with."""

    messages: tuple[Message, ...]
    system_prompt: str | None
    tool_specs: tuple[dict[str, Any], ...]


class ScriptedModel:
    """Plays one step of its script for each call, in the order of the calls.

    :param replies: the script, an iterable of steps; a function is asked for every call.
    :param chunks: into how many pieces a text is cut; None cuts it into words.
    :param context_window: what the model says its window is, in tokens.
    :param remember: how many requests `requests` keeps, newest last; 0 keeps none.

    A call that finds the script at its end raises `ModelError`, which fails the turn and says so.
    """

    def __init__(
        self,
        replies: Iterable[Script] | Callable[[Sequence[Message]], Any] = (),
        *,
        chunks: int | None = None,
        context_window: int | None = None,
        remember: int = 1000,
    ) -> None:
        if isinstance(replies, str | Reply | Exception):
            raise InvalidOption(f"a script is a list of replies, such as [{replies!r}], or a function of the messages")
        if chunks is not None and (type(chunks) is not int or chunks < 1):
            raise InvalidOption(f"chunks is a whole number of at least 1, or None to cut into words, not {chunks!r}")
        self.context_window = context_window
        self.requests: list[Request] = []
        self._chunks = chunks
        self._remember = remember
        self._calls = 0
        self._steps: Callable[[Sequence[Message]], Any] | None = None
        self._script: Iterator[Script] = iter(())
        if callable(replies):
            self._steps = replies
        else:
            self._script = iter(replies)

    @property
    def calls(self) -> int:
        """How often the model was called."""
        return self._calls

    async def stream(
        self, messages: Sequence[Message], *, system_prompt: str | None = None, tool_specs: Sequence[dict[str, Any]] = (), **options: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Play the next step; see `Model.stream`."""
        self._calls += 1
        if self._remember:
            self.requests.append(Request(tuple(messages), system_prompt, tuple(tool_specs)))
            del self.requests[: -self._remember]
        reply = self._next(messages)
        await anyio.sleep(reply.delay)
        for chunk in self._play(reply):
            if reply.pace:
                await anyio.sleep(reply.pace)
            yield chunk
        if reply.error is not None:
            raise reply.error

    def _next(self, messages: Sequence[Message]) -> Reply:
        step: Any
        if self._steps is not None:
            step = self._steps(messages)
        else:
            step = next(self._script, None)
            if step is None:
                raise ModelError(f"the script is at its end: this is call {self._calls} and there is no reply for it")
        while callable(step):
            step = step(messages)
        if isinstance(step, Exception):
            raise step
        if isinstance(step, str):
            return Reply(text=step)
        if not isinstance(step, Reply):
            raise ModelError(f"a step of a script is text, a Reply, an exception or a function that gives one of these, not {step!r:.200}")
        return step

    def _play(self, reply: Reply) -> Iterator[dict[str, Any]]:
        pieces = 0
        yield {"messageStart": {"role": "assistant"}}
        if reply.reasoning:
            for piece in _words(reply.reasoning):
                pieces += 1
                yield {"contentBlockDelta": {"delta": {"reasoningContent": {"text": piece}}}}
            yield {"contentBlockStop": {}}
        if reply.text:
            for piece in self._cut(reply.text) if isinstance(reply.text, str) else reply.text:
                pieces += 1
                yield {"contentBlockDelta": {"delta": {"text": piece}}}
            yield {"contentBlockStop": {}}
        for number, call in enumerate(reply.tool_uses):
            pieces += 1
            tool_use_id = call.id or f"tooluse_{self._calls}_{number}"
            yield {"contentBlockStart": {"start": {"toolUse": {"name": call.name, "toolUseId": tool_use_id}}}}
            given = call.input if isinstance(call.input, str) else json.dumps(call.input)
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": given}}}}
            yield {"contentBlockStop": {}}
        if reply.error is not None:
            return
        yield {"messageStop": {"stopReason": reply.stop_reason or ("tool_use" if reply.tool_uses else "end_turn")}}
        usage = reply.usage or {"inputTokens": 1, "outputTokens": pieces}
        yield {"metadata": {"usage": {"totalTokens": sum(usage.values()), **usage}, "metrics": {"latencyMs": 0}}}

    def _cut(self, text: str) -> Iterable[str]:
        if self._chunks is None:
            return _words(text)
        size = max(1, -(-len(text) // self._chunks))
        return [text[start : start + size] for start in range(0, len(text), size)]


def _words(text: str) -> list[str]:
    """The text word by word, each with the space after it, so that the pieces joined are the text."""
    pieces = text.split(" ")
    return [piece + " " for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])

"""The model that costs nothing: the same Converse dicts for the bare loops and for Ropewalk, so that what is left is the loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from backends import Backend
from ropewalk.actors.errors import ContextWindowOverflow

__all__ = ["CHUNKS", "NullModel"]

CHUNKS = 20
PIECES = [f"piece {number} " for number in range(CHUNKS)]
USAGE = {"usage": {"inputTokens": 10, "outputTokens": CHUNKS, "totalTokens": 10 + CHUNKS}, "metrics": {"latencyMs": 1}}


class NullModel:
    """Streams twenty pieces of text, each dict made anew as a provider's parser would.

    :param backend: whose own sleep and checkpoint it waits with.
    :param pause: lets all other tasks run once before the first chunk, as any real call does: what runs at once then is at once.
    :param pace: seconds before each piece of text.
    :param calls_tool: a prompt is first answered by one call of the tool ``price``.
    :param overflows: a view of more than this many messages is refused as too long; None takes any.
    """

    context_window: int | None = None

    def __init__(self, backend: Backend, *, pause: bool = False, pace: float = 0.0, calls_tool: bool = False, overflows: int | None = None) -> None:
        self._backend = backend
        self._pause = pause
        self._pace = pace
        self._calls_tool = calls_tool
        self._overflows = overflows

    async def stream(self, messages: Sequence[dict[str, Any]], **options: Any) -> AsyncIterator[dict[str, Any]]:
        """One answer; options are taken and not looked at."""
        if self._overflows is not None and len(messages) > self._overflows:
            raise ContextWindowOverflow(f"{len(messages)} messages are more than fit")
        if self._pause:
            await self._backend.checkpoint()
        yield {"messageStart": {"role": "assistant"}}
        if self._calls_tool and "toolResult" not in messages[-1]["content"][0]:
            yield {"contentBlockStart": {"start": {"toolUse": {"name": "price", "toolUseId": "call-1"}}}}
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": '{"item": "rope"}'}}}}
            yield {"contentBlockStop": {}}
            yield {"messageStop": {"stopReason": "tool_use"}}
            yield {"metadata": USAGE}
            return
        pace = self._pace
        for piece in PIECES:
            if pace:
                await self._backend.sleep(pace)
            yield {"contentBlockDelta": {"delta": {"text": piece}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}
        yield {"metadata": USAGE}

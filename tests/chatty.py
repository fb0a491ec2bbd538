"""A model and tools for the command line's tests, named there as ``chatty:model``: what it does is what the prompt says."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio

from ropewalk import ModelError, tool
from ropewalk.actors.messages import Message, text_of, tool_results
from ropewalk.testing import Reply, ScriptedModel, ToolUse

HOSTILE = "red \x1b[31m title \x1b]0;gotcha\x07 back \x08 end\r\n\x9b2J"


@tool
async def measure(thing: str) -> str:
    """How long a thing is.

    Args:
        thing: what to measure
    """
    if thing == "nothing":
        raise ValueError("nothing has no length")
    return f"{thing} is 3 m long"


@tool(name="calculator")
async def own_calculator(expression: str) -> str:
    """Always right."""
    return f"{expression} is 42"


def answer(messages: Sequence[Message]) -> Any:
    """What the scripted part says to a conversation."""
    results = tool_results(messages[-1])
    if results:
        return "The tools said: " + "; ".join(text_of(result) for result in results)
    prompt = text_of(messages[-1])
    if "break" in prompt:
        return ModelError("the provider is closed\x1b[2J on Sundays")
    if "measure" in prompt:
        return Reply(text="Let me see.", tool_uses=[ToolUse("measure", {"thing": "rope"}), ToolUse("measure", {"thing": "nothing"})])
    if "sum" in prompt:
        return Reply(tool_uses=[ToolUse("calculator", {"expression": "17 * 23"})])
    if "hostile" in prompt:
        return HOSTILE
    return f"**You** said: {prompt}"


class Chatty:
    """Plays `answer`, and to two prompts does what a script cannot: waits for a byte in a fifo, or for ever."""

    context_window = None

    def __init__(self) -> None:
        self._script = ScriptedModel(answer)

    async def stream(self, messages: Sequence[Message], **options: Any) -> AsyncIterator[dict[str, Any]]:
        """See `Model.stream`."""
        prompt = text_of(messages[-1])
        if prompt not in ("wait", "forever"):
            async for chunk in self._script.stream(messages, **options):
                yield chunk
            return
        yield {"messageStart": {"role": "assistant"}}
        yield {"contentBlockDelta": {"delta": {"text": "The first *half*"}, "contentBlockIndex": 0}}
        if prompt == "forever":
            await anyio.sleep_forever()
        fifo = os.open(os.environ["CHATTY_FIFO"], os.O_RDONLY | os.O_NONBLOCK)
        try:
            await anyio.wait_readable(fifo)
        finally:
            os.close(fifo)
        yield {"contentBlockDelta": {"delta": {"text": " and the second."}, "contentBlockIndex": 0}}
        yield {"messageStop": {"stopReason": "end_turn"}}
        yield {"metadata": {"usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}}}


model = Chatty()
no_model = 7

"""What a careful programmer writes by hand for one conversation: a list, a loop, a function called for each piece of text.

No mailbox, no events, no supervision, no journal, no limits, nothing to cancel with but the task: it is the floor that
Ropewalk's promises are paid above.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nullmodel import NullModel
from ropewalk.actors.errors import ContextWindowOverflow

__all__ = ["Message", "kept", "recalled", "turn"]

Message = dict[str, Any]
Tools = Mapping[str, Callable[..., Awaitable[str]]]
NO_TOOLS: Tools = {}


async def turn(
    model: NullModel, messages: list[Message], prompt: str, on_text: Callable[[str], None], tools: Tools = NO_TOOLS, window: int | None = None
) -> Message:
    """Add a prompt to a conversation and work until the model has answered it; returns the answer."""
    messages.append({"role": "user", "content": [{"text": prompt}]})
    while True:
        try:
            answer, stop_reason = await take(model, messages, on_text)
        except ContextWindowOverflow:
            del messages[: len(messages) // 2 & ~1]
            continue
        messages.append(answer)
        if stop_reason != "tool_use":
            break
        results = [await call(tools, block["toolUse"]) for block in answer["content"] if "toolUse" in block]
        messages.append({"role": "user", "content": results})
    if window is not None and len(messages) > window:
        del messages[: len(messages) - window]
    return answer


async def take(model: NullModel, messages: list[Message], on_text: Callable[[str], None]) -> tuple[Message, str]:
    """One model call: the chunks put together into a message."""
    content: list[dict[str, Any]] = []
    text: list[str] = []
    tool_use: dict[str, Any] | None = None
    tool_input: list[str] = []
    stop_reason = ""
    async for chunk in model.stream(messages, system_prompt=None, tool_specs=()):
        if "contentBlockDelta" in chunk:
            delta = chunk["contentBlockDelta"]["delta"]
            if "text" in delta:
                text.append(delta["text"])
                on_text(delta["text"])
            elif "toolUse" in delta:
                tool_input.append(delta["toolUse"]["input"])
        elif "contentBlockStart" in chunk:
            tool_use = chunk["contentBlockStart"]["start"]["toolUse"]
        elif "contentBlockStop" in chunk:
            if tool_use is not None:
                content.append({"toolUse": {**tool_use, "input": json.loads("".join(tool_input))}})
                tool_use, tool_input = None, []
            elif text:
                content.append({"text": "".join(text)})
                text = []
        elif "messageStop" in chunk:
            stop_reason = chunk["messageStop"]["stopReason"]
    return {"role": "assistant", "content": content}, stop_reason


async def call(tools: Tools, tool_use: dict[str, Any]) -> dict[str, Any]:
    """Run a tool to its result block."""
    value = await tools[tool_use["name"]](**tool_use["input"])
    return {"toolResult": {"toolUseId": tool_use["toolUseId"], "status": "success", "content": [{"text": value}]}}


def kept(messages: list[Message]) -> list[str]:
    """Messages as they are kept for later: one line of JSON each."""
    return [json.dumps(message) for message in messages]


def recalled(log: list[str]) -> list[Message]:
    """The conversation that was kept."""
    return [json.loads(line) for line in log]

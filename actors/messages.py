"""Messages in Converse form, and the few questions everybody asks of one.

A message is a plain dict with two keys, ``{"role": "user" | "assistant", "content": [block, ...]}``; a block is a dict
with one key that names its type (``text``, ``toolUse``, ``toolResult``, ``image``, ...). Ropewalk never changes a message
in place, so views, forks and the transcript share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

__all__ = ["Block", "Message", "assistant", "calls_tools", "copy_of", "error_result", "is_prompt", "text_of", "tool_results", "tool_uses", "user"]

T = TypeVar("T")

Block: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]


def user(*content: Block | str) -> Message:
    """A user message of these blocks; a string stands for a text block."""
    return {"role": "user", "content": [{"text": block} if isinstance(block, str) else block for block in content]}


def assistant(*content: Block | str) -> Message:
    """An assistant message of these blocks; a string stands for a text block."""
    return {"role": "assistant", "content": [{"text": block} if isinstance(block, str) else block for block in content]}


def error_result(tool_use_id: str, text: str) -> Block:
    """A tool result that tells the model what went wrong."""
    return {"toolUseId": tool_use_id, "status": "error", "content": [{"text": text}]}


def copy_of(value: T) -> T:
    """JSON data in dicts and lists of its own; leaves are shared. For whoever might change what they are shown."""
    copy: Any = value
    if isinstance(value, dict):
        copy = {}
        for key, inner in value.items():
            copy[key] = copy_of(inner) if isinstance(inner, _CONTAINERS) else inner
    elif isinstance(value, list):
        copy = []
        for inner in value:
            copy.append(copy_of(inner) if isinstance(inner, _CONTAINERS) else inner)
    return copy  # type: ignore[no-any-return]


_CONTAINERS = (dict, list)


def calls_tools(message: Message) -> bool:
    """Whether a message has calls to answer."""
    for block in message["content"]:  # noqa: SIM110 - asked several times a turn, and a generator costs more than the loop
        if "toolUse" in block:
            return True
    return False


def text_of(message: Message) -> str:
    """The text blocks of a message, joined without anything between them."""
    return "".join(block["text"] for block in message["content"] if "text" in block)


def tool_uses(message: Message) -> list[Block]:
    """The ``{"toolUseId", "name", "input"}`` dicts of a message, in order."""
    return [block["toolUse"] for block in message["content"] if "toolUse" in block]


def tool_results(message: Message) -> list[Block]:
    """The ``{"toolUseId", "status", "content"}`` dicts of a message, in order."""
    return [block["toolResult"] for block in message["content"] if "toolResult" in block]


def is_prompt(message: Message) -> bool:
    """Whether a message is a user's own words only, so that a valid conversation can start with it."""
    if message["role"] != "user":
        return False
    for block in message["content"]:  # noqa: SIM110  # a generator costs three times as much, and reductions ask this of every message
        if "toolResult" in block:
            return False
    return True


def pairs(messages: Sequence[Message]) -> Iterator[tuple[Message, Message | None]]:
    """Each message with the one after it, the last with None."""
    return zip(messages, [*messages[1:], None], strict=True)

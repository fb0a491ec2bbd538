"""A conversation as the small model can read it: texts only, its roles in turn.

Its chat template knows neither tools nor images. What a tool gave is told it beside the question, as a thing that is known,
and what it cannot see is named in brackets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ropewalk.actors.messages import Block, Message

__all__ = ["UNTOLD", "is_request", "last_request", "plain", "shown"]

UNSEEN = ("image", "document", "video")
UNTOLD = "You answer in one short sentence."
"""The system prompt of who gives none: under the one in its template the model talks nonsense, the longer the more."""
RETELL = "Answer in one short sentence."
RETOLD = (
    ("user", "Book a table for two.\n\n(book: done)"),
    ("assistant", "It is done: I booked a table for two."),
    ("user", "What is the capital of Spain?\n\n(search: Madrid)"),
    ("assistant", "The capital of Spain is Madrid."),
)
"""How what a tool gave is put in words, shown to the model before it does so: told, it would rather talk about tools."""


def shown(messages: Sequence[Message], system_prompt: str | None) -> tuple[list[Message], str | None]:
    """What the model is shown of a conversation that it is to go on with, and the system prompt with it."""
    conversation = plain(messages)
    if not messages or messages[-1]["role"] != "user" or is_request(messages):
        return conversation, UNTOLD if system_prompt is None else system_prompt
    examples: list[Message] = [{"role": role, "content": [{"text": text}]} for role, text in RETOLD]
    return [*examples, *conversation], system_prompt or RETELL


def plain(messages: Sequence[Message]) -> list[Message]:
    """The conversation in texts. Messages of one role that follow each other are one; a message that says nothing is left out."""
    names: dict[str, str] = {}
    made: list[Message] = []
    for message in messages:
        for block in message["content"]:
            if "toolUse" in block:
                names[block["toolUse"]["toolUseId"]] = block["toolUse"]["name"]
        text = "\n\n".join(filter(None, (_said(block, names) for block in message["content"])))
        if not text:
            continue
        if made and made[-1]["role"] == message["role"]:
            made[-1]["content"][0]["text"] += "\n\n" + text
        else:
            made.append({"role": message["role"], "content": [{"text": text}]})
    return made


def is_request(messages: Sequence[Message]) -> bool:
    """Whether the conversation ends in something a person asks, rather than in what tools gave."""
    return bool(messages) and messages[-1]["role"] == "user" and not any("toolResult" in block for block in messages[-1]["content"])


def last_request(messages: Sequence[Message]) -> str:
    """What the person asked last."""
    return "\n".join(block["text"] for block in messages[-1]["content"] if "text" in block).strip()


def _said(block: Block, names: dict[str, str]) -> str:
    if "text" in block:
        return str(block["text"]).strip()
    if "toolResult" in block:
        result = block["toolResult"]
        told = " ".join(filter(None, (_part(part) for part in result.get("content", ()))))
        name = names.get(result["toolUseId"], "a tool")
        return f"({name} failed: {told})" if result.get("status") == "error" else f"({name}: {told})"
    return next((f"[{kind}]" for kind in UNSEEN if kind in block), "")


def _part(part: dict[str, Any]) -> str:
    if "text" in part:
        return str(part["text"])
    return json.dumps(part["json"], ensure_ascii=False, default=str) if "json" in part else next((f"[{kind}]" for kind in UNSEEN if kind in part), "")

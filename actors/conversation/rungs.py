"""The rungs of the reduction ladder: four ways to make a conversation smaller, each a plain function that destroys no more than it must.

A rung takes a valid or open conversation and gives one back, with unchanged messages as the same objects and nothing
changed in place. ``protected`` holds the indices of messages that may not leave: the running turn's prompt, and the last
calls with their results while the model has not seen them. Of a protected message the words stay as they are; results
may be clipped, unless it is one of the ``pinned`` too. A rung stops as soon as the conversation takes ``target`` tokens, and gives its argument's messages back
when there is nothing it can do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from ropewalk.actors.conversation.digests import digest
from ropewalk.actors.conversation.exchanges import slide, window
from ropewalk.actors.conversation.tokens import Count, json_length
from ropewalk.actors.messages import Block, Message
from ropewalk.actors.validity import is_dict

__all__ = ["DROPPED", "RUNGS", "Rung", "clip", "digest", "drop_bodies", "slide", "window"]

DROPPED: Final = "[result dropped]"
_LONGEST: Final = 400
_END: Final = 200
_NONE: Final = frozenset[int]()
_CLIPPED: Final = re.compile(r".{200}\.\.\.\n\n\.\.\. \[truncated: \d+ chars removed\] \.\.\.\n\n\.\.\..{200}", re.DOTALL)


class Rung(Protocol):
    """A way to make a valid or open conversation smaller; the module says what every rung promises."""

    def __call__(self, messages: Sequence[Message], protected: frozenset[int], target: int, count: Count, /) -> list[Message]: ...


# --- tool results ----------------------------------------------------------------------------------------------------


def clip(messages: Sequence[Message], protected: frozenset[int], target: int, count: Count, pinned: frozenset[int] = _NONE) -> list[Message]:
    """Clip long texts and JSON in tool results to their first and last 200 characters and put notes for images and documents.

    Goes by size times age, so that old and large results come first; results of protected messages come last, those of
    pinned ones never.
    """

    def rank(found: _Shorter) -> tuple[bool, int]:
        return found.index in protected, -found.saving * (len(messages) - found.index)

    return _with_shorter(messages, sorted(_shorter(messages, pinned, _clipped_result, count), key=rank), target, count)


def drop_bodies(messages: Sequence[Message], protected: frozenset[int], target: int, count: Count) -> list[Message]:
    """Put a few words in place of the results of tools, oldest first; protected messages keep theirs."""
    return _with_shorter(messages, _shorter(messages, protected, _bodiless_result, count), target, count)


class _Shorter:
    """A tool result that could take fewer tokens: where it stands, what would stand there, what that saves."""

    __slots__ = ("block", "index", "position", "saving")

    def __init__(self, index: int, position: int, block: Block, saving: int) -> None:
        self.index, self.position, self.block, self.saving = index, position, block, saving


def _shorter(messages: Sequence[Message], untouched: frozenset[int], shorten: Callable[[Block], Block | None], count: Count) -> list[_Shorter]:
    """What `shorten` could save, for each result of each message but the untouched, in order."""
    found: list[_Shorter] = []
    for index, message in enumerate(messages):
        if message["role"] != "user" or index in untouched:
            continue
        for position, block in enumerate(message["content"]):
            result = shorten(block["toolResult"]) if "toolResult" in block else None
            if result is None:
                continue
            # One less than counted, because each message rounds up: what is promised here is freed for certain.
            saving = count({"role": "user", "content": [block]}) - count({"role": "user", "content": [{"toolResult": result}]}) - 1
            if saving > 0:
                found.append(_Shorter(index, position, {"toolResult": result}, saving))
    return found


def _with_shorter(messages: Sequence[Message], found: list[_Shorter], target: int, count: Count) -> list[Message]:
    """The messages with as many of these results in place, in this order, as it takes to meet the target."""
    shortened = list(messages)
    total = sum(map(count, messages)) if found else target
    for shorter in found:
        if total <= target:
            break
        message = shortened[shorter.index]
        if message is messages[shorter.index]:
            message = shortened[shorter.index] = {"role": "user", "content": list(message["content"])}
        message["content"][shorter.position] = shorter.block
        total -= shorter.saving
    return shortened


def _clipped_result(result: Block) -> Block | None:
    """The result with its long items clipped; None when none is long."""
    items: list[Block] = result["content"]
    clipped = [_clipped_item(item) for item in items]
    if all(new is old for new, old in zip(clipped, items, strict=True)):
        return None
    return {**result, "content": clipped}


def _clipped_item(item: Block) -> Block:
    kind, value = next(iter(item.items()))
    if kind == "text":
        return _clipped_text(value) or item
    if kind == "json":
        return (json_length(value) > _LONGEST and _clipped_text(json.dumps(value, ensure_ascii=False, default=_bytes_note))) or item
    return {"text": _medium_note(kind, value)}


def _clipped_text(text: str) -> Block | None:
    """A text block with both ends of a text; None when the text is short, or was clipped before."""
    removed = len(text) - 2 * _END
    if removed <= 0 or _CLIPPED.fullmatch(text):
        return None
    clipped = f"{text[:_END]}...\n\n... [truncated: {removed} chars removed] ...\n\n...{text[-_END:]}"
    return {"text": clipped} if len(clipped) < len(text) else None


def _bytes_note(value: bytes) -> str:
    return f"[{len(value)} bytes]"


def _medium_note(kind: str, medium: Any) -> str:
    """A note in place of an image or document: its kind, format, name and size, as far as they are known."""
    parts: list[str] = []
    if is_dict(medium):
        parts = [str(medium[key]) for key in ("format", "name") if key in medium]
        source: Any = medium.get("source")
        data: Any = source.get("bytes") if is_dict(source) else None
        if isinstance(data, bytes):
            parts.append(f"{len(data)} bytes")
    return f"[{kind}: {', '.join(parts)}]" if parts else f"[{kind}]"


def _bodiless_result(result: Block) -> Block | None:
    return {**result, "content": [{"text": DROPPED}]}


RUNGS: Final[dict[str, Rung]] = {"clip": clip, "drop_bodies": drop_bodies, "window": window, "digest": digest}

"""Token counts without a tokenizer: an estimate from lengths alone, for deciding what to cut, not for billing.

Text counts a token for 4 characters; the JSON of tool inputs and results, dense in punctuation, one for 2. What is not
text counts by its bytes: images one for 200 within 85 and 1,600, documents of plain text one for 4, other documents one
for 32, sound and film one for 500; where the bytes lie elsewhere, an image is 1,600 and anything else 3,000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from ropewalk.actors.messages import Block, Message
from ropewalk.actors.validity import is_dict, is_list

__all__ = ["Count", "estimate", "estimate_all", "json_length", "remembering"]

Count: TypeAlias = Callable[[Message], int]

_IMAGE_LEAST: Final = 85
_IMAGE_MOST: Final = 1_600
_ELSEWHERE: Final = 3_000
_PLAIN_FORMATS: Final = frozenset({"txt", "md", "html", "csv"})
_BYTES_PER_TOKEN: Final = {"image": 200, "document": 32, "video": 500, "audio": 500}


def estimate(message: Message) -> int:
    """How many tokens a message takes, at least 1. Takes time in the number of its values, not in their length."""
    content = message["content"]
    if len(content) == 1 and "text" in content[0]:  # as most messages are
        return (len(content[0]["text"]) + 3) // 4 or 1
    quarters = 0
    for block in content:
        quarters += len(block["text"]) if "text" in block else _quarters(block)
    return (quarters + 3) // 4 or 1


def estimate_all(messages: Iterable[Message]) -> int:
    """How many tokens these messages take together; 0 for none."""
    return sum(map(estimate, messages))


def remembering(count: Count = estimate) -> Count:
    """The same count, asked once for each message object; holds the messages, so that none is taken for another."""
    known: dict[int, int] = {}
    held: list[Message] = []

    def remembered(message: Message) -> int:
        tokens = known.get(id(message))
        if tokens is None:
            held.append(message)
            tokens = known[id(message)] = count(message)
        return tokens

    return remembered


def json_length(value: Any) -> int:
    """About how many characters ``json.dumps`` would make of a value; escapes are not counted, bytes count as base64."""
    if isinstance(value, str):
        return len(value) + 2
    if is_dict(value):
        return 2 + sum(len(str(key)) + 6 + json_length(item) for key, item in value.items())
    if is_list(value):
        return 2 + sum(2 + json_length(item) for item in value)
    if isinstance(value, bytes):
        return len(value) * 4 // 3 + 2
    return len(repr(value))


def _quarters(block: Block) -> int:
    """Quarters of a token of any block, so that rounding happens once a message."""
    kind, value = next(iter(block.items()))
    if kind == "text":
        return len(value)
    if kind == "toolUse":
        return len(value["name"]) + 2 * json_length(value["input"])
    if kind == "toolResult":
        return sum(map(_quarters, value["content"]))
    if kind == "json":
        return 2 * json_length(value)
    if kind in _BYTES_PER_TOKEN and is_dict(value):
        return 4 * _medium_tokens(kind, value)
    if kind == "cachePoint":
        return 0
    return _leaf_characters(value)


def _medium_tokens(kind: str, medium: dict[str, Any]) -> int:
    source: Any = medium.get("source")
    data: Any = source.get("bytes") if is_dict(source) else None
    if not isinstance(data, bytes | str):
        return _IMAGE_MOST if kind == "image" else _ELSEWHERE
    if kind == "image":
        return min(max(len(data) // _BYTES_PER_TOKEN[kind], _IMAGE_LEAST), _IMAGE_MOST)
    return len(data) // (4 if medium.get("format") in _PLAIN_FORMATS else _BYTES_PER_TOKEN[kind])


def _leaf_characters(value: Any) -> int:
    """The characters of the strings in a value: reasoning, citations, guarded text, and blocks not known here."""
    if isinstance(value, str | bytes):
        return len(value)
    if is_dict(value):
        return sum(map(_leaf_characters, value.values()))
    if is_list(value):
        return sum(map(_leaf_characters, value))
    return 1

"""The digest: what is left of a conversation when everything that may leave has left, made without a model.

It is one text block that stands first in the first remaining user message and says who said what and which tools were
called, each line cut short. A digest of a conversation that holds one already carries the older one's lines on, so there
is never more than one and its size is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from ropewalk.actors.conversation.exchanges import has_words, words_only
from ropewalk.actors.conversation.tokens import Count
from ropewalk.actors.messages import Block, Message, tool_results, tool_uses

__all__ = ["digest", "own_words"]

_OPENING: Final = re.compile(r"\[digest of (\d+) earlier messages?\]")
_LONGEST: Final = 2_000
_LINE: Final = 160


def digest(messages: Sequence[Message], protected: frozenset[int], target: int, count: Count) -> list[Message]:
    """Put one short text in place of all messages that are not protected.

    The text has at most 2,000 characters, fewer for a small target: about a quarter of it. The messages come back as they
    are when they meet the target already, or would not become smaller.
    """
    kept = _closed(messages, protected)
    before = sum(map(count, messages))
    if before <= target or len(kept) == len(messages):
        return list(messages)
    remaining = _joined([messages[index] if _keeps_results(messages, index, kept) else words_only(messages[index]) for index in sorted(kept)])
    gone = [message for index, message in enumerate(messages) if index not in kept]
    for limit in (min(_LONGEST, max(target, 0)), 0):
        shorter = _opened_by(gone, remaining, limit)
        if sum(map(count, shorter)) < before:
            return shorter
    return list(messages)


def own_words(message: Message) -> list[Block]:
    """The blocks of a message that are neither tool results nor a digest put before them."""
    blocks = [block for block in message["content"] if "toolResult" not in block]
    return blocks[1:] if len(blocks) > 1 and _counted(blocks[0]) else blocks


def _closed(messages: Sequence[Message], protected: frozenset[int]) -> set[int]:
    """The protected messages and what waits for the model at the end, with the calls or results that cannot be parted from them."""
    if messages and messages[-1]["role"] == "user":
        protected |= {len(messages) - 1}
    kept = set(protected)
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and tool_uses(message):
            if index + 1 == len(messages):
                kept.add(index)
            elif index in protected:
                kept.add(index + 1)
            elif index + 1 in protected and not has_words(messages[index + 1]):
                kept.add(index)
    return kept


def _keeps_results(messages: Sequence[Message], index: int, kept: set[int]) -> bool:
    return messages[index]["role"] == "assistant" or index - 1 in kept


def _joined(messages: list[Message]) -> list[Message]:
    """The messages with neighbours of one role joined, tool results first."""
    runs: list[list[Message]] = []
    for message in messages:
        if runs and runs[-1][0]["role"] == message["role"]:
            runs[-1].append(message)
        else:
            runs.append([message])
    return [run[0] if len(run) == 1 else _one_of(run) for run in runs]


def _one_of(run: list[Message]) -> Message:
    blocks: list[Block] = [block for message in run for block in message["content"]]
    return {"role": run[0]["role"], "content": sorted(blocks, key=lambda block: "toolResult" not in block)}


# --- the text --------------------------------------------------------------------------------------------------------


def _opened_by(gone: list[Message], remaining: list[Message], limit: int) -> list[Message]:
    """What remains, opened by a digest of what is gone and of the digest it was opened by before."""
    first = remaining[0]["content"] if remaining and remaining[0]["role"] == "user" else []
    earlier = first[0] if len(first) > 1 and _counted(first[0]) else None
    total, lines = len(gone), []
    if earlier is not None:
        total += _counted(earlier)
        lines += _digest_lines(earlier)
        first = first[1:]
    for message in gone:
        blocks = message["content"]
        if message["role"] == "user" and (number := _counted(blocks[0])):
            total += number - (len(blocks) == 1)
        lines += _lines(message)
    opening = f"[digest of {total} earlier message{'s' if total != 1 else ''}]"
    text = "\n".join([opening, *_fitted(lines, limit - len(opening))])
    return [{"role": "user", "content": [{"text": text}, *first]}, *remaining[bool(first) :]]


def _counted(block: Block) -> int:
    """How many messages a block is the digest of; 0 when it is none."""
    text: str | None = block.get("text")
    found = _OPENING.match(text) if text else None
    return int(found[1]) if found else 0


def _digest_lines(block: Block) -> list[str]:
    lines: list[str] = block["text"].split("\n")
    return lines[1:]


def _lines(message: Message) -> Iterator[str]:
    """What a message says, a line for its words, one for its calls, one for each result."""
    role = message["role"]
    blocks: list[Block] = [block for block in message["content"] if "toolResult" not in block and "toolUse" not in block]
    if role == "user" and blocks and _counted(blocks[0]):
        yield from _digest_lines(blocks[0])
        blocks = blocks[1:]
    for result in tool_results(message):
        yield _cut(f"tool {result.get('status', 'success')}: {_said(result['content'])}")
    if blocks:
        yield _cut(f"{role}: {_said(blocks)}")
    if names := [use["name"] for use in tool_uses(message)]:
        yield _cut(f"{role} called {', '.join(names)}")


def _said(blocks: list[Block]) -> str:
    """The text of the blocks on one line, at least as much of it as a line shows; other blocks by their kind."""
    parts = (block["text"][: 2 * _LINE] if "text" in block else f"[{next(iter(block))}]" for block in blocks)
    return " ".join(" ".join(parts).split())


def _cut(line: str) -> str:
    return line if len(line) <= _LINE else line[: _LINE - 3] + "..."


def _fitted(lines: list[str], limit: int) -> list[str]:
    """The first line and as many of the last as fit into a number of characters, with dots where some are missing."""
    room = limit - len(lines[0]) - 1 if lines else -1
    if room < 0:
        return []
    first = len(lines)
    while first > 1 and room > len(lines[first - 1]) + 4:
        first -= 1
        room -= len(lines[first]) + 1
    return [lines[0], *(["..."] if first > 1 else []), *lines[first:]]

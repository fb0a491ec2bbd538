"""Exchanges, the unit in which old parts of a conversation leave: a user message that says something, and all up to the next such.

A user message can be both the last of one exchange and the first of the next, when a turn ended on tool results and the
next prompt joined them. When the calls leave, their results leave that message and the words stay. So whatever leaves,
what remains begins with a user's words, and calls and results stay and leave together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ropewalk.actors.conversation.tokens import Count
from ropewalk.actors.messages import Message, is_prompt, tool_results, tool_uses

__all__ = ["has_words", "slide", "slide_past", "window", "words_only"]


def window(messages: Sequence[Message], protected: frozenset[int], target: int, count: Count) -> list[Message]:
    """Leave out whole exchanges, oldest first but never the last, then pairs of calls and results in what is left, oldest first."""
    draft = _Draft(messages, protected, count)
    starts = (index for index, message in enumerate(messages) if has_words(message))
    for start, end in pairwise(starts):
        if draft.total <= target:
            break
        draft.leave_exchange(start, end)
    for index in range(1, len(messages) - 1, 2):
        if draft.total <= target:
            break
        draft.leave_pair(index)
    return [message for message in draft.left if message is not None]


class _Draft:
    """A conversation on its way to a smaller one: `left` has None where a message has left, `total` the tokens that remain."""

    __slots__ = ("count", "left", "protected", "sizes", "total")

    def __init__(self, messages: Sequence[Message], protected: frozenset[int], count: Count) -> None:
        self.left: list[Message | None] = list(messages)
        self.protected = protected
        self.count = count
        self.sizes = list(map(count, messages))
        self.total = sum(self.sizes)

    def leave_exchange(self, start: int, end: int) -> None:
        """Take out the messages of an exchange unless one is protected or begins with the results of calls that stay."""
        opening = self.left[start]
        if opening is None or not self.protected.isdisjoint(range(start, end)) or not (start == 0 or self.left[start - 1] is None or is_prompt(opening)):
            return
        for index in range(start, end):
            self._leave(index)
        self._keep_words(end)

    def leave_pair(self, index: int) -> None:
        """Take out an assistant message with the results after it unless either is protected or words joined the results."""
        asking, answering = self.left[index], self.left[index + 1]
        if asking is None or answering is None or is_prompt(answering) or has_words(answering) or not self.protected.isdisjoint((index, index + 1)):
            return
        self._leave(index)
        self._leave(index + 1)

    def _leave(self, index: int) -> None:
        self.left[index] = None
        self.total -= self.sizes[index]

    def _keep_words(self, index: int) -> None:
        message = self.left[index]
        if message is not None and not is_prompt(message):
            self.left[index] = words = words_only(message)
            self.total -= self.sizes[index]
            self.sizes[index] = self.count(words)
            self.total += self.sizes[index]


def slide(messages: Sequence[Message], size: int) -> list[Message]:
    """At most `size` of the newest messages, as a conversation: whole exchanges while they fit, then of the next its
    prompt and its newest pairs. An open call and its prompt stay even where `size` has no room for them.

    Takes time in the messages that stay and the exchange that does not fit whole.
    """
    if len(messages) <= size:
        return list(messages)
    end = len(messages)
    if size and has_words(messages[-size]):  # the commonest case by far: an exchange begins just where the window does
        return _opened(messages, end - size)
    for start in range(end - 1, -1, -1):
        if has_words(messages[start]):
            first = _first_kept(messages, start, end, size - (len(messages) - end))
            if first != start:
                return _opened(messages, end) if first == end else [words_only(messages[start]), *messages[first:]]
            end = start
    return _opened(messages, end)


def _first_kept(messages: Sequence[Message], start: int, end: int, room: int) -> int:
    """Where the part of an exchange begins that fits: its start, an assistant message in it, or its end when none fits."""
    if end - start <= room:
        return start
    first = max(end - room + 1, start + 1)
    first += (first - start + 1) % 2
    if first >= end and end == len(messages) and tool_uses(messages[-1]):
        return end - 1
    return min(first, end)


def _opened(messages: Sequence[Message], first: int) -> list[Message]:
    """The messages from an index on, the first of them without the results of calls that are no more."""
    return [words_only(messages[first]), *messages[first + 1 :]] if first < len(messages) else []


def slide_past(messages: Sequence[Message], size: int, pinned: frozenset[int]) -> list[Message]:
    """As `slide`, where some messages may not leave: they stay in their place with the prompt of their exchange, and do not count."""
    exempt = {id(messages[index]) for index in pinned}
    return window(messages, pinned, size, lambda message: 0 if id(message) in exempt else 1)


def has_words(message: Message) -> bool:
    """Whether an exchange begins with this message: a user's, with more in it than tool results."""
    if message["role"] != "user":
        return False
    for block in message["content"]:  # noqa: SIM110  # a generator costs three times as much, and this is asked of every message
        if "toolResult" not in block:
            return True
    return False


def words_only(message: Message) -> Message:
    """The message without its tool results; the same object where there are none."""
    if not tool_results(message):
        return message
    return {"role": message["role"], "content": [block for block in message["content"] if "toolResult" not in block]}

"""The ladder: one reduction, tried rung by rung, each result believed only after it was checked and measured.

The spec's own manager comes first, then the rungs the spec names, each on the last result that was accepted. Accepted is
what is a conversation still, holds everything protected, and takes fewer tokens than what it was made from. Anything else
costs its own rung and nothing more, so a climb ends, whatever a manager does; only time is the caller's to bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import eq, is_

import attrs

from ropewalk.actors.conversation.digests import own_words
from ropewalk.actors.conversation.exchanges import slide, slide_past
from ropewalk.actors.conversation.manager import ConversationManager, NullConversationManager, RunSync, SlidingWindowConversationManager, policy_of, run_custom
from ropewalk.actors.conversation.rungs import RUNGS, clip
from ropewalk.actors.conversation.tokens import Count, remembering
from ropewalk.actors.messages import Block, Message, tool_results, tool_uses
from ropewalk.actors.validity import check, is_open, unanswered_among
from ropewalk.runtime.errors import InvalidOption, RopewalkError
from ropewalk.runtime.supervision import Failure, attempt_foreign, contain

__all__ = ["MANAGER", "Reduction", "RungRefused", "climb", "manage"]

MANAGER = "manager"


class RungRefused(RopewalkError):
    """What a rung of the ladder or a manager made of a conversation was thrown away; the text says why."""


@attrs.frozen
class Reduction:
    """A conversation made smaller: by which rung in the end, the messages, and the tokens they took before and take now.

    `protected` says where in these messages the protected ones are: a prompt may have been joined by a digest, or have
    lost the results it had joined, and is then another object. `pinned` says of each pinned one where it is now.
    """

    rung: str
    messages: list[Message]
    tokens_before: int
    tokens_after: int
    protected: frozenset[int] = frozenset()
    pinned: Mapping[int, int] = attrs.field(factory=dict[int, int])


async def climb(
    messages: Sequence[Message],
    *,
    manager: ConversationManager,
    ladder: Sequence[str],
    protected: frozenset[int],
    pinned: frozenset[int] = frozenset(),
    target: int,
    system_prompt: str | None,
    error: Exception | None,
    skip_manager: bool,
    run_sync: RunSync,
    count: Count | None = None,
    tokens: int | None = None,
    failed: Callable[[str, Exception], None],
) -> Reduction | None:
    """Make a valid or open conversation take at most `target` tokens, or as few as manager and ladder bring it to.

    None means that nothing made it smaller, or that it meets the target as it is. `protected` holds the indices of messages
    that may not leave, and `pinned` those of messages whose every block stays as it is. `count` is asked about messages of any
    origin, often about the same, so it should remember (None is a new estimate that does); `tokens` is what the messages come
    to by it, where the caller knows. `failed` hears, by name, of each rung (the manager's is ``"manager"``) that raised or whose
    result was refused; a shipped rung that finds nothing to do is no failure. Only cancellation comes out of a climb, and it
    awaits nothing but a manager of the user's own.
    """
    path = _Path(list(messages), protected, pinned, target, count or remembering(), tokens, failed)
    if not skip_manager:
        await _ask_manager(path, manager, system_prompt, error, run_sync)
    if not isinstance(manager, NullConversationManager):
        for name in ladder:
            path.climb(name, name)
    return path.reduction()


async def manage(
    messages: Sequence[Message], *, manager: ConversationManager, pinned: frozenset[int] = frozenset(), system_prompt: str | None, run_sync: RunSync
) -> list[Message] | None:
    """What the manager's policy makes of the messages after a turn; None when it leaves them as they are.

    Raises what a manager of the user's own raises, `InvalidConversation` when what it leaves is not valid, and `RungRefused` when a
    pinned message is not in it.
    """
    match policy_of(manager, "apply"), manager:
        case "custom", _:
            managed = await run_custom(manager, "apply", messages, system_prompt=system_prompt, error=None, run_sync=run_sync)
            if _same(managed, messages):
                return None
            _check_kind(managed, messages)
            _relocated(messages, frozenset(), pinned, managed)
            return managed
        case "window", SlidingWindowConversationManager(window_size=size) if len(messages) > size:
            if not pinned:
                return slide(messages, size)
            slid = slide_past(messages, size, pinned)
            return None if _same(slid, messages) else slid
        case _:
            return None


async def _ask_manager(path: _Path, manager: ConversationManager, system_prompt: str | None, error: Exception | None, run_sync: RunSync) -> None:
    match policy_of(manager, "reduce"), manager:
        case "custom", _ if not path.arrived:
            result = await attempt_foreign(run_custom(manager, "reduce", path.messages, system_prompt=system_prompt, error=error, run_sync=run_sync))
            path.accept(MANAGER, result, refuse_unchanged=True)
        case "window", SlidingWindowConversationManager(should_truncate_results=truncate):
            if truncate:
                path.climb(MANAGER, "clip")
            path.climb(MANAGER, "window")
        case _:
            pass


class _Path:
    """How far a climb has come: the last accepted messages, where the protected and pinned ones are among them, and their tokens."""

    __slots__ = ("_pinned", "_protected", "_there", "before", "count", "failed", "messages", "rung", "target", "tokens")

    def __init__(
        self,
        messages: list[Message],
        protected: frozenset[int],
        pinned: frozenset[int],
        target: int,
        count: Count,
        tokens: int | None,
        failed: Callable[[str, Exception], None],
    ) -> None:
        self.messages = messages
        self._protected = protected
        self._pinned = pinned
        self._there = {index: index for index in protected | pinned}
        self.target = target
        self.count = count
        self.failed = failed
        self.rung: str | None = None
        self.before = self.tokens = sum(map(count, messages)) if tokens is None else tokens

    @property
    def arrived(self) -> bool:
        return self.tokens <= self.target

    def climb(self, name: str, rung: str) -> None:
        """Try a shipped rung, unless the target is met."""
        if not self.arrived:
            self.accept(name, contain(self._tried, rung), refuse_unchanged=False)

    def accept(self, name: str, result: list[Message] | Failure, *, refuse_unchanged: bool) -> None:
        """Go on from this result if it keeps what a reduction must keep and is smaller; otherwise tell why not."""
        if not isinstance(result, Failure) and not refuse_unchanged and _same(result, self.messages):
            return
        refused = result if isinstance(result, Failure) else contain(self._believe, name, result)
        if isinstance(refused, Failure):
            self.failed(name, refused.error)

    def reduction(self) -> Reduction | None:
        return None if self.rung is None else Reduction(self.rung, self.messages, self.before, self.tokens, self._now(self._protected), self._pins())

    def _tried(self, rung: str) -> list[Message]:
        if rung not in RUNGS:
            raise InvalidOption(f"the ladder has no rung {rung!r}; there are {', '.join(RUNGS)}")
        pinned = self._now(self._pinned)
        kept = self._now(self._protected) | pinned
        if pinned and RUNGS[rung] is clip:  # the one rung that changes what is protected
            return clip(self.messages, kept, self.target, self.count, pinned)
        return RUNGS[rung](self.messages, kept, self.target, self.count)

    def _now(self, indices: frozenset[int]) -> frozenset[int]:
        return frozenset(map(self._there.__getitem__, indices))

    def _pins(self) -> dict[int, int]:
        return {index: self._there[index] for index in self._pinned}

    def _believe(self, name: str, result: list[Message]) -> None:
        _check_kind(result, self.messages)
        if not result:
            raise RungRefused(f"{name}: no message is left")
        if result[-1]["role"] == "assistant" != self.messages[-1]["role"]:
            raise RungRefused(f"{name}: the messages end with an answer, and ended with something to answer before")
        moved = _relocated(self.messages, self._now(self._protected), self._now(self._pinned), result)
        tokens = sum(map(self.count, result))
        if tokens >= self.tokens:
            raise RungRefused(f"{name}: {tokens} tokens, and {self.tokens} before")
        self._there = {index: moved[place] for index, place in self._there.items()}
        self.messages, self.tokens, self.rung = result, tokens, name


def _same(messages: Sequence[Message], others: Sequence[Message]) -> bool:
    return len(messages) == len(others) and all(map(is_, messages, others))


def _check_kind(messages: Sequence[Message], before: Sequence[Message]) -> None:
    """Raise `InvalidConversation` unless the messages are valid, or open where they were before; of those that were there only the order is looked at."""
    if unanswered_among(messages, before) and not is_open(before):
        check(messages)


# --- what is protected -----------------------------------------------------------------------------------------------


def _relocated(before: Sequence[Message], protected: frozenset[int], pinned: frozenset[int], after: Sequence[Message]) -> dict[int, int]:
    """Where the protected and the pinned messages are now; raises `RungRefused` when one is gone.

    A message that lost its results, or was joined by a digest, is another object with the same blocks in it. Where a manager
    of the user's own copied those too it is known by what it says: looked for from the end, where the running turn is, and
    each no later than the one before, for an older message may well say the same words or use the same ids.
    A pinned message has every block it had, the same objects, though others may stand beside them.
    """
    places = dict(zip(map(id, after), range(len(after)), strict=True))
    found: dict[int, int] = {}
    last = len(after) - 1
    for index in sorted(protected | pinned, reverse=True):
        place = places.get(id(before[index]))
        if place is None or place > last:
            ways = (_has_all,) if index in pinned else (_shares, _carries)
            place = next((place for known in ways for place in range(last, -1, -1) if known(after[place], before[index])), None)
        if place is None and index in pinned:
            raise RungRefused(f"message {index} is pinned, and is gone or was changed")
        if place is None:
            raise RungRefused(f"message {index} is gone: it is the running turn's prompt, or belongs to an open call")
        found[index] = last = place
    return found


def _has_all(after: Message, before: Message) -> bool:
    return after["role"] == before["role"] and _holds(after["content"], before["content"], is_)


def _shares(after: Message, before: Message) -> bool:
    """Whether a message has in it what may not leave of another: the same calls or words, or where there are none the same results."""
    must_stay = tool_uses(before) or own_words(before) or tool_results(before)
    return _holds([*tool_uses(after), *after["content"], *tool_results(after)], must_stay, is_)


def _carries(after: Message, before: Message) -> bool:
    """Whether a message still has the words of another that may not leave, or where it called or answered tools, the same ids."""
    if after["role"] != before["role"]:
        return False
    calls = {use["toolUseId"] for use in tool_uses(before)}
    if calls:
        return calls <= {use["toolUseId"] for use in tool_uses(after)}
    words = own_words(before)
    if not words:
        return {result["toolUseId"] for result in tool_results(before)} <= {result["toolUseId"] for result in tool_results(after)}
    return _holds(after["content"], words, eq)


def _holds(blocks: list[Block], wanted: list[Block], alike: Callable[[Block, Block], bool]) -> bool:
    """Whether the wanted blocks are among the blocks, in order."""
    rest = iter(blocks)
    return all(any(alike(block, want) for block in rest) for want in wanted)

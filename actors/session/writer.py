"""A session's pen: records into the state and the journal, and the events that wait for them.

`write` changes the state and gives the records their numbers in one synchronous step. `commit` hands what was written to
the journal, waits until it is durable, and only then publishes what was announced. So a reader never hears of something
that a crash could undo, and hears of all that a failed write leaves standing. Deltas are not announced: they go out at
once, through the publisher.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Mapping
from typing import Any, TypeAlias

from ropewalk.actors.events import Event
from ropewalk.actors.session.records import Body
from ropewalk.actors.session.state import SessionState
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.errors import Fenced, JournalUnavailable
from ropewalk.runtime.handler import HandlerFault, exit_in
from ropewalk.runtime.journal import Claim, Commit, Snapshot
from ropewalk.runtime.log import log
from ropewalk.runtime.subscription import Subscription
from ropewalk.runtime.supervision import Failure, attempt, contain, in_words

__all__ = ["Writer"]

News: TypeAlias = tuple[int, type[Event], str | None, dict[str, Any] | None, tuple[Any, ...], tuple[Subscription, ...] | None]
"""An event that waits: the batch that must be durable before it, the event itself, and where it is apart from the turn, who hears of it beside the others."""


SNAPSHOT_EVERY = 64
"""After how many records a snapshot is due, at least."""

NEWS_KEPT = 256
"""How many announcements may wait before those of prompts that came and went are taken back."""


class Writer:
    """Writes one incarnation of a session. Once a write has failed (`broken` says how), every later one fails: the incarnation is over.

    `outbox` holds the events that wait, None when there are none.
    """

    __slots__ = (
        "_batches",
        "_cell",
        "_durable",
        "_epoch",
        "_kept",
        "_labels",
        "_number",
        "_pending",
        "_staged",
        "_telling",
        "broken",
        "outbox",
        "publisher",
        "state",
    )

    def __init__(self, cell: Cell, state: SessionState, claim: Claim, kept: int = 0) -> None:
        self._cell = cell
        self._epoch = claim.epoch
        self._number = claim.last
        self._kept = kept  # up to which record there is a snapshot
        self._labels: dict[str, int] | None = None
        self._batches = 0  # what is written and announced from one flush to the next is one
        self._durable = 0
        self._staged: tuple[Body, ...] = ()  # not a list: an idle session would keep an empty one
        self._pending: tuple[tuple[Commit, int], ...] = ()  # on their way to being durable, each with the batches that it ends
        self._telling = False
        self.outbox: deque[News] | None = None
        self.broken: Exception | None = None
        self.state = state
        self.publisher = cell.publisher

    @property
    def has_news(self) -> bool:
        """Whether announced events are durable and can be published now."""
        return self.outbox is not None and bool(self.outbox) and self.outbox[0][0] < self._durable

    @property
    def is_durable(self) -> bool:
        """Whether all that was written is known to be durable."""
        return self.broken is None and not self._staged and not self._pending

    @property
    def is_snapshot_due(self) -> bool:
        """Whether so much was written since the last snapshot that a new one costs each record little, however long the view is."""
        since = self._number - self._kept
        return since >= SNAPSHOT_EVERY and since >= 2 * len(self.state.view)

    async def keep_snapshot(self) -> None:
        """Save the state as a snapshot, if it is between two turns and all of it was written. Without it the session wakes as well, only later."""
        if self.state.turn is not None or self._staged or self.broken is not None or self._kept == self._number:
            return
        self._kept = self._number
        failed = await attempt(self._cell.journal.save_snapshot(self._cell.id, self._epoch, Snapshot(self._number, self.state.keep())))
        if isinstance(failed, Failure):
            log.warning("snapshot_not_kept", session_id=self._cell.id, error=in_words(failed.error))

    @property
    def batch(self) -> int:
        """The batch that what is written now belongs to."""
        return self._batches

    def stands(self, batch: int) -> bool:
        """Whether a batch became durable, whatever failed after it."""
        return batch < self._durable

    def untell(self, kind: type[Event], prompt_id: str) -> bool:
        """Take an announcement about a prompt back when a great many wait; False when few do, or it is out already.

        Readers who hear nothing for long then miss prompts that came and went meanwhile, instead of all of them being kept.
        """
        if self.outbox is None or len(self.outbox) < NEWS_KEPT:
            return False
        for news in self.outbox:
            if news[1] is kind and news[4] == (prompt_id,):
                self.outbox.remove(news)
                return True
        return False

    def write(self, body: Body, key: str | None = None) -> None:
        """Take a record into the state now; it goes to the journal with the next `flush` or `commit`. A `key` finds it there again."""
        self.state.apply(body)
        self._staged += (body,)
        if key is not None:
            self._labels = {**(self._labels or {}), key: self._number + len(self._staged)}

    def announce(self, kind: type[Event], turn_id: str | None, request_state: dict[str, Any] | None, *fields: Any) -> None:
        """Have an event published once everything written before the next flush is durable."""
        if self.outbox is None:
            self.outbox = deque()
        self.outbox.append((self._batches, kind, turn_id, request_state, fields, None))

    def announce_apart(self, streams: tuple[Subscription, ...], kind: type[Event], *fields: Any) -> None:
        """Announce an event that says nothing of the view and the running turn, and that these streams hear of too."""
        if self.outbox is None:
            self.outbox = deque()
        self.outbox.append((self._batches, kind, None, None, fields, streams))

    def flush(self) -> Commit | None:
        """Hand what was written to the journal. What comes back is to be waited for; None: all is durable.

        Raises `JournalUnavailable` or `Fenced`; then this incarnation is over.
        """
        if self.broken is not None:
            raise self.broken
        flushed = self._flush()
        if isinstance(flushed, Failure):
            raise flushed.error
        return flushed

    @property
    def _is_unfinished(self) -> bool:
        return self.state.turn is not None or self.state.waiting is not None

    def _flush(self) -> Commit | Failure | None:
        self._batches += 1
        if self._staged:
            cell, unfinished = self._cell, self._is_unfinished
            written = contain(cell.journal.append, cell.id, self._epoch, self._number + 1, self._staged, unfinished=unfinished, labels=self._labels)
            if isinstance(written, Failure):
                return Failure(self._break(written.error))
            self._number += len(self._staged)
            self._staged = ()
            self._labels = None
            if written is not None:
                self._pending += ((written, self._batches),)
        if self._pending:
            return self._pending[-1][0]
        self._durable = self._batches
        return None

    async def wait_durable(self) -> None:
        """Return once everything written so far is durable; publishes nothing. Raises as `flush` does."""
        commit = self.flush()
        if commit is not None:
            await self._wait(commit)

    async def commit(self) -> None:
        """Return once everything written is durable and everything announced is published. Raises as `flush` does."""
        while True:
            await self._make_durable()
            await self.publish_news()
            if self.outbox is None:  # else more was written while handlers were told
                return

    def begin_commit(self) -> Awaitable[None] | None:
        """`commit`, as far as it goes without waiting: what comes back must be awaited, and raises what goes wrong; None: all is done.

        In memory, with handlers that are plain functions, nothing of a commit waits. A turn has two, and a coroutine that
        does not wait costs as much as what it does.
        """
        if self.broken is None and self._flush() is None:
            if self.outbox is None:
                return None
            pending = self._publish()
            if pending is not None:
                return self._commit_after(pending)
            if self.outbox is None:
                return None
        return self.commit()

    async def commit_whole(self, begun: Awaitable[None] | None = None) -> None:
        """As `commit`, where no turn is left that a handler could fail: when one does, the others are told all the same.

        Raises the `SystemExit` that a handler asked for, once all are told.
        """
        left: SystemExit | None = None
        while isinstance(done := await attempt(begun or self.commit()), Failure):
            if not isinstance(done.error, HandlerFault):
                raise done.error
            left, begun = left or exit_in(done.error), None
        if left is not None:
            raise left

    async def publish_news(self) -> None:
        """Publish what was announced and is durable, in order. An event is taken off before it goes out, so it never goes out twice."""
        while (pending := self._publish()) is not None:
            await self._tell(pending)

    async def _commit_after(self, telling: Awaitable[None]) -> None:
        await self._tell(telling)
        await self.commit()

    async def _tell(self, telling: Awaitable[None]) -> None:
        try:
            await telling
        finally:
            self._have_told()

    def _publish(self) -> Awaitable[None] | None:
        """Publish news up to the first that somebody makes us wait for, which is to be awaited by `_tell`; None: all of it."""
        publisher, self._telling = self.publisher, True
        pending: Awaitable[None] | None = None
        quiet = publisher.quiet  # to most of what a turn announces nobody listens
        try:
            while self.outbox and self.outbox[0][0] < self._durable and pending is None:
                _, kind, turn_id, request_state, fields, streams = self.outbox.popleft()
                if quiet.get(kind) == () and not streams:
                    publisher.seq += 1
                    continue
                if streams:
                    publisher.streams += streams
                pending = publisher.publish(kind, turn_id, request_state, *fields)
                if streams:
                    publisher.streams = tuple(stream for stream in publisher.streams if stream not in streams)
                quiet = quiet and publisher.quiet
        finally:
            if pending is None:
                self._have_told()
        return pending

    def _have_told(self) -> None:
        if not self.outbox:
            self.outbox = None
        self._telling = False
        if self._cell.told is not None:
            self._cell.wake()

    @property
    def is_behind(self) -> bool:
        """Whether the state shows anything that readers have not heard of."""
        return self._telling or self.broken is not None or any(news[5] is None for news in self.outbox or ())

    def untold(self) -> Awaitable[None] | None:
        """What to wait for before the state shows nothing but what readers have heard of, None when it is so now."""
        if not self.is_behind or not self._cell.busy:
            return None
        return self._cell.wait_told()

    async def redact(self, replaced: Mapping[int, Body], body: Body) -> None:
        """Replace records by their numbers and add one, all or none; when it returns, the old ones are in none of the journal's files.

        The state still shows what was replaced: whoever calls this ends the incarnation. Raises as `flush` does.
        """
        self.flush()
        await self._cell.journal.redact(self._cell.id, self._epoch, replaced, self._number + 1, (body,), unfinished=self._is_unfinished)
        self._number += 1

    def move_to(self, cell: Cell, claim: Claim) -> bool:
        """Write for another cell from now on, under its claim; False when the log is not where this writer left it."""
        if self.broken is not None or self._staged or claim.last != self._number:
            return False
        self._cell, self._epoch, self.publisher = cell, claim.epoch, cell.publisher
        return True

    async def _make_durable(self) -> None:
        try:
            while (commit := self.flush()) is not None:
                waited, batches = len(self._pending), self._batches
                await self._wait(commit)
                self._pending = self._pending[waited:]
                self._durable = batches
        except (JournalUnavailable, Fenced) as error:
            broken = self._break(error)
            await self._tell_what_stands()
            raise broken from broken.__cause__

    async def _wait(self, commit: Commit) -> None:
        failed = await attempt(commit.wait())
        if isinstance(failed, Failure):
            raise self._break(failed.error)

    async def _tell_what_stands(self) -> None:
        """Publish what became durable before the write that failed."""
        for commit, batches in self._pending:
            if isinstance(await attempt(commit.wait()), Failure):
                break
            self._durable = batches
        self._pending = ()
        await self.publish_news()

    def _break(self, error: Exception) -> Exception:
        if self.broken is None:
            if isinstance(error, JournalUnavailable | Fenced):
                self.broken = error
            else:
                self.broken = JournalUnavailable(f"the journal failed: {in_words(error)}")
                self.broken.__cause__ = error
            if self._cell.actor is not None and not self._cell.busy:
                self._cell.drop_actor(self.broken)
        return self.broken

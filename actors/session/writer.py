"""A session's pen: records into the state and the journal, and the events that wait for them.

`write` changes the state and gives the records their numbers in one synchronous step. `commit` hands what was written to
the journal, waits until it is durable, and only then publishes what was announced. So a reader never hears of something
that a crash could undo. Deltas are not announced: they go out at once, through the publisher.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ropewalk.actors.events import Event
from ropewalk.actors.session.records import Body
from ropewalk.actors.session.state import SessionState
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.errors import Fenced, JournalUnavailable
from ropewalk.runtime.journal import Claim, Commit
from ropewalk.runtime.supervision import Failure, contain

__all__ = ["Writer"]


class Writer:
    """Writes one incarnation of a session. Once a write has failed, every later one fails: the incarnation is over."""

    __slots__ = ("_broken", "_cell", "_epoch", "_number", "_pending", "_staged", "outbox", "publisher", "state")

    def __init__(self, cell: Cell, state: SessionState, claim: Claim) -> None:
        self._cell = cell
        self._epoch = claim.epoch
        self._number = claim.last
        self._staged: list[Body] = []
        self._pending: Commit | None = None
        self.outbox: deque[tuple[type[Event], str | None, dict[str, Any] | None, tuple[Any, ...]]] | None = None
        self._broken: Exception | None = None
        self.state = state
        self.publisher = cell.publisher

    @property
    def has_news(self) -> bool:
        """Whether announced events are durable and can be published now."""
        return self.outbox is not None and not self._staged and self._pending is None

    @property
    def is_durable(self) -> bool:
        """Whether all that was written is known to be durable."""
        return self._broken is None and not self._staged and self._pending is None

    def write(self, body: Body) -> None:
        """Take a record into the state now; it goes to the journal with the next `flush` or `commit`."""
        self.state.apply(body)
        self._staged.append(body)

    def announce(self, kind: type[Event], turn_id: str | None, request_state: dict[str, Any] | None, *fields: Any) -> None:
        """Have an event published once everything written so far is durable."""
        if self.outbox is None:
            self.outbox = deque()
        self.outbox.append((kind, turn_id, request_state, fields))

    def flush(self) -> Commit | None:
        """Hand what was written to the journal. What comes back is to be waited for; None: all is durable.

        Raises `JournalUnavailable` or `Fenced`; then this incarnation is over.
        """
        if self._broken is not None:
            raise self._broken
        if self._staged:
            written = contain(self._cell.journal.append, self._cell.id, self._epoch, self._number + 1, tuple(self._staged))
            if isinstance(written, Failure):
                raise self._break(written.error)
            self._number += len(self._staged)
            self._staged.clear()
            if written is not None:
                self._pending = written
        return self._pending

    async def commit(self) -> None:
        """Return once everything written is durable and everything announced is published. Raises as `flush` does."""
        commit = self.flush()
        while commit is not None:
            try:
                await commit.wait()
            except (JournalUnavailable, Fenced) as error:
                raise self._break(error) from None
            if self._pending is commit:
                self._pending = None
            commit = self._pending
        await self.publish_news()

    async def publish_news(self) -> None:
        """Publish what was announced, in order. An event is taken off before it goes out, so it never goes out twice."""
        while self.outbox:
            kind, turn_id, request_state, fields = self.outbox.popleft()
            pending = self.publisher.publish(kind, turn_id, request_state, *fields)
            if pending is not None:
                await pending
        self.outbox = None

    def move_to(self, cell: Cell, claim: Claim) -> bool:
        """Write for another cell from now on, under its claim; False when the log is not where this writer left it."""
        if self._broken is not None or self._staged or claim.last != self._number:
            return False
        self._cell, self._epoch, self.publisher = cell, claim.epoch, cell.publisher
        return True

    def _break(self, error: Exception) -> Exception:
        if self._broken is None:
            if isinstance(error, JournalUnavailable | Fenced):
                self._broken = error
            else:
                self._broken = JournalUnavailable(f"the journal failed: {type(error).__name__}: {error}")
                self._broken.__cause__ = error
            if self._cell.actor is not None and not self._cell.busy:
                self._cell.actor = None
        return self._broken

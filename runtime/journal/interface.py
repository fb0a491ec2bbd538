"""What a journal promises. Records are opaque to it: it numbers, keeps, orders and fences them.

Appending is synchronous and durability is awaited apart. So a record gets its number and the actor's state changes in
one step, between which nothing else runs, and commits of many actors can be grouped by the journal.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import attrs
import msgspec

__all__ = ["Claim", "Commit", "Journal", "JournalStatistics", "Record", "Snapshot"]


class Record(msgspec.Struct, frozen=True, gc=False):
    """One element of an actor's log: `number` counts from 1 without a gap, `epoch` says which writer wrote it, `body` is the actor's own."""

    number: int
    epoch: int
    body: Any


@attrs.frozen
class Claim:
    """The right to write one actor's log: the `epoch` that goes with every append, and the `last` record number there is (0: a new log)."""

    epoch: int
    last: int


@attrs.frozen
class Snapshot:
    """An actor's state (`body`, its own) after record `number`: a cache, never the truth."""

    number: int
    body: Any


@attrs.frozen
class JournalStatistics:
    """What a journal holds and has done: actors known, records kept, appends and snapshots written, writes refused."""

    actors: int
    records: int
    appends: int
    snapshots: int
    failures: int


class Commit(Protocol):
    """A write that is on its way to being durable."""

    async def wait(self) -> None:
        """Return when the write is durable; raises `JournalUnavailable` when it never will be. Any number may wait, any number of times."""
        ...


class Journal(Protocol):
    """A log for each actor, addressed by the actor's id."""

    async def open(self) -> None:
        """Make ready; called once by each runtime that uses it. Raises `JournalUnavailable`."""
        ...

    async def close(self) -> None:
        """Let go of what `open` took. What was durable stays."""
        ...

    async def claim(self, actor_id: str) -> Claim:
        """Become the actor's only writer: every older epoch is fenced from now on."""
        ...

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any]) -> Commit | None:
        """Add records numbered from `first`, all or none. None means durable already, else wait for the commit.

        Raises `Fenced` for an epoch that is not the newest, `JournalUnavailable` when nothing could be written.
        """
        ...

    async def read(self, actor_id: str, after: int = 0) -> Sequence[Record]:
        """The records numbered above `after`, in order."""
        ...

    async def snapshot(self, actor_id: str) -> Snapshot | None:
        """The newest snapshot, None when there is none."""
        ...

    async def save_snapshot(self, actor_id: str, epoch: int, snapshot: Snapshot) -> None:
        """Keep a snapshot in place of older ones; raises `Fenced` as `append` does."""
        ...

    def actors(self) -> AsyncIterator[str]:
        """The ids of every actor that has a log, in order."""
        ...

    def statistics(self) -> JournalStatistics:
        """A frozen record of what the journal holds and has done."""
        ...

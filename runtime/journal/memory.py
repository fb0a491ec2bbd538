"""The journal in memory: the same records and the same refusals as on disk, gone with the process.

It can be told to fail, which is how the laws of durability are tested before any disk is involved.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import repeat
from typing import Any, Literal, TypeAlias

import anyio
import anyio.lowlevel

from ropewalk.runtime.errors import Fenced, JournalUnavailable
from ropewalk.runtime.journal.interface import Claim, Commit, JournalStatistics, Record, Snapshot

__all__ = ["Fault", "MemoryJournal"]

Fault: TypeAlias = Literal["refuse", "lose"] | None
"""What goes wrong with one write: `refuse` fails the append at once, `lose` accepts it and fails its commit, keeping nothing of it."""


class _Log:
    __slots__ = ("bodies", "broken", "epoch", "snapshot", "spans")

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.spans = array("Q")  # the first record number and the epoch of each claim that wrote, one after the other
        self.epoch = 0
        self.broken = False
        self.snapshot: Snapshot | None = None


class _Delayed:
    """A commit that takes a while from when it was made; it is durable even when nobody waits to hear of it."""

    __slots__ = ("_durable_at",)

    def __init__(self, seconds: float) -> None:
        self._durable_at = anyio.current_time() + seconds

    async def wait(self) -> None:
        await anyio.sleep_until(self._durable_at)


class _Lost:
    __slots__ = ()

    async def wait(self) -> None:
        await anyio.lowlevel.checkpoint()
        raise JournalUnavailable("the write was accepted but could not be made durable")


class MemoryJournal:
    """Logs kept in this process.

    :param fault: asked before each append with the number of appends tried so far; what it names goes wrong with this one.
    :param lag: seconds a commit takes to be durable; 0 makes it durable at once.
    """

    def __init__(self, *, fault: Callable[[int], Fault] | None = None, lag: float = 0.0) -> None:
        self._logs: dict[str, _Log] = {}
        self._fault = fault
        self._lag = lag
        self._tried = 0
        self._appends = 0
        self._snapshots = 0
        self._failures = 0

    async def open(self) -> None:
        """Nothing to make ready."""

    async def close(self) -> None:
        """Nothing to let go of: the logs stay as long as the object does."""

    async def claim(self, actor_id: str) -> Claim:
        """Become the only writer of one log; whoever wrote it before is fenced."""
        log = self._logs.get(actor_id)
        if log is None:
            log = self._logs[actor_id] = _Log()
        log.epoch += 1
        log.broken = False
        return Claim(log.epoch, len(log.bodies))

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any]) -> Commit | None:
        """Add records, all or none; see `Journal.append`."""
        log = self._owned(actor_id, epoch)
        if not log.broken and first != len(log.bodies) + 1:
            raise Fenced(f"record {first} of {actor_id!r} does not follow the last one, {len(log.bodies)}")
        fault = self._fault(self._tried) if self._fault is not None else None
        self._tried += 1
        if fault == "refuse" or log.broken:
            self._failures += 1
            raise JournalUnavailable(f"a write to the log of {actor_id!r} was refused")
        if fault == "lose":
            # A store that loses one write cannot be trusted with the next: they would leave a hole.
            self._failures += 1
            log.broken = True
            return _Lost()
        self._appends += 1
        if not log.spans or log.spans[-1] != epoch:
            log.spans.extend((first, epoch))
        log.bodies.extend(bodies)
        return _Delayed(self._lag) if self._lag else None

    async def read(self, actor_id: str, after: int = 0) -> Sequence[Record]:
        """The records numbered above `after`, in order."""
        log = self._logs.get(actor_id)
        if log is None or not log.bodies:
            return ()
        records: list[Record] = []
        ends = [*log.spans[2::2], len(log.bodies) + 1]
        for start, epoch, end in zip(log.spans[::2], log.spans[1::2], ends, strict=True):
            first = max(start, after + 1)
            records += map(Record, range(first, end), repeat(epoch), log.bodies[first - 1 : end - 1])
        return records

    async def snapshot(self, actor_id: str) -> Snapshot | None:
        """The newest snapshot, None when there is none."""
        log = self._logs.get(actor_id)
        return None if log is None else log.snapshot

    async def save_snapshot(self, actor_id: str, epoch: int, snapshot: Snapshot) -> None:
        """Keep a snapshot in place of older ones."""
        log = self._owned(actor_id, epoch)
        log.snapshot = snapshot
        self._snapshots += 1

    async def actors(self) -> AsyncIterator[str]:
        """The ids of every actor that has a log, in order."""
        for actor_id in sorted(self._logs):
            if self._logs[actor_id].bodies:
                yield actor_id

    def statistics(self) -> JournalStatistics:
        """A frozen record of what the journal holds and has done."""
        return JournalStatistics(
            actors=sum(bool(log.bodies) for log in self._logs.values()),
            records=sum(len(log.bodies) for log in self._logs.values()),
            appends=self._appends,
            snapshots=self._snapshots,
            failures=self._failures,
        )

    def _owned(self, actor_id: str, epoch: int) -> _Log:
        """The log, when this epoch may write it."""
        log = self._logs.get(actor_id)
        newest = 0 if log is None else log.epoch
        if log is None or epoch != newest:
            raise Fenced(f"{actor_id!r} is written under epoch {newest} now; epoch {epoch} may not write it")
        return log

"""The journal in memory: the same records and the same refusals as on disk, gone with the process.

It can be told to fail, which is how the laws of durability are tested before any disk is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, TypeAlias

import anyio
import anyio.lowlevel

from ropewalk.runtime.errors import Fenced, InvalidOption, JournalUnavailable, SessionElsewhere, SessionExists, UnknownSession
from ropewalk.runtime.journal.codec import Codec
from ropewalk.runtime.journal.interface import PAGE, Claim, Commit, Durability, JournalStatistics, KnownActor, Record, Snapshot
from ropewalk.runtime.journal.labels import digest_of, digests_of
from ropewalk.runtime.journal.logs import Log, Logs

__all__ = ["Fault", "MemoryJournal"]

Fault: TypeAlias = Literal["refuse", "lose"] | None
"""What goes wrong with one write: `refuse` fails the append at once, `lose` accepts it and fails its commit, keeping nothing of it."""


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
    """Logs kept in this process. Bodies are kept as they are, so no codec is asked, and records have no times.

    :param fault: asked before each append with the number of appends tried so far; what it names goes wrong with this one.
    :param lag: seconds a commit takes to be durable; 0 makes it durable at once.
    :param beside: another journal whose logs this one keeps too, as an owner of its own: what two processes do with one file, in one.
    """

    def __init__(self, *, fault: Callable[[int], Fault] | None = None, lag: float = 0.0, beside: MemoryJournal | None = None) -> None:
        self._logs: Logs = Logs() if beside is None else beside._logs
        self._fault = fault
        self._lag = lag
        self._opened = 0
        self._tried = 0
        self._appends = 0
        self._snapshots = 0
        self._failures = 0

    async def open(self) -> None:
        """Be an owner that lives; there is nothing to make ready."""
        self._opened += 1

    async def close(self) -> None:
        """Own nothing any more, once everybody who opened it has closed it: the logs stay as long as the object does."""
        self._opened -= 1

    def keeper(self) -> None:
        """Nothing is left to be done later."""

    async def claim(self, actor_id: str, kind: str = "", codec: Codec | None = None) -> Claim:
        """Become the only writer of one log; whoever wrote it before is fenced. Raises `SessionElsewhere`."""
        log = self._logs.get(actor_id) or self._logs.new(actor_id, kind)
        self._refuse_elsewhere(actor_id, log)
        if not log.last:
            log.kind = kind
        log.owner = self
        log.epoch += 1
        log.broken = False
        return Claim(log.epoch, log.last, log.kind, log.begins)

    async def release(self, actor_id: str, epoch: int) -> None:
        """Own the actor no more; see `Journal.release`."""
        log = self._logs.get(actor_id)
        if log is not None and log.epoch == epoch and log.owner is self:
            log.owner = None
            if not log.last:
                self._logs.forget(actor_id)

    def append(
        self,
        actor_id: str,
        epoch: int,
        first: int,
        bodies: Sequence[Any],
        durability: Durability | None = None,
        *,
        unfinished: bool = False,
        labels: Mapping[str, int] | None = None,
    ) -> Commit | None:
        """Add records, all or none; see `Journal.append`."""
        digests = digests_of(labels, first, len(bodies))
        log, commit = self._written(actor_id, epoch, first)
        if commit is not None:
            return commit
        log.add(first, epoch, bodies, unfinished)
        if digests:
            log.labels = {**dict(digests), **(log.labels or {})}
        return _Delayed(self._lag) if self._lag and durability != "memory" else None

    async def read(self, actor_id: str, after: int = 0, limit: int | None = None, *, codec: Codec | None = None) -> Sequence[Record]:
        """The records numbered above `after`, in order, at most `limit` of them."""
        log = self._logs.get(actor_id)
        if log is None:
            return ()
        return log.records(after, log.last if limit is None else min(log.last, after + limit))

    async def labelled(self, actor_id: str, label: str) -> int | None:
        """The number of the record under a label; see `Journal.labelled`."""
        digest = digest_of(label)
        log = self._logs.get(actor_id)
        return None if log is None or log.labels is None else log.labels.get(digest)

    async def snapshot(self, actor_id: str, *, codec: Codec | None = None) -> Snapshot | None:
        """The newest snapshot, None when there is none."""
        log = self._logs.get(actor_id)
        return None if log is None else log.snapshot

    async def save_snapshot(self, actor_id: str, epoch: int, snapshot: Snapshot) -> None:
        """Keep a snapshot in place of older ones."""
        log = self._owned(actor_id, epoch)
        log.snapshot = snapshot
        self._snapshots += 1

    async def find(self, actor_id: str) -> KnownActor | None:
        """What is known of one actor; see `Journal.find`."""
        log = self._logs.get(actor_id)
        return None if log is None or not log.last else KnownActor(actor_id, log.kind, log.last)

    async def actors(self, after: str = "", limit: int = PAGE) -> Sequence[KnownActor]:
        """The next actors that have records, by id; see `Journal.actors`."""
        return self._page(after, limit, lambda log: log.last > 0)

    async def unfinished(self, after: str = "", limit: int = PAGE) -> Sequence[KnownActor]:
        """The next actors that have work nobody else is at; see `Journal.unfinished`."""
        return self._page(after, limit, lambda log: log.unfinished and not self._is_elsewhere(log))

    def _page(self, after: str, limit: int, wanted: Callable[[Log], bool]) -> Sequence[KnownActor]:
        logs = self._logs
        found = (actor_id for actor_id in logs.after(after) if wanted(logs[actor_id]))
        return [KnownActor(actor_id, logs[actor_id].kind, logs[actor_id].last) for actor_id in islice(found, limit)]

    async def redact(self, actor_id: str, epoch: int, replaced: Mapping[int, Any], first: int, bodies: Sequence[Any], *, unfinished: bool = False) -> None:
        """Replace bodies and add records, all or none; see `Journal.redact`."""
        log = self._owned(actor_id, epoch)
        for number in replaced:
            if type(number) is not int or not 0 < number <= log.last:
                raise InvalidOption(f"{actor_id!r} has no record {number!r} to redact; its last one is {log.last}")
        sharers = [sharer for number in replaced for sharer in log.holder(number).sharing(number)]
        for sharer in sharers:
            self._refuse_elsewhere(actor_id if sharer.kin is None else str(sharer.kin.id), sharer)
        log, commit = self._written(actor_id, epoch, first)
        if commit is not None:
            await commit.wait()
        for number, body in replaced.items():
            log.holder(number).replace(number, body)
        for sharer in (log, *sharers):
            sharer.snapshot = None
        log.add(first, epoch, bodies, unfinished)

    async def delete(self, actor_id: str) -> bool:
        """Forget an actor and its log; see `Journal.delete`."""
        log = self._logs.get(actor_id)
        if log is None:
            return False
        self._refuse_elsewhere(actor_id, log)
        found = log.last > 0
        self._logs.forget(actor_id)
        return found

    async def fork(self, source_id: str, number: int, new_id: str, kind: str = "") -> KnownActor:
        """Begin a log that goes on from another one's records; see `Journal.fork`."""
        source, taken = self._logs.get(source_id), self._logs.get(new_id)
        if source is None or not source.last:
            raise UnknownSession(f"there is no log of {source_id!r} to fork")
        if type(number) is not int or not 0 < number <= source.last:
            raise InvalidOption(f"{source_id!r} has no record {number!r} to be forked at; its last one is {source.last}")
        if taken is not None:
            self._refuse_elsewhere(new_id, taken)
            if taken.last or taken.owner is self:
                raise SessionExists(f"{new_id!r} {'has a log' if taken.last else 'is claimed'} already; a fork needs an id of its own")
            self._logs.forget(new_id)
        fork = self._logs.fork(source_id, number, new_id, kind)
        return KnownActor(new_id, fork.kind, number)

    async def relatives(self, actor_id: str) -> Sequence[str]:
        """Who else has some of these records; see `Journal.relatives`."""
        return self._logs.relatives(actor_id)

    def statistics(self) -> JournalStatistics:
        """A frozen record of what the journal holds and has done."""
        return JournalStatistics(
            actors=sum(log.last > 0 for log in self._logs.values()),
            records=sum(len(log.bodies) for log in (*self._logs.values(), *self._logs.left)),
            appends=self._appends,
            snapshots=self._snapshots,
            failures=self._failures,
        )

    def _written(self, actor_id: str, epoch: int, first: int) -> tuple[Log, Commit | None]:
        """The log, for a write that may be made; with the commit that fails where it is to be lost."""
        log = self._owned(actor_id, epoch)
        if not log.broken and first != log.last + 1:
            raise Fenced(f"record {first} of {actor_id!r} does not follow the last one, {log.last}")
        fault = self._fault(self._tried) if self._fault is not None else None
        self._tried += 1
        if fault == "refuse" or log.broken:
            self._failures += 1
            raise JournalUnavailable(f"a write to the log of {actor_id!r} was refused")
        if fault == "lose":
            # A store that loses one write cannot be trusted with the next: they would leave a hole.
            self._failures += 1
            log.broken = True
            return log, _Lost()
        self._appends += 1
        return log, None

    def _owned(self, actor_id: str, epoch: int) -> Log:
        """The log, when this epoch may write it."""
        log = self._logs.get(actor_id)
        newest = 0 if log is None else log.epoch
        if log is None or epoch != newest or log.owner is not self:
            raise Fenced(f"{actor_id!r} is written under epoch {newest} now; epoch {epoch} may not write it")
        return log

    def _is_elsewhere(self, log: Log) -> bool:
        return log.owner is not None and log.owner is not self and log.owner._opened > 0

    def _refuse_elsewhere(self, actor_id: str, log: Log) -> None:
        if self._is_elsewhere(log):
            raise SessionElsewhere(f"{actor_id!r} is owned by another runtime that is alive")

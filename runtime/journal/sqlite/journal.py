"""The journal in an SQLite file: one writer that groups the commits of all actors, readers that never make it wait.

Everything that touches the file happens in worker threads. Writes go through a `GroupKeeper`, a group a transaction; reads have
connections of their own. A connection that failed is made anew for the next group: so the journal is back when the disk is.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import anyio
import anyio.lowlevel
import anyio.to_thread

from ropewalk.runtime.clock import Clock
from ropewalk.runtime.errors import Fenced, InvalidOption, JournalUnavailable
from ropewalk.runtime.journal.codec import PLAIN, Codec
from ropewalk.runtime.journal.grouping import GroupKeeper, Operation
from ropewalk.runtime.journal.interface import DURABILITIES, PAGE, Claim, Commit, Durability, JournalStatistics, KnownActor, Record, Snapshot
from ropewalk.runtime.journal.labels import digest_of, digests_of
from ropewalk.runtime.journal.sqlite import family, reading
from ropewalk.runtime.journal.sqlite.file import Connect
from ropewalk.runtime.journal.sqlite.rows import packed
from ropewalk.runtime.journal.sqlite.store import Store
from ropewalk.runtime.journal.sqlite.transaction import Pen
from ropewalk.runtime.journal.sqlite.writing import Appending, Claiming, Deleting, Forking, Redacting, Releasing, Resting, SnapshotSaving

__all__ = ["SQLiteJournal"]

T = TypeVar("T")

READERS = 4
"""How many reads of one event loop go on at the same time."""

_reads = anyio.lowlevel.RunVar[anyio.CapacityLimiter]("ropewalk_journal_reads")


class SQLiteJournal:
    """Keeps actors in an SQLite file, which is made where there is none; its folder has to be there.

    :param path: the file. Beside it stand its write-ahead log and a small lock file for each owner that is alive.
    :param durability: what a commit waits for unless told otherwise: ``"disk"`` survives the loss of power, ``"os"`` the end of the process.
    :param timeout: seconds to wait for another process that writes to the same file.
    :param connecting: makes connections in place of `sqlite3.connect`; for tests.

    One object is one owner: give each runtime one of its own. Several processes may use one file, each with its own sessions.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "disk",
        timeout: float = 5.0,
        clock: Clock | None = None,
        connecting: Connect | None = None,
    ) -> None:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise InvalidOption(f"a journal's path is the name of a file, such as 'sessions.db', not {path!r:.200}")
        name = os.fsdecode(path)
        if name.startswith((":", "file:")):
            raise InvalidOption(f"a journal's path is the name of a file, not {name!r:.200}; sessions that need not last are kept without a journal")
        if not (isinstance(timeout, int | float) and timeout >= 0):
            raise InvalidOption(f"timeout is 0 or more seconds, not {timeout!r}")
        if connecting is None:
            import sqlite3

            connecting = sqlite3.connect
        self._durability = _checked(durability)
        self._clock = clock or Clock()
        self._store = Store(os.path.realpath(name), timeout, connecting, self._clock)
        self._pens: dict[str, Pen] = {}
        self._keepers: dict[GroupKeeper, object] = {}  # with the event loop of each; several threads may come and go
        weakref.finalize(self, self._store.abandon)  # an object that was dropped owns nothing
        _journals.add(self)

    def __repr__(self) -> str:
        return f"SQLiteJournal({self.path!r})"

    @property
    def path(self) -> str:
        """The file, as an absolute path."""
        return self._store.path

    # Opening and closing.

    async def open(self) -> None:
        """Open the file, or make it; see `Journal.open`."""
        await _in_thread(self._store.open)

    async def close(self) -> None:
        """Let go of the file and of everything claimed; see `Journal.close`."""
        if await _in_thread(self._store.close):
            self._pens.clear()

    def keeper(self) -> GroupKeeper:
        """What writes for the actors of this event loop; see `Journal.keeper`."""
        keeper = GroupKeeper(self._store.write, self._forget_keeper)
        self._keepers[keeper] = anyio.lowlevel.current_token()
        return keeper

    def _forget_keeper(self, ended: GroupKeeper) -> None:
        self._keepers.pop(ended, None)

    def _keepers_here(self) -> list[GroupKeeper]:
        """The keepers of this event loop, the newest first."""
        here = anyio.lowlevel.current_token()
        return [keeper for keeper, loop in reversed(list(self._keepers.items())) if loop == here and not keeper.is_stopping]

    def _keeper_here(self) -> GroupKeeper:
        keepers = self._keepers_here()
        if keepers:
            return keepers[0]
        raise JournalUnavailable(f"nothing writes to {self.path} here: open it through a Runtime, or run its keeper() in a task")

    # Owning.

    async def claim(self, actor_id: str, kind: str = "", codec: Codec | None = None) -> Claim:
        """Become the actor's only writer; see `Journal.claim`."""
        keeper = self._keeper_here()

        def take(claiming: Claiming) -> None:
            claim = cast(Claim, claiming.claim)
            self._pens[actor_id] = Pen(actor_id, claiming.key, claim.epoch, claim.last, codec or PLAIN, keeper)

        claiming = Claiming(actor_id, kind, take)
        keeper.add(claiming)
        await claiming.wait()
        return cast(Claim, claiming.claim)

    async def release(self, actor_id: str, epoch: int) -> None:
        """Own the actor no more; see `Journal.release`."""
        pen = self._pens.get(actor_id)
        if pen is not None and pen.epoch == epoch:
            await self._done(Releasing(pen, self._give_up), pen.keeper)

    def _give_up(self, pen: Pen) -> None:
        if self._pens.get(pen.actor_id) is pen:
            del self._pens[pen.actor_id]

    # Writing.

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
        """Add records; see `Journal.append`."""
        pen = self._writable(actor_id, epoch, first)
        level = self._durability if durability is None else _checked(durability)
        digests = digests_of(labels, first, len(bodies))
        if not bodies:
            return None
        appending = Appending(pen, first, self._blobs(pen, first, bodies, unfinished), digests, level == "disk")
        pen.keeper.add(appending)
        pen.last += len(bodies)
        return None if level == "memory" else appending

    async def redact(self, actor_id: str, epoch: int, replaced: Mapping[int, Any], first: int, bodies: Sequence[Any], *, unfinished: bool = False) -> None:
        """Replace bodies and add records; see `Journal.redact`."""
        pen = self._writable(actor_id, epoch, first)
        for number in replaced:
            if type(number) is not int or not 0 < number <= pen.last:
                raise InvalidOption(f"{actor_id!r} has no record {number!r} to redact; its last one is {pen.last}")
        encoded = [(number, pen.codec.encode(body)) for number, body in replaced.items()]
        redacting = Redacting(pen, encoded, first, self._blobs(pen, first, bodies, unfinished))
        pen.keeper.add(redacting)
        pen.last += len(bodies)
        await redacting.wait()

    async def save_snapshot(self, actor_id: str, epoch: int, snapshot: Snapshot) -> None:
        """Keep a snapshot; see `Journal.save_snapshot`."""
        pen = self._owned(actor_id, epoch)
        blob = packed(pen.key, snapshot.number, epoch, self._clock.time(), False, pen.codec.encode(snapshot.body))
        await self._done(SnapshotSaving(pen, blob), pen.keeper)

    async def delete(self, actor_id: str) -> bool:
        """Forget an actor and its log; see `Journal.delete`."""
        deleting = Deleting(actor_id, self._forget)
        await self._done(deleting, self._keeper_here())
        return deleting.found

    async def fork(self, source_id: str, number: int, new_id: str, kind: str = "") -> KnownActor:
        """Begin a log that goes on from another one's records; see `Journal.fork`."""
        forking = Forking(source_id, number, new_id, kind)
        await self._done(forking, self._keeper_here())
        return cast(KnownActor, forking.known)

    async def relatives(self, actor_id: str) -> Sequence[str]:
        """Who else has some of these records; see `Journal.relatives`."""
        return await self._read(family.relatives, actor_id)

    def _forget(self, actor_id: str) -> None:
        self._pens.pop(actor_id, None)

    def _owned(self, actor_id: str, epoch: int) -> Pen:
        pen = self._pens.get(actor_id)
        if pen is None or pen.epoch != epoch:
            newest = "it is not claimed here" if pen is None else f"it is written under epoch {pen.epoch} now"
            raise Fenced(f"epoch {epoch} may not write {actor_id!r}: {newest}")
        if pen.is_broken:
            raise JournalUnavailable(f"an earlier write to the log of {actor_id!r} was lost")
        return pen

    def _writable(self, actor_id: str, epoch: int, first: int) -> Pen:
        pen = self._owned(actor_id, epoch)
        if first != pen.last + 1:
            raise Fenced(f"record {first} of {actor_id!r} does not follow the last one, {pen.last}")
        return pen

    def _blobs(self, pen: Pen, first: int, bodies: Sequence[Any], unfinished: bool) -> list[bytes]:
        at, encode, last = self._clock.time(), pen.codec.encode, first + len(bodies) - 1
        return [packed(pen.key, number, pen.epoch, at, unfinished and number == last, encode(body)) for number, body in enumerate(bodies, first)]

    async def _done(self, operation: Operation, keeper: GroupKeeper) -> None:
        keeper.add(operation)
        await operation.wait()

    # Reading.

    async def read(self, actor_id: str, after: int = 0, limit: int | None = None, *, codec: Codec | None = None) -> Sequence[Record]:
        """The committed records; see `Journal.read`."""
        return await self._read(reading.records, actor_id, after, limit, self._codec(actor_id, codec))

    async def labelled(self, actor_id: str, label: str) -> int | None:
        """The number of the record under a label; see `Journal.labelled`."""
        return await self._read(reading.labelled, actor_id, digest_of(label))

    async def snapshot(self, actor_id: str, *, codec: Codec | None = None) -> Snapshot | None:
        """The newest snapshot; see `Journal.snapshot`."""
        return await self._read(reading.snapshot, actor_id, self._codec(actor_id, codec))

    async def find(self, actor_id: str) -> KnownActor | None:
        """What is known of one actor; see `Journal.find`."""
        return await self._read(reading.known_actor, actor_id)

    async def actors(self, after: str = "", limit: int = PAGE) -> Sequence[KnownActor]:
        """The next actors by id; see `Journal.actors`."""
        return await self._read(reading.known_actors, after, limit)

    async def unfinished(self, after: str = "", limit: int = PAGE) -> Sequence[KnownActor]:
        """The next actors that have work nobody else is at; see `Journal.unfinished`."""
        page = await self._read(self._store.unfinished, after, limit)
        if page.resting and (keepers := self._keepers_here()):
            keepers[0].add(Resting(page.resting))  # looked at once, and not again by anybody
        return page.unfinished

    async def check(self) -> Sequence[str]:
        """What is wrong with the file, in words, by SQLite's own check and by the checksum of every record; empty when all is well."""
        return await self._read(reading.problems)

    async def back_up(self, target: str | os.PathLike[str]) -> None:
        """Copy the journal as it is now into a new file, while it is written to. Raises `InvalidOption` where there is a file, `JournalUnavailable`."""
        await self._read(reading.back_up, self.path, os.fsdecode(target))

    async def compact(self) -> None:
        """Give the room of what was deleted back to the file system. Writes the whole file anew; commits of all actors wait meanwhile."""
        await _in_thread(self._store.compact)

    def statistics(self) -> JournalStatistics:
        """A frozen record of what the journal holds and has done; what other processes wrote counts from this one's next write on."""
        return self._store.statistics()

    def _codec(self, actor_id: str, codec: Codec | None) -> Codec:
        pen = self._pens.get(actor_id)
        return codec or (PLAIN if pen is None else pen.codec)

    async def _read(self, read: Callable[..., T], *arguments: Any) -> T:
        limiter = _reads.get(None)
        if limiter is None:
            limiter = anyio.CapacityLimiter(READERS)
            _reads.set(limiter)
        return await anyio.to_thread.run_sync(self._store.read, read, *arguments, limiter=limiter)

    def _stay_behind(self) -> None:
        self._store.stay_behind()
        self._pens.clear()


async def _in_thread(work: Callable[[], T]) -> T:
    # A limiter of its own: opening and closing must not wait for whatever else runs in threads.
    return await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1))


def _checked(durability: Durability) -> Durability:
    if durability not in DURABILITIES:
        raise InvalidOption(f"durability is one of {', '.join(map(repr, DURABILITIES))}, not {durability!r:.200}")
    return durability


_journals: weakref.WeakSet[SQLiteJournal] = weakref.WeakSet()


def _forked() -> None:
    """In a child process: the files, and the locks on them, stay with the parent."""
    for journal in list(_journals):
        journal._stay_behind()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

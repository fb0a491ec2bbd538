"""What a journal promises. Records are opaque to it: it numbers, keeps, orders and fences them.

Appending is synchronous and durability is awaited apart. So a record gets its number and the actor's state changes in
one step, between which nothing else runs, and commits of many actors can be grouped by the journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import attrs
import msgspec

if TYPE_CHECKING:
    from ropewalk.runtime.journal.codec import Codec

__all__ = ["DURABILITIES", "PAGE", "Claim", "Commit", "Durability", "Journal", "JournalStatistics", "Keeper", "KnownActor", "Record", "Snapshot"]

Durability: TypeAlias = Literal["disk", "os", "memory"]
"""What a commit has survived when it is told of: `disk` the loss of power, `os` the end of this process, `memory` neither."""

DURABILITIES: tuple[Durability, ...] = ("disk", "os", "memory")

PAGE = 1000
"""How many actors `Journal.actors` lists at a time, unless told otherwise."""


class Record(msgspec.Struct, frozen=True, gc=False, eq=False):
    """One element of an actor's log: `number` counts from 1 without a gap, `epoch` says which writer wrote it, `body` is the actor's own.

    `tag` is what the codec calls this sort of body, `at` the seconds since 1970 when it was written, None where the journal
    keeps no times. Two records are equal when number, epoch and body are.
    """

    number: int
    epoch: int
    body: Any
    tag: str = ""
    at: float | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return (self.number, self.epoch, self.body) == (other.number, other.epoch, other.body)

    def __hash__(self) -> int:
        return hash((self.number, self.epoch))


@attrs.frozen
class Claim:
    """The right to write one actor's log: the `epoch` that goes with every append, and the `last` record number there is (0: a new log).

    `kind` is the name of the kind that the log was begun under, `shared` the last of the records that a fork has of its source.
    """

    epoch: int
    last: int
    kind: str = attrs.field(default="", eq=False)
    shared: int = attrs.field(default=0, eq=False)


@attrs.frozen
class Snapshot:
    """An actor's state (`body`, its own) after record `number`: a cache, never the truth."""

    number: int
    body: Any


@attrs.frozen
class KnownActor:
    """An actor that has a log: its id, its kind's name, its last record's number, and when that was written.

    `at` is in seconds since 1970, None where the journal keeps no times.
    """

    id: str
    kind: str
    last: int
    at: float | None = None


@attrs.frozen
class JournalStatistics:
    """What a journal holds and has done: actors known, records kept (shared ones once), appends and snapshots written, writes refused.

    `commits` are the transactions it took, `largest_group` the most writes that shared one, `fsyncs` the transactions that waited for
    the disk, `bytes_on_disk` what all its files take; 0 where there are none.
    """

    actors: int
    records: int
    appends: int
    snapshots: int
    failures: int
    commits: int = 0
    largest_group: int = 0
    fsyncs: int = 0
    bytes_on_disk: int = 0


class Commit(Protocol):
    """A write that is on its way to being durable."""

    async def wait(self) -> None:
        """Return when the write is durable; raises `JournalUnavailable` or `Fenced` when it never will be. Any number may wait, any number of times."""
        ...


class Keeper(Protocol):
    """What brings a journal's appends to where they last, as long as a runtime needs it."""

    async def run(self) -> None:
        """Work until stopped and nothing is left to do.

        Cancelled, it goes on until it is stopped, for a bounded while, so that the last words of actors are kept; then it lets the cancellation through.
        """
        ...

    def stop(self) -> None:
        """Have `run` end once it has done what there is."""
        ...


class Journal(Protocol):
    """A log for each actor, addressed by the actor's id. One object is one owner: what it has claimed, no other living owner gets."""

    async def open(self) -> None:
        """Make ready; called once by each runtime that uses it. Raises `JournalUnavailable`, whose text says what is wrong with the place."""
        ...

    async def close(self) -> None:
        """Let go of what `open` took and of everything claimed. What was durable stays. Called once for each `open`."""
        ...

    def keeper(self) -> Keeper | None:
        """What a runtime has to run beside its actors, from before the first claim until after the last append; None where nothing is left to be done later."""
        ...

    async def claim(self, actor_id: str, kind: str = "", codec: Codec | None = None) -> Claim:
        """Become the actor's only writer: every older epoch is fenced from now on.

        :param kind: the name of the actor's kind, kept beside the log when it is new.
        :param codec: how bodies become bytes and back; None is for bodies of plain JSON values.

        Raises `SessionElsewhere` at once when another living owner has it, `JournalUnavailable` when it cannot be asked.
        """
        ...

    async def release(self, actor_id: str, epoch: int) -> None:
        """Own the actor no more, so that another owner can claim it at once. Does nothing for an epoch that is not the newest."""
        ...

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
        """Add records numbered from `first`, all or none. None means durable already, else wait for the commit.

        :param durability: what the commit waits for; None is the journal's own.
        :param unfinished: whether the actor has work under way after these records, which somebody must go on with if this owner cannot; see `unfinished`.
        :param labels: names by which records of these are found again, each with the record's number; see `labelled`. They are kept or not together with
            the records. A label that the log has already stays with its first record: who must not write twice asks first.

        Raises `Fenced` for an epoch that is not the newest, `JournalUnavailable` when nothing could be written, `InvalidOption` for a label of another record.
        """
        ...

    async def read(self, actor_id: str, after: int = 0, limit: int | None = None, *, codec: Codec | None = None) -> Sequence[Record]:
        """The records numbered above `after` that are committed, in order, at most `limit` of them. Needs no claim.

        :param codec: how bytes become bodies; None is the one of this owner's claim, or else plain JSON values.

        Raises `JournalDamaged` for a record that is not what was written, `UnknownRecord` for one that the codec does not know.
        """
        ...

    async def labelled(self, actor_id: str, label: str) -> int | None:
        """The number of the committed record that was appended to this actor's log under a label, None when none was.

        Of a label nothing is kept but a digest. It goes with its log; redacting the record leaves it, so that nothing is accepted anew under it.
        """
        ...

    async def snapshot(self, actor_id: str, *, codec: Codec | None = None) -> Snapshot | None:
        """The newest snapshot, None when there is none that can be used."""
        ...

    async def save_snapshot(self, actor_id: str, epoch: int, snapshot: Snapshot) -> None:
        """Keep a snapshot in place of older ones; raises `Fenced` as `append` does."""
        ...

    async def find(self, actor_id: str) -> KnownActor | None:
        """What is known of one actor, None when it has no records."""
        ...

    async def actors(self, after: str = "", limit: int = PAGE) -> Sequence[KnownActor]:
        """The next actors that have records, by id, from the first after `after`. Going on from the last id of each page meets every actor
        that was there all the while exactly once, whatever is written meanwhile; an empty page is the end.
        """
        ...

    async def unfinished(self, after: str = "", limit: int = PAGE) -> Sequence[KnownActor]:
        """The next actors whose newest records were appended as `unfinished`, and that no other living owner has; paged as `actors` is.

        So these are what owners that are dead left in the middle of something, what was released so, and what this owner has under way itself.
        Costs nothing for actors that were released with their work done.
        """
        ...

    async def redact(self, actor_id: str, epoch: int, replaced: Mapping[int, Any], first: int, bodies: Sequence[Any], *, unfinished: bool = False) -> None:
        """Replace the bodies of records under their numbers and add records, all in one; every snapshot of the actor goes with it.

        A record that others share is replaced for all of them, and every snapshot of theirs goes too. What is replaced says nothing of unfinished
        work, what is added does, as in `append`.

        When this returns, it is durable, and the old bodies are in none of the journal's files. Raises as `append` does, `InvalidOption` for a
        number there is no record of, and `SessionElsewhere` when another living owner has somebody who shares a record: nothing has changed then, and
        unless more was appended meanwhile this claim goes on.
        """
        ...

    async def fork(self, source_id: str, number: int, new_id: str, kind: str = "") -> KnownActor:
        """Begin a log of another id that has the committed records of `source_id` up to `number`, without copying any, and goes on at the next number.

        :param kind: the name of the new actor's kind; empty is the source's.

        Needs no claim of either; both are written on apart. Labels and snapshots stay with the source. When this returns, it is durable.
        Raises `UnknownSession` where there is no such source, `InvalidOption` where it has no such record, `SessionExists` where the new id has
        records or is claimed by this owner, `SessionElsewhere` where another living owner has it.
        """
        ...

    async def relatives(self, actor_id: str) -> Sequence[str]:
        """The ids of all others whose logs share records with this actor's, because one was forked from the other or both from a third, in order."""
        ...

    async def delete(self, actor_id: str) -> bool:
        """Forget an actor and its log, whoever of this owner holds a claim; its writers are fenced. Whether there was one.

        Records that others share stay with them, and go with the last of those.
        When this returns, it is durable, and what the log said is in none of the journal's files. Raises `SessionElsewhere`.
        """
        ...

    def statistics(self) -> JournalStatistics:
        """A frozen record of what the journal holds and has done."""
        ...

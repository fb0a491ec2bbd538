"""What is written into an SQLite journal: operations that a transaction carries out one after the other.

Each looks into the database, within the transaction, whether it may: under which epoch the actor is written now, by which owner,
and which record is its last. One that may not is refused alone, before it has changed anything, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ropewalk.runtime.errors import Fenced, InvalidOption, JournalDamaged, JournalUnavailable, SessionElsewhere, SessionExists, UnknownSession
from ropewalk.runtime.journal.codec import Encoded
from ropewalk.runtime.journal.grouping import Operation
from ropewalk.runtime.journal.interface import Claim, KnownActor
from ropewalk.runtime.journal.sqlite import family
from ropewalk.runtime.journal.sqlite.rows import HEAD_BYTES, at_of, is_unfinished, packed, padded, slot_size, unpacked
from ropewalk.runtime.journal.sqlite.transaction import Pen, Transaction, forget_if_empty

__all__ = ["Appending", "Claiming", "Deleting", "Forking", "Redacting", "Releasing", "Resting", "SnapshotSaving"]

RELEASED_UNFINISHED = 0
"""Stands as the owner of an actor that was released in the middle of its work; no owner has this number."""

_NEWEST = f"SELECT substr(blob, 1, {HEAD_BYTES}) FROM logs JOIN blobs USING (place) WHERE actor = ? AND number > 0 ORDER BY number DESC LIMIT 1"


class Claiming(Operation):
    """Becoming an actor's writer; `claim` and `key` are what came of it."""

    __slots__ = ("_took", "actor_id", "claim", "key", "kind")

    def __init__(self, actor_id: str, kind: str, took: Callable[[Claiming], None]) -> None:
        super().__init__()
        self.actor_id = actor_id
        self.kind = kind
        self.claim: Claim | None = None
        self.key = 0
        self._took = took

    def carry_out(self, transaction: Transaction) -> None:
        """Make the claim, and the actor's row when it is new."""
        transaction.flush()
        found = transaction.one("SELECT actor, kind, epoch, owner FROM actors WHERE id = ?", self.actor_id)
        if found is None:
            epoch = transaction.one("SELECT epoch FROM totals")[0] + 1
            made = "INSERT INTO actors (id, kind, epoch, owner) VALUES (?, ?, ?, ?)"
            key = transaction.connection.execute(made, (self.actor_id, self.kind, epoch, transaction.owner)).lastrowid
            self.key, self.claim = key or 0, Claim(epoch, 0, self.kind)
            return
        self.key, kind, epoch, owner = found
        transaction.may_take(self.actor_id, owner)
        last = transaction.last(self.key)
        kind = kind if last else self.kind
        transaction.connection.execute("UPDATE actors SET epoch = ?, owner = ?, kind = ? WHERE actor = ?", (epoch + 1, transaction.owner, kind, self.key))
        forked = transaction.one("SELECT number FROM forks WHERE actor = ?", self.key)
        self.claim = Claim(epoch + 1, last, kind, 0 if forked is None else forked[0])

    def settled(self) -> None:
        """Know of the claim, whether or not somebody still waits for it: older ones are fenced from here on."""
        if self.error is None:
            self._took(self)


class _ByPen(Operation):
    """What only an actor's writer may do; once a write of the actor was lost, none that follows is made."""

    __slots__ = ("is_synced", "pen")

    def __init__(self, pen: Pen, is_synced: bool) -> None:
        super().__init__()
        self.pen = pen
        self.is_synced = is_synced

    def settled(self) -> None:
        """Remember that a write was lost."""
        if self.error is not None:
            self.pen.is_broken = True

    def refuse_if_broken(self) -> None:
        """Raise `JournalUnavailable` when an earlier write was lost: this one would leave a hole."""
        if self.pen.is_broken:
            raise JournalUnavailable(f"an earlier write to the log of {self.pen.actor_id!r} was lost")


class Appending(_ByPen):
    """Records at the end of a log; `labels` are the digests of those that have labels, each with the record's number."""

    __slots__ = ("blobs", "first", "labels")

    def __init__(self, pen: Pen, first: int, blobs: Sequence[bytes], labels: Sequence[tuple[bytes, int]], is_synced: bool) -> None:
        super().__init__(pen, is_synced)
        self.first = first
        self.blobs = blobs
        self.labels = labels

    def carry_out(self, transaction: Transaction) -> None:
        """Add them, all or none."""
        self.refuse_if_broken()
        pen = self.pen
        last = transaction.gathered[pen] if pen in transaction.gathered else transaction.standing(pen)
        if self.first != last + 1:
            raise Fenced(f"record {self.first} of {pen.actor_id!r} does not follow the last one, {last}")
        key = pen.key
        transaction.rows.extend([(key, number, blob) for number, blob in enumerate(self.blobs, self.first)])
        transaction.labels.extend([(key, digest, number) for digest, number in self.labels])
        transaction.gathered[pen] = last + len(self.blobs)
        transaction.actors += not last
        transaction.records += len(self.blobs)
        transaction.appends += 1


class SnapshotSaving(_ByPen):
    """A snapshot in place of an older one."""

    __slots__ = ("blob",)

    def __init__(self, pen: Pen, blob: bytes) -> None:
        super().__init__(pen, False)
        self.blob = blob

    def carry_out(self, transaction: Transaction) -> None:
        """Keep it."""
        self.refuse_if_broken()
        transaction.flush()
        transaction.standing(self.pen)
        slot = padded(self.blob, slot_size(len(self.blob)))
        transaction.place(self.pen.key, 0, slot or self.blob)
        transaction.snapshots += 1

    def settled(self) -> None:
        """A snapshot that was not kept costs nothing: it is a cache."""


class Redacting(_ByPen):
    """Bodies replaced under their numbers, and records at the end of the log."""

    __slots__ = ("blobs", "first", "replaced")

    def __init__(self, pen: Pen, replaced: Sequence[tuple[int, Encoded]], first: int, blobs: Sequence[bytes]) -> None:
        super().__init__(pen, True)
        self.replaced = replaced
        self.first = first
        self.blobs = blobs

    def carry_out(self, transaction: Transaction) -> None:
        """Replace and add, all or none."""
        self.refuse_if_broken()
        transaction.flush()
        pen = self.pen
        last = transaction.standing(pen)
        if self.first != last + 1:
            raise Fenced(f"record {self.first} of {pen.actor_id!r} does not follow the last one, {last}")
        places = family.holders(transaction.connection, pen.key, (number for number, _ in self.replaced))
        lowest = {log: number for number, log in sorted(places.items(), reverse=True)}  # who shares a later record of a log shares this one too
        sharers = {sharer[0]: sharer for log, number in lowest.items() for sharer in family.sharing(transaction.connection, log, number)}
        for _, actor_id, owner in sharers.values():
            transaction.may_take(actor_id, owner)
        changed = [self._changed(transaction, places[number], number, kept) for number, kept in self.replaced]
        for (number, _), blob in zip(self.replaced, changed, strict=True):
            transaction.place(places[number], number, blob)
        for key in {pen.key, *sharers}:
            transaction.take_away(key, 0)
        transaction.rows.extend([(pen.key, number, blob) for number, blob in enumerate(self.blobs, self.first)])
        transaction.records += len(self.blobs)
        transaction.appends += 1
        transaction.flush()

    def _changed(self, transaction: Transaction, log: int, number: int, kept: Encoded) -> bytes:
        row = transaction.one("SELECT blob FROM logs JOIN blobs USING (place) WHERE actor = ? AND number = ?", log, number)
        found = None if row is None else unpacked(log, number, row[0])
        if found is None:
            actor_id = self.pen.actor_id
            raise JournalDamaged(f"record {number} of {actor_id!r} is not what was written, so it cannot be redacted; delete the actor to be rid of it")
        _, epoch, at, unfinished, _ = found
        return packed(log, number, epoch, at, unfinished, kept)

    def settled(self) -> None:
        """One that was refused because of a relative changed nothing, so the log goes on, unless more was added to it already."""
        pen = self.pen
        if isinstance(self.error, SessionElsewhere) and pen.last == self.first - 1 + len(self.blobs):
            pen.last = self.first - 1
        else:
            super().settled()


class Releasing(Operation):
    """Owning an actor no more; one without records is forgotten."""

    __slots__ = ("_gave", "pen")

    def __init__(self, pen: Pen, gave: Callable[[Pen], None]) -> None:
        super().__init__()
        self.pen = pen
        self._gave = gave

    def carry_out(self, transaction: Transaction) -> None:
        """Give it up."""
        transaction.flush()
        pen = self.pen
        newest = transaction.one(_NEWEST, pen.key)
        owner = RELEASED_UNFINISHED if newest is not None and is_unfinished(newest[0]) else None
        transaction.connection.execute(
            "UPDATE actors SET owner = ? WHERE actor = ? AND epoch = ? AND owner = ?", (owner, pen.key, pen.epoch, transaction.owner)
        )
        forget_if_empty(transaction, self.pen.key)

    def settled(self) -> None:
        """Know that it is given up."""
        if self.error is None:
            self._gave(self.pen)


class Resting(Operation):
    """Actors, each with its epoch and its owner, that were found to have their work done and an owner that is dead: nobody's from now on."""

    __slots__ = ("_found",)

    def __init__(self, found: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self._found = found

    def carry_out(self, transaction: Transaction) -> None:
        """Note it, of those that nobody has claimed meanwhile."""
        transaction.connection.executemany("UPDATE actors SET owner = NULL WHERE actor = ? AND epoch = ? AND owner = ?", self._found)


class Deleting(Operation):
    """An actor and its log, gone; `found` says whether there was one."""

    __slots__ = ("_gone", "actor_id", "found")

    is_synced = True

    def __init__(self, actor_id: str, gone: Callable[[str], None]) -> None:
        super().__init__()
        self.actor_id = actor_id
        self.found = False
        self._gone = gone

    def carry_out(self, transaction: Transaction) -> None:
        """Delete it."""
        transaction.flush()
        found = transaction.one("SELECT actor, epoch, owner FROM actors WHERE id = ?", self.actor_id)
        if found is None:
            return
        key, epoch, owner = found
        transaction.may_take(self.actor_id, owner)
        connection = transaction.connection
        self.found = transaction.last(key) > 0
        transaction.take_away(key, 0)
        connection.execute("DELETE FROM labels WHERE actor = ?", (key,))
        connection.execute("DELETE FROM actors WHERE actor = ?", (key,))
        connection.execute("UPDATE totals SET epoch = max(epoch, ?)", (epoch,))
        transaction.actors -= self.found
        transaction.records -= transaction.let_go(key)

    def settled(self) -> None:
        """Fence whoever writes it here."""
        if self.error is None:
            self._gone(self.actor_id)


class Forking(Operation):
    """A log that goes on from another one's records; `known` is what came of it."""

    __slots__ = ("kind", "known", "new_id", "number", "source_id")

    is_synced = True

    def __init__(self, source_id: str, number: int, new_id: str, kind: str) -> None:
        super().__init__()
        self.source_id = source_id
        self.number = number
        self.new_id = new_id
        self.kind = kind
        self.known: KnownActor | None = None

    def carry_out(self, transaction: Transaction) -> None:
        """Make it, with nothing of the records but whose they are."""
        transaction.flush()
        source = transaction.one(f"SELECT actor, kind, epoch, {family.LAST} FROM actors WHERE id = ?", self.source_id)
        if source is None or not source[3]:
            raise UnknownSession(f"there is no log of {self.source_id!r} to fork")
        key, kind, epoch, last = source
        if type(self.number) is not int or not 0 < self.number <= last:
            raise InvalidOption(f"{self.source_id!r} has no record {self.number!r} to be forked at; its last one is {last}")
        self._clear(transaction)
        epoch = max(epoch, transaction.one("SELECT epoch FROM totals")[0])  # no record here is of a later epoch than those that follow
        made = "INSERT INTO actors (id, kind, epoch) VALUES (?, ?, ?)"
        fork = transaction.connection.execute(made, (self.new_id, self.kind or kind, epoch)).lastrowid
        log = family.holders(transaction.connection, key, [self.number])[self.number]
        transaction.connection.execute("INSERT INTO forks VALUES (?, ?, ?)", (fork, log, self.number))
        transaction.actors += 1
        head = transaction.one(f"SELECT substr(blob, 1, {HEAD_BYTES}) FROM logs JOIN blobs USING (place) WHERE actor = ? AND number = ?", log, self.number)
        self.known = KnownActor(self.new_id, self.kind or kind, self.number, None if head is None else at_of(head[0]))

    def _clear(self, transaction: Transaction) -> None:
        """Have no row of the new id; one may be left of an owner that is dead."""
        found = transaction.one(f"SELECT actor, owner, {family.LAST} FROM actors WHERE id = ?", self.new_id)
        if found is None:
            return
        key, owner, last = found
        transaction.may_take(self.new_id, owner)
        if last or owner == transaction.owner:
            raise SessionExists(f"{self.new_id!r} {'has a log' if last else 'is claimed'} already; a fork needs an id of its own")
        transaction.connection.execute("UPDATE actors SET owner = NULL WHERE actor = ?", (key,))
        forget_if_empty(transaction, key)

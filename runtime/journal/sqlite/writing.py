"""What is written into an SQLite journal: operations that a transaction carries out one after the other.

Each looks into the database, within the transaction, whether it may: under which epoch the actor is written now, by which owner,
and which record is its last. One that may not is refused alone, before it has changed anything, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from ropewalk.runtime.errors import Fenced, JournalDamaged, JournalUnavailable, SessionElsewhere
from ropewalk.runtime.journal.codec import Codec, Encoded
from ropewalk.runtime.journal.grouping import GroupKeeper, Operation
from ropewalk.runtime.journal.interface import Claim
from ropewalk.runtime.journal.sqlite.rows import HEAD_BYTES, blank, is_unfinished, packed, padded, slot_size, unpacked

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Appending", "Claiming", "Deleting", "Pen", "Redacting", "Releasing", "Resting", "SnapshotSaving", "Transaction"]

RELEASED_UNFINISHED = 0
"""Stands as the owner of an actor that was released in the middle of its work; no owner has this number."""

_NEWEST = f"SELECT substr(blob, 1, {HEAD_BYTES}) FROM logs JOIN blobs USING (place) WHERE actor = ? AND number > 0 ORDER BY number DESC LIMIT 1"
_STANDING = "SELECT epoch, owner, (SELECT max(number) FROM logs WHERE logs.actor = actors.actor) FROM actors WHERE actor = ?"


class Pen:
    """A claim this owner holds: `key` is the actor's row, `last` the last record that was handed over, `is_broken` that one was lost."""

    __slots__ = ("actor_id", "codec", "epoch", "is_broken", "keeper", "key", "last")

    def __init__(self, actor_id: str, key: int, epoch: int, last: int, codec: Codec, keeper: GroupKeeper) -> None:
        self.actor_id = actor_id
        self.key = key
        self.epoch = epoch
        self.last = last
        self.codec = codec
        self.keeper = keeper
        self.is_broken = False


@attrs.define(eq=False)
class Transaction:
    """What operations work with: the connection, who writes, and whether another owner lives.

    `rows` are records (actor, number, blob) that were checked and are not in the tables yet, `labels` the labels of some (actor, digest, number),
    `gathered` the last record of each actor that has any.
    """

    connection: sqlite3.Connection
    owner: int
    is_alive: Callable[[int], bool]
    rows: list[tuple[int, int, bytes]] = attrs.Factory(list)
    labels: list[tuple[int, bytes, int]] = attrs.Factory(list)
    gathered: dict[Pen, int] = attrs.Factory(dict)
    actors: int = 0
    records: int = 0
    appends: int = 0
    snapshots: int = 0

    def flush(self) -> None:
        """Have the gathered records in the table before anything else is asked of it."""
        if self.rows:
            first = (self.one("SELECT max(place) FROM blobs")[0] or 0) + 1
            self.connection.executemany("INSERT INTO blobs VALUES (?, ?)", [(place, blob) for place, (_, _, blob) in enumerate(self.rows, first)])
            self.connection.executemany("INSERT INTO logs VALUES (?, ?, ?)", [(key, number, place) for place, (key, number, _) in enumerate(self.rows, first)])
            self.rows = []
        if self.labels:
            self.connection.executemany("INSERT OR IGNORE INTO labels VALUES (?, ?, ?)", self.labels)
            self.labels = []
        self.gathered.clear()

    def place(self, key: int, number: int, blob: bytes) -> None:
        """Put a blob where there was another one of this actor's number, or none: in its place when it has the room, else in a place of its own."""
        connection = self.connection
        old = self.one("SELECT place, length(blob) FROM logs JOIN blobs USING (place) WHERE actor = ? AND number = ?", key, number)
        if old is not None:
            fitting = padded(blob, old[1])
            self.overwrite(old[0], blank(old[1]) if fitting is None else fitting)
            if fitting is not None:
                return
        free = self.one("SELECT place FROM slots WHERE size = ? LIMIT 1", len(blob))
        if free is None:
            place = connection.execute("INSERT INTO blobs (blob) VALUES (?)", (blob,)).lastrowid
        else:
            place = free[0]
            connection.execute("DELETE FROM slots WHERE size = ? AND place = ?", (len(blob), place))
            self.overwrite(place, blob)
        connection.execute("INSERT OR REPLACE INTO logs VALUES (?, ?, ?)", (key, number, place))
        if old is not None:
            self.leave(*old)

    def take_away(self, key: int, number: int) -> None:
        """Blank a blob and forget it; nothing when there is none."""
        old = self.one("SELECT place, length(blob) FROM logs JOIN blobs USING (place) WHERE actor = ? AND number = ?", key, number)
        if old is not None:
            self.overwrite(old[0], blank(old[1]))
            self.connection.execute("DELETE FROM logs WHERE actor = ? AND number = ?", (key, number))
            self.leave(*old)

    def overwrite(self, place: int, blob: bytes) -> None:
        """Write over a blob of the same length, so that SQLite moves nothing."""
        self.connection.execute("UPDATE blobs SET blob = ? WHERE place = ?", (blob, place))

    def leave(self, place: int, length: int) -> None:
        """A place was blanked: one of the sizes that snapshots have can be another's."""
        if length == slot_size(length):
            self.connection.execute("INSERT INTO slots VALUES (?, ?)", (length, place))

    def totals(self) -> tuple[int, int] | None:
        """Bring the table of totals up to date; the actors and records there are then, None where the transaction changed neither."""
        if not self.actors and not self.records:
            return None
        changed = "UPDATE totals SET actors = actors + ?, records = records + ? RETURNING actors, records"
        found: tuple[int, int] = self.connection.execute(changed, (self.actors, self.records)).fetchone()
        return found

    def one(self, statement: str, *values: Any) -> Any:
        """The first row of a query, None when there is none."""
        return self.connection.execute(statement, values).fetchone()

    def standing(self, pen: Pen) -> int:
        """The actor's last record, when this pen may write. Raises `Fenced`."""
        found = self.one(_STANDING, pen.key)
        if found is None or found[0] != pen.epoch or found[1] != self.owner:
            now = "is not there any more" if found is None else f"is written under epoch {found[0]} now"
            raise Fenced(f"{pen.actor_id!r} {now}; epoch {pen.epoch} may not write it")
        return found[2] or 0

    def may_take(self, actor_id: str, owner: int | None) -> None:
        """Return when nobody else that lives owns the actor. Raises `SessionElsewhere`."""
        if owner is not None and owner != self.owner and self.is_alive(owner):
            raise SessionElsewhere(f"{actor_id!r} is owned by another runtime that is alive")


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
        last = transaction.one("SELECT max(number) FROM logs WHERE actor = ?", self.key)[0] or 0
        kind = kind if last else self.kind
        transaction.connection.execute("UPDATE actors SET epoch = ?, owner = ?, kind = ? WHERE actor = ?", (epoch + 1, transaction.owner, kind, self.key))
        self.claim = Claim(epoch + 1, last, kind)

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
        olds: list[tuple[int, int, float, bool]] = []
        for number, _ in self.replaced:
            row = transaction.one("SELECT blob FROM logs JOIN blobs USING (place) WHERE actor = ? AND number = ?", pen.key, number)
            found = None if row is None else unpacked(pen.actor_id, number, row[0])
            if found is None:
                raise JournalDamaged(f"record {number} of {pen.actor_id!r} is not what was written, so it cannot be redacted; delete the actor to be rid of it")
            olds.append(found[:4])
        for (number, epoch, at, unfinished), (_, kept) in zip(olds, self.replaced, strict=True):
            transaction.place(pen.key, number, packed(pen.actor_id, number, epoch, at, unfinished, kept))
        transaction.take_away(pen.key, 0)
        transaction.rows.extend([(pen.key, number, blob) for number, blob in enumerate(self.blobs, self.first)])
        transaction.records += len(self.blobs)
        transaction.appends += 1
        transaction.flush()


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
        transaction.take_away(key, 0)
        connection.execute("UPDATE blobs SET blob = zeroblob(length(blob)) WHERE place IN (SELECT place FROM logs WHERE actor = ?)", (key,))
        count = connection.execute("DELETE FROM logs WHERE actor = ?", (key,)).rowcount
        connection.execute("DELETE FROM labels WHERE actor = ?", (key,))
        connection.execute("DELETE FROM actors WHERE actor = ?", (key,))
        connection.execute("UPDATE totals SET epoch = max(epoch, ?)", (epoch,))
        transaction.actors -= count > 0
        transaction.records -= count
        self.found = count > 0

    def settled(self) -> None:
        """Fence whoever writes it here."""
        if self.error is None:
            self._gone(self.actor_id)


def forget_if_empty(transaction: Transaction, key: int) -> None:
    """Take the row of an actor away that nobody owns and that has no records."""
    empty = "DELETE FROM actors WHERE actor = ? AND owner IS NULL AND NOT EXISTS (SELECT 1 FROM logs WHERE logs.actor = actors.actor AND number > 0)"
    found = transaction.one("SELECT epoch FROM actors WHERE actor = ?", key)
    if found is not None and transaction.connection.execute(empty, (key,)).rowcount:
        transaction.take_away(key, 0)
        transaction.connection.execute("UPDATE totals SET epoch = max(epoch, ?)", (found[0],))

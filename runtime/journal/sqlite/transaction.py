"""One transaction on an SQLite journal, as the operations of a group see it, and the pens that say who may write."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from ropewalk.runtime.errors import Fenced, SessionElsewhere
from ropewalk.runtime.journal.codec import Codec
from ropewalk.runtime.journal.grouping import GroupKeeper
from ropewalk.runtime.journal.sqlite import family
from ropewalk.runtime.journal.sqlite.rows import blank, padded, slot_size

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Pen", "Transaction", "forget_if_empty"]

_LAST = f"SELECT {family.LAST} FROM actors WHERE actor = ?"
_STANDING = f"SELECT epoch, owner, {family.LAST} FROM actors WHERE actor = ?"
_FORGET = f"DELETE FROM actors WHERE actor = ? AND owner IS NULL AND {family.LAST} = 0"


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

    def let_go(self, key: int) -> int:
        """Be rid of the records of an actor that is deleted, but for those that forks go on from, and of such that were kept for it alone; how many."""
        count = 0
        log: int | None = key
        while log is not None:
            needed = family.needed(self.connection, log)
            blanked = "UPDATE blobs SET blob = zeroblob(length(blob)) WHERE place IN (SELECT place FROM logs WHERE actor = ? AND number > ?)"
            self.connection.execute(blanked, (log, needed))
            count += self.connection.execute("DELETE FROM logs WHERE actor = ? AND number > ?", (log, needed)).rowcount
            log = None if needed else self._let_go_of_past(log)
        return count

    def _let_go_of_past(self, log: int) -> int | None:
        """Take away what a log with nothing left goes on from; the log it was, where nobody's but forks'."""
        gone = self.connection.execute("DELETE FROM forks WHERE actor = ? RETURNING source", (log,)).fetchall()
        sources = [source for (source,) in gone if self.one("SELECT 1 FROM actors WHERE actor = ?", source) is None]
        return sources[0] if sources else None

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

    def last(self, key: int) -> int:
        """The actor's last record, 0 when it has none."""
        number: int = self.one(_LAST, key)[0]
        return number

    def standing(self, pen: Pen) -> int:
        """The actor's last record, when this pen may write. Raises `Fenced`."""
        found = self.one(_STANDING, pen.key)
        if found is None or found[0] != pen.epoch or found[1] != self.owner:
            now = "is not there any more" if found is None else f"is written under epoch {found[0]} now"
            raise Fenced(f"{pen.actor_id!r} {now}; epoch {pen.epoch} may not write it")
        number: int = found[2]
        return number

    def may_take(self, actor_id: str, owner: int | None) -> None:
        """Return when nobody else that lives owns the actor. Raises `SessionElsewhere`."""
        if owner is not None and owner != self.owner and self.is_alive(owner):
            raise SessionElsewhere(f"{actor_id!r} is owned by another runtime that is alive")


def forget_if_empty(transaction: Transaction, key: int) -> None:
    """Take the row of an actor away that nobody owns and that has no records."""
    found = transaction.one("SELECT epoch FROM actors WHERE actor = ?", key)
    if found is not None and transaction.connection.execute(_FORGET, (key,)).rowcount:
        transaction.take_away(key, 0)
        transaction.connection.execute("UPDATE totals SET epoch = max(epoch, ?)", (found[0],))

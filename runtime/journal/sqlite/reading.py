"""What is read from an SQLite journal: plain functions over a connection of their own, which never make the writer wait."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from ropewalk.runtime.errors import InvalidOption, JournalDamaged, UnknownRecord
from ropewalk.runtime.journal.codec import Codec
from ropewalk.runtime.journal.interface import KnownActor, Record, Snapshot
from ropewalk.runtime.journal.sqlite import family
from ropewalk.runtime.journal.sqlite.rows import HEAD_BYTES, at_of, is_unfinished, unpacked

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Held", "back_up", "held_actors", "known_actor", "known_actors", "labelled", "problems", "records", "snapshot"]

T = TypeVar("T")

_KEY = "SELECT actor FROM actors WHERE id = ?"
_BLOBS = "SELECT number, blob FROM logs LEFT JOIN blobs USING (place) WHERE actor = ?"
_KNOWN = f"""
SELECT id, kind, {family.LAST} AS last, (SELECT substr(blob, 1, {HEAD_BYTES}) FROM blobs WHERE place = coalesce(
    (SELECT place FROM logs WHERE logs.actor = actors.actor AND logs.number > 0 ORDER BY logs.number DESC LIMIT 1),
    (SELECT place FROM forks JOIN logs ON logs.actor = source AND logs.number = forks.number WHERE forks.actor = actors.actor)))
FROM actors WHERE last > 0"""

_HELD = f"""
SELECT id, kind, number, substr(blob, 1, {HEAD_BYTES}), actor, epoch, owner
FROM actors INDEXED BY held JOIN logs USING (actor) LEFT JOIN blobs USING (place)
WHERE owner IS NOT NULL AND id > ? AND number = (SELECT max(number) FROM logs l WHERE l.actor = actors.actor) ORDER BY id"""

NEVER = 2**62
"""Above the number of any record."""

RESTING = 10_000
"""How many actors with their work done one page of `held_actors` tells of at most."""


@attrs.frozen
class Held:
    """A page of actors with unfinished work. `resting` have their work done and an owner that is dead: the actor's key, its epoch, its owner."""

    unfinished: list[KnownActor]
    resting: list[tuple[int, int, int]]


def records(connection: sqlite3.Connection, actor_id: str, after: int, limit: int | None, codec: Codec) -> list[Record]:
    """See `Journal.read`."""
    after, found = max(after, 0), list[Record]()
    for log, number, blob in _one_moment(connection, _blobs, actor_id, after, -1 if limit is None else limit):
        expected = after + len(found) + 1
        if number != expected:
            raise JournalDamaged(f"record {expected} of {actor_id!r} is lost: after it comes {number}")
        found.append(_record(actor_id, log, number, blob, codec))
    return found


def _blobs(connection: sqlite3.Connection, actor_id: str, after: int, limit: int) -> list[tuple[int, int, object]]:
    """An actor's records, as they lie in its own log and in those that it goes on from: the log, the number, the blob."""
    row = connection.execute(_KEY, (actor_id,)).fetchone()
    if row is None:
        return []
    found = list[tuple[int, int, object]]()
    logs = family.line(connection, row[0])
    ends = [NEVER, *(begins for _, begins in logs)]
    for (log, begins), end in zip(reversed(logs), reversed(ends[:-1]), strict=True):
        if end > after and limit:
            rows = connection.execute(f"{_BLOBS} AND number > ? AND number <= ? ORDER BY number LIMIT ?", (log, max(after, begins), end, limit)).fetchall()
            found += [(log, number, blob) for number, blob in rows]
            limit -= len(rows) if limit > 0 else 0
    return found


def _one_moment(connection: sqlite3.Connection, read: Callable[..., T], *arguments: Any) -> T:
    """What several queries give that all see the file as it is at one moment."""
    connection.execute("BEGIN")
    try:
        return read(connection, *arguments)
    finally:
        connection.execute("ROLLBACK")


def labelled(connection: sqlite3.Connection, actor_id: str, digest: bytes) -> int | None:
    """See `Journal.labelled`."""
    row = connection.execute(f"SELECT number FROM labels WHERE actor = ({_KEY}) AND digest = ?", (actor_id, digest)).fetchone()
    return None if row is None else row[0]


def snapshot(connection: sqlite3.Connection, actor_id: str, codec: Codec) -> Snapshot | None:
    """See `Journal.snapshot`: one that is damaged, or of a form not known here, is as good as none, for the records are there."""
    row = connection.execute(f"SELECT actor, blob FROM logs JOIN blobs USING (place) WHERE actor = ({_KEY}) AND number = 0", (actor_id,)).fetchone()
    if row is None:
        return None
    try:
        found = _record(actor_id, row[0], None, row[1], codec)
    except (JournalDamaged, UnknownRecord):
        return None
    return Snapshot(found.number, found.body)


def known_actor(connection: sqlite3.Connection, actor_id: str) -> KnownActor | None:
    """See `Journal.find`."""
    row = connection.execute(f"{_KNOWN} AND id = ?", (actor_id,)).fetchone()
    return None if row is None else _known(*row)


def known_actors(connection: sqlite3.Connection, after: str, limit: int) -> list[KnownActor]:
    """See `Journal.actors`."""
    return [_known(*row) for row in connection.execute(f"{_KNOWN} AND id > ? ORDER BY id LIMIT ?", (after, limit))]


def held_actors(connection: sqlite3.Connection, after: str, limit: int, owner: int, is_living: Callable[[int], bool]) -> Held:
    """See `Journal.unfinished`. `owner` is who asks."""
    page = Held([], [])
    for actor_id, kind, last, head, key, epoch, held_by in connection.execute(_HELD, (after,)):
        if held_by != owner and is_living(held_by):
            continue
        if last and is_unfinished(head):
            page.unfinished.append(_known(actor_id, kind, last, head))
            if len(page.unfinished) == limit:
                break
        elif held_by != owner and len(page.resting) < RESTING:
            page.resting.append((key, epoch, held_by))
    return page


def problems(connection: sqlite3.Connection) -> list[str]:
    """What is wrong with the file and with each record in it, in words; nothing for a sound one. Reads all of it."""
    found = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    if found:
        return found
    return _one_moment(connection, lambda connection: list(_problems(connection)))


def back_up(connection: sqlite3.Connection, path: str, target: str) -> None:
    """Copy the journal as it is at one moment into a file of its own, which appears when it is whole."""
    if os.path.exists(target):
        raise InvalidOption(f"there is a file {target} already; give the backup a name of its own")
    import sqlite3

    part = f"{target}.part"
    if os.path.exists(part):
        os.unlink(part)  # of a backup that was cut off
    copy = sqlite3.connect(part, isolation_level=None)
    try:
        connection.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        copy.execute("DELETE FROM owners")
    finally:
        copy.close()
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, target)


def _known(actor_id: str, kind: str, last: int, head: bytes | None) -> KnownActor:
    return KnownActor(actor_id, kind, last, at_of(head))


def _record(actor_id: str, log: int, number: int | None, blob: object, codec: Codec) -> Record:
    found = unpacked(log, number, blob)
    if found is None:
        raise JournalDamaged(f"record {number} of {actor_id!r} is not what was written: its checksum says so")
    number, epoch, at, _, kept = found
    try:
        return Record(number, epoch, codec.decode(kept), kept.tag, at)
    except UnknownRecord as error:
        raise UnknownRecord(f"record {number} of {actor_id!r} cannot be read: {error}") from None


def _problems(connection: sqlite3.Connection) -> Iterator[str]:
    count, log, name, expected = 0, 0, "", 1
    everything = """
        SELECT logs.actor, coalesce(id, ''), coalesce(forks.number, 0), logs.number, blob
        FROM logs LEFT JOIN blobs USING (place) LEFT JOIN actors USING (actor) LEFT JOIN forks USING (actor) WHERE logs.number > 0 ORDER BY 1, 4"""
    for key, actor_id, begins, number, blob in connection.execute(everything):
        if key != log:
            log, name, expected = key, repr(actor_id) if actor_id else f"the past that forks of log {key} share", begins + 1
        if number != expected:
            yield f"record {expected} of {name} is lost: after it comes {number}"
        elif unpacked(log, number, blob) is None:
            yield f"record {number} of {name} is not what was written"
        expected, count = number + 1, count + 1
    lost = (
        "SELECT id, number FROM forks JOIN actors USING (actor) WHERE NOT EXISTS (SELECT 1 FROM logs WHERE logs.actor = source AND logs.number = forks.number)"
    )
    for actor_id, number in connection.execute(lost):
        yield f"record {number} of {actor_id!r}, which it was forked at, is lost"
    actors = connection.execute(f"SELECT count(*) FROM actors WHERE {family.LAST} > 0").fetchone()[0]
    totals = connection.execute("SELECT actors, records FROM totals").fetchone()
    if totals != (actors, count):
        yield f"there are {count} records of {actors} actors, and {totals[1]} of {totals[0]} were written"

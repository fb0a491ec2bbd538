"""Logs that share a past: queries over the table of forks, in which every log that began as one says whose records it goes on from.

A log is known by its number (`actors.actor`), which stays when its actor is deleted and others share its past. A fork's row names the log that
holds the very record it was forked at, not the one it was asked of, so a log that has forks has records of its own below each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

__all__ = ["LAST", "holders", "line", "needed", "relatives", "sharing"]

LAST = """coalesce((SELECT max(number) FROM logs WHERE logs.actor = actors.actor AND number > 0),
 (SELECT number FROM forks WHERE forks.actor = actors.actor), 0)"""
"""The number of an actor's last record, 0 where it has none; for queries on `actors`."""

_SHARING = """
WITH RECURSIVE sharing (log, least) AS (
    VALUES (?, ?) UNION ALL SELECT forks.actor, 0 FROM sharing JOIN forks ON forks.source = sharing.log AND forks.number >= sharing.least
)
SELECT actor, id, owner FROM sharing JOIN actors ON actors.actor = sharing.log ORDER BY id"""


def line(connection: sqlite3.Connection, key: int) -> list[tuple[int, int]]:
    """The logs that hold an actor's records, its own first: each with the number after which its own records begin. The last begins after 0."""
    found = []
    while (row := connection.execute("SELECT source, number FROM forks WHERE actor = ?", (key,)).fetchone()) is not None:
        found.append((key, row[1]))
        key = row[0]
    return [*found, (key, 0)]


def holders(connection: sqlite3.Connection, key: int, numbers: Iterable[int]) -> dict[int, int]:
    """For each of these numbers, the log that holds the actor's record of it."""
    logs = line(connection, key)
    return {number: next(log for log, begins in logs if number > begins) for number in numbers}


def sharing(connection: sqlite3.Connection, log: int, number: int) -> list[tuple[int, str, int | None]]:
    """Everybody who has the record that this log holds under a number: key, id and owner."""
    return connection.execute(_SHARING, (log, number)).fetchall()


def relatives(connection: sqlite3.Connection, actor_id: str) -> list[str]:
    """See `Journal.relatives`: all whose lines have one beginning, since every fork shares at least its first record."""
    row = connection.execute("SELECT actor FROM actors WHERE id = ?", (actor_id,)).fetchone()
    if row is None:
        return []
    first, _ = line(connection, row[0])[-1]
    return [found for _, found, _ in sharing(connection, first, 1) if found != actor_id]


def needed(connection: sqlite3.Connection, log: int) -> int:
    """The highest number of this log's own records that a fork goes on from, 0 where none does."""
    number: int | None = connection.execute("SELECT max(number) FROM forks WHERE source = ?", (log,)).fetchone()[0]
    return number or 0

"""The log an actor is recovered from: the interface, its codec, and implementations in memory and in an SQLite file."""

from __future__ import annotations

import os

from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.journal.codec import Codec, Encoded, PlainCodec, StructCodec
from ropewalk.runtime.journal.interface import Claim, Commit, Durability, Journal, JournalStatistics, Keeper, KnownActor, Record, Snapshot
from ropewalk.runtime.journal.memory import Fault, MemoryJournal
from ropewalk.runtime.journal.sqlite import SQLiteJournal

__all__ = [
    "Claim",
    "Codec",
    "Commit",
    "Durability",
    "Encoded",
    "Fault",
    "Journal",
    "JournalStatistics",
    "Keeper",
    "KnownActor",
    "MemoryJournal",
    "PlainCodec",
    "Record",
    "SQLiteJournal",
    "Snapshot",
    "StructCodec",
    "journal_at",
]


def journal_at(place: Journal | str | os.PathLike[str] | None) -> Journal:
    """The journal that somebody means: the object itself, an SQLite file by its path, or one in memory where they name none.

    Raises `InvalidOption` for anything else.
    """
    if place is None:
        return MemoryJournal()
    if isinstance(place, str | os.PathLike):
        return SQLiteJournal(place)
    if isinstance(place, type) or not all(callable(getattr(place, name, None)) for name in ("open", "close", "claim", "append", "read")):
        raise InvalidOption(f"a journal is the path of a file, such as 'sessions.db', or a Journal, such as SQLiteJournal('sessions.db'), not {place!r:.200}")
    return place

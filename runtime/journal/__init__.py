"""The log an actor is recovered from: the interface, its codec, and implementations in memory and in an SQLite file."""

from __future__ import annotations

import os

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
    """The journal that somebody means: the object itself, an SQLite file by its path, or one in memory where they name none."""
    if place is None:
        return MemoryJournal()
    return SQLiteJournal(place) if isinstance(place, str | os.PathLike) else place

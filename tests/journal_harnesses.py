"""The journals that come with Ropewalk, as the conformance kit gets at them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

from ropewalk import MemoryJournal, SQLiteJournal
from ropewalk.runtime.journal import Fault, Journal
from ropewalk.testing import Damage, JournalHarness

__all__ = ["MemoryHarness", "SQLiteHarness"]

MEMORY = "/dev/shm"
"""Where files are in memory: the laws of the kit are not about the disk, and its fsync is the dearest part of them."""


class MemoryHarness(JournalHarness):
    """The journal in memory: one store, and an object beside it for each owner."""

    kind: type[MemoryJournal] = MemoryJournal

    def __init__(self) -> None:
        self._fault: Fault = None
        self._store = self.kind()

    def journal(self) -> MemoryJournal:
        return self.kind(beside=self._store, fault=lambda tried: self._fault)

    def dispose(self) -> None:
        pass

    def kill(self, journal: Journal) -> None:
        cast(MemoryJournal, journal)._opened = 0

    @contextlib.contextmanager
    def full(self) -> Generator[None]:
        self._fault = "lose"
        yield
        self._fault = None

    def contents(self) -> bytes:
        logs = (*self._store._logs.values(), *self._store._logs.left)
        return repr([(log.bodies, log.snapshot) for log in logs]).encode()


def flipped(blob: bytes) -> bytes:
    """The blob with one bit of its middle changed."""
    middle = len(blob) // 2
    return blob[:middle] + bytes([blob[middle] ^ 1]) + blob[middle + 1 :]


class SmallConnection(sqlite3.Connection):
    """A connection whose database may be told to grow no more: then SQLite itself says that it is full."""

    is_full: Callable[[], bool] = staticmethod(lambda: False)

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        if statement == "BEGIN IMMEDIATE":
            most = super().execute("PRAGMA page_count").fetchone()[0] if self.is_full() else 2**31 - 2
            super().execute(f"PRAGMA max_page_count = {most}")
        return super().execute(statement, *arguments)


class SQLiteHarness(JournalHarness):
    """The journal in a file, in a folder of its own."""

    kind: type[SQLiteJournal] = SQLiteJournal

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ropewalk-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        self._is_full = False
        self.path = self.folder / "sessions.db"

    def journal(self) -> SQLiteJournal:
        return self.kind(self.path, connecting=self._connect)

    def _connect(self, *arguments: Any, **named: Any) -> sqlite3.Connection:
        connection = sqlite3.connect(*arguments, factory=SmallConnection, **named)
        connection.is_full = lambda: self._is_full
        return connection

    def dispose(self) -> None:
        shutil.rmtree(self.folder)

    def kill(self, journal: Journal) -> None:
        cast(SQLiteJournal, journal)._store.abandon()

    def damage(self, actor_id: str, number: int, how: Damage) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            found = "SELECT place, blob FROM logs JOIN blobs USING (place) WHERE actor = (SELECT actor FROM actors WHERE id = ?) AND number = ?"
            place, blob = connection.execute(found, (actor_id, number)).fetchone()
            changes = {"flip": flipped(blob), "tear": blob[: len(blob) // 2]}
            if how == "lose":
                connection.execute("DELETE FROM blobs WHERE place = ?", (place,))
            else:
                connection.execute("UPDATE blobs SET blob = ? WHERE place = ?", (changes[how], place))

    @contextlib.contextmanager
    def full(self) -> Generator[None]:
        self._is_full = True
        yield
        self._is_full = False

    def contents(self) -> bytes:
        return b"".join(file.read_bytes() for file in sorted(self.folder.iterdir()))

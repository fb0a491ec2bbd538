"""The file of an SQLite journal: its tables, how it is opened, brought up to date, and what is said when it cannot be."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ropewalk.runtime.errors import JournalDamaged, JournalUnavailable

if TYPE_CHECKING:
    import sqlite3

__all__ = ["APPLICATION", "SCHEMA", "Connect", "connect", "explained", "file_sizes", "prepare"]

Connect: TypeAlias = "Callable[..., sqlite3.Connection]"

APPLICATION = 0x526F7065
"""The mark in the file's head (the letters "Rope") by which a journal is told from other people's databases."""

_TABLES = """
CREATE TABLE owners (owner INTEGER PRIMARY KEY AUTOINCREMENT, process INTEGER NOT NULL, since REAL NOT NULL);
CREATE TABLE actors (
    actor INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, epoch INTEGER NOT NULL, owner INTEGER
);
CREATE INDEX held ON actors (id) WHERE owner IS NOT NULL;
CREATE TABLE blobs (place INTEGER PRIMARY KEY, blob BLOB NOT NULL);
CREATE TABLE logs (actor INTEGER NOT NULL, number INTEGER NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (actor, number)) WITHOUT ROWID;
CREATE TABLE labels (actor INTEGER NOT NULL, digest BLOB NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (actor, digest)) WITHOUT ROWID;
CREATE TABLE forks (actor INTEGER PRIMARY KEY, source INTEGER NOT NULL, number INTEGER NOT NULL);
CREATE INDEX forked ON forks (source, number);
CREATE TABLE slots (size INTEGER NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (size, place)) WITHOUT ROWID;
CREATE TABLE totals (one INTEGER PRIMARY KEY CHECK (one = 1), actors INTEGER NOT NULL, records INTEGER NOT NULL, epoch INTEGER NOT NULL);
INSERT INTO totals VALUES (1, 0, 0, 0)
"""
# `blobs` holds what was said, in the order it was written, and `logs` says where each actor's records are, its snapshot as
# number 0. So a group that writes for a thousand actors fills a few pages at the end, where records lying beside others of
# their actor would change a page each; and no text is ever moved (see `rows`). `slots` are the places that a snapshot
# has left. `actors.owner` is null for who was released with their work done, and 0, which no owner is, for who was released in the
# middle of it: so `held` lists all that may have unfinished work, however many others there are. `labels` has digests of them. `forks` says of a log
# which records of another one it goes on from (see `family`). `totals.epoch` is the highest epoch
# of any deleted actor: an id that comes back is written under higher ones.

_FIRST = 4
"""The version that an empty file, whose version is 0, is brought to at first. Those before it were never released."""

_MIGRATIONS: tuple[str, ...] = (_TABLES,)
"""What brings an empty file to version `_FIRST`, and a file from each version to the next. A released step is never changed."""

SCHEMA = _FIRST + len(_MIGRATIONS) - 1
"""The version of the tables and of the blobs that is written; newer ones are refused."""

CACHE_KIB = 16 * 1024
WAL_BYTES = 16 * 1024 * 1024


def connect(path: str, timeout: float, connecting: Connect, reading: bool = False) -> sqlite3.Connection:
    """A connection with what is set for each: to read only, or to write. Raises `sqlite3.Error`."""
    connection = connecting(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA temp_store = MEMORY")
        if reading:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA fullfsync = ON")  # where fsync alone leaves it in the disk's cache, as on macOS
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, path: str) -> None:
    """Make the file a journal of the newest form. Raises `JournalUnavailable` for one that cannot be, `sqlite3.Error`."""
    version = _version(connection, path)
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise JournalUnavailable(f"{path} is on a file system that has no write-ahead log for SQLite (it offers {mode!r}); put the journal on a local disk")
    if version == SCHEMA:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in _MIGRATIONS[max(0, _version(connection, path) - _FIRST + 1) :]:  # asked again: another process may have been first
            for statement in step.split(";\n"):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection, path: str) -> int:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION and (tables or application or version):
        raise JournalUnavailable(f"{path} is an SQLite database of another program's, not a journal of Ropewalk's; give the journal a file of its own")
    if version > SCHEMA:
        raise JournalUnavailable(
            f"{path} has the form of version {version}, and this Ropewalk reads up to version {SCHEMA}; a newer Ropewalk wrote it, so use that one"
        )
    if 0 < version < _FIRST:
        raise JournalUnavailable(
            f"{path} has the form of version {version}, from before the first release, and this Ropewalk reads versions {_FIRST} to {SCHEMA}; begin a new file"
        )
    return version


def explained(error: sqlite3.Error | OSError, path: str) -> JournalUnavailable:
    """What an error of SQLite's or of the file system's means for whoever gave the path."""
    name = getattr(error, "sqlite_errorname", "") or ""
    folder = os.path.dirname(path) or "."
    kind, text = JournalUnavailable, f"the journal {path} failed: {error}"
    if os.path.isdir(path):
        text = f"{path} is a folder; a journal is a file, so give a name within it, such as {os.path.join(path, 'sessions.db')}"
    elif not os.path.isdir(folder):
        text = f"there is no folder {folder} to put the journal {os.path.basename(path)} into; make it first"
    elif name == "SQLITE_NOTADB":
        text = f"{path} is no SQLite database; give the journal a file of its own, or a name where there is none yet"
    elif name.startswith("SQLITE_CORRUPT"):
        kind = JournalDamaged
        text = f"{path} is damaged ({error}): restore a backup of it, or let `sqlite3 {os.path.basename(path)} .recover` save what can be read"
    elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        text = f"{path} is locked by another program for longer than the journal waits"
    elif name == "SQLITE_FULL":
        text = f"there is no room left for {path}: {error}"
    elif name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")) or isinstance(error, PermissionError):
        text = f"{path} cannot be written: the file and its folder have to be writable by this user ({error})"
    failed = kind(text)
    failed.__cause__ = error
    return failed


def file_sizes(path: str) -> int:
    """The bytes that the database, its write-ahead log and their index take on disk."""
    return sum(os.stat(file).st_size for file in (path, f"{path}-wal", f"{path}-shm") if os.path.exists(file))

"""The open file of an SQLite journal, for worker threads: the writer's connection, readers', the owner's lock, the counts."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from ropewalk.runtime.clock import Clock
from ropewalk.runtime.errors import JournalUnavailable, RopewalkError
from ropewalk.runtime.journal.grouping import Group, Operation
from ropewalk.runtime.journal.interface import JournalStatistics
from ropewalk.runtime.journal.owners import OwnerLock, is_alive, remove_lock
from ropewalk.runtime.journal.sqlite.file import Connect, connect, explained, file_sizes, prepare
from ropewalk.runtime.journal.sqlite.reading import Held, held_actors
from ropewalk.runtime.journal.sqlite.transaction import Transaction, forget_if_empty
from ropewalk.runtime.journal.sqlite.writing import Appending, Claiming, Deleting, Redacting
from ropewalk.runtime.supervision import Failure, contain

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Store"]

T = TypeVar("T")

IDLE_READERS = 2

_left: list[sqlite3.Connection] = []
"""The parent's connections, in a child process."""


class Store:
    """One owner's hold on the file at `path`. Its methods block, and may be called from any thread."""

    def __init__(self, path: str, timeout: float, connecting: Connect, clock: Clock) -> None:
        self.path = path
        self._timeout = timeout
        self._connecting = connecting
        self._clock = clock
        self._writing = threading.Lock()
        self._opened = 0
        self._lock: OwnerLock | None = None
        self._owner = 0
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []
        self._is_synced: bool | None = None
        self._empty: set[int] = set()  # actors that were claimed and had no records then
        self._is_left = False
        self._counts = JournalStatistics(0, 0, 0, 0, 0)

    # Opening and closing.

    def open(self) -> None:
        """Open the file, once for all who ask for it. Raises `JournalUnavailable`."""
        with self._writing:
            self._refuse_in_child()
            if not self._opened:
                failed = contain(self._open)
                if isinstance(failed, Failure):
                    self._let_go()
                    raise self._error(failed.error)
            self._opened += 1

    def close(self) -> bool:
        """Let go of it, with the last of those who asked for it; whether this was the last."""
        with self._writing:
            self._opened -= 1
            if self._opened or self._is_left:
                return False
            # What is taken back here is known to be worthless without its owner too, so a disk that fails costs nothing.
            contain(self._resign)
            self._let_go()
            return True

    def abandon(self) -> None:
        """Let go of it however many have it open; nobody can use it any more."""
        if self._writing.acquire(timeout=self._timeout):  # at the end of the process a thread may be stuck with it
            try:
                if not self._is_left:
                    self._let_go()
            finally:
                self._writing.release()

    def stay_behind(self) -> None:
        """In a child process: use nothing of the parent's. Its connections are kept unused, for closing them would harm the parent's."""
        self._is_left = True
        self._writing = threading.Lock()
        _left.extend(connection for connection in (self._writer, *self._readers) if connection is not None)
        self._writer, self._readers = None, []
        if self._lock is not None:
            self._lock.forget()

    def _open(self) -> None:
        if os.path.isdir(self.path):
            raise IsADirectoryError(self.path)
        connection = self._connected()
        connection.execute("BEGIN IMMEDIATE")
        try:
            for (owner,) in connection.execute("SELECT owner FROM owners").fetchall():
                if not is_alive(self.path, owner):
                    connection.execute("DELETE FROM owners WHERE owner = ?", (owner,))
                    remove_lock(self.path, owner)
            made = connection.execute("INSERT INTO owners (process, since) VALUES (?, ?)", (os.getpid(), self._clock.time()))
            self._owner = made.lastrowid or 0
            self._lock = OwnerLock(self.path, self._owner)  # before anybody can know of this owner
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        actors, records = connection.execute("SELECT actors, records FROM totals").fetchone()
        self._counts = attrs.evolve(self._counts, actors=actors, records=records)

    def _resign(self) -> None:
        if self._lock is not None and self._writer is not None:
            connection = self._writer
            connection.execute("BEGIN IMMEDIATE")
            transaction = self._transaction(connection)
            for key in self._empty:
                connection.execute("UPDATE actors SET owner = NULL WHERE actor = ? AND owner = ?", (key, self._owner))
                forget_if_empty(transaction, key)
            connection.execute("DELETE FROM owners WHERE owner = ?", (self._owner,))
            connection.execute("COMMIT")

    def _let_go(self) -> None:
        connections = [connection for connection in (self._writer, *self._readers) if connection is not None]
        self._writer, self._readers, self._is_synced = None, [], None
        self._empty.clear()
        for connection in connections:
            contain(connection.close)  # what could be lost in closing is in the write-ahead log
        if self._lock is not None:
            contain(self._lock.release)
            self._lock = None

    def _refuse_in_child(self) -> None:
        if self._is_left:
            raise JournalUnavailable(f"{self.path} was opened by the parent of this process; after a fork, make a new journal")

    def _connected(self) -> sqlite3.Connection:
        """The writer's connection, made anew after a failure."""
        if self._writer is None:
            self._writer = connect(self.path, self._timeout, self._connecting)
            self._is_synced = None
            prepare(self._writer, self.path)
        return self._writer

    def _error(self, error: Exception) -> Exception:
        import sqlite3

        return explained(error, self.path) if isinstance(error, sqlite3.Error | OSError) else error

    # Writing.

    def write(self, group: Group) -> None:
        """Write a group in one transaction. What failed, and why, stands in its operations."""
        with self._writing:
            if group.is_written:
                return
            failed = contain(self._write, group)
            if isinstance(failed, Failure):
                contain(self._drop_writer)
                error = self._error(failed.error)
                if not isinstance(error, RopewalkError):  # a bug of ours, or of whoever made the codec: nothing of the group was written
                    error = JournalUnavailable(f"the journal {self.path} failed: {type(error).__name__}: {error}")
                    error.__cause__ = failed.error
                group.fail(error)
                self._counts = attrs.evolve(self._counts, failures=self._counts.failures + len(group.operations))
            group.is_written = True

    def _write(self, group: Group) -> None:
        self._refuse_unopened()
        connection = self._connected()
        is_synced = any(operation.is_synced for operation in group.operations)
        if is_synced is not self._is_synced:
            connection.execute(f"PRAGMA synchronous = {'FULL' if is_synced else 'NORMAL'}")
            self._is_synced = is_synced
        connection.execute("BEGIN IMMEDIATE")
        transaction = self._transaction(connection)
        refused = 0
        for operation in group.operations:
            try:
                operation.carry_out(transaction)
            except RopewalkError as error:
                operation.error = error
                refused += 1
        transaction.flush()
        totals = transaction.totals()
        connection.execute("COMMIT")
        done = [operation for operation in group.operations if operation.error is None]
        self._empty.update(operation.key for operation in done if isinstance(operation, Claiming) and operation.claim is not None and not operation.claim.last)
        if self._empty:
            self._empty.difference_update(operation.pen.key for operation in done if isinstance(operation, Appending))
        if any(isinstance(operation, Redacting | Deleting) for operation in done):
            self._overwrite(connection, done)
        counts = self._counts
        self._counts = JournalStatistics(
            *(totals or (counts.actors, counts.records)),
            appends=counts.appends + transaction.appends,
            snapshots=counts.snapshots + transaction.snapshots,
            failures=counts.failures + refused,
            commits=counts.commits + 1,
            largest_group=max(counts.largest_group, len(group.operations)),
            fsyncs=counts.fsyncs + is_synced,
        )

    def _transaction(self, connection: sqlite3.Connection) -> Transaction:
        return Transaction(connection, self._owner, self._living(connection))

    def _living(self, connection: sqlite3.Connection) -> Callable[[int], bool]:
        known: dict[int, bool] = {}

        def is_living(owner: int) -> bool:
            if owner not in known:
                listed = connection.execute("SELECT 1 FROM owners WHERE owner = ?", (owner,)).fetchone()
                known[owner] = listed is not None and is_alive(self.path, owner)
            return known[owner]

        return is_living

    def _overwrite(self, connection: sqlite3.Connection, done: list[Operation]) -> None:
        """Have the old pages, which the write-ahead log still holds, overwritten in the file and the log emptied."""
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            error = JournalUnavailable(
                f"what was to go is gone from the records of {self.path}, but its write-ahead log still holds it: somebody reads an old state of the file; "
                "it goes with the next redaction or deletion, or when the last process closes the file"
            )
            for operation in done:
                if isinstance(operation, Redacting | Deleting):
                    operation.error = error

    def compact(self) -> None:
        """Write the file anew without what is blank in it. Raises `JournalUnavailable`."""
        with self._writing:
            self._refuse_unopened()
            failed = contain(self._compact)
            if isinstance(failed, Failure):
                contain(self._drop_writer)
                raise self._error(failed.error)

    def _compact(self) -> None:
        connection = self._connected()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM slots")
        connection.execute("DELETE FROM blobs WHERE place NOT IN (SELECT place FROM logs)")
        connection.execute("COMMIT")
        connection.execute("VACUUM")  # which also overwrites what the deletion moved about
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _refuse_unopened(self) -> None:
        self._refuse_in_child()
        if self._lock is None:
            raise JournalUnavailable(f"the journal {self.path} is not open")

    def _drop_writer(self) -> None:
        connection, self._writer = self._writer, None
        if connection is not None:
            connection.close()  # rolls back what was begun

    # Reading.

    def read(self, read: Callable[..., T], *arguments: Any) -> T:
        """What ``read(connection, *arguments)`` gives, on a connection that makes no writer wait. Raises `JournalUnavailable`."""
        self._refuse_unopened()
        connection = self._readers.pop() if self._readers else contain(connect, self.path, self._timeout, self._connecting, True)
        if isinstance(connection, Failure):
            raise self._error(connection.error)
        found = contain(read, connection, *arguments)
        if isinstance(found, Failure):
            contain(connection.close)
            raise self._error(found.error)
        if len(self._readers) < IDLE_READERS and self._lock is not None:
            self._readers.append(connection)
        else:
            connection.close()
        return found

    def unfinished(self, connection: sqlite3.Connection, after: str, limit: int) -> Held:
        """For `read`: what `reading.held_actors` finds for this owner."""
        return held_actors(connection, after, limit, self._owner, self._living(connection))

    # Counting.

    def statistics(self) -> JournalStatistics:
        """The counts as they stand, and the size of the files now."""
        return attrs.evolve(self._counts, bytes_on_disk=file_sizes(self.path))

"""Writes of many actors in one transaction: what has gathered while the last group was written is the next group.

A group is written by one call in a worker thread, so the event loop never waits for the disk, and with a thousand actors at
work a commit carries hundreds of writes. The keeper is one task of the runtime that uses the journal. It must outlive the
actors, whose last words are written while they are being cancelled: cancelled itself, it goes on until it is stopped, or
until its own time is up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread

from ropewalk.runtime.errors import JournalUnavailable

__all__ = ["LAST_WORDS_SECONDS", "Group", "GroupKeeper", "Operation"]

LAST_WORDS_SECONDS = 30.0
"""How long a keeper that was cancelled waits for the last actor to end: more than all that they are given to end in."""


class Operation:
    """One write that waits for its turn: `error` says why it was refused, `is_synced` whether its commit waits for the disk. It is its own `Commit`."""

    __slots__ = ("error", "group")

    is_synced = False

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.group: Group | None = None

    def carry_out(self, transaction: Any) -> None:
        """Write it, or raise why it is refused before anything was changed; called in a worker thread."""
        raise NotImplementedError

    def settled(self) -> None:
        """What follows from it in memory; called once, in the event loop, when it is known how it ended."""

    async def wait(self) -> None:
        """Return when it is durable; raises why it is not."""
        group = self.group
        if group is not None:
            await group.over.wait()
        if self.error is not None:
            # Each who waits gets an error of their own: a group that failed has one for all, and raising it leaves traces on it.
            error = type(self.error)(*self.error.args)
            raise error from self.error.__cause__


class Group:
    """Writes that share a transaction. `is_written` is set by whoever wrote it, with the outcome in each operation."""

    __slots__ = ("is_written", "operations", "over")

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.is_written = False
        self.over = anyio.Event()

    def settle(self) -> None:
        """Tell everybody who waits how their writes ended."""
        for operation in self.operations:
            operation.settled()
            operation.group = None
        self.over.set()

    def fail(self, error: Exception) -> None:
        """None of it was written, for this reason."""
        for operation in self.operations:
            if operation.error is None:
                operation.error = error
        self.is_written = True


class GroupKeeper:
    """Gathers the operations of one event loop and has them written, group after group.

    :param write: writes a group and sets `is_written`, in a worker thread; does nothing for one that is written already, and raises nothing.
    :param ended: told when this keeper takes no more.
    """

    def __init__(self, write: Callable[[Group], None], ended: Callable[[GroupKeeper], None]) -> None:
        self._write = write
        self._tell_ended: Callable[[GroupKeeper], None] | None = ended
        self._limiter = anyio.CapacityLimiter(1)
        self._gathering: Group | None = None
        self._in_hand: Group | None = None
        self._wake: anyio.Event | None = None
        self.is_stopping = False
        self.has_ended = False

    def add(self, operation: Operation) -> None:
        """Have an operation written with what has gathered. Raises `JournalUnavailable` when this keeper has ended."""
        if self.has_ended:
            raise JournalUnavailable("the runtime that brought this actor's records to the journal has ended")
        group = self._gathering
        if group is None:
            group = self._gathering = Group()
            if self._wake is not None:
                self._wake.set()
        operation.group = group
        group.operations.append(operation)

    def stop(self) -> None:
        """Have `run` end once it has done what there is."""
        self.is_stopping = True
        if self._wake is not None:
            self._wake.set()

    async def run(self) -> None:
        """Write until stopped and nothing is left; see `Keeper.run`."""
        try:
            await self._work()
        except GeneratorExit:  # thrown away by an event loop that runs no more: nothing can be waited for
            raise
        except BaseException:  # cancelled, by a scope or by the end of the event loop; the actors' last words are still to come
            with anyio.move_on_after(LAST_WORDS_SECONDS, shield=True):
                await self._work()
            raise
        finally:
            self.has_ended = True
            if self._tell_ended is not None:
                self._tell_ended(self)
                self._tell_ended = None  # which else would keep the journal alive that keeps this
            for group in (self._in_hand, self._gathering):
                if group is not None:
                    group.fail(JournalUnavailable("the runtime ended before the write was durable"))
                    group.settle()

    async def _work(self) -> None:
        while True:
            if self._in_hand is not None:
                # A cancellation may have cut off the wait for a thread that goes on writing: asking again waits for it.
                await anyio.to_thread.run_sync(self._write, self._in_hand, limiter=self._limiter)
                group, self._in_hand = self._in_hand, None
                group.settle()
            elif self._gathering is not None:
                self._in_hand, self._gathering = self._gathering, None
            elif self.is_stopping:
                return
            else:
                self._wake = anyio.Event()
                await self._wake.wait()
                self._wake = None

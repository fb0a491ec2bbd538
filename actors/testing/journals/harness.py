"""How the kit gets at the implementation under test, and what it does with an owner of its store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, Literal, TypeAlias

import anyio
import anyio.abc

from ropewalk.runtime.errors import Fenced, JournalUnavailable, RopewalkError
from ropewalk.runtime.journal import Claim, Commit, Journal, Keeper

__all__ = ["Damage", "JournalHarness", "Owner", "Writer", "owner", "owners", "write"]

LEAVING_SECONDS = 10.0

Damage: TypeAlias = Literal["flip", "tear", "lose"]
"""What befalls a stored record: a bit of it changes, its end is cut off, it is not there any more."""


class JournalHarness:
    """A store of the implementation under test, empty at first. Subclass it; the kit makes one for each example.

    `journal` and `dispose` are needed. Each of the others gives the kit a hand on what it cannot do through the interface, and
    where one is not overridden the laws that need it are skipped.
    """

    def journal(self) -> Journal:
        """A new journal object on this store, not open yet: another owner."""
        raise NotImplementedError

    def dispose(self) -> None:
        """Take the store away; every journal has been closed or killed."""
        raise NotImplementedError

    def kill(self, journal: Journal) -> None:
        """Let this owner end as if its process had been killed now: what it has not committed is lost, and it owns nothing any more."""
        raise NotImplementedError

    def damage(self, actor_id: str, number: int, how: Damage) -> None:
        """Spoil a record where it is stored, behind the journal's back."""
        raise NotImplementedError

    def full(self) -> AbstractContextManager[None]:
        """While it lasts there is no room in the store for more."""
        raise NotImplementedError

    def contents(self) -> bytes:
        """Every byte that the store has anywhere."""
        raise NotImplementedError

    @classmethod
    def has(cls, hook: str) -> bool:
        """Whether a subclass has overridden this method."""
        return getattr(cls, hook) is not getattr(JournalHarness, hook)


class Owner:
    """An owner of the store as a runtime is one: `journal` is open and kept from `come` to `leave`."""

    def __init__(self, harness: JournalHarness, tasks: anyio.abc.TaskGroup) -> None:
        self.harness = harness
        self.journal = harness.journal()
        self._tasks = tasks
        self._keeper: Keeper | None = None
        self._ended = anyio.Event()

    async def come(self) -> Journal:
        """Open the journal and have it kept."""
        await self.journal.open()
        self._keeper = self.journal.keeper()
        if self._keeper is not None:
            self._tasks.start_soon(self._keep, self._keeper)
        return self.journal

    def next(self) -> Owner:
        """Another owner, for the place of this one."""
        return Owner(self.harness, self._tasks)

    async def leave(self) -> None:
        """Have everything written that was appended, and close."""
        if self._keeper is not None:
            self._keeper.stop()
            await self._ended.wait()
        await self.journal.close()

    async def _keep(self, keeper: Keeper) -> None:
        try:
            await keeper.run()
        finally:
            self._ended.set()


@asynccontextmanager
async def owner(harness: JournalHarness) -> AsyncGenerator[Journal]:
    """A new owner of the store, for a block."""
    async with owners(harness, 1) as (here,):
        yield here.journal


@asynccontextmanager
async def owners(harness: JournalHarness, count: int) -> AsyncGenerator[list[Owner]]:
    """New owners of the store, for a block; those that are in the list at its end leave then."""
    async with anyio.create_task_group() as tasks:
        here = [Owner(harness, tasks) for _ in range(count)]
        try:
            for one in here:
                await one.come()
            yield here
        finally:
            with anyio.move_on_after(LEAVING_SECONDS, shield=True):
                for one in here:
                    await one.leave()


class Writer:
    """Somebody who claimed an actor's log, and how far they believe to have written it."""

    def __init__(self, journal: Journal, actor_id: str, claim: Claim) -> None:
        self.journal = journal
        self.actor_id = actor_id
        self.epoch = claim.epoch
        self.last = claim.last

    def append(self, bodies: Sequence[Any], off: int = 0, unfinished: bool = False, label: str = "") -> Commit | None:
        """Records after the last one, or `off` from there, the first of them under a label if there is one."""
        first = self.last + 1 + off
        commit = self.journal.append(self.actor_id, self.epoch, first, bodies, unfinished=unfinished, labels={label: first} if label else None)
        self.last += len(bodies)
        return commit


async def write(writer: Writer, bodies: Sequence[Any], off: int = 0, unfinished: bool = False, label: str = "") -> RopewalkError | None:
    """Append and wait; why it was refused, None when it is durable."""
    try:
        commit = writer.append(bodies, off, unfinished, label)
        if commit is not None:
            await commit.wait()
    except (Fenced, JournalUnavailable) as error:
        return error
    return None

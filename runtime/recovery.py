"""Going on with what owners that are gone left unfinished in the journal.

What has to be done is the actors' own affair: bringing one into memory is all it takes. Here it is found out which, and seen
to it that no more than a few dozen are at it at the same time, however many there are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import attrs

from ropewalk.runtime.errors import SessionElsewhere
from ropewalk.runtime.log import log
from ropewalk.runtime.supervision import Failure, attempt, in_words

if TYPE_CHECKING:
    from ropewalk.runtime.cell import Cell
    from ropewalk.runtime.journal import KnownActor
    from ropewalk.runtime.kind import ActorKind

__all__ = ["AT_ONCE", "Recovery", "RecoveryReport"]

AT_ONCE = 50
"""How many actors are recovered at the same time: each may call a model, and they all come at once when a process starts."""


@attrs.frozen
class RecoveryReport:
    """What became of the actors that had unfinished work, by their ids.

    `recovered` have come to an end with it; `unclaimed` are of a kind that none of the runtime's specs names, and wait; `elsewhere`
    were taken by another runtime meanwhile; `failed` could not be brought into memory, each with the reason.
    """

    recovered: tuple[str, ...] = ()
    unclaimed: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()


class Recovery:
    """One recovery.

    :param kind_of: the kind of this name, None where nobody named it.
    :param cell_of: the cell of an id, None where its actor is in memory and at its work already.
    :param done_with: lets an actor go that has come to an end with it.
    """

    def __init__(
        self, kind_of: Callable[[str], ActorKind | None], cell_of: Callable[[str, ActorKind], Cell | None], done_with: Callable[[Cell], Awaitable[object]]
    ) -> None:
        self._kind_of = kind_of
        self._cell_of = cell_of
        self._done_with = done_with
        self._places = anyio.Semaphore(AT_ONCE)
        self._recovered: list[str] = []
        self._unclaimed: list[str] = []
        self._elsewhere: list[str] = []
        self._failed: list[tuple[str, str]] = []

    @property
    def report(self) -> RecoveryReport:
        """What became of those so far."""
        recovered, unclaimed, elsewhere = (tuple(sorted(ids)) for ids in (self._recovered, self._unclaimed, self._elsewhere))
        return RecoveryReport(recovered, unclaimed, elsewhere, tuple(sorted(self._failed)))

    async def take(self, actors: AsyncIterator[KnownActor]) -> None:
        """Recover these; returns when all have come to an end with what they had to do."""
        async with anyio.create_task_group() as tasks:
            async for actor in actors:
                kind = self._kind_of(actor.kind)
                if kind is None:
                    self._unclaimed.append(actor.id)
                    continue
                await self._places.acquire()
                cell = self._cell_of(actor.id, kind)
                if cell is None:
                    self._places.release()
                else:
                    tasks.start_soon(self._recover, cell)

    async def _recover(self, cell: Cell) -> None:
        try:
            brought = await attempt(cell.activate(create=False))
            if isinstance(brought, Failure):
                self._failed_to(cell, brought.error)
            else:
                await cell.wait_idle()
                self._recovered.append(cell.id)
            await attempt(self._done_with(cell))  # what fails now is the journal, which loses nothing of it
        finally:
            self._places.release()

    def _failed_to(self, cell: Cell, error: Exception) -> None:
        if isinstance(error, SessionElsewhere):
            self._elsewhere.append(cell.id)
            return
        self._failed.append((cell.id, in_words(error)))
        log.error("not_recovered", session_id=cell.id, error=in_words(error))

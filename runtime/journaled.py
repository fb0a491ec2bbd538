"""An actor's state as the fold of its records: what is written and what is known change in one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

from ropewalk.runtime.cell import Cell
from ropewalk.runtime.errors import UnknownSession

__all__ = ["Journaled"]

S = TypeVar("S")


class Journaled(Generic[S]):
    """One incarnation's state and its pen. Made by `recover`; `state` is what all records so far fold to, `records` how many those are.

    The state is a value that `fold` never changes in place: ``fold(state, record) -> state``.
    """

    __slots__ = ("_cell", "_epoch", "_fold", "records", "state")

    def __init__(self, cell: Cell, fold: Callable[[S, Any], S], state: S, epoch: int, records: int) -> None:
        self._cell = cell
        self._fold = fold
        self._epoch = epoch
        self.state = state
        self.records = records

    @classmethod
    async def recover(cls, cell: Cell, fold: Callable[[S, Any], S], initial: S, *, create: bool = True) -> Self:
        """Become the only writer of the cell's log and fold what is there.

        Raises `UnknownSession` when there is nothing and `create` is False, `JournalUnavailable` when the log cannot be read.
        """
        claim = await cell.claim()
        if not claim.last and not create:
            raise UnknownSession(f"there is no {cell.kind.name} {cell.id!r}")
        state = initial
        for record in await cell.journal.read(cell.id):
            state = fold(state, record.body)
        cell.publisher.begin_epoch(claim.epoch)
        return cls(cell, fold, state, claim.epoch, claim.last)

    async def write(self, *records: Any) -> S:
        """Add records, all or none, and return the new state once they are durable.

        Raises `JournalUnavailable` or `Fenced`: let it through, for the incarnation is over then and the next one recovers.
        """
        state = self.state
        for record in records:
            state = self._fold(state, record)
        commit = self._cell.journal.append(self._cell.id, self._epoch, self.records + 1, records)
        self.state = state
        self.records += len(records)
        if commit is not None:
            await commit.wait()
        return self.state

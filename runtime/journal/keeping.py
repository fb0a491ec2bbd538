"""A runtime's hold on the journals its actors write to: their keepers run as long as any actor may still have something to say."""

from __future__ import annotations

import contextvars

import anyio.abc

from ropewalk.runtime.journal.interface import Journal, Keeper

__all__ = ["Keeping"]


class Keeping:
    """The keepers of one runtime, each a task of a group that outlives every actor."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._kept: dict[int, _Kept] = {}

    def keep(self, journal: Journal) -> None:
        """Have this journal's keeper run, until it is let go of as often as this was called."""
        kept = self._kept.get(id(journal))
        if kept is None:
            kept = self._kept[id(journal)] = _Kept(journal)
            if kept.keeper is not None:
                contextvars.Context().run(self._tasks.start_soon, kept.keeper.run)
        kept.times += 1

    def let_go(self, journal: Journal) -> None:
        """The other end of one `keep`: with the last, the keeper ends once it has done what there is."""
        kept = self._kept.get(id(journal))
        if kept is not None:
            kept.times -= 1
            if not kept.times:
                del self._kept[id(journal)]
                kept.stop()

    def stop(self) -> None:
        """Have every keeper end once it has done what there is; called when the last actor has ended."""
        for kept in self._kept.values():
            kept.stop()
        self._kept.clear()


class _Kept:
    """A journal, its keeper if it has one, and how many need it."""

    __slots__ = ("journal", "keeper", "times")

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.keeper: Keeper | None = journal.keeper()
        self.times = 0

    def stop(self) -> None:
        if self.keeper is not None:
            self.keeper.stop()

"""Which idle actors leave memory, and when: after so many seconds at rest, or for want of room, those at rest longest first.

Cells at rest stand in the order in which they came to rest, so whoever has to leave next is the first of them: one task looks
after all, and sleeps until the first one's time has come. No cell has a timer of its own, and a runtime that lets nobody go
keeps no order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from ropewalk.runtime.backend import ANY_BACKEND, Bell
from ropewalk.runtime.cell import PASSIVATE, Cell
from ropewalk.runtime.envelope import Envelope
from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.seconds import is_seconds

if TYPE_CHECKING:
    from ropewalk.runtime.runtime import Runtime

__all__ = ["Passivation", "due"]

C = TypeVar("C")


def due(resting: Mapping[C, float], now: float, idle_seconds: float, surplus: int) -> list[C]:
    """Of those at rest, longest first, each with the time since when: those whose time is over, and as many as are too many."""
    overdue = (place for place, since in enumerate(resting.values()) if since + idle_seconds > now)
    return list(islice(resting, max(surplus, next(overdue, len(resting)))))


class Passivation:
    """The cells of one runtime that are at rest, and the task that lets them go.

    :param idle_seconds: how long one may be at rest in memory; None is for ever.
    :param resident_limit: how many may be in memory, at rest or at work; None is any number.
    """

    def __init__(self, runtime: Runtime, idle_seconds: float | None, resident_limit: int | None) -> None:
        if idle_seconds is not None and not (is_seconds(idle_seconds) and idle_seconds):
            raise InvalidOption(f"idle_seconds is a number of seconds above 0, or None, not {idle_seconds!r}")
        if resident_limit is not None and (type(resident_limit) is not int or resident_limit < 0):
            raise InvalidOption(f"resident_limit is how many actors may be in memory, 0 or more, or None, not {resident_limit!r}")
        self._runtime = runtime
        self._idle_seconds = math.inf if idle_seconds is None else idle_seconds
        self._limit = math.inf if resident_limit is None else resident_limit
        self._resting: dict[Cell, float] = {}
        self._leaving: set[Cell] = set()
        self._bell = Bell(ANY_BACKEND.wakeup)

    @property
    def surplus(self) -> int:
        """How many more are in memory than may be; those that are on their way out are not counted."""
        present = len(self._resting) + len(self._runtime.workers.working) - len(self._leaving)
        return 0 if present <= self._limit else present - int(self._limit)

    @property
    def is_full(self) -> bool:
        """Whether somebody has to leave, or is about to."""
        return bool(self._leaving) or self.surplus > 0

    def woken(self, cell: Cell) -> None:
        """A cell is at rest no more."""
        self._resting.pop(cell, None)

    def left(self, cell: Cell) -> None:
        """A cell is not in memory any more, or not on its way out."""
        self._resting.pop(cell, None)
        self._leaving.discard(cell)

    def rested(self, cell: Cell) -> None:
        """A cell came to rest now, or is as good as new to it."""
        if cell.reason is not None or not cell.passivates:
            return
        is_first = not self._resting
        self._resting.pop(cell, None)
        self._resting[cell] = self._runtime.clock.monotonic()
        if is_first or self.surplus:
            self._bell.ring()

    def touch(self, cell: Cell) -> None:
        """Somebody has just asked for a cell that may be at rest: they are about to use it."""
        if cell in self._resting:
            self.rested(cell)

    async def run(self) -> None:
        """Let cells go as their time comes, until cancelled."""
        while True:
            with self._runtime.backend.scope(deadline=self._let_go_of_all_due()):
                await self._bell.rung()

    def _let_go_of_all_due(self) -> float:
        """Let those go whose time has come; returns when the next one's will."""
        for cell in due(self._resting, self._runtime.clock.monotonic(), self._idle_seconds, self.surplus):
            self._let_go(cell)
        return next(iter(self._resting.values()), math.inf) + self._idle_seconds

    def _let_go(self, cell: Cell) -> None:
        if cell.activating or cell.is_in_doubt or not self._runtime.is_open:
            self.rested(cell)  # looked at again in its time
            return
        self._leaving.add(cell)
        cell.post(Envelope(PASSIVATE, awaited=False), control=True)

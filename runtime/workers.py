"""Tasks that work for cells: as many as there is work for, kept for the next when there is none.

Starting a task costs several times what waking one does, which is why workers are kept, up to a bound; a parked task costs
kilobytes, which is why cells have none of their own.
"""

from __future__ import annotations

import contextlib
import contextvars

import anyio
import anyio.abc

from ropewalk.runtime.backend import Backend, Wakeup
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.errors import RuntimeClosed
from ropewalk.runtime.scopes import CancelScopeLeft, guarded
from ropewalk.runtime.supervision import own_task, running_task

__all__ = ["WorkerPool"]


class WorkerPool:
    """Tasks that work for cells, parked between two of them.

    :param tasks: the group every worker lives in.
    :param parked: how many may wait for work; the others end when they have none.

    `working` are the cells being worked for, those that began first first; `cut_off` the ids of those whose work was ended from outside.
    """

    __slots__ = ("_all_idle", "_backend", "_ends", "_host", "_idle", "_parked", "_tasks", "cut_off", "working")

    def __init__(self, tasks: anyio.abc.TaskGroup, parked: int, backend: Backend) -> None:
        self._tasks = tasks
        self._backend = backend
        self._parked = parked
        self._idle: list[Wakeup] = []
        self.working: dict[Cell, None] = {}
        self.cut_off: list[str] = []
        self._all_idle: anyio.Event | None = None
        self._host = running_task()
        self._ends = backend.effective_deadline()

    async def wait_idle(self) -> None:
        """Return when no cell is worked for."""
        while self.working:
            if self._all_idle is None:
                self._all_idle = anyio.Event()
            await self._all_idle.wait()

    def refuse_if_over(self) -> None:
        """Raise `RuntimeClosed` once nobody is worked for any more."""
        if self._tasks.cancel_scope.cancel_called:
            raise RuntimeClosed("the runtime was closed before the message was handled")

    def give(self, cell: Cell) -> None:
        """Have the cell worked for, by a parked worker if there is one."""
        self.working[cell] = None
        while self._idle:
            parked = self._idle.pop()
            if not parked.done():  # else it was cancelled where it waited
                parked.set_result(cell)
                return
        # A clean context: a worker must not carry the context variables of whoever made the first message come.
        contextvars.Context().run(self._tasks.start_soon, self._work, cell)

    async def _work(self, first: Cell) -> None:
        own_task(self._host)
        working = self._work_on(first)
        del first  # a parked worker keeps no cell in memory
        with contextlib.suppress(CancelScopeLeft), guarded(self._backend.scope()):
            await working

    async def _work_on(self, first: Cell) -> None:
        """Work for one cell after the other, as long as nobody leaves a cancel scope here that would end the work of others."""
        cell: Cell | None = first
        del first
        while cell is not None:
            try:
                await cell.work()
            except BaseException:
                self.cut_off.append(cell.id)
                raise
            finally:
                self._done_with(cell)
            # A look at the scopes costs as much as a wake-up, so it is kept for when there can be one too many.
            if (cell.unguarded and self._backend.effective_deadline() < self._ends) or len(self._idle) >= self._parked:
                return
            cell = None
            parked = self._backend.wakeup()
            self._idle.append(parked)
            try:
                cell = await parked
            except BaseException:
                if parked.done() and not parked.cancelled():  # it is the end of a worker that was given a cell just then
                    self._cut_off_before(parked.result())
                raise

    def _cut_off_before(self, cell: Cell) -> None:
        cell.drop_waiting(RuntimeClosed("the runtime was closed before the message was handled"))
        cell.rest()
        self._done_with(cell)

    def _done_with(self, cell: Cell) -> None:
        del self.working[cell]
        if self._all_idle is not None and not self.working:
            self._all_idle.set()
            self._all_idle = None

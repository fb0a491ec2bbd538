"""The least that one task can wait for on trio. A module of its own: trio takes long to import, and not everybody runs on it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import trio

__all__ = ["TrioWakeup"]


class TrioWakeup:
    """A `Wakeup` on trio: the task that waits, to be rescheduled with the value."""

    __slots__ = ("_cancelled", "_given", "_task", "_value")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._given = self._cancelled = False
        self._value: Any = None

    def done(self) -> bool:
        return self._given or self._cancelled

    def cancelled(self) -> bool:
        return self._cancelled

    def result(self) -> Any:
        return self._value

    def set_result(self, value: Any, /) -> None:
        self._given, self._value = True, value
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        if self._given:
            await trio.lowlevel.checkpoint()
        else:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        return self._value

    def _abort(self, raise_cancel: Any) -> trio.lowlevel.Abort:
        self._cancelled, self._task = True, None
        return trio.lowlevel.Abort.SUCCEEDED

"""What the running event loop gives, looked up once.

``anyio.Event()`` asks which backend runs before it makes that backend's event: four fifths of what it costs. A runtime
lives in one loop, so it asks once and then makes what it needs from the backend's own classes. Where one task waits for
one thing, which is twice in every turn, even an event is too much: a `Wakeup` is the least that a backend can wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol

import anyio
import attrs
import trio

__all__ = ["ANY_BACKEND", "Backend", "Bell", "Wakeup", "running_backend"]


class Wakeup(Awaitable[Any], Protocol):
    """What one task awaits until another gives it a value. Given or cancelled it is `done`, and must not be given again.

    As an `asyncio.Future`, of which it is the part that is used here.
    """

    def done(self) -> bool: ...
    def set_result(self, value: Any, /) -> None: ...
    def cancelled(self) -> bool: ...
    def result(self) -> Any: ...


class _TrioWakeup:
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


class Bell:
    """Wakes all who wait for it, each time it rings. `waiting` are their wake-ups, None while nobody waits.

    Made anywhere; waited for in the loop that `new_wakeup` belongs to.
    """

    __slots__ = ("new_wakeup", "waiting")

    def __init__(self, new_wakeup: Callable[[], Wakeup]) -> None:
        self.new_wakeup = new_wakeup
        self.waiting: list[Wakeup] | None = None

    async def rung(self) -> None:
        """Return when it has rung."""
        wakeup = self.new_wakeup()
        if self.waiting is None:
            self.waiting = [wakeup]
        else:
            self.waiting.append(wakeup)
        try:
            await wakeup
        except BaseException:
            if self.waiting is not None and wakeup in self.waiting:  # nor may those pile up who come and leave again
                self.waiting.remove(wakeup)
            raise

    def ring(self) -> None:
        """Wake those who wait now."""
        waiting, self.waiting = self.waiting, None
        for wakeup in waiting or ():
            if not wakeup.done():
                wakeup.set_result(None)


@attrs.frozen
class Backend:
    """Makes `wakeup()`, and `scope(deadline=..., shield=...)` as `anyio.CancelScope` does; `now()` is its time in seconds.

    `effective_deadline()` is when the innermost scope around the calling code ends, as `anyio.current_effective_deadline`.
    """

    wakeup: Callable[[], Wakeup]
    scope: Callable[..., Any]
    now: Callable[[], float]
    effective_deadline: Callable[[], float]


def running_backend() -> Backend:
    """What the loop that runs now gives."""
    if trio.lowlevel.in_trio_run():
        return Backend(_TrioWakeup, trio.CancelScope, trio.current_time, trio.current_effective_deadline)
    loop = asyncio.get_running_loop()
    return Backend(loop.create_future, type(anyio.CancelScope()), loop.time, anyio.current_effective_deadline)


def _wakeup() -> Wakeup:
    return _TrioWakeup() if trio.lowlevel.in_trio_run() else asyncio.get_running_loop().create_future()


ANY_BACKEND = Backend(_wakeup, anyio.CancelScope, anyio.current_time, anyio.current_effective_deadline)
"""Looks the backend up each time: right everywhere, for what is not done often."""

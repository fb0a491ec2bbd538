"""What the running event loop gives, looked up once.

``anyio.Event()`` asks which backend runs before it makes that backend's event: four fifths of what it costs. A runtime
lives in one loop, so it asks once and then makes what it needs from the backend's own classes. Where one task waits for
one thing, which is twice in every turn, even an event is too much: a `Wakeup` is the least that a backend can wait for.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio
import attrs

__all__ = ["ANY_BACKEND", "Backend", "Bell", "Wakeup", "running_backend"]


class Wakeup(Awaitable[Any], Protocol):
    """What one task awaits until another gives it a value. Given or cancelled it is `done`, and must not be given again.

    As an `asyncio.Future`, of which it is the part that is used here.
    """

    def done(self) -> bool: ...
    def set_result(self, value: Any, /) -> None: ...
    def cancelled(self) -> bool: ...
    def result(self) -> Any: ...


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
    if _in_trio():
        import trio

        from ropewalk.runtime.trio_wakeup import TrioWakeup

        return Backend(TrioWakeup, trio.CancelScope, trio.current_time, trio.current_effective_deadline)
    loop = asyncio.get_running_loop()
    return Backend(loop.create_future, type(anyio.CancelScope()), loop.time, anyio.current_effective_deadline)


def _in_trio() -> bool:
    if "trio" not in sys.modules:  # it takes long to import, and whoever runs on it has done so
        return False
    import trio

    return trio.lowlevel.in_trio_run()


def _wakeup() -> Wakeup:
    if _in_trio():
        from ropewalk.runtime.trio_wakeup import TrioWakeup

        return TrioWakeup()
    return asyncio.get_running_loop().create_future()


ANY_BACKEND = Backend(_wakeup, anyio.CancelScope, anyio.current_time, anyio.current_effective_deadline)
"""Looks the backend up each time: right everywhere, for what is not done often."""

"""What the actors of a runtime share and that has a life of its own: a client, a connection, a child process.

A service is an async context manager. It is entered at its first use, in a task of its own, and left when the runtime
closes: after the last actor has ended, so that nobody's ground is taken away, and in reverse order.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import anyio
import anyio.abc

from ropewalk.runtime.errors import RuntimeClosed
from ropewalk.runtime.log import log
from ropewalk.runtime.outcome import Outcome
from ropewalk.runtime.supervision import Failure, attempt_foreign, own_task

__all__ = ["Services"]

T = TypeVar("T")


class _Service:
    """One of them: what entering it came to, when it is to be left, and that it was."""

    __slots__ = ("entered", "left", "owner", "scope", "stop")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.entered: Outcome[Any] = Outcome()
        self.stop = anyio.Event()
        self.left = anyio.Event()
        self.scope = anyio.CancelScope()


class Services:
    """The services of one runtime, by the object each belongs to."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._running: dict[int, _Service] = {}
        self._is_closing = False

    async def use(self, owner: object, make: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        """What the service of `owner` gives when entered; ``make()`` makes it where it does not run yet.

        Raises what entering it raised; then the next use tries again. One that ends by itself is made anew by the next use.
        """
        service = self._running.get(id(owner))
        if service is None:
            if self._is_closing:
                raise RuntimeClosed("the runtime is closing and starts nothing more")
            service = self._running[id(owner)] = _Service(owner)
            contextvars.Context().run(self._tasks.start_soon, self._live, service, make)
        value: T = await service.entered.wait()
        return value

    async def close(self, grace: float) -> None:
        """Leave them all, the last one first; one that takes more than `grace` seconds is cancelled, and so is one that is not ready yet."""
        self._is_closing = True
        for service in reversed(list(self._running.values())):
            service.stop.set()
            if service.entered.settled:
                with anyio.move_on_after(grace):
                    await service.left.wait()
            service.scope.cancel()
            with anyio.move_on_after(grace):
                await service.left.wait()

    async def _live(self, service: _Service, make: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        own_task()
        try:
            with service.scope:
                ended = await attempt_foreign(self._enter(service, make))
                if isinstance(ended, Failure) and not service.entered.fail(ended.error):
                    log.error("service_failed", service=type(service.owner).__name__, traceback_of=ended.error)
        finally:
            service.entered.fail(RuntimeClosed("the runtime closed before its service was ready"))
            if self._running.get(id(service.owner)) is service:
                del self._running[id(service.owner)]
            service.left.set()

    async def _enter(self, service: _Service, make: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        async with make() as value:
            service.entered.settle(value)
            await service.stop.wait()

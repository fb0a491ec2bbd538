"""The event loops that rows are run on, each with its own primitives: the bare loops must not pay for anybody's abstraction."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import trio

__all__ = ["BACKENDS", "Backend"]

T = TypeVar("T")


class Backend(Protocol):
    """An event loop: how it is run, and the three of its primitives that a turn needs."""

    name: str

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """Run `main` in a new loop to its end."""
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Let so many seconds pass."""
        ...

    async def checkpoint(self) -> None:
        """Let every other task run once."""
        ...

    async def at_once(self, works: Sequence[Callable[[], Awaitable[Any]]]) -> None:
        """Run these beside each other, each in a task of its own, until all have ended."""
        ...

    def living_tasks(self) -> int:
        """How many tasks there are."""
        ...


class Asyncio:
    """The standard library's loop."""

    name = "asyncio"
    sleep = staticmethod(asyncio.sleep)

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        async def started() -> T:
            return await main()

        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            return runner.run(started())

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    async def at_once(self, works: Sequence[Callable[[], Awaitable[Any]]]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work())  # type: ignore[arg-type]

    def living_tasks(self) -> int:
        return len(asyncio.all_tasks())


class Uvloop(Asyncio):
    """The same on libuv."""

    name = "uvloop"

    def new_loop(self) -> asyncio.AbstractEventLoop:
        import uvloop

        return uvloop.new_event_loop()


class Trio:
    """Trio's loop."""

    name = "trio"
    sleep = staticmethod(trio.sleep)
    checkpoint = staticmethod(trio.lowlevel.checkpoint)

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        async def started() -> T:
            return await main()

        return trio.run(started)

    async def at_once(self, works: Sequence[Callable[[], Awaitable[Any]]]) -> None:
        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(work)

    def living_tasks(self) -> int:
        return trio.lowlevel.current_statistics().tasks_living


BACKENDS: dict[str, Backend] = {"asyncio": Asyncio(), "trio": Trio()}
if importlib.util.find_spec("uvloop") is not None:
    BACKENDS["uvloop"] = Uvloop()

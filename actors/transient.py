"""Where async calls run: in the runtime around them, or in one opened for the calls of one agent as long as there are any.

A transient runtime lives in a task that hangs from the event loop itself, not from a caller. So a caller that leaves early
harms none of the others, and no cancel scope stands open in the task of somebody who reads a stream.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

import anyio
import anyio.lowlevel

from ropewalk.runtime.errors import RuntimeClosed
from ropewalk.runtime.log import log
from ropewalk.runtime.outcome import Outcome
from ropewalk.runtime.runtime import Runtime, enclosing_runtime
from ropewalk.runtime.supervision import Failure, attempt, contain

__all__ = ["Place", "Places", "TransientRuntime"]

CLOSING_SECONDS = 10.0


class TransientRuntime:
    """A runtime that is open as long as somebody has joined it. Made in the event loop it is for."""

    def __init__(self) -> None:
        self._loop: object = anyio.lowlevel.current_token()
        self._users = 0
        self._begun = False
        self._left = anyio.Event()
        self._closed = anyio.Event()
        self._opened: Outcome[Runtime] = Outcome()

    @property
    def is_closing(self) -> bool:
        """Whether it can be joined no more."""
        return self._left.is_set()

    @property
    def is_here(self) -> bool:
        """Whether it belongs to the event loop that runs the calling code."""
        return self._loop == anyio.lowlevel.current_token()

    async def join(self) -> Runtime:
        """The runtime, open until everybody who joined has left. Raises what kept it from opening; then nobody has to leave."""
        self._users += 1
        if not self._begun:
            self._begun = True
            _start_on_the_loop(self._live)
        joined = False
        try:
            runtime = await self._opened.wait()
            joined = True
        finally:
            if not joined:
                self.leave()
        return runtime

    def leave(self) -> None:
        """Done with it; the last one to leave has it close."""
        self._users -= 1
        if not self._users:
            self._left.set()

    async def wait_closed(self) -> None:
        """Return when it is closed, if everybody has left; cancellation waits for that too, within a bound."""
        if self._left.is_set() and not self._closed.is_set():
            with anyio.move_on_after(CLOSING_SECONDS, shield=True):
                await self._closed.wait()

    async def _live(self) -> None:
        try:
            ended = await attempt(self._run())
            if isinstance(ended, Failure) and not self._opened.fail(ended.error):
                log.error("transient_runtime_failed", traceback_of=ended.error)
        finally:
            self._opened.fail(RuntimeClosed("the event loop ended before the runtime was open"))
            self._left.set()
            self._closed.set()

    async def _run(self) -> None:
        async with Runtime() as runtime:
            self._opened.settle(runtime)
            await self._left.wait()


class Places:
    """Gives the async calls of one agent their runtime; calls at the same time in one event loop get the same one."""

    def __init__(self) -> None:
        self._transients: tuple[TransientRuntime, ...] = ()

    def find(self) -> Place:
        """A place for one call of the calling code."""
        around = enclosing_runtime()
        if around is not None:
            return Place(around)
        self._transients = tuple(transient for transient in self._transients if not transient.is_closing)
        for transient in self._transients:
            if transient.is_here:
                return Place(transient)
        transient = TransientRuntime()
        self._transients += (transient,)
        return Place(transient)


class Place:
    """One call's hold on a runtime: ``async with places.find() as runtime: ...``; opens no scope in the caller's task."""

    def __init__(self, runtime: Runtime | TransientRuntime) -> None:
        self._runtime = runtime

    async def __aenter__(self) -> Runtime:
        return self._runtime if isinstance(self._runtime, Runtime) else await self._runtime.join()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()
        await self.wait_left()

    def leave(self) -> None:
        """Let go of the runtime."""
        if isinstance(self._runtime, TransientRuntime):
            self._runtime.leave()

    async def wait_left(self) -> None:
        """Return when the runtime is closed, if this call was the last it was open for."""
        if isinstance(self._runtime, TransientRuntime):
            await self._runtime.wait_closed()


_on_the_loop: set[asyncio.Task[None]] = set()
"""The loop itself keeps its tasks weakly."""


def _start_on_the_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start a task that belongs to nobody but the running event loop, in a clean context; the loop's end cancels it."""
    context = contextvars.Context()
    if isinstance(contain(asyncio.current_task), asyncio.Task):
        task = asyncio.get_running_loop().create_task(work(), context=context)
        _on_the_loop.add(task)
        task.add_done_callback(_on_the_loop.discard)
    else:
        import trio

        trio.lowlevel.spawn_system_task(work, context=context)

"""How many tool calls of one runtime may run at once, and who gives a place back when a thread outlives its call.

A sync tool cannot be stopped: when its call is cancelled, nobody waits any more, but the thread works on. Its place, in the
pool of threads and among the calls of its tool, is free only when the thread is done; otherwise tools that hang would
pile up threads without bound, and ``concurrency=1`` would let two calls run beside each other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import anyio.from_thread
import anyio.to_thread
import attrs
from anyio import CapacityLimiter, WouldBlock

from ropewalk.actors.tools.tool import Tool
from ropewalk.runtime.backend import ANY_BACKEND, Backend
from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.supervision import contain

__all__ = ["Place", "ToolLimits"]


def _threads(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InvalidOption(f"ToolLimits.threads is a whole number above 0, or None to run sync tools in line, not {value!r}")


@attrs.define(eq=False)
class ToolLimits:
    """The limits of one runtime; to be used in one event loop.

    :param threads: how many sync tools may run at once, each in a worker thread. None runs them in line, in the event loop,
        so that virtual time and seeds hold: for tests only.
    :param backend: what the event loop gives, as far as that is known.
    """

    threads: int | None = attrs.field(default=40, validator=_threads)
    backend: Backend = attrs.field(default=ANY_BACKEND, kw_only=True, repr=False)
    _pool: CapacityLimiter | None = attrs.field(default=None, init=False, repr=False)
    _by_tool: WeakKeyDictionary[Tool, CapacityLimiter] = attrs.field(factory=WeakKeyDictionary[Tool, CapacityLimiter], init=False, repr=False)

    def place_for(self, tool: Tool) -> Place | None:
        """What a call of this tool has to enter before it runs; None when nothing limits it."""
        limiters: list[CapacityLimiter] = []
        if tool.concurrency is not None:
            limiters.append(self._by_tool.get(tool) or self._by_tool.setdefault(tool, CapacityLimiter(tool.concurrency)))
        if self.threads is not None and tool.kind == "sync":
            self._pool = self._pool or CapacityLimiter(self.threads)
            return Place([*limiters, self._pool], threaded=True)
        return Place(limiters, threaded=False) if limiters else None


class Place:
    """What one call occupies, from `enter` until its work has really ended."""

    __slots__ = ("_entered", "_left", "_limiters", "_lock", "_running", "threaded")

    def __init__(self, limiters: list[CapacityLimiter], *, threaded: bool) -> None:
        self.threaded = threaded
        self._limiters = limiters
        self._entered: list[CapacityLimiter] = []
        self._lock = threading.Lock()
        self._running = False
        self._left = False

    async def enter(self) -> None:
        """Wait for a place in each limiter; a cancelled wait keeps what it has until `leave`."""
        for limiter in self._limiters:
            try:
                limiter.acquire_on_behalf_of_nowait(self)
            except WouldBlock:
                await limiter.acquire_on_behalf_of(self)
            self._entered.append(limiter)

    async def in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call in a worker thread; what it raises comes back as a `Failure`. When cancelled, the thread is left to itself."""
        # The place is the limit: it also counts the threads that were left to themselves, which not every backend does.
        boxed = await anyio.to_thread.run_sync(self._run, call, arguments, abandon_on_cancel=True, limiter=CapacityLimiter(math.inf))
        return boxed[0]

    def leave(self) -> None:
        """Give the place back: now, or when the thread that still works is done."""
        with self._lock:
            self._left = True
            running = self._running
        if not running:
            self._give_back()

    def _run(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any]:
        with self._lock:
            if self._left:
                return (None,)
            self._running = True
        try:
            # Boxed, because trio refuses a thread's result that is a coroutine.
            return (contain(call, *arguments),)
        finally:
            with self._lock:
                self._running = False
                abandoned = self._left
            if abandoned:
                # The loop may be gone by now, and the limiters with it.
                contain(anyio.from_thread.run_sync, self._give_back)

    def _give_back(self) -> None:
        while self._entered:
            self._entered.pop().release_on_behalf_of(self)

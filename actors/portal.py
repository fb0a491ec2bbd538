"""One thread with an event loop and a runtime in it, for everybody in this process who is not async.

It is started by the first call that needs it, made anew after a fork, and ended with the process. A call costs two hand-overs
between threads and never a thread or a loop of its own. The thread is a daemon: whatever still runs in it, the process can end.
"""

from __future__ import annotations

import atexit
import contextvars
import importlib.util
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeVar

import anyio
import anyio.from_thread

from ropewalk.runtime.errors import InvalidOption, RuntimeClosed, WouldDeadlock
from ropewalk.runtime.log import log
from ropewalk.runtime.runtime import Runtime, current_runtime
from ropewalk.runtime.supervision import Failure, attempt, contain

__all__ = ["BACKENDS", "THREAD_NAME", "Portal", "portal"]

T = TypeVar("T")

THREAD_NAME = "ropewalk-portal"
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
"""What ``$ROPEWALK_BACKEND`` may name. Unset is uvloop where it is installed, else asyncio."""

GRACE_SECONDS = 1.0
EXIT_SECONDS = 5.0


def portal() -> Portal:
    """This process' portal, which is started if there is none. Raises `InvalidOption` when ``$ROPEWALK_BACKEND`` names no backend."""
    global _portal
    found = _portal
    if found is None or not found.alive:
        with _starting:
            found = _portal
            if found is None or not found.alive:
                found = _portal = Portal(*_backend())
    return found


class Portal:
    """A thread with an event loop in which one `runtime` lives."""

    def __init__(self, backend: str, backend_options: dict[str, Any]) -> None:
        self._over = False
        self._ready: Future[tuple[anyio.from_thread.BlockingPortal, Runtime]] = Future()
        # A clean context: what lives as long as the process carries nothing of whoever happened to call first.
        self._thread = threading.Thread(target=contextvars.Context().run, args=(self._run, backend, backend_options), name=THREAD_NAME, daemon=True)
        self._thread.start()
        self._door, self.runtime = self._ready.result()

    @property
    def alive(self) -> bool:
        """Whether it takes calls."""
        return self._thread.is_alive() and self.runtime.is_open and not self._over

    def call(self, work: Callable[[Runtime], Coroutine[Any, Any, T]]) -> T:
        """What ``await work(runtime)`` gives in the portal's loop, in a copy of the caller's context.

        Whatever interrupts the waiting, such as Ctrl-C, cancels the work, waits for it to settle, and is raised then. Raises
        `WouldDeadlock` in the portal's own thread, `RuntimeClosed` when the portal ends meanwhile.
        """
        if threading.current_thread() is self._thread:
            raise WouldDeadlock(
                "this code runs in the thread that would do the work, so waiting for it would wait for ever; "
                "make the function async and use `await agent.invoke_async(...)`"
            )
        call = _Call(work, self.runtime)
        try:
            future = self._start(call.run)
            wait([future])
        except BaseException:  # Ctrl-C comes wherever this thread happens to be
            if not call.claim():
                contain(self._door.start_task_soon, call.cancel)
                call.ended.wait()
            raise
        try:
            future.result()
        except CancelledError:
            raise RuntimeClosed("the portal ended before the call was done") from None
        if call.exit is not None:
            raise call.exit
        outcome: T = call.outcome
        return outcome

    def see_to(self, work: Callable[[Runtime], Coroutine[Any, Any, None]]) -> None:
        """Have work done that nobody needs the result of: as `call` does, but in the portal's own thread it is only begun."""
        if threading.current_thread() is not self._thread:
            self.call(work)
        else:
            self.runtime.start(self._see_to_it, work)

    async def _see_to_it(self, work: Callable[[Runtime], Coroutine[Any, Any, None]]) -> None:
        ended = await attempt(work(self.runtime))
        if isinstance(ended, Failure):
            log.error("portal_work_failed", traceback_of=ended.error)

    def stop(self, timeout: float) -> None:
        """End it: calls are cancelled, the runtime is closed. Returns when that is done, or after `timeout` seconds."""
        contain(self._door.start_task_soon, self._door.stop, True)
        self._thread.join(timeout)

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Future[None]:
        started = contain(self._door.start_task_soon, work)
        if isinstance(started, Failure):
            raise RuntimeClosed("the portal has ended and takes no calls") from started.error
        return started

    def _run(self, backend: str, backend_options: dict[str, Any]) -> None:
        try:
            anyio.run(self._live, backend=backend, backend_options=backend_options)
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _live(self) -> None:
        async with Runtime(grace=GRACE_SECONDS) as runtime, anyio.from_thread.BlockingPortal() as door:
            self._ready.set_result((door, runtime))
            try:
                await door.sleep_until_stopped()
            finally:
                self._over = True


class _Call:
    """One piece of work in the portal, and what it came to."""

    def __init__(self, work: Callable[[Runtime], Coroutine[Any, Any, Any]], runtime: Runtime) -> None:
        self._work = work
        self._runtime = runtime
        self._scope: anyio.CancelScope | None = None
        self._unclaimed = [True]
        self.ended = threading.Event()
        self.outcome: Any = None
        self.exit: SystemExit | None = None

    def claim(self) -> bool:
        """Whether the calling thread is the first to say what becomes of the call: the portal runs it, or its caller takes it back."""
        return not isinstance(contain(self._unclaimed.pop), Failure)  # what pops is one step, which no other thread can divide

    async def run(self) -> None:
        if not self.claim():
            return
        try:
            current_runtime.set(self._runtime)
            with anyio.CancelScope() as self._scope:
                self.outcome = await self._work(self._runtime)
        except SystemExit as left:  # of a tool, say: it is the caller's, not the portal's, where others' calls are at work
            self.exit = left
        finally:
            self.ended.set()

    def cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()


_portal: Portal | None = None
_starting = threading.Lock()


def _backend() -> tuple[str, dict[str, Any]]:
    named = os.environ.get("ROPEWALK_BACKEND") or ("uvloop" if importlib.util.find_spec("uvloop") else "asyncio")
    if named not in BACKENDS:
        raise InvalidOption(f"$ROPEWALK_BACKEND is one of {', '.join(BACKENDS)}, not {named!r:.200}")
    return BACKENDS[named]


def _forget() -> None:
    """In a child process: the portal's thread stayed with the parent, and whoever held the lock did too."""
    global _portal, _starting
    _portal = None
    _starting = threading.Lock()


def _end() -> None:
    if _portal is not None:
        _portal.stop(EXIT_SECONDS)


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

"""What a test may leave behind: nothing that still works.

Trio does not end a run while a task is left, so tasks are counted on asyncio only. Threads outlive every loop: a test
leaves none that is busy. A worker that waits in its pool for the next call is at rest, not leaked, and the one portal
thread of the process stays for the next sync call.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path
from types import FrameType

__all__ = ["busy_threads", "running_tasks", "threads_left_since"]

PORTAL = "ropewalk-portal"
RUNNER = "TestRunner."
WAITING = ("threading.py", "queue.py")
POOLS = ("anyio/_backends/_asyncio.py", "trio/_core/_thread_cache.py", "concurrent/futures/thread.py")


def running_tasks() -> set[asyncio.Task[object]]:
    """The tasks of the running asyncio loop that have not ended, without those of anyio's own test runner."""
    return {task for task in asyncio.all_tasks() if not getattr(task.get_coro(), "__qualname__", "").startswith(RUNNER)}


def busy_threads() -> set[threading.Thread]:
    """The threads that are neither at rest in a pool, nor the portal, nor the one that asks."""
    frames = sys._current_frames()
    threads = (thread for thread in threading.enumerate() if thread is not threading.current_thread())
    return {thread for thread in threads if not thread.name.startswith(PORTAL) and not _at_rest(frames.get(thread.ident or 0))}


def threads_left_since(before: set[threading.Thread], *, grace: float = 2.0) -> set[threading.Thread]:
    """The busy threads that are not among those before; waits up to `grace` seconds for them to end or come to rest."""
    deadline = time.monotonic() + grace
    while (left := busy_threads() - before) and time.monotonic() < deadline:
        next(iter(left)).join(timeout=0.01)
    return left


def _at_rest(frame: FrameType | None) -> bool:
    """Whether a thread's innermost frame, but for the lock or queue it waits on, is the loop of a pool's worker."""
    while frame is not None and Path(frame.f_code.co_filename).name in WAITING:
        frame = frame.f_back
    return frame is not None and Path(frame.f_code.co_filename).as_posix().endswith(POOLS)

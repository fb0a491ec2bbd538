"""What the running event loop gives, looked up once.

``anyio.Event()`` asks which backend runs before it makes that backend's event: four fifths of what it costs. A runtime
lives in one loop, so it asks once and then makes what it needs from the backend's own classes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import anyio
import attrs

from ropewalk.runtime.supervision import Failure, contain

__all__ = ["ANY_BACKEND", "Backend", "running_backend"]


@attrs.frozen
class Backend:
    """Makes `event()` and `scope(deadline=..., shield=...)` as `anyio.Event` and `anyio.CancelScope` do; `now()` is its time in seconds."""

    event: Callable[[], anyio.Event]
    scope: Callable[..., Any]
    now: Callable[[], float]


ANY_BACKEND = Backend(anyio.Event, anyio.CancelScope, anyio.current_time)
"""Looks the backend up each time: right everywhere, for what is not done often."""


def running_backend() -> Backend:
    """What the loop that runs now gives."""
    loop = contain(asyncio.get_running_loop)
    now = anyio.current_time if isinstance(loop, Failure) else loop.time
    if "trio" in sys.modules:  # it takes long to import, and whoever runs on it has done so
        import trio

        if trio.lowlevel.in_trio_run():
            now = trio.current_time
    return Backend(type(anyio.Event()), type(anyio.CancelScope()), now)

"""Noticing that a model has fallen silent, with one timer for all sessions instead of one a chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import anyio

if TYPE_CHECKING:
    from ropewalk.runtime.runtime import Runtime

__all__ = ["Watchdog", "Watched"]

LOOKS = 8
"""How often a silence is looked at before it is long enough: what it is missed by at most is an eighth of it."""


class Watched(Protocol):
    """Who may fall silent: `heard` grows with every sign of life, `silence` is how many seconds without one are too many."""

    heard: int
    silence: float

    def fell_silent(self) -> None: ...


class Watchdog:
    """Looks at everyone who waits for a model, a few times in each one's longest silence. Its task lives only while somebody is watched."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._watched: dict[Watched, tuple[int, float]] = {}
        self._running = False

    def watch(self, watched: Watched) -> None:
        """Call `fell_silent` when nothing is heard for too long from now on."""
        self._watched[watched] = (-1, 0.0)
        if not self._running:
            self._running = True
            self._runtime.start(self._run)

    def forget(self, watched: Watched) -> None:
        """Watch it no more."""
        self._watched.pop(watched, None)

    async def _run(self) -> None:
        try:
            while self._watched:
                await anyio.sleep(min(watched.silence for watched in self._watched) / LOOKS)
                self._look(self._runtime.clock.monotonic())
        finally:
            self._running = False

    def _look(self, now: float) -> None:
        for watched, (heard, since) in list(self._watched.items()):
            if watched.heard != heard:
                self._watched[watched] = (watched.heard, now)
            elif now - since >= watched.silence:
                self._watched.pop(watched, None)
                watched.fell_silent()

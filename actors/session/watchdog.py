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
    """Who may fall silent: `heard` grows with every sign of life and is None while nobody listens, `silence` is how many seconds are too many."""

    @property
    def heard(self) -> int | None: ...
    @property
    def silence(self) -> float: ...
    def fell_silent(self) -> None: ...


class Watchdog:
    """Looks at everyone who waits for a model, a few times in the shortest silence allowed. Its task ends soon after nobody is watched."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._watched: dict[Watched, tuple[int | None, float]] = {}
        self._needed = False
        self._running = False
        self._interval = float("inf")
        self._hurry: anyio.Event | None = None

    def watch(self, watched: Watched) -> None:
        """Call `fell_silent` when nothing is heard for too long from now on."""
        self._watched[watched] = (-1, 0.0)
        self._needed = True
        sooner = watched.silence / LOOKS
        if sooner < self._interval:
            self._interval = sooner
            if self._hurry is not None:
                self._hurry.set()
        if not self._running:
            self._running = True
            self._runtime.start(self._run)

    def forget(self, watched: Watched) -> None:
        """Watch it no more."""
        self._watched.pop(watched, None)

    async def _run(self) -> None:
        try:
            while self._needed:
                # Most calls are over long before the first look: the task stays for one look more than it has to,
                # because a new one for every call would cost more than the calls.
                self._needed = bool(self._watched)
                self._hurry = anyio.Event()
                with anyio.move_on_after(self._interval):
                    await self._hurry.wait()
                self._look(self._runtime.clock.monotonic())
        finally:
            self._running = False
            self._interval = float("inf")

    def _look(self, now: float) -> None:
        for watched, (heard, since) in list(self._watched.items()):
            if watched.heard is None or watched.heard != heard:
                self._watched[watched] = (watched.heard, now)
            elif now - since >= watched.silence:
                self._watched.pop(watched, None)
                watched.fell_silent()

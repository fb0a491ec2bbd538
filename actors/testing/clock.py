"""A clock whose wall time follows the backend's own, so that a virtual clock moves both."""

from __future__ import annotations

from ropewalk.runtime.clock import Clock

__all__ = ["VirtualClock"]

START = 1_700_000_000.0


class VirtualClock(Clock):
    """Time, randomness and ids as a function of the seed and of how far the backend's clock has moved: ``Runtime(clock=VirtualClock(seed))``."""

    __slots__ = ()

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.time = lambda: START + self.monotonic()

"""The only place time, randomness and ids come from.

Everything else asks a `Clock`, so a test can replace all three at once and a whole run is one function of its seed.
"""

from __future__ import annotations

import random
import time

import anyio

__all__ = ["Clock", "stopwatch"]

stopwatch = time.perf_counter
"""Real seconds for measuring how long code kept the processor: never virtual, never compared with a deadline."""


class Clock:
    """Wall time, the backend's own time, randomness and ids for one runtime.

    :param seed: makes randomness and ids repeatable; None takes the system's entropy.
    """

    __slots__ = ("_bits", "random", "time")

    def __init__(self, seed: int | None = None) -> None:
        source = random.Random(seed)
        self._bits = source.getrandbits
        self.random = source.random
        self.time = time.time

    def monotonic(self) -> float:
        """Seconds on the running backend's clock, the one its deadlines and sleeps are counted on."""
        return anyio.current_time()

    def new_id(self) -> str:
        """Sixteen hexadecimal digits nobody has been given before."""
        return f"{self._bits(64):016x}"

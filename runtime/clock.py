"""The only place time, randomness and ids come from.

Everything else asks a `Clock`, so a test can replace all three at once and a whole run is one function of its seed.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable

import anyio

__all__ = ["Clock"]


class Clock:
    """Wall time, the backend's own time, randomness and ids for one runtime.

    `time` gives seconds since 1970, `random` a number in [0, 1). `monotonic` gives seconds on the running backend's clock,
    the one its deadlines and sleeps are counted on. `stopwatch` gives seconds for measuring how long code kept
    the processor: not virtual, and never compared with a deadline. `processor` gives the seconds that the calling thread
    itself has had of a processor, whatever other programs do.

    :param seed: makes randomness and ids repeatable; None takes the system's entropy.
    """

    __slots__ = ("_bits", "monotonic", "processor", "random", "stopwatch", "time")

    def __init__(self, seed: int | None = None) -> None:
        source = random.Random(seed)
        self._bits = source.getrandbits
        self.random = source.random
        self.time = time.time
        self.monotonic: Callable[[], float] = anyio.current_time
        self.stopwatch = time.perf_counter
        self.processor = time.thread_time

    def new_id(self) -> str:
        """Sixteen hexadecimal digits nobody has been given before."""
        return self._bits(64).to_bytes(8, "big").hex()

    def new_secret(self) -> str:
        """Forty-three letters nobody can guess; never repeatable, whatever the seed."""
        return secrets.token_urlsafe(32)

"""How a row is measured: processor time, sides interleaved, medians, the collector's old objects frozen for all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping

import attrs

__all__ = ["Medians", "Side", "Stopwatch", "interleaved", "percentile"]

Medians = Mapping[str, float]


class Stopwatch:
    """Processor and wall seconds of a ``with`` block; processor seconds are those of the whole process."""

    cpu = 0.0
    wall = 0.0
    now = staticmethod(time.perf_counter)

    def __enter__(self) -> Stopwatch:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.cpu = time.process_time() - self._cpu
        self.wall = time.perf_counter() - self._wall


@attrs.frozen
class Side:
    """One way to do a row's work. `once` does it, with what it needs made outside the measured part, and returns the figure."""

    name: str
    once: Callable[[], Awaitable[float]]


async def interleaved(sides: list[Side], repetitions: int, warm_up: int = 1) -> Medians:
    """The median figure of each side, the sides taken in turn: A B C A B C, so that a busy minute of the machine harms all alike."""
    for side in sides * warm_up:
        await side.once()
    figures: dict[str, list[float]] = {side.name: [] for side in sides}
    gc.collect()
    gc.freeze()
    try:
        for _ in range(repetitions):
            for side in sides:
                gc.collect()
                figures[side.name].append(await side.once())
    finally:
        gc.unfreeze()
    return {name: statistics.median(values) for name, values in figures.items()}


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]

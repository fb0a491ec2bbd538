"""More sessions than are let into memory, all of them in one file on the disk: opened, woken a hundred at once, recovered fifty at once."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from lives import ON_THEIR_WAY, Traced
from measure import Stopwatch
from nullmodel import NullModel
from ropewalk import Runtime, SQLiteJournal
from work import PROMPT, Load, session_id, spec_of

__all__ = ["bytes_of_many", "opening_many", "recovering_many"]

OPENERS = 50
"""How many sessions are opened at the same time."""


async def opening_many(load: Load, most: int) -> tuple[float, float]:
    """Wall seconds to open the load's sessions where `most` may be in memory, and CPU µs of a turn when so many of them, all over, are asked at once."""
    with tempfile.TemporaryDirectory(prefix="ropewalk-bench-") as folder:
        async with Runtime(SQLiteJournal(Path(folder) / "sessions.db"), resident_limit=most) as runtime:
            with Stopwatch() as opening:
                await _open_all(runtime, load)
            with Stopwatch() as turns:
                await _ask_some(runtime, load, most)
    return opening.wall, turns.cpu * 1e6 / most


async def bytes_of_many(load: Load, most: int) -> float:
    """Bytes a session takes, all together over all, when `most` of them have been at work at once and nobody holds a handle."""
    with tempfile.TemporaryDirectory(prefix="ropewalk-bench-") as folder, Traced() as traced:
        async with Runtime(SQLiteJournal(Path(folder) / "sessions.db"), resident_limit=most) as runtime:
            await _open_all(runtime, load)
            await _ask_some(runtime, load, most)
            traced.take()
            statistics = runtime.statistics()
    if statistics.resident > most + ON_THEIR_WAY or statistics.journal.actors != load.sessions:
        raise RuntimeError(f"{statistics.resident} of {statistics.journal.actors:,} sessions were in memory, and not {most} of {load.sessions:,}")
    return traced.taken / load.sessions


async def _open_all(runtime: Runtime, load: Load) -> None:
    spec, numbers = spec_of(load), iter(range(load.sessions))

    async def opens() -> None:
        for number in numbers:
            await runtime.open(session_id(number), spec)

    await load.backend.at_once([opens] * OPENERS)


async def _ask_some(runtime: Runtime, load: Load, some: int) -> None:
    spec = spec_of(load)

    async def asks(number: int) -> None:
        session = await runtime.open(session_id(number), spec, create=False)
        await session.ask(PROMPT)

    step = load.sessions // some
    await load.backend.at_once([partial(asks, number * step) for number in range(some)])


class _Hanging(NullModel):
    """Never answers: what it is asked for is left unfinished."""

    async def stream(self, messages: Sequence[dict[str, Any]], **options: Any) -> AsyncIterator[dict[str, Any]]:
        while True:
            await self._backend.sleep(3600)
        yield {}


class _Counting(NullModel):
    """Knows how many of its answers were under way at once, at most, and how many it gave."""

    at_once = most = answers = 0

    async def stream(self, messages: Sequence[dict[str, Any]], **options: Any) -> AsyncIterator[dict[str, Any]]:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        async for chunk in super().stream(messages, **options):
            yield chunk
        self.at_once -= 1
        self.answers += 1


async def recovering_many(load: Load) -> tuple[float, int]:
    """Wall seconds until a turn that was left unfinished in each session has come to its end in the next process, and how many were at it at once, at most."""
    with tempfile.TemporaryDirectory(prefix="ropewalk-bench-") as folder:
        path, hanging, counting = Path(folder) / "sessions.db", _Hanging(load.backend), _Counting(load.backend, pause=True)
        async with Runtime(SQLiteJournal(path), grace=0) as runtime:
            spec, numbers = spec_of(attrs.evolve(load, model=hanging)), iter(range(load.sessions))

            async def submits() -> None:
                for number in numbers:
                    session = await runtime.open(session_id(number), spec)
                    await session.submit(PROMPT)

            await load.backend.at_once([submits] * OPENERS)
        async with Runtime(SQLiteJournal(path), [spec_of(attrs.evolve(load, model=counting))]) as runtime:
            with Stopwatch() as watch:
                report = await runtime.recover()
    if not len(report.recovered) == counting.answers == load.sessions:
        raise RuntimeError(f"{len(report.recovered):,} of {load.sessions:,} sessions were recovered, with {counting.answers:,} answers")
    return watch.wall, counting.most

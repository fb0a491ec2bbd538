"""A long session on the disk: what a turn leaves there and takes, early and late, for the bare loop too.

Some of what grows is the file's and not ours: numbers of records get longer, and how full SQLite's pages become depends on which
rows are beside each other. So the bare loop's file is grown in the same way and its ratios stand beside ours.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from functools import partial
from pathlib import Path

import anyio
import attrs

import bare
from durable import BareStore
from measure import Stopwatch
from ropewalk import Runtime, Session, SQLiteJournal
from work import BARE, PROMPT, Ear, Load, bare_price, opened

__all__ = ["Growth", "growth"]

LENGTHS = 50
"""How many lengths prompts have. Records of one length fill a page well or badly by luck, and that luck would be the ratio."""


@attrs.frozen
class Growth:
    """Bytes that a turn adds to the file, and CPU µs that it takes: early in the life of a session, and late."""

    early_bytes: float
    late_bytes: float
    early_time: float
    late_time: float


class _File:
    """A file in which the load's sessions grow, one after the other; `take` has each take so many turns more."""

    def __init__(self, name: str, load: Load, path: Path) -> None:
        self._grow = self._bare if name == BARE else self._ropewalk
        self._load = load
        self._path = path
        self._done = 0
        self._histories: list[list[bare.Message]] = [[] for _ in range(load.sessions)]

    async def take(self, turns: int) -> tuple[float, float]:
        """Bytes and CPU µs for each turn. The file is closed before and after, so that all of it is in the one file."""
        before = self._path.stat().st_size if self._done else 0
        gc.collect()
        watch = await self._grow(range(self._done, self._done + turns))
        self._done += turns
        count = turns * self._load.sessions
        return (self._path.stat().st_size - before) / count, watch.cpu * 1e6 / count

    async def _ropewalk(self, turns: range) -> Stopwatch:
        async with Runtime(SQLiteJournal(self._path, durability="os")) as runtime:  # the bytes are the same, and no disk is waited for
            sessions: list[Session] = await opened(runtime, self._load)
            with Stopwatch() as watch:
                for session in sessions:
                    for turn in turns:
                        await session.ask(_prompt(turn))
            return watch

    async def _bare(self, turns: range) -> Stopwatch:
        store, load, ear = BareStore(self._path, synchronous="NORMAL"), self._load, Ear()
        watch = Stopwatch()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.write)
            with watch:
                for session, messages in enumerate(self._histories):
                    for turn in turns:
                        prompt = _prompt(turn)
                        await store.keep(session, 2 * turn, {"role": "user", "content": [{"text": prompt}]})
                        answer = await bare.turn(load.model, messages, prompt, ear.text, {"price": bare_price}, load.window)
                        await store.keep(session, 2 * turn + 1, answer)
            tasks.cancel_scope.cancel()
        store.close()
        return watch


def _prompt(turn: int) -> str:
    return PROMPT + "." * (turn * 37 % LENGTHS)


async def growth(name: str, load: Load, part: int, repetitions: int) -> Growth:
    """What a turn costs in the second `part` turns of a session's life, and in the last of `load.turns`.

    Each repetition takes a new file through its first two parts and the old one through one part more, so that a busy minute
    of the machine harms both alike. Bytes are means, times medians.
    """
    early: list[tuple[float, float]] = []
    late: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="ropewalk-bench-") as folder:
        file = partial(_File, name, load)
        old = file(Path(folder) / "old.db")
        await old.take(load.turns - part * repetitions)
        for number in range(repetitions):
            new = file(Path(folder) / f"{number}.db")
            await new.take(part)
            early.append(await new.take(part))
            late.append(await old.take(part))
    (early_bytes, early_times), (late_bytes, late_times) = zip(*early, strict=True), zip(*late, strict=True)
    return Growth(statistics.mean(early_bytes), statistics.mean(late_bytes), statistics.median(early_times), statistics.median(late_times))

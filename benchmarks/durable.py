"""Sessions on the disk: what a turn costs with its fsyncs, and what waking takes.

The bare loop has what a careful programmer gives it: one SQLite file, one writer thread, and a commit for all that has gathered.
Its prompt is committed before the model is called, its answer after.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

import bare
from measure import Side, Stopwatch, interleaved
from ropewalk import Runtime, Session, SQLiteJournal, TextDelta
from work import BARE, HANDLER, PROMPT, Ear, Load, ask, bare_price, listen, opened, spec_of

__all__ = ["BareStore", "durable_at_once", "waking_long_and_short"]


class BareStore:
    """A log in a file for the bare loops: `keep` returns when the message is on the disk."""

    def __init__(self, path: Path, synchronous: str = "FULL") -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA synchronous = {synchronous}")
        self._connection.execute("CREATE TABLE IF NOT EXISTS log (session INTEGER, number INTEGER, message TEXT, PRIMARY KEY (session, number)) WITHOUT ROWID")
        self._rows: list[tuple[int, int, str]] = []
        self._kept = anyio.Event()
        self._work = anyio.Event()

    async def keep(self, session: int, number: int, message: bare.Message) -> None:
        """Have a message on the disk."""
        self._rows.append((session, number, json.dumps(message)))
        self._work.set()
        await self._kept.wait()

    async def write(self) -> None:
        """Commit what has gathered, again and again."""
        while True:
            await self._work.wait()
            self._work = anyio.Event()
            rows, self._rows = self._rows, []
            kept, self._kept = self._kept, anyio.Event()
            await anyio.to_thread.run_sync(self._commit, rows)
            kept.set()

    def close(self) -> None:
        self._connection.close()

    def _commit(self, rows: list[tuple[int, int, str]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO log VALUES (?, ?, ?)", rows)
        self._connection.execute("COMMIT")


async def durable_at_once(name: str, load: Load) -> float:
    """Microseconds of processor time a turn, all sessions at the same time, every prompt and answer on the disk."""
    ear = Ear()
    with tempfile.TemporaryDirectory(prefix="ropewalk-bench-") as folder:
        path = Path(folder) / "sessions.db"
        watch = await (_bare(load, path, ear) if name == BARE else _ropewalk(name, load, path, ear))
    ear.must_have_heard(load.sessions * load.turns)
    return watch.cpu * 1e6 / (load.sessions * load.turns)


async def waking_long_and_short(load: Load, short: int, repetitions: int) -> tuple[float, float]:
    """CPU µs to wake a session whose view is `load.window` messages from the disk: with `load.turns` turns behind it, and with `short` turns."""
    with tempfile.TemporaryDirectory(prefix="ropewalk-bench-") as folder:
        async with Runtime(SQLiteJournal(Path(folder) / "sessions.db", durability="os")) as runtime:
            groups: dict[str, list[Session]] = {"long": [], "short": []}
            for number in range(load.sessions):
                for name, turns in (("long", load.turns), ("short", short)):
                    session = await runtime.open(f"{name}-{number}", spec_of(load))
                    await ask(session, turns)
                    groups[name].append(session)

            async def wake(sessions: list[Session]) -> float:
                for session in sessions:
                    await runtime.passivate(session.id)
                with Stopwatch() as watch:
                    for session in sessions:
                        assert len(await session.messages()) == load.window
                return watch.cpu * 1e6 / len(sessions)

            medians = await interleaved([Side(name, partial(wake, sessions)) for name, sessions in groups.items()], repetitions)
    return medians["long"], medians["short"]


async def _bare(load: Load, path: Path, ear: Ear) -> Stopwatch:
    store = BareStore(path)

    async def conversation(session: int) -> None:
        messages: list[bare.Message] = []
        for _ in range(load.turns):
            await store.keep(session, len(messages), {"role": "user", "content": [{"text": PROMPT}]})
            answer = await bare.turn(load.model, messages, PROMPT, ear.text, {"price": bare_price}, load.window)
            await store.keep(session, len(messages) - 1, answer)

    watch = Stopwatch()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.write)
        with watch:
            await load.backend.at_once([partial(conversation, session) for session in range(load.sessions)])
        tasks.cancel_scope.cancel()
    store.close()
    return watch


async def _ropewalk(name: str, load: Load, path: Path, ear: Ear) -> Stopwatch:
    async with Runtime(SQLiteJournal(path)) as runtime:
        sessions = await opened(runtime, load)
        works: list[Callable[[], Awaitable[Any]]]
        if name == HANDLER:
            runtime.add_handler(ear.event, kinds={TextDelta})
            works = [partial(ask, session, load.turns) for session in sessions]
        else:
            works = [partial(listen, session, ear, load.turns) for session in sessions]
        with Stopwatch() as watch:
            await load.backend.at_once(works)
    return watch

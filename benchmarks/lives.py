"""What a session costs beside its turns: bytes while idle, coming and going, growing old, waking from the journal."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import bare
from measure import Stopwatch
from ropewalk import AgentSpec, Journal, MemoryJournal, Runtime, Session, TextDelta
from ropewalk.runtime.journal import Claim, Snapshot
from work import BARE, PROMPT, Ear, Load, Way, ask, history_of, opened, session_id, spec_of, talk

__all__ = ["Elsewhere", "Traced", "bytes_idle", "bytes_known", "bytes_passive", "bytes_talked", "first_and_last", "opening", "waking"]


ON_THEIR_WAY = 10
"""How many sessions may be on their way out of memory when it is looked into."""


class Elsewhere(MemoryJournal):
    """A journal that keeps nothing in this process, so that what is left is the session. What it is given cannot be read back."""

    async def claim(self, *actor: Any, **options: Any) -> Claim:
        """The right to write a log that is new to everybody."""
        return Claim(1, 0)

    def append(self, *write: Any, **options: Any) -> None:
        """Durable at once, as far as anybody here can tell."""

    async def save_snapshot(self, actor_id: str, epoch: int, snapshot: Snapshot) -> None:
        """Kept elsewhere, too."""


async def bytes_idle(name: str, load: Load, journal: Callable[[], Journal] = MemoryJournal) -> float:
    """Bytes a session takes that was opened with `load.history` messages and does nothing, with what its journal keeps."""
    with Traced() as traced:
        if name == BARE:
            kept = [history_of(load.history) for _ in range(load.sessions)]
            traced.take()
            del kept
        else:
            async with Runtime(journal()) as runtime:
                await opened(runtime, load)
                traced.take()
    return traced.taken / load.sessions


async def bytes_talked(name: str, load: Load, journal: Callable[[], Journal] = MemoryJournal) -> float:
    """Bytes a session takes after its turns, with what its journal and the accounts keep of them."""
    with Traced() as traced:
        if name == BARE:
            kept = [await _talked(load) for _ in range(load.sessions)]
            traced.take()
            del kept
        else:
            async with Runtime(journal()) as runtime:
                await _ask_all(runtime, load)
                traced.take()
    return traced.taken / load.sessions


async def bytes_passive(load: Load, *, held: bool) -> float:
    """Bytes the runtime takes for a session that was let go from memory, with the handle of it where somebody has one (`held`)."""
    spec = spec_of(load)
    async with Runtime(Elsewhere()) as runtime:
        # What only the first of a runtime takes is taken before.
        await _come_and_go(runtime, spec, load, "first")
        with Traced() as traced:
            kept = [await _come_and_go(runtime, spec, load, session_id(number)) for number in range(load.sessions)]
            if not held:
                kept.clear()
            traced.take()
            del kept
    return traced.taken / load.sessions


async def bytes_known(load: Load, most: int) -> float:
    """Bytes a known session takes, all together over all, where at most so many are in memory and nobody holds a handle."""
    spec = spec_of(load)
    with Traced() as traced:
        async with Runtime(Elsewhere(), resident_limit=most) as runtime:
            for number in range(load.sessions):
                await runtime.open(session_id(number), spec, messages=history_of(load.history))
            traced.take()
            if (resident := runtime.statistics().resident) > most + ON_THEIR_WAY:
                raise RuntimeError(f"{resident} sessions were in memory, and not {most}")
    return traced.taken / load.sessions


async def _come_and_go(runtime: Runtime, spec: AgentSpec, load: Load, name: str) -> Session:
    session: Session = await runtime.open(name, spec, messages=history_of(load.history))
    await runtime.passivate(name)
    return session


class Traced:
    """Counts the bytes that Python has taken since the block began and not given back; `taken` is how many at the last `take`."""

    taken = 0

    def __enter__(self) -> Traced:
        gc.collect()
        tracemalloc.start()
        return self

    def __exit__(self, *error: object) -> None:
        tracemalloc.stop()

    def take(self) -> None:
        gc.collect()
        self.taken = tracemalloc.get_traced_memory()[0]


async def first_and_last(name: str, load: Load, part: int) -> float:
    """What the last `part` turns of each session cost over what as many of its first did."""
    first = last = 0.0
    async with Way(name, load) as way:
        for conversation in way.conversations:
            with Stopwatch() as watch:
                await conversation(part)
            first += watch.cpu
            await conversation(load.turns - 2 * part)
            with Stopwatch() as watch:
                await conversation(part)
            last += watch.cpu
    return last / first


async def opening(load: Load) -> tuple[float, float, int]:
    """Processor seconds to open the sessions and to close them all again, and the tasks left after that."""
    before = load.backend.living_tasks()
    runtime = Runtime()
    with Stopwatch() as opens:
        await runtime.__aenter__()
        await opened(runtime, load)
    with Stopwatch() as closes:
        await runtime.__aexit__(None, None, None)
    return opens.cpu, closes.cpu, load.backend.living_tasks() - before


async def waking(name: str, load: Load) -> float:
    """Microseconds to bring a session with `load.turns` turns behind it back from what was kept of it, and to take one turn."""
    ear, watch = Ear(), Stopwatch()
    if name == BARE:
        logs = [bare.kept(await _talked(load)) for _ in range(load.sessions)]
        with watch:
            for log in logs:
                messages = bare.recalled(log)
                await talk(load, messages, ear, 1)
                log += bare.kept(messages[-2:])
    else:
        journal, spec = MemoryJournal(), spec_of(load)
        async with Runtime(journal) as runtime:
            await _ask_all(runtime, load)
        async with Runtime(journal, [spec]) as runtime:
            runtime.add_handler(ear.event, kinds={TextDelta})
            with watch:
                for number in range(load.sessions):
                    session = await runtime.open(session_id(number), spec, create=False)
                    await session.ask(PROMPT)
    ear.must_have_heard(load.sessions)
    return watch.cpu * 1e6 / load.sessions


async def _talked(load: Load) -> list[bare.Message]:
    messages: list[bare.Message] = []
    await talk(load, messages, Ear(), load.turns)
    return messages


async def _ask_all(runtime: Runtime, load: Load) -> None:
    for session in await opened(runtime, load):
        await ask(session, load.turns)

"""Thousands at once: nothing lost, each session's order kept, and a reader who sleeps costs nobody else anything."""

from __future__ import annotations

import anyio
import pytest
import trio
import trio.testing

from ropewalk import AgentSpec, Gap, MessageAdded, Runtime, SlowReader, TextDelta, TurnEnded
from ropewalk.actors.messages import text_of
from ropewalk.testing import ScriptedModel, VirtualClock

SESSIONS, TURNS, BUFFER = 5000, 5, 256
WORDS = len("message 0 of 1".split())


def echo() -> AgentSpec:
    """An agent that says back what it was told, word by word."""
    return AgentSpec(name="echo", model=ScriptedModel(lambda messages: text_of(messages[-1]), remember=0))


async def talk(runtime: Runtime, spec: AgentSpec, number: int) -> None:
    session = await runtime.open(f"user-{number}", spec)
    for turn in range(TURNS):
        result = await session.ask(f"message {turn} of {number}")
        assert str(result) == f"message {turn} of {number}"


async def crowd(runtime: Runtime) -> None:
    spec = echo()
    async with anyio.create_task_group() as tasks:
        for number in range(SESSIONS):
            tasks.start_soon(talk, runtime, spec, number)
    for number in range(SESSIONS):
        said = [text_of(message) for message in await runtime.find(f"user-{number}").messages()]
        assert said == [f"message {turn} of {number}" for turn in range(TURNS) for _ in ("asked", "answered")]


def test_of_five_thousand_sessions_none_loses_a_word() -> None:
    async def main() -> None:
        async with Runtime() as runtime:
            await crowd(runtime)

            assert runtime.statistics().known == SESSIONS
            assert runtime.statistics().busy == 0
        assert runtime.report is not None
        assert runtime.report.cancelled == ()

    anyio.run(main, backend="asyncio")  # the other test here is the same on trio


def test_a_reader_of_one_event_a_second_is_bounded_and_holds_nobody_up() -> None:
    async def main() -> None:
        async with Runtime(clock=VirtualClock(1)) as runtime:
            dropping = runtime.events.subscribe(kinds={TextDelta}, buffer=BUFFER, overflow="drop_oldest")
            joining = runtime.events.subscribe(kinds={TextDelta}, buffer=BUFFER, overflow="coalesce")
            keeping = runtime.events.subscribe(kinds={MessageAdded, TurnEnded}, buffer=BUFFER, overflow="coalesce")
            got: list[object] = []

            async def read() -> None:
                while True:
                    if (event := dropping.take()) is not None:
                        got.append(event)
                    await trio.sleep(1)

            async with dropping, joining, keeping, anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                started = trio.current_time()
                await crowd(runtime)
                assert trio.current_time() - started < 5, "the crowd waited for the reader"
                for reader in (dropping, joining, keeping):
                    assert reader.statistics().buffered <= BUFFER
                # One that cannot keep all it asked for, and may lose none of it, is let go.
                assert not keeping.statistics().connected
                with pytest.raises(SlowReader):
                    async for _ in keeping:
                        pass
                tasks.cancel_scope.cancel()

            while (event := dropping.take()) is not None:
                got.append(event)
            gaps = sum(event.dropped for event in got if isinstance(event, Gap))
            heard = sum(isinstance(event, TextDelta) for event in got)
            assert gaps + heard == SESSIONS * TURNS * WORDS

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

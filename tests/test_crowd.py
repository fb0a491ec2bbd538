"""Five thousand sessions at once: nothing lost, each in its order, and one slow reader costs its buffer and no more."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import anyio
import pytest
import trio

from ropewalk import AgentSpec, Event, Gap, PromptAccepted, PromptSettled, Runtime, SlowReader, Subscription, TextDelta, TurnEnded, TurnStarted
from ropewalk.actors.messages import Message
from ropewalk.testing import Reply, ScriptedModel, in_trio
from talk import said, told, virtual_runtime

pytestmark = pytest.mark.anyio

SESSIONS, TURNS = 5000, 5


def echoing(delay: float = 0.0, words: int = 1) -> AgentSpec:
    """An agent that says what it was told, and how often it was told something."""

    def answer(messages: Sequence[Message]) -> Reply:
        text = messages[-1]["content"][-1]["text"]
        return Reply(text=f"{text} {len(messages)}" + " word" * words, delay=delay)

    return AgentSpec(model=ScriptedModel(answer, remember=0))


class Ledger:
    """A handler that counts what happens in each session, and notices what happens out of order."""

    def __init__(self) -> None:
        self.seq: dict[str, int] = {}
        self.turns: dict[str, list[str | None]] = {}
        self.accepted: set[str] = set()
        self.settled: set[str] = set()
        self.wrong: list[Event] = []

    def __call__(self, event: Any) -> None:
        last = self.seq.get(event.session_id, 0)
        if event.seq <= last:
            self.wrong.append(event)
        self.seq[event.session_id] = event.seq
        running = self.turns.setdefault(event.session_id, [])
        match event:
            case PromptAccepted():
                self.accepted.add(event.prompt_id)
            case PromptSettled():
                self.settled.add(event.prompt_id)
            case TurnStarted():
                running.append(event.turn_id)
            case TurnEnded() if not running or running[-1] != event.turn_id or event.stop_reason != "end_turn":
                self.wrong.append(event)
            case _:
                pass


@pytest.fixture
def without_collecting() -> Iterator[None]:
    """Nothing here is garbage in cycles, and looking for it again and again would take a third of the time."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("anyio_backend", ["asyncio", pytest.param("trio", marks=pytest.mark.long)])
async def test_five_thousand_sessions_lose_nothing_and_keep_their_order(anyio_backend: Any, without_collecting: None) -> None:
    spec = echoing()
    ledger = Ledger()
    answers: dict[str, list[str]] = {}

    async def talk(number: int) -> None:
        session = await runtime.open(f"s{number}", spec)
        turns = [await session.submit(f"{number}.{turn}") for turn in range(TURNS)]
        answers[session.id] = [str(await turn.result()) for turn in turns]

    async with Runtime() as runtime:
        runtime.add_handler(ledger, [PromptAccepted, PromptSettled, TurnStarted, TurnEnded])
        async with anyio.create_task_group() as tasks:
            for number in range(SESSIONS):
                tasks.start_soon(talk, number)
        assert ledger.wrong == []
        assert len(ledger.settled) == SESSIONS * TURNS
        assert ledger.accepted == ledger.settled
        assert {len(turns) for turns in ledger.turns.values()} == {TURNS}
        for number in range(SESSIONS):
            expected = [f"{number}.{turn} {2 * turn + 1} word" for turn in range(TURNS)]
            assert answers[f"s{number}"] == expected
            session = runtime.find(f"s{number}")
            assert session.statistics().messages == 2 * TURNS
            if number % 10 == 0:
                view = await session.messages()
                assert view == [message for turn in range(TURNS) for message in (told(f"{number}.{turn}"), said(expected[turn]))]
        statistics = runtime.statistics()
        assert (statistics.known, statistics.resident, statistics.busy, statistics.quarantined, statistics.restarts) == (SESSIONS, SESSIONS, 0, 0, 0)
    assert runtime.report is not None
    assert runtime.report.cancelled == ()


async def crowd(runtime: Runtime, sessions: int, turns: int, spec: AgentSpec) -> None:
    """So many sessions with so many turns each, one after the other."""

    async def talk(number: int) -> None:
        session = await runtime.open(f"s{number}", spec)
        for turn in range(turns):
            assert str(await session.ask(f"{number}.{turn}")).startswith(f"{number}.{turn} ")

    async with trio.open_nursery() as nursery:
        for number in range(sessions):
            nursery.start_soon(talk, number)


async def read_slowly(subscription: Subscription, read: list[Event]) -> None:
    """One event a second."""
    async for event in subscription:
        read.append(event)
        await trio.sleep(1)


@pytest.mark.parametrize("overflow", ["drop_oldest", "coalesce"])
def test_one_reader_who_reads_one_event_a_second_holds_its_buffer_and_no_more(overflow: Any) -> None:
    published = 0
    most = 0

    @in_trio
    async def run() -> None:
        nonlocal published, most
        read: list[Event] = []

        def watch(event: Event) -> None:
            nonlocal published, most
            published += 1
            most = max(most, subscription.statistics().buffered)

        async with virtual_runtime() as runtime, runtime.events.subscribe([TextDelta], buffer=256, overflow=overflow) as subscription:
            runtime.add_handler(watch, [TextDelta])
            with trio.CancelScope() as reading:
                async with trio.open_nursery() as nursery:
                    outcome: list[BaseException] = []

                    async def reader() -> None:
                        try:
                            await read_slowly(subscription, read)
                        except SlowReader as error:
                            outcome.append(error)

                    nursery.start_soon(reader)
                    began = trio.current_time()
                    await crowd(runtime, 400, TURNS, echoing(delay=10, words=3))
                    assert trio.current_time() - began == 10 * TURNS, "nobody waited for the reader"
                    reading.cancel()
            statistics = subscription.statistics()
            assert most <= 256
            if overflow == "drop_oldest":
                assert statistics.connected
                assert statistics.delivered + statistics.buffered + statistics.dropped == published == 400 * TURNS * 5
                gaps = [event for event in [*read, *iter(subscription.take, None)] if isinstance(event, Gap)]
                assert sum(gap.dropped for gap in gaps) == statistics.dropped > published - 400
            else:
                assert not statistics.connected, "deltas of four hundred sessions cannot be joined to two hundred and fifty-six"

    run()


@in_trio
async def test_a_reader_of_one_session_gets_all_its_text_however_slow() -> None:
    async with virtual_runtime() as runtime:
        spec = echoing(delay=1, words=400)
        session = await runtime.open("me", spec)
        async with runtime.events.subscribe([TextDelta], "me", buffer=16, overflow="coalesce") as subscription:
            answers = [str(await session.ask(f"{turn}")) for turn in range(10)]
            read = [event.to_dict()["text"] for event in iter(subscription.take, None)]
        assert "".join(read) == "".join(answers)
        assert len(read) <= 16


def test_what_a_slow_reader_misses_is_not_kept() -> None:
    """Ten thousand deltas go by; keeping them would take megabytes."""

    def kept(overflow: Any) -> int:
        sizes: list[int] = []

        @in_trio
        async def run() -> None:
            async with virtual_runtime() as runtime:
                reader = None if overflow is None else runtime.events.subscribe([TextDelta], buffer=256, overflow=overflow)
                if reader is not None:
                    await reader.__aenter__()
                tracemalloc.start()
                try:
                    await crowd(runtime, 30, 8, echoing(words=38))
                    gc.collect()
                    sizes.append(tracemalloc.get_traced_memory()[0])
                finally:
                    tracemalloc.stop()
                    if reader is not None:
                        reader.close()

        run()
        return sizes[0]

    alone = kept(None)
    for overflow in ("drop_oldest", "coalesce"):
        assert kept(overflow) - alone < 400_000

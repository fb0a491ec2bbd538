"""Readers who come late: at any moment of any turn, after any cursor, what they are told adds up to what everybody else was told."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from ropewalk import (
    ContextWindowOverflow,
    Event,
    InvalidOption,
    JournalUnavailable,
    MemoryJournal,
    ModelError,
    RopewalkError,
    Runtime,
    Session,
    SessionActivated,
    Snapshot,
    Subscription,
    TextDelta,
    TurnStarted,
)
from ropewalk.testing import EventFold, Reply, ScriptedModel, ToolUse, in_trio
from talk import agent, kinds, said, told, virtual_runtime
from turns import LONG

pytestmark = pytest.mark.anyio

TIMES = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.4, 0.7, 1.0, 1.6, 2.5, 4.0])
REPLIES = st.sampled_from(
    [
        "one two",
        Reply(text="one two three", pace=0.2),
        Reply(text="let me see", tool_uses=[ToolUse("echo"), ToolUse("wait", {"seconds": 0.3})], pace=0.1),
        Reply(text="so far", pace=0.1, error=ContextWindowOverflow()),
        Reply(text="so far", pace=0.1, error=ModelError("down")),
        ContextWindowOverflow(),
        Reply(reasoning="hm hm", text="yes", pace=0.1),
    ]
)


@attrs.frozen
class LateReader:
    """When a reader comes, and after which event: so many before the newest, of which epoch counted back."""

    at: float
    back: int
    epochs_back: int


READERS = st.builds(LateReader, TIMES, st.sampled_from([0, 1, 2, 5, 20, 1000, -3]), st.sampled_from([0, 0, 0, 1, 50]))


@attrs.define
class Read:
    """What one reader got, and after which cursor it asked for it."""

    cursor: tuple[int, int]
    events: list[Event] = attrs.field(factory=list[Event])


def place(event: Event) -> tuple[int, int]:
    return event.epoch, event.seq


def check(read: Read, everything: Sequence[Event]) -> None:
    """After each event the reader's picture is that of somebody who heard everything up to it; and none is missing or told twice."""
    if not read.events:
        return
    first, *rest = read.events
    begins = place(first) if isinstance(first, Snapshot) else read.cursor
    fold, tail = EventFold(), EventFold()
    known = [event for event in everything if place(event) <= begins]
    for event in known:
        fold.take(event)
    if isinstance(first, Snapshot):
        tail.take(first)
    else:
        rest = read.events
        for event in known:
            tail.take(event)
    assert tail.picture() == fold.picture(), f"at {begins}"
    following = [event for event in everything if place(event) > begins]
    assert [place(event) for event in rest] == [place(event) for event in following][: len(rest)]
    for event in rest:
        fold.take(event)
        tail.take(event)
        assert tail.picture() == fold.picture(), event


def drain(subscription: Subscription) -> list[Event]:
    events: list[Event] = []
    while (event := subscription.take()) is not None:
        events.append(event)
    return events


@given(
    replay=st.sampled_from([0, 1, 7, 100]),
    lag=st.sampled_from([0.0, 0.15]),
    fault=st.none() | st.tuples(st.integers(1, 8), st.sampled_from(["refuse", "lose"])),
    slow=st.booleans(),
    prompts=st.lists(st.tuples(TIMES, st.lists(REPLIES, max_size=3)), min_size=1, max_size=3),
    cancels=st.lists(TIMES, max_size=1),
    readers=st.lists(READERS, min_size=1, max_size=4),
    entropy=st.random_module(),
)
@in_trio
async def test_what_a_late_reader_is_told_adds_up_to_everything(
    replay: int,
    lag: float,
    fault: tuple[int, Any] | None,
    slow: bool,
    prompts: list[tuple[float, list[Any]]],
    cancels: list[float],
    readers: list[LateReader],
    entropy: Any,
) -> None:
    script = [reply for _, replies in prompts for reply in replies]
    journal = MemoryJournal(lag=lag, fault=lambda write: fault[1] if fault is not None and write == fault[0] else None)
    reads: list[Read] = []

    async def slowly(event: Event) -> None:
        await trio.sleep(0.03)

    async with virtual_runtime(journal=journal, replay=replay) as runtime, runtime.events.subscribe(buffer=100_000) as everything:
        if slow:
            runtime.add_handler(slowly)
        session = await runtime.open("me", agent(ScriptedModel(lambda messages: script.pop(0) if script else "ok")), messages=LONG[:4])
        heard: list[Event] = []

        async def read(reader: LateReader, done: trio.Event) -> None:
            await trio.sleep(reader.at)
            heard.extend(drain(everything))
            cursor = (max(0, heard[-1].epoch - reader.epochs_back), max(0, heard[-1].seq - reader.back))
            late = runtime.events.subscribe(sessions="me", after=f"{cursor[0]}:{cursor[1]}", buffer=100_000)
            try:
                async with late:
                    await done.wait()
            except JournalUnavailable:
                return
            reads.append(Read(cursor, drain(late)))

        async def cancel(at: float) -> None:
            await trio.sleep(at)
            await session.cancel()

        done = trio.Event()
        async with trio.open_nursery() as nursery:
            for reader in readers:
                nursery.start_soon(read, reader, done)
            async with trio.open_nursery() as work:
                for at, _ in prompts:
                    work.start_soon(ask, session, at)
                for at in cancels:
                    work.start_soon(cancel, at)
            await trio.sleep(10)
            done.set()
        heard.extend(drain(everything))
    for late in reads:
        check(late, heard)
        assert not late.events or place(late.events[-1]) == place(heard[-1])


async def ask(session: Session, at: float) -> None:
    await trio.sleep(at)
    with contextlib.suppress(RopewalkError):
        await session.ask("go")


# --- single claims ----------------------------------------------------------------------------------------------------


async def test_a_reader_goes_on_after_its_cursor_as_far_as_the_ring_reaches() -> None:
    async with Runtime(replay=5) as runtime:
        session = await runtime.open("me", agent(["one two three", "four"]))
        async with runtime.events.subscribe(sessions="me") as everything:
            await session.ask("go")
            heard = drain(everything)
        for event in heard:
            async with runtime.events.subscribe(sessions="me", after=event.cursor) as late:
                got = drain(late)
                if heard[-1].seq - event.seq <= 5:
                    assert got == [later for later in heard if later.seq > event.seq]
                else:
                    [snapshot] = got
                    assert isinstance(snapshot, Snapshot)
                    assert [entry["message"] for entry in snapshot.view] == await session.messages()
                    assert (snapshot.partial, snapshot.status, snapshot.seq) == ("", "idle", heard[-1].seq)


@in_trio
async def test_a_reader_who_comes_in_mid_answer_gets_the_answer_so_far_and_the_rest() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent([Reply(text="one two three", pace=1)]))
        turn = await session.submit("go")
        await trio.sleep(3.5)
        async with runtime.events.subscribe(sessions="me", after="0:0") as late:
            result = await turn.result()
            snapshot, *rest = drain(late)
        assert isinstance(snapshot, Snapshot)
        assert (snapshot.partial, snapshot.status, snapshot.turn_id) == ("one two ", "running", turn.turn_id)
        assert [entry["message"] for entry in snapshot.view] == [told("go")]
        assert kinds(rest) == ["TextDelta", "MessageAdded", "TurnEnded", "PromptSettled"]
        assert snapshot.partial + "".join(event.text for event in rest if isinstance(event, TextDelta)) == str(result)


@in_trio
async def test_a_reader_who_comes_while_a_write_is_under_way_waits_for_it() -> None:
    async with virtual_runtime(journal=MemoryJournal(lag=5)) as runtime:
        session = await runtime.open("me", agent([Reply(text="yes", delay=10)]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.ask, "go")
            await trio.sleep(1)
            began = trio.current_time()
            async with runtime.events.subscribe(sessions="me", after="0:0") as late:
                assert trio.current_time() - began == 4
                [snapshot] = drain(late)
                assert isinstance(snapshot, Snapshot)
                assert [entry["message"] for entry in snapshot.view] == [told("go")]


@in_trio
async def test_a_reader_does_not_wait_for_what_the_turn_waits_for() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent([Reply(tool_uses=[ToolUse("wait", {"seconds": 1000})]), "ok", "ok"]))
        await session.submit("go")
        await session.submit("and then?")
        await trio.sleep(1)
        began = trio.current_time()
        async with runtime.events.subscribe(sessions="me", after="0:0") as late:
            assert trio.current_time() == began
            [snapshot] = drain(late)
            assert isinstance(snapshot, Snapshot)
            assert (snapshot.status, len(snapshot.view)) == ("running", 2)


@in_trio
async def test_a_handler_may_come_late_to_its_own_turn() -> None:
    got: list[Any] = []

    async def read(event: Event) -> None:
        async with session.runtime.events.subscribe(sessions="me", after="0:0") as late:
            got.extend(drain(late))

    async with virtual_runtime() as runtime:
        session: Session = await runtime.open("me", agent(["ok"]))
        session.add_handler(read, [TurnStarted])
        began = trio.current_time()
        await session.ask("go")
        assert trio.current_time() == began
        assert isinstance(got[0], Snapshot)


async def test_a_reader_from_another_life_of_the_session_begins_with_a_snapshot() -> None:
    journal = MemoryJournal()
    spec = agent(["a", "b"])
    async with Runtime(journal, replay=100) as runtime:
        await (await runtime.open("me", spec)).ask("1")
    async with Runtime(journal, replay=100) as runtime:
        session = await runtime.open("me", spec)
        async with runtime.events.subscribe(sessions="me", after="1:3") as late:
            await session.ask("2")
            snapshot, *rest = drain(late)
        assert isinstance(snapshot, Snapshot)
        assert [entry["message"] for entry in snapshot.view] == [told("1"), said("a")]
        assert {event.epoch for event in rest} == {2}


async def test_a_subscription_outlives_the_incarnation() -> None:
    journal = MemoryJournal(fault=lambda write: "refuse" if write == 2 else None)
    async with Runtime(journal) as runtime:
        session = await runtime.open("me", agent(["lost", "fine"]))
        async with runtime.events.subscribe(sessions="me", after="0:0") as events:
            with pytest.raises(JournalUnavailable):
                await session.ask("go")
            await session.ask("again")
            heard = drain(events)
        activations = [event for event in heard if isinstance(event, SessionActivated)]
        assert [event.epoch for event in activations] == [2]
        assert heard[-1].epoch == 2


@pytest.mark.parametrize("cursor", ["", "x", "1", "1:", ":1", "1:x", "1:2:3", "-1:0"])
async def test_a_cursor_that_is_none_is_refused(cursor: str) -> None:
    async with Runtime() as runtime:
        with pytest.raises(InvalidOption, match="epoch:seq"):
            runtime.events.subscribe(sessions="me", after=cursor)

"""Leaving memory and coming back: nobody who asks can tell, but for the time it takes."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import hypothesis.strategies as st
import pytest
import structlog
import trio
import trio.testing
from hypothesis import given

from probe import Broken, Probe, add, add_after, crash, read, wait
from ropewalk import (
    Agent,
    AgentResult,
    InvalidOption,
    JournalUnavailable,
    MemoryJournal,
    Runtime,
    Session,
    SessionElsewhere,
    SessionPassivated,
    Snapshot,
    TurnEnded,
    WouldDeadlock,
)
from ropewalk.actors.messages import Message
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.journal import Fault
from ropewalk.runtime.passivation import due
from ropewalk.runtime.reports import SessionInfo
from ropewalk.runtime.supervision import Backoff, RestartPolicy
from ropewalk.testing import Reply
from talk import Gate, Witness, agent, assert_sound, replayed, said, told, virtual_runtime


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """Journals fail here, and actors crash; nobody needs to see it."""
    with structlog.testing.capture_logs() as entries:
        yield entries


class SlowToRelease(MemoryJournal):
    """Releases a claim once its gate is open, and fails as often as `failures` says."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gate = Gate()
        self.gate.open()
        self.failures = 0

    async def release(self, actor_id: str, epoch: int) -> None:
        await self.gate()
        if self.failures:
            self.failures -= 1
            raise JournalUnavailable("the claim could not be released")
        await super().release(actor_id, epoch)


def parrot(messages: list[Message]) -> str:
    """Says how much it has heard, and the last of it."""
    return f"{len(messages)}: {messages[-1]['content'][0]['text']}"


# By hand.


@pytest.mark.anyio
async def test_an_actor_that_was_let_go_comes_back_with_its_next_message() -> None:
    probe = Probe()
    async with Runtime() as runtime:
        ref = await runtime.open("a", probe)
        await ref.ask(add("x"))

        assert await runtime.passivate("a") is True
        assert (ref.status, runtime.find("a"), probe.activations) == ("passivated", None, ["a"])
        assert [info async for info in runtime.list_sessions()] == [SessionInfo("a", "probe", "passivated", 0)]
        statistics = runtime.statistics()
        assert (statistics.known, statistics.resident, statistics.busy, statistics.passivations) == (1, 0, 0, 1)
        assert await runtime.passivate("a") is True
        assert await runtime.passivate("nobody") is True

        assert await ref.ask(read) == ("x",)
        assert (ref.status, runtime.find("a").id, probe.activations) == ("idle", "a", ["a", "a"])
        statistics = runtime.statistics()
        assert (statistics.known, statistics.resident, statistics.passivations) == (1, 1, 1)


@pytest.mark.anyio
async def test_a_session_shows_its_figures_and_its_events_across_it() -> None:
    async with Runtime() as runtime:
        witness = Witness()
        runtime.add_handler(witness)
        session = await runtime.open("me", agent(parrot))
        async with runtime.events.subscribe(sessions="me", buffer=1000) as events:
            await session.ask("Hi")
            before = session.statistics()
            assert await runtime.passivate("me")

            assert session.status == "passivated"
            assert (before.messages, before.turns, before.cycles) == (2, 1, 1)
            after = session.statistics()
            assert (after.status, after.messages, after.turns, after.cycles) == ("passivated", 2, 1, 1)
            assert session.metrics.cycle_count == 1
            assert await session.cancel() is False
            assert session.status == "passivated"

            assert str(await session.ask("And?")) == "3: And?"
            got = []
            while (event := events.take()) is not None:
                got.append(event)
    assert got == witness.events[1 : 1 + len(got)]
    names = [type(event).__name__ for event in witness.events]
    passivated = names.index("SessionPassivated")
    assert names[passivated : passivated + 2] == ["SessionPassivated", "SessionActivated"]
    witness.check([told("Hi"), said("1: Hi"), told("And?"), said("3: And?")])


@pytest.mark.anyio
async def test_reading_brings_it_back_too() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(parrot))
        await session.ask("Hi")
        await runtime.passivate("me")

        assert await session.messages() == [told("Hi"), said("1: Hi")]
        assert session.status == "idle"

        await runtime.passivate("me")
        async with runtime.events.subscribe(sessions="me", after="0:0") as events:
            snapshot = await anext(events)
        assert isinstance(snapshot, Snapshot)
        assert len(snapshot.view) == 2
        await assert_sound(session)


@pytest.mark.anyio
async def test_all_handles_of_a_session_name_one_place_for_ever() -> None:
    async with Runtime() as runtime:
        first = await runtime.open("a", Probe())
        await runtime.passivate("a")
        second = await runtime.open("a", Probe())
        await runtime.passivate("a")

        async with anyio.create_task_group() as tasks:
            for number, ref in enumerate((first, second, first, second)):
                tasks.start_soon(ref.ask, add(number))
        assert sorted(await first.ask(read)) == [0, 1, 2, 3]
        assert first.mailbox() == second.mailbox()


@pytest.mark.anyio
async def test_opened_again_it_is_what_it_is_opened_as() -> None:
    async with Runtime() as runtime:
        old = await runtime.open("me", agent(parrot))
        await runtime.open("me", agent(["unheard"]))
        assert str(await old.ask("Hi")) == "1: Hi"

        await runtime.passivate("me")
        await runtime.open("me", agent(["new"], mailbox=1))
        assert str(await old.ask("And?")) == "new"
        assert old.statistics().mailbox.bound == 1


@pytest.mark.anyio
async def test_without_a_handle_the_runtime_keeps_nothing_of_it() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(parrot))
        await session.ask("Hi")
        cell = weakref.ref(session._cell)
        await runtime.passivate("me")
        assert runtime.statistics().known == 1

        del session
        gc.collect()
        assert cell() is None
        assert runtime.statistics().known == 0
        assert [info.status async for info in runtime.list_sessions()] == ["passivated"]

        session = await runtime.open("me", agent(parrot), create=False)
        assert str(await session.ask("And?")) == "3: And?"


@pytest.mark.anyio
async def test_whoever_shares_the_journal_may_have_it_then() -> None:
    journal = MemoryJournal()
    async with Runtime(journal, open_timeout=0) as here, Runtime(MemoryJournal(beside=journal), open_timeout=0) as there:
        mine = await here.open("me", agent(parrot))
        await mine.ask("Hi")
        with pytest.raises(SessionElsewhere):
            await there.open("me", agent(parrot))

        await here.passivate("me")
        yours = await there.open("me", agent(parrot), create=False)
        assert str(await yours.ask("And?")) == "3: And?"

        with pytest.raises(SessionElsewhere):
            await mine.ask("Mine?")
        assert mine.status == "passivated"
        await there.passivate("me")
        assert str(await mine.ask("Mine?")) == "5: Mine?"


@pytest.mark.anyio
async def test_it_waits_for_the_turn_that_runs() -> None:
    gate = Gate()

    async def hold(event: TurnEnded) -> None:
        await gate()

    async with Runtime() as runtime:
        session = await runtime.open("me", agent(parrot))
        session.add_handler(hold, kinds={TurnEnded})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.ask, "Hi")
            await gate.reached()
            tasks.start_soon(runtime.passivate, "me")
            await anyio.wait_all_tasks_blocked()
            assert session.status == "running"
            gate.open()
        assert session.status == "passivated"
        assert await session.messages() == [told("Hi"), said("1: Hi")]


@pytest.mark.anyio
async def test_messages_that_wait_come_first() -> None:
    probe, event = Probe(), anyio.Event()
    outcomes: list[bool] = []
    async with Runtime() as runtime:
        ref = await runtime.open("a", probe)

        async def passivate() -> None:
            outcomes.append(await runtime.passivate("a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ref.ask, add_after(event, "first"))
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(passivate)
            await anyio.wait_all_tasks_blocked()
            ref.tell(add("second"))
            event.set()
        assert outcomes == [False]
        assert await ref.ask(read) == ("first", "second")
        assert probe.activations == ["a"]


@pytest.mark.anyio
async def test_an_actor_that_is_wanted_while_it_clears_up_stays() -> None:
    probe, gate = Probe(), Gate()
    probe.leaving = gate
    outcomes: list[bool] = []
    async with Runtime(restart=RestartPolicy(backoff=Backoff(first=0.001, jitter=0))) as runtime:
        ref = await runtime.open("a", probe)

        async def passivate() -> None:
            outcomes.append(await runtime.passivate("a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(passivate)
            await gate.reached()
            ref.tell(add("x"))
            assert ref.status == "busy"
            gate.open()
        assert outcomes == [False]
        assert await ref.ask(read) == ("x",)
        assert probe.activations == ["a"]

        probe.leaving = crash
        with pytest.raises(Broken):
            await runtime.passivate("a")
        assert await ref.ask(read) == ("x",)
        assert ref.restarts == 1


@pytest.mark.anyio
async def test_messages_that_come_meanwhile_wait_for_the_next_incarnation() -> None:
    journal = SlowToRelease()
    spec = agent(parrot)
    async with Runtime(journal) as runtime:
        session = await runtime.open("me", spec)
        journal.gate = gate = Gate()
        answers: list[str] = []

        async def ask(text: str) -> None:
            answers.append(str(await session.ask(text)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.passivate, "me")
            await gate.reached()
            assert (session.status, runtime.statistics().busy) == ("idle", 0)
            tasks.start_soon(ask, "one")
            await anyio.wait_all_tasks_blocked()
            assert session.status == "running"
            tasks.start_soon(ask, "two")
            tasks.start_soon(session.messages)  # which waits too, and brings nothing in beside it
            await anyio.wait_all_tasks_blocked()
            gate.open()
        assert answers == ["1: one", "3: two"]
        await assert_sound(session)


@pytest.mark.anyio
async def test_a_prompt_that_will_not_wait_is_not_turned_away_by_it() -> None:
    journal = SlowToRelease()
    async with Runtime(journal) as runtime:
        session = await runtime.open("me", agent(parrot, when_busy="reject"))
        journal.gate = gate = Gate()
        answers: list[str] = []

        async def ask() -> None:
            answers.append(str(await session.ask("Hi")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.passivate, "me")
            await gate.reached()
            tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            gate.open()
        assert answers == ["1: Hi"]


@pytest.mark.anyio
async def test_a_prompt_that_waits_for_it_can_be_cancelled() -> None:
    journal = SlowToRelease()
    async with Runtime(journal) as runtime:
        session = await runtime.open("me", agent(parrot))
        journal.gate = gate = Gate()
        results: list[AgentResult] = []

        async def ask() -> None:
            results.append(await session.ask("Hi"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.passivate, "me")
            await gate.reached()
            tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            assert await session.cancel() is True
            gate.open()
        assert [result.stop_reason for result in results] == ["cancelled"]
        assert session.status == "passivated"
        assert await session.messages() == []


@pytest.mark.anyio
async def test_a_claim_that_cannot_be_released_costs_the_incarnation_and_nothing_else() -> None:
    journal = SlowToRelease()
    async with Runtime(journal) as runtime:
        session = await runtime.open("me", agent(parrot))
        await session.ask("Hi")
        journal.failures = 1
        with pytest.raises(JournalUnavailable):
            await runtime.passivate("me")

        assert (session.status, session.statistics().messages, runtime.statistics().resident) == ("idle", 2, 0)
        assert await runtime.passivate("me") is True
        assert session.status == "passivated"
        assert str(await session.ask("And?")) == "3: And?"
        assert runtime.statistics().restarts == 0


@pytest.mark.anyio
async def test_code_of_the_session_cannot_wait_for_it() -> None:
    refused: list[str] = []
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(parrot))

        async def handler(event: Any) -> None:
            with pytest.raises(WouldDeadlock):
                await runtime.passivate("me")
            refused.append(type(event).__name__)

        session.add_handler(handler, kinds={TurnEnded})
        await session.ask("Hi")
        assert refused == ["TurnEnded"]


@pytest.mark.anyio
async def test_a_handler_that_asks_the_session_it_is_told_has_gone() -> None:
    refused: list[str] = []
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(parrot))

        async def handler(event: SessionPassivated) -> None:
            for call in (session.messages(), session.ask("Hi")):
                with pytest.raises(WouldDeadlock):
                    await call
                refused.append(session.status)

        session.add_handler(handler, kinds={SessionPassivated})
        assert await runtime.passivate("me")
        assert refused == ["passivated"] * 2
        assert str(await session.ask("Hi")) == "1: Hi"


@pytest.mark.anyio
async def test_a_handler_that_fails_or_exits_costs_nothing() -> None:
    def leave(event: SessionPassivated) -> None:
        raise SystemExit(3)

    def fail(event: SessionPassivated) -> None:
        raise RuntimeError("meant")

    async with Runtime() as runtime:
        session = await runtime.open("me", agent(parrot))
        failing = session.add_handler(fail, kinds={SessionPassivated}, on_error="fail_turn")
        assert await runtime.passivate("me") is True
        failing.remove()

        await session.messages()
        session.add_handler(leave, kinds={SessionPassivated})
        with pytest.raises(SystemExit):
            await runtime.passivate("me")
        assert session.status == "passivated"
        assert str(await session.ask("Hi")) == "1: Hi"
        assert runtime.statistics().restarts == 0


@pytest.mark.anyio
async def test_what_nobody_has_been_told_yet_is_told_first() -> None:
    async with Runtime() as runtime:
        witness = Witness()
        runtime.add_handler(witness)
        session = await runtime.open("me", agent(parrot))
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.ask, "left before it began")
                scope.cancel()
        await runtime.passivate("me")
        await session.messages()
        witness.check([])


@pytest.mark.anyio
async def test_an_agent_looks_after_its_own_conversation() -> None:
    bot = Agent(model=agent(parrot).model, callback_handler=None, session_id="bot")
    seen: list[Any] = []

    async with Runtime(idle_seconds=3600, resident_limit=0) as runtime:

        async def handler(event: TurnEnded) -> None:
            with pytest.raises(InvalidOption, match="'bot' is an agent's own"):
                await runtime.passivate("bot")
            seen.append(event)

        runtime.add_handler(handler, kinds={TurnEnded})
        assert str(await bot.invoke_async("Hi")) == "1: Hi"
        assert str(await bot.invoke_async("And?")) == "3: And?"
        assert len(seen) == 2
        assert runtime.statistics().passivations == 0


@pytest.mark.parametrize(
    "options", [{"idle_seconds": 0}, {"idle_seconds": "soon"}, {"idle_seconds": float("nan")}, {"resident_limit": -1}, {"resident_limit": 1.5}]
)
def test_bounds_that_are_none_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        Runtime(**options)


# By time and by number.


@given(since=st.lists(st.integers(0, 20)).map(sorted), now=st.integers(0, 30), idle=st.integers(1, 10) | st.just(float("inf")), surplus=st.integers(0, 5))
def test_who_has_to_leave(since: list[int], now: int, idle: float, surplus: int) -> None:
    leaving = due(dict(enumerate(since)), now, idle, surplus)

    assert leaving == list(range(len(leaving)))
    assert len(leaving) >= min(surplus, len(since))
    assert all(since[place] + idle <= now for place in leaving[surplus:])
    assert all(since[place] + idle > now for place in range(len(leaving), len(since)))


async def test_one_that_is_idle_for_so_long_leaves(autojump_clock: trio.testing.MockClock) -> None:
    probe = Probe()
    async with virtual_runtime(idle_seconds=10) as runtime:
        a = await runtime.open("a", probe)
        await trio.sleep(6)
        b = await runtime.open("b", probe)
        await a.ask(add("x"))
        await trio.sleep(9.9)
        assert (a.status, b.status) == ("idle", "idle")
        await trio.sleep(0.2)
        assert (a.status, b.status) == ("passivated", "passivated")

        working = wait(100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.ask, working)
            await b.ask(read)
            await trio.sleep(50)
            assert (a.status, b.status) == ("busy", "passivated")
        await trio.sleep(10.1)
        assert a.status == "passivated"
        assert runtime.statistics().passivations == 4


async def test_above_the_limit_those_leave_that_were_used_least_lately(autojump_clock: trio.testing.MockClock) -> None:
    probe = Probe()
    async with virtual_runtime(resident_limit=2) as runtime:
        refs = {name: await runtime.open(name, probe) for name in "abc"}
        await trio.testing.wait_all_tasks_blocked()

        def resident() -> str:
            return "".join(name for name, ref in refs.items() if ref.status == "idle")

        assert resident() == "bc"
        await refs["b"].ask(read)
        await refs["a"].ask(read)
        await trio.testing.wait_all_tasks_blocked()
        assert resident() == "ab"
        await runtime.open("b", probe)
        await refs["c"].ask(read)
        await trio.testing.wait_all_tasks_blocked()
        assert resident() == "bc"
        assert runtime.statistics().resident == 2


async def test_whoever_works_stays_whatever_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    probe = Probe()
    async with virtual_runtime(resident_limit=0) as runtime:
        refs = [await runtime.open(str(number), probe) for number in range(5)]
        async with trio.open_nursery() as nursery:
            for ref in refs:
                nursery.start_soon(ref.ask, wait(10))
            await trio.sleep(5)
            assert runtime.statistics().resident == runtime.statistics().busy == 5
        await trio.testing.wait_all_tasks_blocked()
        assert (runtime.statistics().resident, {ref.status for ref in refs}) == (0, {"passivated"})


async def test_failures_are_not_forgotten_before_they_stop_to_count(autojump_clock: trio.testing.MockClock) -> None:
    policy = RestartPolicy(max_restarts=2, within=100, backoff=Backoff(first=0.1, jitter=0))
    probe = Probe()
    async with virtual_runtime(idle_seconds=5, restart=policy) as runtime:
        for _ in range(3):
            ref = await runtime.open("a", probe)
            with pytest.raises(Exception, match="meant"):
                await ref.ask(crash)
            del ref
            gc.collect()
            await trio.sleep(20)
        assert (runtime.statistics().quarantined, runtime.statistics().restarts) == (1, 3)
        await trio.sleep(1000)
        assert [info.status async for info in runtime.list_sessions()] == ["quarantined"]
        assert await runtime.passivate("a") is False

        runtime.revive("a")
        ref = await runtime.open("a", probe)
        with pytest.raises(Exception, match="meant"):
            await ref.ask(crash)
        await trio.sleep(50)
        assert ref.status == "idle"
        await trio.sleep(100)
        assert ref.status == "passivated"


async def test_of_thousands_few_are_in_memory() -> None:
    spec = agent(parrot)
    async with Runtime(resident_limit=20) as runtime:
        most = 0
        for number in range(3000):
            session = await runtime.open(f"user-{number}", spec)
            if not number % 3:
                await session.ask("Hi")
            if not number % 100:
                most = max(most, runtime.statistics().known)
        del session
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()

        assert sum(type(thing) is Cell and thing.runtime is runtime for thing in gc.get_objects()) <= 20
        statistics = runtime.statistics()
        assert statistics.known == statistics.resident == 20
        assert most <= 30
        assert statistics.journal.actors == 3000
        session = await runtime.open("user-0", spec, create=False)
        assert await session.messages() == [told("Hi"), said("1: Hi")]


# The law.

NAMES = ("a", "b", "c")


def steps() -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """What users do, and what time does."""
    which = st.sampled_from(NAMES)
    return st.lists(
        st.one_of(
            st.tuples(st.just("ask"), which, st.sampled_from([0.0, 0.5, 3.0])),
            st.tuples(st.just("passivate"), which),
            st.tuples(st.just("read"), which),
            st.tuples(st.just("drop"), which),
            st.tuples(st.just("wait"), st.sampled_from([0.0, 0.3, 1.0, 5.0])),
        ),
        max_size=25,
    )


class Users:
    """Does the steps, and knows what came of each prompt: `sent` and `answered` are the texts of a session, in order."""

    def __init__(self, **options: Any) -> None:
        self.delays: list[float] = []
        self.runtime = virtual_runtime(**options)
        self.spec = agent(lambda messages: Reply(text=parrot(messages), delay=float(messages[-1]["content"][0]["text"].split()[1])), mailbox=100)
        self.handles: dict[str, Session] = {}
        self.sent: dict[str, list[str]] = {name: [] for name in NAMES}
        self.answered: dict[str, list[str]] = {name: [] for name in NAMES}
        self.outcomes = 0
        self.witness = Witness()

    async def do(self, script: list[tuple[Any, ...]]) -> None:
        self.runtime.add_handler(self.witness)
        async with trio.open_nursery() as nursery:
            for number, step in enumerate(script):
                match step:
                    case "ask", name, delay:
                        await nursery.start(self._ask, name, f"{number} {delay}")
                    case "passivate", name:
                        nursery.start_soon(self._passivate, name)
                    case "read", name:
                        nursery.start_soon(self._read, name)
                    case "drop", name:
                        self.handles.pop(name, None)
                    case "wait", seconds:
                        await trio.sleep(seconds)
                    case _:
                        raise AssertionError(step)

    async def handle(self, name: str) -> Session:
        if name not in self.handles:
            while True:
                try:
                    self.handles[name] = await self.runtime.open(name, self.spec)
                    break
                except JournalUnavailable:
                    pass
        return self.handles[name]

    async def _ask(self, name: str, text: str, *, task_status: Any) -> None:
        session = await self.handle(name)
        self.sent[name].append(text)
        task_status.started()
        with contextlib.suppress(JournalUnavailable):
            await session.ask(text)
            self.answered[name].append(text)
        self.outcomes += 1

    async def _passivate(self, name: str) -> None:
        with contextlib.suppress(JournalUnavailable):
            await self.runtime.passivate(name)

    async def _read(self, name: str) -> None:
        with contextlib.suppress(JournalUnavailable):
            await (await self.handle(name)).messages()

    async def views(self) -> dict[str, list[Message]]:
        return {name: await (await self.handle(name)).messages() for name in NAMES}


@given(script=steps(), idle=st.sampled_from([None, 0.2, 2.0]), limit=st.none() | st.integers(0, 3), replay=st.sampled_from([0, 5]), entropy=st.random_module())
def test_nobody_can_tell(script: list[tuple[Any, ...]], idle: float | None, limit: int | None, replay: int, entropy: Any) -> None:
    async def run() -> None:
        some, none = Users(idle_seconds=idle, resident_limit=limit, replay=replay, journal=SlowToRelease()), Users()
        async with some.runtime, none.runtime:
            await some.do(script)
            await none.do([("wait", 0.0) if step[0] == "passivate" else step for step in script])

            assert some.sent == none.sent
            assert some.answered == some.sent == none.answered
            views = await some.views()
            assert views == await none.views()
            await trio.testing.wait_all_tasks_blocked()
            for name in NAMES:
                assert (await replayed(await some.handle(name))).view.messages == views[name]
                some.witness.check(views[name], name)
            await trio.testing.wait_all_tasks_blocked()
            statistics = some.runtime.statistics()
            assert (statistics.restarts, statistics.busy, statistics.quarantined) == (0, 0, 0)
            assert limit is None or statistics.resident <= limit
            assert none.runtime.statistics().passivations == 0

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


@given(
    script=steps(),
    idle=st.sampled_from([None, 0.2, 2.0]),
    limit=st.none() | st.integers(0, 3),
    faults=st.dictionaries(st.integers(0, 30), st.sampled_from(["refuse", "lose"]), max_size=4),
    unreleased=st.integers(0, 3),
    entropy=st.random_module(),
)
def test_a_journal_that_fails_meanwhile_loses_nothing_that_was_acknowledged(
    script: list[tuple[Any, ...]], idle: float | None, limit: int | None, faults: dict[int, Fault], unreleased: int, entropy: Any
) -> None:
    async def run() -> None:
        journal = SlowToRelease(fault=faults.get)
        journal.failures = unreleased
        users = Users(idle_seconds=idle, resident_limit=limit, journal=journal)
        async with users.runtime:
            await users.do(script)
            assert users.outcomes == sum(map(len, users.sent.values())), "every prompt has one outcome"
            faults.clear()
            journal.failures = 0
            for name, view in (await users.views()).items():
                state = await replayed(await users.handle(name))
                assert (state.view.messages, state.turn, state.waiting) == (view, None, None)
                texts = [message["content"][0]["text"] for message in view if message["role"] == "user"]
                assert texts == [text for text in users.sent[name] if text in texts], "order is kept"
                assert users.answered[name] == [text for text in texts if text in users.answered[name]], "nothing acknowledged is lost"
            assert users.runtime.statistics().restarts == 0

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))

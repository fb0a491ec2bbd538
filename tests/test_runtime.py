"""What a runtime promises to any actor, on each backend; what needs virtual time, on trio."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import structlog
import trio
import trio.testing

from probe import Broken, CountingJournal, Did, Probe, ProbeActor, Standing, add, add_after, chain, crash, crash_after, hang, read, refuse, wait
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.clock import Clock
from ropewalk.runtime.envelope import Envelope
from ropewalk.runtime.errors import (
    DuplicateKind,
    Fenced,
    InvalidOption,
    InvalidSessionId,
    JournalUnavailable,
    MailboxFull,
    Quarantined,
    Refused,
    RuntimeClosed,
    SessionExists,
    UnknownSession,
    WouldDeadlock,
)
from ropewalk.runtime.event import HandlerFailed
from ropewalk.runtime.journal import Fault, MemoryJournal
from ropewalk.runtime.journaled import Journaled
from ropewalk.runtime.ref import ActorRef
from ropewalk.runtime.reports import SessionInfo
from ropewalk.runtime.runtime import Runtime, check_session_id, current_runtime
from ropewalk.runtime.supervision import Backoff, CancelledItself, RestartPolicy

QUICK = RestartPolicy(max_restarts=2, within=30, backoff=Backoff(first=0.001, jitter=0))


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """Crashes are meant here, and are logged; nobody needs to see them."""
    with structlog.testing.capture_logs() as entries:
        yield entries


# Opening and finding.


@pytest.mark.anyio
async def test_an_actor_is_made_once_and_found_again() -> None:
    probe = Probe()
    async with Runtime() as runtime:
        assert runtime.find("a") is None
        ref = await runtime.open("a", probe)
        again = await runtime.open("a", probe)

        assert await ref.ask(add("x")) == 2
        assert await again.ask(read) == ("x",)
        assert runtime.find("a").id == ref.id == "a"
        assert probe.activations == ["a"]


@pytest.mark.anyio
async def test_one_that_is_not_to_be_made_must_be_there() -> None:
    async with Runtime() as runtime:
        with pytest.raises(UnknownSession, match="'a'"):
            await runtime.open("a", Probe(), create=False)
        assert runtime.find("a") is None
        assert runtime.statistics().known == 0

        await runtime.open("a", Probe())
        await runtime.open("a", Probe(), create=False)


@pytest.mark.anyio
async def test_an_actor_is_recovered_from_its_journal_by_the_next_runtime() -> None:
    journal = MemoryJournal()
    async with Runtime(journal) as runtime:
        await (await runtime.open("a", Probe())).ask(add("x"))
    async with Runtime(journal) as runtime:
        assert [info.id async for info in runtime.list_sessions()] == ["a"]
        ref = await runtime.open("a", Probe(), create=False)
        assert await ref.ask(read) == ("x",)


@pytest.mark.anyio
async def test_a_seed_is_for_a_new_actor() -> None:
    async with Runtime() as runtime:
        ref = await runtime.open("a", Probe(), records=["x", "y"])
        assert await ref.ask(read) == ("x", "y")
        with pytest.raises(SessionExists, match="records can only be given for a new one"):
            await runtime.open("a", Probe(), records=["z"])
        assert await ref.ask(read) == ("x", "y")


@pytest.mark.anyio
async def test_an_actor_of_one_kind_cannot_be_opened_as_another() -> None:
    async with Runtime() as runtime:
        await runtime.open("a", Probe("one"))
        with pytest.raises(SessionExists, match="is a 'one' in this runtime and cannot be opened as a 'other'"):
            await runtime.open("a", Probe("other"))


@pytest.mark.parametrize("session_id", ["a", "A.b_c:d@e-f", "0", "-", ":x", "x" * 200])
def test_a_right_id_is_taken(session_id: Any) -> None:
    assert check_session_id(session_id) == session_id


@pytest.mark.parametrize("session_id", ["", ".hidden", "x" * 201, "a b", "a/b", "ä", "a\n", "a*", None, 5, b"a"])
async def test_a_wrong_id_is_refused_and_named(session_id: Any) -> None:
    async with Runtime() as runtime:
        with pytest.raises(InvalidSessionId, match="A-Z a-z 0-9"):
            await runtime.open(session_id, Probe())
        assert runtime.statistics().known == 0


@pytest.mark.parametrize("kind", [None, "probe", Probe, object()])
async def test_a_kind_that_is_none_is_refused(kind: Any) -> None:
    async with Runtime() as runtime:
        with pytest.raises(InvalidOption, match="an actor's kind is"):
            await runtime.open("a", kind)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"grace": -1}, "grace is 0 or more"),
        ({"grace": None}, "grace is 0 or more"),
        ({"workers": -1}, "workers is how many"),
        ({"workers": 1.5}, "workers is how many"),
        ({"replay": -1}, "replay is how many"),
        ({"sync_calls": "fork"}, "'thread' or 'inline'"),
        ({"journal": ""}, "the name of a file"),
        ({"journal": ":memory:"}, "kept without a journal"),
        ({"clock": Clock(), "seed": 1}, "not both"),
        ({"specs": ["probe"]}, "an actor's kind is"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_door(arguments: Any, text: Any) -> None:
    with pytest.raises(InvalidOption, match=text):
        Runtime(**arguments)


def test_two_kinds_cannot_have_one_name() -> None:
    one = Probe("same")
    Runtime(specs=[one, one, Probe("other")])
    with pytest.raises(DuplicateKind, match="'same'"):
        Runtime(specs=[one, Probe("same")])


# Several open one actor at once.


@pytest.mark.anyio
async def test_two_opens_at_once_share_one_activation() -> None:
    probe = Probe(before=lambda cell: anyio.sleep(0.01))
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(runtime.open, "a", probe)
        await anyio.wait_all_tasks_blocked()
        assert runtime.find("a") is None

    assert probe.begun == ["a"]


@pytest.mark.anyio
async def test_when_the_first_of_two_is_cancelled_the_second_makes_the_actor_that_everybody_gets() -> None:
    first = anyio.CancelScope()
    got = list[ActorRef]()

    async def let_go(cell: object) -> None:
        if len(probe.begun) == 1:
            await anyio.sleep_forever()

    probe = Probe(before=let_go)

    async def open_first() -> None:
        with first:
            await runtime.open("a", probe)

    async def open_second() -> None:
        got.append(await runtime.open("a", probe))

    async with Runtime() as runtime:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_first)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(open_second)
            await anyio.wait_all_tasks_blocked()
            first.cancel()
        await got[0].ask(add("x"))

        assert probe.activations == ["a"]
        assert await (await runtime.open("a", probe)).ask(read) == ("x",)
        assert probe.activations == ["a"]


@pytest.mark.anyio
async def test_when_the_first_of_two_fails_the_second_still_gets_its_own() -> None:
    """The first asks for one that must be there, the second makes it; there is one actor, and one place for it."""
    probe = Probe(before=lambda cell: anyio.sleep(0.01))
    results = list[Any]()

    async def open_existing() -> None:
        with pytest.raises(UnknownSession):
            await runtime.open("a", probe, create=False)

    async def open_anyway() -> None:
        results.append(await runtime.open("a", probe))

    async with Runtime() as runtime:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_existing)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(open_anyway)
        await results[0].ask(add("x"))

        assert await runtime.find("a").ask(read) == ("x",)
        assert probe.activations == ["a"]


@pytest.mark.anyio
async def test_when_two_bring_a_seed_one_of_them_is_told_that_it_came_too_late() -> None:
    probe, told = Probe(before=lambda cell: anyio.sleep(0.01)), list[str]()

    async def open_with(record: str) -> None:
        try:
            await runtime.open("a", probe, records=[record])
        except SessionExists:
            told.append(record)

    async with Runtime() as runtime:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_with, "x")
            tasks.start_soon(open_with, "y")
        (kept,) = await runtime.find("a").ask(read)

    assert sorted([kept, *told]) == ["x", "y"]


@pytest.mark.anyio
async def test_an_opening_that_fails_does_not_take_the_actor_from_those_who_have_it() -> None:
    """The journal failed, so nothing is in memory; but there are handles, and there must never be two actors of one id."""
    faults: list[Fault] = [None, "refuse"]
    probe = Probe(before=lambda cell: fail() if failing else anyio.lowlevel.checkpoint())
    failing = False

    async def fail() -> None:
        raise JournalUnavailable("still")

    async with Runtime(MemoryJournal(fault=lambda tried: faults[tried] if tried < len(faults) else None)) as runtime:
        ref = await runtime.open("a", probe)
        with pytest.raises(JournalUnavailable):
            await ref.ask(add("lost"))
        failing = True
        with pytest.raises(JournalUnavailable):
            await runtime.open("a", probe)
        failing = False

        assert await ref.ask(add("x")) == 2
        other = await runtime.open("a", probe)
        assert await other.ask(add("y")) == 3
        assert await ref.ask(read) == ("x", "y")
        assert probe.activations == ["a", "a"]


# Messages.


@pytest.mark.anyio
async def test_a_message_is_answered_refused_or_fails_and_the_asker_hears_of_it() -> None:
    async with Runtime(restart=QUICK) as runtime:
        ref = await runtime.open("a", Probe())
        assert await ref.ask(add("x")) == 2
        with pytest.raises(Refused, match="not this"):
            await ref.ask(refuse)
        assert ref.restarts == 0
        with pytest.raises(Broken, match="meant"):
            await ref.ask(crash)
        assert await ref.ask(read) == ("x",)
        assert ref.restarts == 1


@pytest.mark.anyio
async def test_messages_of_one_sender_are_handled_in_order_one_at_a_time() -> None:
    probe = Probe()
    async with Runtime() as runtime:
        ref = await runtime.open("a", probe)
        for number in range(50):
            ref.tell(add(number, seconds=0.001 if number % 7 == 0 else 0))
        assert await ref.ask(read) == tuple(range(50))

    assert probe.most_at_once == 1


@pytest.mark.anyio
async def test_a_full_mailbox_refuses_at_once_and_loses_nothing() -> None:
    async with Runtime() as runtime:
        ref = await runtime.open("a", Probe(mailbox=3))
        for number in range(3):
            ref.tell(add(number))
        with pytest.raises(MailboxFull):
            ref.tell(add("too much"))
        with pytest.raises(MailboxFull):
            await ref.ask(add("too much"))
        await anyio.wait_all_tasks_blocked()

        assert await ref.ask(read) == (0, 1, 2)
        assert ref.mailbox().refused == 2


@pytest.mark.anyio
async def test_a_thousand_actors_work_at_once_and_each_remembers_its_own() -> None:
    probe = Probe()

    async def use(number: int) -> None:
        ref = await runtime.open(f"actor-{number}", probe)
        for turn in range(5):
            assert await ref.ask(add((number, turn))) == turn + 2
        assert await ref.ask(read) == tuple((number, turn) for turn in range(5))

    async with Runtime(workers=50) as runtime:
        async with anyio.create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(use, number)
        statistics = runtime.statistics()
        assert (statistics.known, statistics.resident, statistics.busy) == (1000, 1000, 0)
        assert statistics.journal.records == 6000

    assert len(probe.activations) == 1000


@pytest.mark.anyio
async def test_whoever_leaves_takes_back_what_still_waits_and_nothing_else() -> None:
    async with Runtime() as runtime:
        ref, event = await runtime.open("a", Probe()), anyio.Event()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ref.ask, add_after(event, "begun"))
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(ref.ask, add("waiting"))
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        event.set()

        assert await ref.ask(read) == ("begun",)
        assert ref.mailbox().withdrawn == 1


@pytest.mark.anyio
async def test_an_idle_actor_keeps_no_message_alive() -> None:
    class Load:
        async def __call__(self, actor: ProbeActor) -> None:
            pass

    async with Runtime() as runtime:
        ref = await runtime.open("a", Probe())
        load = Load()
        kept = weakref.ref(load)
        await ref.ask(load)
        del load
        await anyio.wait_all_tasks_blocked()
        gc.collect()

        assert kept() is None


@pytest.mark.anyio
async def test_a_handled_message_lets_go_of_its_askers_context() -> None:
    class World:
        pass

    world = World()
    kept = weakref.ref(world)
    variable: contextvars.ContextVar[World] = contextvars.ContextVar("world")
    asker = contextvars.copy_context()
    asker.run(variable.set, world)
    async with Runtime() as runtime:
        await runtime.open("a", Probe())
        envelope = asker.run(Envelope, read)
        del world, asker
        runtime.cell("a", Probe()).post(envelope)
        await envelope.outcome.wait()
        gc.collect()

        assert kept() is None
        assert envelope.outcome.value == ()


@pytest.mark.anyio
async def test_a_message_is_handled_in_a_copy_of_its_askers_context_and_nothing_leaks() -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")

    async def swap(actor: ProbeActor) -> str:
        before = user.get()
        await anyio.lowlevel.checkpoint()
        assert user.get() == before
        user.set("the actor")
        await anyio.lowlevel.checkpoint()
        return before

    async def activated(cell: object) -> None:
        at_activation.append(user.get())

    at_activation = list[str]()
    async with Runtime(restart=QUICK) as runtime:
        ref = await runtime.open("a", Probe(before=activated))
        user.set("Ann")
        assert await ref.ask(swap) == "Ann"
        assert user.get() == "Ann"
        user.set("Bob")
        assert await ref.ask(swap) == "Bob"
        with pytest.raises(Broken):
            await ref.ask(crash)
        assert await ref.ask(swap) == "Bob"
        assert at_activation == ["nobody", "nobody"], "the actor that was made for Bob's message is not Bob's"

        contextvars.Context().run(ref.tell, chain(then=add("x")))
        assert await contextvars.Context().run(lambda: ref.ask(swap)) == "Bob", "a coroutine belongs to whoever awaits it"
        assert current_runtime.get() is runtime
    assert current_runtime.get() is None


@pytest.mark.anyio
async def test_an_actor_that_always_has_another_message_lets_the_others_run() -> None:
    async def again(actor: ProbeActor) -> None:
        if going:
            ref.tell(again)

    going = True
    async with Runtime() as runtime:
        ref = await runtime.open("a", Probe())
        ref.tell(again)
        other = await runtime.open("b", Probe())
        for number in range(3):
            assert await other.ask(add(number)) == number + 2
        going = False


# Waiting for oneself.


@pytest.mark.anyio
async def test_an_actor_that_asks_itself_is_told_at_once_directly_and_through_others() -> None:
    async with Runtime(restart=RestartPolicy(max_restarts=100, backoff=Backoff(first=0.001, longest=0.001))) as runtime:
        a, b, c = [await runtime.open(name, Probe()) for name in "abc"]

        for ring in ([a, a], [a, b, a], [a, b, c, a], [a, b, c, b]):
            with pytest.raises(WouldDeadlock):
                await ring[0].ask(chain(*ring[1:]))
        assert await a.ask(chain(b, c)) == ()


@pytest.mark.anyio
async def test_an_actor_may_tell_itself() -> None:
    async def tell_oneself(actor: ProbeActor) -> None:
        ref.tell(add("later"))

    async with Runtime() as runtime:
        ref = await runtime.open("a", Probe())
        await ref.ask(tell_oneself)
        assert await ref.ask(read) == ("later",)


@pytest.mark.anyio
async def test_two_actors_that_wait_for_each_other_are_told() -> None:
    """Neither is part of what the other does: both were asked from outside, and met."""
    outcomes = list[Any]()

    def ask_later(ref: ActorRef) -> Any:
        async def body(actor: ProbeActor) -> Any:
            await anyio.sleep(0.01)
            return await ref.ask(read)

        return body

    async def ask(ref: ActorRef, other: ActorRef) -> None:
        try:
            outcomes.append(await ref.ask(ask_later(other)))
        except WouldDeadlock:
            outcomes.append("told")

    async with Runtime(restart=QUICK) as runtime:
        a, b = await runtime.open("a", Probe()), await runtime.open("b", Probe())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, a, b)
            tasks.start_soon(ask, b, a)

    assert sorted(outcomes, key=str) == [(), "told"]


@pytest.mark.anyio
async def test_what_was_begun_by_a_message_may_ask_when_that_is_done() -> None:
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        ref = await runtime.open("a", Probe())
        done, got = anyio.Event(), list[Any]()

        async def ask_afterwards() -> None:
            await done.wait()
            got.append(await ref.ask(read))

        async def begin(actor: ProbeActor) -> None:
            tasks.start_soon(ask_afterwards)
            await anyio.lowlevel.checkpoint()

        await ref.ask(begin)
        done.set()
        await anyio.wait_all_tasks_blocked()
        assert got == [()]


@pytest.mark.anyio
async def test_a_handler_of_an_actors_event_cannot_wait_for_the_actor() -> None:
    async with Runtime() as runtime:
        ref = await runtime.open("a", Probe())

        async def ask_back(event: Did) -> None:
            await ref.ask(read)

        runtime.add_handler(ask_back, {Did})
        async with runtime.events.subscribe({HandlerFailed}) as failures:
            assert await ref.ask(add("x")) == 2
            failed = failures.take()

    assert isinstance(failed, HandlerFailed)
    assert failed.error == "WouldDeadlock"


@pytest.mark.anyio
@pytest.mark.parametrize("by_message", [False, True])
async def test_an_activation_that_waits_for_its_own_actor_is_told(by_message: Any) -> None:
    told = list[str]()

    async def open_itself(cell: Any) -> None:
        if not by_message or len(probe.begun) > 1:
            with pytest.raises(WouldDeadlock):
                await runtime.open("a", probe)
            told.append(cell.id)

    probe = Probe(before=open_itself)
    async with Runtime(restart=QUICK) as runtime:
        ref = await runtime.open("a", probe)
        if by_message:
            with pytest.raises(Broken):
                await ref.ask(crash)
            await ref.ask(read)

    assert told == ["a"]


@pytest.mark.anyio
async def test_a_chain_through_an_activation_is_seen() -> None:
    """A asks B, which is not in memory; to come there it asks A."""

    async def ask_a(cell: Any) -> None:
        if len(b_kind.begun) > 1:
            await a.ask(read)

    b_kind = Probe(before=ask_a)
    async with Runtime(restart=QUICK) as runtime:
        a = await runtime.open("a", Probe())
        b = await runtime.open("b", b_kind)
        with pytest.raises(Broken):
            await b.ask(crash)
        with pytest.raises(WouldDeadlock):
            await a.ask(chain(b))


# Crashing.


async def test_a_crashed_actor_is_made_anew_from_its_journal_after_a_while(autojump_clock: trio.testing.MockClock) -> None:
    probe = Probe()
    policy = RestartPolicy(max_restarts=5, within=1000, backoff=Backoff(first=1, factor=2, longest=30, jitter=0))
    async with Runtime(restart=policy) as runtime:
        ref, other = await runtime.open("a", probe), await runtime.open("b", probe)
        await ref.ask(add("kept"))
        for crashes in range(1, 6):
            with pytest.raises(Broken):
                await ref.ask(crash)
            crashed = trio.current_time()
            assert await other.ask(read) == ()
            assert trio.current_time() == crashed, "nobody else waits"

            assert await ref.ask(read) == ("kept",)
            assert trio.current_time() - crashed == pytest.approx(2 ** (crashes - 1))
            assert (ref.restarts, ref.status) == (crashes, "idle")


async def test_over_its_limit_it_is_quarantined_and_nobody_else_notices(autojump_clock: trio.testing.MockClock, logs: Any) -> None:
    probe = Probe()
    policy = RestartPolicy(max_restarts=2, within=1000, backoff=Backoff(first=1, jitter=0))
    async with Runtime(restart=policy) as runtime:
        ref, other = await runtime.open("a", probe), await runtime.open("b", probe)
        await ref.ask(add("kept"))
        outcomes = dict[int, str]()

        async def ask(number: int, message: Any) -> None:
            try:
                outcomes[number] = str(await ref.ask(message))
            except (Broken, Quarantined) as error:
                outcomes[number] = type(error).__name__

        async with trio.open_nursery() as nursery:
            for number, message in enumerate((crash, crash, crash, read, read)):
                nursery.start_soon(ask, number, message)
                await trio.testing.wait_all_tasks_blocked()

        assert outcomes == {0: "Broken", 1: "Broken", 2: "Broken", 3: "Quarantined", 4: "Quarantined"}
        assert ref.status == "quarantined"
        with pytest.raises(Quarantined, match="more than 2 times in 1000 s and takes no work: Broken: meant"):
            ref.tell(read)
        assert runtime.statistics().quarantined == 1
        assert [(info.id, info.status) async for info in runtime.list_sessions()] == [("a", "quarantined"), ("b", "idle")]
        assert await other.ask(add("x")) == 2
        assert [record.body for record in await runtime.journal.read("a")] == ["made", "kept"]
        assert [entry["event"] for entry in logs] == ["actor_failed"] * 3 + ["actor_quarantined"]

        runtime.revive("a")
        assert await ref.ask(read) == ("kept",)
        assert ref.status == "idle"
        with pytest.raises(UnknownSession):
            runtime.revive("c")


async def test_failures_far_apart_are_forgiven(autojump_clock: trio.testing.MockClock) -> None:
    async with Runtime(restart=RestartPolicy(max_restarts=1, within=10)) as runtime:
        ref = await runtime.open("a", Probe())
        for _ in range(20):
            with pytest.raises(Broken):
                await ref.ask(crash)
            await trio.sleep(11)

        assert ref.status == "idle"


async def test_an_activation_that_fails_counts_as_a_failure_of_the_actor(autojump_clock: trio.testing.MockClock) -> None:
    async def fail_later(cell: object) -> None:
        if len(probe.begun) > 1:
            raise Broken("cannot be made")

    probe = Probe(before=fail_later)
    async with Runtime(restart=QUICK) as runtime:
        ref = await runtime.open("a", probe)
        for _ in range(3):
            with pytest.raises(Broken):
                await ref.ask(crash)
        with pytest.raises(Quarantined, match="cannot be made"):
            await ref.ask(read)


@pytest.mark.parametrize("fault", ["refuse", "lose"])
async def test_a_failing_journal_drops_the_incarnation_and_counts_for_nothing(autojump_clock: trio.testing.MockClock, fault: Any) -> None:
    failing = False
    journal = MemoryJournal(fault=lambda tried: fault if failing else None, lag=0.5)
    probe = Probe()
    async with Runtime(journal, restart=QUICK) as runtime:
        ref = await runtime.open("a", probe)
        await ref.ask(add("before"))
        failing = True
        for _ in range(10):
            with pytest.raises(JournalUnavailable):
                await ref.ask(add("lost"))
        assert (ref.status, ref.restarts) == ("idle", 0)
        failing = False

        assert await ref.ask(add("after")) == 3
        assert await ref.ask(read) == ("before", "after")


@pytest.mark.anyio
async def test_a_fenced_writer_is_dropped_and_the_next_message_claims_anew() -> None:
    journal = MemoryJournal()
    async with Runtime(journal) as runtime:
        ref = await runtime.open("a", Probe())
        await journal.claim("a")
        with pytest.raises(Fenced):
            await ref.ask(add("lost"))

        assert await ref.ask(add("x")) == 2
        assert ref.restarts == 0


@pytest.mark.anyio
async def test_records_are_written_all_or_none_and_a_record_that_cannot_be_taken_is_not_written() -> None:
    class Sum(Probe):
        async def activate(self, cell: Cell, *, create: bool, **seed: Any) -> Any:
            return ProbeActor(self, cell, await Journaled[Any].recover(cell, lambda total, number: total + number, 0, create=create))

    async def write_two(actor: ProbeActor) -> Any:
        return await actor.book.write(2, 3), actor.book.records

    async def write_one_that_is_none(actor: ProbeActor) -> Any:
        with pytest.raises(TypeError):
            await actor.book.write(10, "not a number")
        return actor.book.state, actor.book.records

    async with Runtime() as runtime:
        ref = await runtime.open("a", Sum())
        assert await ref.ask(write_two) == (5, 2)
        assert await ref.ask(write_one_that_is_none) == (5, 2)
        assert [record.body for record in await runtime.journal.read("a")] == [2, 3]
        with pytest.raises(UnknownSession, match="there is no probe 'b'"):
            await runtime.open("b", Sum(), create=False)


# Events.


@pytest.mark.anyio
async def test_a_late_reader_gets_the_tail_or_a_snapshot_and_then_all_that_follows() -> None:
    async with Runtime(replay=3) as runtime:
        ref = await runtime.open("a", Probe())
        for number in range(5):
            await ref.ask(add(number))
        events = runtime.events
        async with (
            events.subscribe(sessions="a", after="1:3") as within,
            events.subscribe(sessions="a", after="1:1") as beyond,
            events.subscribe(sessions="a", after="1:5") as current,
        ):
            await ref.ask(add(5))

            assert [event.seq for event in iter(within.take, None)] == [4, 5, 6]
            assert [event.seq for event in iter(current.take, None)] == [6]
            snapshot, last = iter(beyond.take, None)
            assert isinstance(snapshot, Standing)
            assert snapshot.records == ("made", 0, 1, 2, 3, 4)
            assert last.seq == 6


@pytest.mark.anyio
async def test_a_subscription_outlives_incarnations_and_pins_nothing() -> None:
    async with Runtime(restart=QUICK) as runtime, runtime.events.subscribe({Did}, "a") as events:
        assert runtime.statistics().known == 0
        ref = await runtime.open("a", Probe())
        await ref.ask(add("x"))
        with pytest.raises(Broken):
            await ref.ask(crash)
        await ref.ask(add("y"))

        assert [event.cursor for event in iter(events.take, None)] == ["1:1", "2:1"]


async def test_a_late_reader_of_an_actor_that_is_not_open_is_told_so() -> None:
    async with Runtime() as runtime:
        with pytest.raises(InvalidOption, match="open it before subscribing"):
            await runtime.events.subscribe(sessions="a", after="1:1").__aenter__()


# Closing.


@pytest.mark.anyio
async def test_a_runtime_that_is_not_open_takes_nothing() -> None:
    runtime = Runtime()
    with pytest.raises(RuntimeClosed, match="is new: enter it"):
        await runtime.open("a", Probe())
    async with runtime:
        ref = await runtime.open("a", Probe())
        with pytest.raises(RuntimeClosed, match="entered once"):
            await runtime.__aenter__()
    for use in (lambda: runtime.open("a", Probe()), lambda: ref.ask(read)):
        with pytest.raises(RuntimeClosed, match="is closed"):
            await use()
    with pytest.raises(RuntimeClosed):
        ref.tell(read)
    with pytest.raises(RuntimeClosed):
        await runtime.events.subscribe().__aenter__()
    with pytest.raises(RuntimeClosed):
        await runtime.__aenter__()
    assert (ref.id, ref.status) == ("a", "idle")


async def test_leaving_lets_the_mailboxes_drain(autojump_clock: trio.testing.MockClock) -> None:
    journal = CountingJournal()
    async with Runtime(journal) as runtime:
        for name in "abc":
            ref = await runtime.open(name, Probe())
            for number in range(4):
                ref.tell(add(number, seconds=1))

    assert trio.current_time() == pytest.approx(4)
    for name in "abc":
        assert [record.body for record in await journal.read(name)] == ["made", 0, 1, 2, 3]
    assert runtime.report is not None
    assert runtime.report.cancelled == ()
    assert (journal.opened, journal.closed) == (1, 1)


async def test_what_overstays_its_grace_is_cancelled_and_reported_and_no_task_is_left(autojump_clock: trio.testing.MockClock) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    outcomes = list[str]()

    async def ask(ref: ActorRef, message: Any) -> None:
        try:
            outcomes.append(f"{ref.id} {await ref.ask(message)}")
        except RuntimeClosed:
            outcomes.append(f"{ref.id} closed")

    async with trio.open_nursery() as askers:
        async with Runtime(grace=7) as runtime:
            refs = [await runtime.open(name, Probe()) for name in "abcd"]
            for ref, message in zip(refs, (hang, wait(3), hang, hang), strict=True):
                askers.start_soon(ask, ref, message)
                await trio.testing.wait_all_tasks_blocked()
            askers.start_soon(ask, refs[0], read)
            await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == pytest.approx(7)

    assert sorted(outcomes) == ["a closed", "a closed", "b 3", "c closed", "d closed"]
    assert runtime.report is not None
    assert runtime.report.cancelled == ("d", "c", "a")
    assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_while_it_closes_actors_may_still_send_to_one_another_and_nobody_else_may(autojump_clock: trio.testing.MockClock) -> None:
    refused = list[str]()

    async def ask_late() -> None:
        await trio.sleep(1)
        for use in (lambda: b.ask(read), lambda: runtime.open("c", Probe())):
            with pytest.raises(RuntimeClosed, match="closing"):
                await use()
            refused.append("yes")

    async def pass_on(actor: ProbeActor) -> None:
        await trio.sleep(2)
        b.tell(add("told"))
        assert await b.ask(add("asked")) == 3
        await (await runtime.open("c", Probe())).ask(add("opened"))

    async with trio.open_nursery() as nursery, Runtime() as runtime:
        a, b = await runtime.open("a", Probe()), await runtime.open("b", Probe())
        a.tell(pass_on)
        nursery.start_soon(ask_late)

    assert refused == ["yes", "yes"]
    assert [record.body for record in await runtime.journal.read("b")] == ["made", "told", "asked"]
    assert [record.body for record in await runtime.journal.read("c")] == ["made", "opened"]


@pytest.mark.anyio
async def test_leaving_with_an_error_cancels_at_once_and_gives_that_very_error() -> None:
    error = Broken("in the body")
    error.__cause__ = LookupError("its cause")
    runtime = Runtime()

    async def live() -> None:
        async with runtime:
            ref = await runtime.open("a", Probe())
            ref.tell(hang)
            await anyio.wait_all_tasks_blocked()
            raise error

    with pytest.raises(Broken) as caught:
        await live()

    assert caught.value is error
    assert isinstance(error.__cause__, LookupError)
    assert runtime.report is not None
    assert runtime.report.cancelled == ("a",)


@pytest.mark.anyio
async def test_a_group_the_body_raises_stays_a_group() -> None:
    group = ExceptionGroup("mine", [Broken("one")])
    with pytest.raises(ExceptionGroup) as caught:
        async with Runtime():
            raise group

    assert caught.value is group


@pytest.mark.anyio
async def test_cancelling_a_runtime_while_it_drains_ends_it() -> None:
    runtime = Runtime(grace=1000)
    with anyio.move_on_after(0.05) as scope:
        async with runtime:
            ref = await runtime.open("a", Probe())
            ref.tell(hang)

    assert scope.cancelled_caught
    assert runtime.report is not None
    assert runtime.report.cancelled == ("a",)
    assert runtime.find("a") is None


@pytest.mark.anyio
async def test_a_cancelled_body_can_still_ask_in_its_clean_up() -> None:
    """Its parked workers are cancelled too by then; it gets an answer all the same, if only that there is none."""
    with anyio.CancelScope() as scope:
        async with Runtime() as runtime:
            ref = await runtime.open("a", Probe())
            assert await ref.ask(read) == ()
            scope.cancel()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True), pytest.raises(RuntimeClosed):
                    await ref.ask(wait(1))

    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_readers_get_what_is_buffered_and_then_the_end() -> None:
    async with Runtime() as runtime:
        ref = await runtime.open("a", Probe())
        events = await runtime.events.subscribe({Did}).__aenter__()
        for number in range(3):
            await ref.ask(add(number))

    assert [event.seq async for event in events] == [1, 2, 3]


def test_a_task_of_the_callers_may_be_cancelled_in_asyncios_own_way() -> None:
    """While it waits, and while it opens an actor, whose events then have handlers that wait in the caller's task."""

    async def announce(cell: Cell) -> None:
        await cell.publish(Did, "made")

    async def slow(event: Did) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        async with Runtime(grace=0) as runtime:
            ref = await runtime.open("a", Probe())
            runtime.add_handler(slow, {Did}, timeout=None)
            for use in (lambda: ref.ask(hang), lambda: runtime.open("b", Probe(before=announce))):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await use()

    asyncio.run(main())


def test_an_actor_cannot_end_its_worker_by_cancelling_it() -> None:
    async def cancel_oneself(actor: ProbeActor) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def main() -> None:
        async with Runtime(restart=QUICK) as runtime:
            ref = await runtime.open("a", Probe())
            with pytest.raises(CancelledItself):
                await ref.ask(cancel_oneself)
            assert await ref.ask(add("x")) == 2
            assert ref.restarts == 1

    asyncio.run(main())


# Faults of the runtime's own.


class BrokenClock(Clock):
    """Randomness fails, in the middle of the runtime's own code."""

    def __init__(self) -> None:
        super().__init__(1)
        self.random = self.fail

    def fail(self) -> float:
        raise ArithmeticError("no more randomness") from LookupError("the cause")


@pytest.mark.anyio
async def test_a_fault_of_the_runtimes_own_closes_it_with_its_cause() -> None:
    outcomes = list[str]()
    ref: Any = None

    async def ask(message: Any) -> None:
        try:
            await ref.ask(message)
        except (Broken, RuntimeClosed) as error:
            outcomes.append(type(error).__name__)

    async def live(askers: Any) -> None:
        nonlocal ref
        async with Runtime(clock=BrokenClock()) as runtime:
            ref, event = await runtime.open("a", Probe()), anyio.Event()
            for message in (crash_after(event), read):
                askers.start_soon(ask, message)
                await anyio.wait_all_tasks_blocked()
            event.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as askers:
        with pytest.raises(ArithmeticError, match="no more randomness") as caught:
            await live(askers)
        assert isinstance(caught.value.__cause__, LookupError)

    assert sorted(outcomes) == ["Broken", "RuntimeClosed"]


@pytest.mark.anyio
async def test_work_of_the_runtimes_own_hangs_from_its_tree_and_closes_it_when_it_fails() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")
    seen = list[str]()

    async def look() -> None:
        seen.append(variable.get())
        await anyio.sleep_forever()

    async def fail(text: str) -> None:
        raise Broken(text)

    variable.set("the caller's")
    async with Runtime() as runtime:
        runtime.start(look)
        await anyio.wait_all_tasks_blocked()
    assert seen == ["clean"]

    async def live() -> None:
        async with Runtime() as runtime:
            runtime.start(fail, "beside")
            await anyio.sleep_forever()

    with pytest.raises(Broken, match="beside"):
        await live()


async def test_an_interrupt_passes_whoever_it_comes_from(autojump_clock: trio.testing.MockClock) -> None:
    async def interrupt(actor: ProbeActor) -> None:
        raise KeyboardInterrupt

    outcomes = list[str]()
    ref: Any = None

    async def ask() -> None:
        with pytest.raises(RuntimeClosed):
            await ref.ask(interrupt)
        outcomes.append("told")

    async def live(askers: trio.Nursery) -> None:
        nonlocal ref
        async with Runtime() as runtime:
            ref = await runtime.open("a", Probe())
            askers.start_soon(ask)
            await trio.sleep_forever()

    async with trio.open_nursery() as askers:
        with pytest.raises(KeyboardInterrupt):
            await live(askers)
    assert outcomes == ["told"]

    with pytest.raises(KeyboardInterrupt):
        async with Runtime():
            raise KeyboardInterrupt


# What it holds.


@pytest.mark.parametrize("workers", [0, 1, 7])
async def test_workers_are_parked_up_to_their_bound(autojump_clock: trio.testing.MockClock, workers: Any) -> None:
    async with Runtime(workers=workers) as runtime:
        refs = [await runtime.open(f"a{number}", Probe()) for number in range(40)]
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for ref in refs:
                    nursery.start_soon(ref.ask, wait(1))
            await trio.testing.wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living - before == workers


async def test_ten_thousand_idle_actors_hold_no_task(autojump_clock: trio.testing.MockClock) -> None:
    async with Runtime(workers=0) as runtime:
        before = trio.lowlevel.current_statistics().tasks_living
        for number in range(10_000):
            await runtime.open(f"a{number}", Probe())

        assert trio.lowlevel.current_statistics().tasks_living == before
        assert runtime.statistics().resident == 10_000


@pytest.mark.anyio
async def test_a_list_says_what_each_actor_does_and_which_are_only_in_the_journal() -> None:
    journal = MemoryJournal()
    async with Runtime(journal) as runtime:
        for name in "dba":
            await runtime.open(name, Probe())
    async with Runtime(journal, grace=0) as runtime:
        a, b = await runtime.open("a", Probe()), await runtime.open("b", Probe())
        for _ in range(3):
            b.tell(hang)
        await anyio.wait_all_tasks_blocked()

        assert [info async for info in runtime.list_sessions()] == [
            SessionInfo("a", "probe", "idle", 0),
            SessionInfo("b", "probe", "busy", 2),
            SessionInfo("d", "probe", "passivated", 0),
        ]
        assert repr(a) == "<ActorRef probe 'a', idle>"


async def test_what_actors_share_is_made_once_in_each_runtime() -> None:
    async with Runtime() as one, Runtime() as other:
        assert one.resource("key", list) is one.resource("key", list)
        assert one.resource("key", list) is not other.resource("key", list)


async def test_the_same_seed_gives_the_same_randomness_and_ids() -> None:
    def draws(seed: int | None) -> list[Any]:
        clock = Runtime(seed=seed).clock
        return [clock.new_id(), clock.random(), clock.new_id()]

    assert draws(1) == draws(1) != draws(2)
    assert draws(None) != draws(None)
    assert len(draws(3)[0]) == 16

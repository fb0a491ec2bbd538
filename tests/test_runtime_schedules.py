"""The runtime under every schedule that can be drawn, cancelled at every step, with a journal that fails at every write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import structlog
import trio
import trio.testing
from hypothesis import event as note_example
from hypothesis import given
from hypothesis import strategies as st

from probe import Broken, CountingJournal, Probe, ProbeActor, add, cancelled_at_any_step, crash, hang, read, refuse, wait
from ropewalk.actors.testing.loop import in_trio
from ropewalk.runtime.errors import (
    JournalUnavailable,
    RopewalkError,
    RuntimeClosed,
    SessionExists,
    UnknownSession,
    WouldDeadlock,
)
from ropewalk.runtime.journal import Fault, MemoryJournal
from ropewalk.runtime.ref import ActorRef
from ropewalk.runtime.runtime import Runtime
from ropewalk.runtime.supervision import Backoff, RestartPolicy

FOREVER = 100_000.0
moments = st.floats(0, 5).map(lambda moment: round(moment, 1))


@pytest.fixture(autouse=True)
def logs() -> Iterator[Any]:
    with structlog.testing.capture_logs() as entries:
        yield entries


# Every asker has exactly one outcome.


@attrs.frozen
class Ask:
    """At `at` seconds somebody asks `actor` to do something, and leaves after `patience`."""

    actor: str
    what: str
    at: float
    patience: float


asks = st.builds(Ask, st.sampled_from("abc"), st.sampled_from(["add", "add", "slow", "crash", "refuse", "hang"]), moments, st.one_of(st.just(FOREVER), moments))
policies = st.builds(RestartPolicy, max_restarts=st.integers(0, 3), within=st.just(10.0), backoff=st.just(Backoff(first=0.5, jitter=0.5)))


class Asker:
    """Asks, and notes what came of it: a reply, the name of an error, or that it left."""

    def __init__(self, number: int, ask: Ask) -> None:
        self.number = number
        self.ask = ask
        self.outcomes: list[str] = []

    async def run(self, ref: ActorRef) -> None:
        await trio.sleep(self.ask.at)
        messages: dict[str, Any] = {"add": add(self.number), "slow": add(self.number, seconds=1), "crash": crash, "refuse": refuse, "hang": hang}
        with trio.move_on_after(self.ask.patience) as scope:
            try:
                await ref.ask(messages[self.ask.what])
                self.outcomes.append("reply")
            except (Broken, RopewalkError) as error:
                self.outcomes.append(type(error).__name__)
        if scope.cancelled_caught:
            self.outcomes.append("left")


ALLOWED = {
    "add": {"reply"},
    "slow": {"reply"},
    "crash": {"Broken"},
    "refuse": {"Refused"},
    "hang": set[str](),
}
ALWAYS = {"left", "Quarantined", "RuntimeClosed", "MailboxFull"}


@given(st.lists(asks, max_size=12), policies, moments, st.integers(1, 4), st.integers(0, 2), st.floats(0, 2), st.random_module())
@in_trio
async def test_every_asker_has_exactly_one_outcome_and_what_was_acknowledged_is_kept(
    program: Any, policy: Any, closes: Any, mailbox: Any, workers: Any, lag: Any, schedule: Any
) -> None:
    journal = MemoryJournal(lag=lag)
    probe = Probe(mailbox=mailbox)
    askers = [Asker(number, ask) for number, ask in enumerate(program)]
    with trio.fail_after(FOREVER / 10):
        async with trio.open_nursery() as nursery:
            async with Runtime(journal, seed=1, restart=policy, workers=workers, grace=3) as runtime:
                refs = {name: await runtime.open(name, probe) for name in "abc"}
                for asker in askers:
                    nursery.start_soon(asker.run, refs[asker.ask.actor])
                await trio.sleep(closes)
            assert trio.current_time() <= 3 * lag + closes + 3 + 1e-6, "nobody holds it up longer than the grace"

    kept = Counter[int]()
    for name in "abc":
        records = await journal.read(name)
        assert [record.number for record in records] == list(range(1, len(records) + 1))
        kept.update(record.body for record in records if record.body != "made")
    for asker in askers:
        assert len(asker.outcomes) == 1
        (outcome,) = asker.outcomes
        assert outcome in ALLOWED[asker.ask.what] | ALWAYS
        assert kept[asker.number] <= 1, "nothing is done twice"
        if outcome == "reply":
            assert kept[asker.number] == 1
        if outcome in {"MailboxFull", "Quarantined", "Refused"}:
            assert kept[asker.number] == 0
        note_example(outcome)
    assert probe.most_at_once <= 1
    for name in "abc":
        statistics = refs[name].mailbox()
        assert statistics.waiting == 0
    assert journal.statistics().records == sum(kept.values()) + 3


@given(st.lists(st.lists(st.sampled_from([0.0, 0.1, 1.0]), max_size=5), max_size=5), st.integers(0, 3), st.random_module())
@in_trio
async def test_messages_of_each_sender_are_handled_in_its_order_one_at_a_time(senders: Any, workers: Any, schedule: Any) -> None:
    probe = Probe()

    async def send(sender: int, delays: list[float]) -> None:
        for number, delay in enumerate(delays):
            if delay:
                await trio.sleep(delay)
            ref.tell(add((sender, number), seconds=delay))

    async with Runtime(workers=workers) as runtime:
        ref = await runtime.open("a", probe)
        async with trio.open_nursery() as nursery:
            for sender, delays in enumerate(senders):
                nursery.start_soon(send, sender, delays)
        handled = await ref.ask(read)

    for sender, delays in enumerate(senders):
        assert [number for who, number in handled if who == sender] == list(range(len(delays)))
    assert probe.most_at_once <= 1


# Nobody waits for ever.


@given(st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 4)), moments), min_size=1, max_size=6), st.random_module())
@in_trio
async def test_actors_that_ask_one_another_never_wait_for_ever_and_are_not_warned_without_need(program: Any, schedule: Any) -> None:
    """Each of several actors, asked from outside, waits a while and then asks another, which may be asking it."""
    probe, told = Probe(), list[int]()

    def ask_later(target: int | None, delay: float) -> Any:
        async def body(actor: ProbeActor) -> None:
            await trio.sleep(delay)
            if target is not None:
                try:
                    await refs[target].ask(wait(0.5))
                except WouldDeadlock:
                    told.append(target)

        return body

    with trio.fail_after(FOREVER):
        async with Runtime(grace=FOREVER) as runtime:
            refs = [await runtime.open(f"a{number}", probe) for number in range(5)]
            async with trio.open_nursery() as nursery:
                for actor, target, delay in program:
                    nursery.start_soon(refs[actor].ask, ask_later(target, delay))

    edges = {(actor, target) for actor, target, _ in program if target is not None}
    note_example("told" if told else "in a ring" if has_ring(edges) else "no ring")
    if not has_ring(edges):
        assert told == []
    if any(actor == target for actor, target in edges):
        assert told


def has_ring(edges: set[tuple[int, int]]) -> bool:
    left = set(edges)
    while left:
        leaves = {target for _, target in left} - {source for source, _ in left}
        shorter = {(source, target) for source, target in left if target not in leaves}
        if shorter == left:
            return True
        left = shorter
    return False


# Opening.

openers = st.tuples(moments, st.booleans(), st.one_of(st.none(), st.just(["seed"])), st.one_of(st.just(FOREVER), moments))


@given(st.lists(openers, min_size=1, max_size=6), st.lists(st.tuples(moments, st.booleans()), max_size=6), st.random_module())
@in_trio
async def test_however_many_open_an_actor_and_leave_and_fail_there_is_one_of_it(program: Any, activations: Any, schedule: Any) -> None:
    """Activations take their time or fail, openers want it made or not, with a seed or without, and lose patience."""
    failures, refs = list[str](), list[ActorRef]()

    async def activate(cell: object) -> None:
        if activations:
            seconds, fails = activations.pop(0)
            await trio.sleep(seconds)
            if fails:
                raise Broken("cannot be made")

    async def open_it(at: float, create: bool, seed: list[str] | None, patience: float) -> None:
        await trio.sleep(at)
        with trio.move_on_after(patience):
            try:
                refs.append(await runtime.open("a", probe, create=create, **({"records": seed} if seed else {})))
            except (Broken, UnknownSession, SessionExists) as error:
                failures.append(type(error).__name__)

    probe = Probe(before=activate)
    async with Runtime() as runtime:
        async with trio.open_nursery() as nursery:
            for opener in program:
                nursery.start_soon(open_it, *opener)

        assert len(probe.activations) == (1 if refs else 0)
        assert runtime.statistics().known == (1 if refs else 0)
        for number, ref in enumerate(refs):
            await ref.ask(add(number))
        if refs:
            found = await runtime.find("a").ask(read)
            assert [record for record in found if record != "seed"] == list(range(len(refs)))
            assert found.count("seed") <= 1
        else:
            assert runtime.find("a") is None
            await runtime.open("a", Probe())


@given(st.integers(0, 3), st.random_module())
@in_trio
async def test_a_cancelled_body_that_asks_once_more_is_answered_whoever_is_cancelled_first(workers: int, schedule: Any) -> None:
    """Workers are parked, are being cancelled, or are gone by then; a message must not wait for one that will never come."""
    with trio.fail_after(100), trio.CancelScope() as scope:
        async with Runtime(workers=workers) as runtime:
            refs = [await runtime.open(name, Probe()) for name in "abc"]
            async with trio.open_nursery() as nursery:
                for ref in refs:
                    nursery.start_soon(ref.ask, wait(1))
            scope.cancel()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    for ref in refs:
                        with pytest.raises(RuntimeClosed):
                            await ref.ask(wait(1))

                    assert all(ref.status == "idle" for ref in refs)

    assert scope.cancelled_caught


# Cancelled at every step.


async def half_a_second(cell: object) -> None:
    await trio.sleep(0.5)


async def test_an_asker_may_be_cancelled_at_every_step(autojump_clock: trio.testing.MockClock) -> None:
    """While it opens the actor, while its message waits, while it is handled: the actor is whole and the next message works."""
    number, seen = 0, set[tuple[str, Any]]()
    while True:
        number += 1
        journal = MemoryJournal(lag=0.5)
        probe = Probe(before=half_a_second)
        async with Runtime(journal, seed=1) as runtime:
            reply = None
            with cancelled_at_any_step(number) as scope:
                ref = await runtime.open("a", probe)
                ref.tell(wait(1))
                reply = await ref.ask(add("asked", seconds=0.5))
            statistics = None if runtime.find("a") is None else runtime.find("a").mailbox()
            ref = await runtime.open("a", probe)
            kept = await ref.ask(read)

            assert kept in ((), ("asked",))
            assert [record.body for record in await journal.read("a")] == ["made", *kept]
            if reply is not None:
                assert (reply, kept) == (2, ("asked",))
            if statistics is not None and statistics.withdrawn:
                assert kept == ()
            assert runtime.statistics().known == 1
            assert runtime.statistics().busy == 0
            assert len(probe.activations) == 1
            seen.add(("left" if reply is None else "reply", kept))
        if not scope.cancelled_caught:
            break

    assert number > 5
    assert reply == 2
    assert seen == {("left", ()), ("left", ("asked",)), ("reply", ("asked",))}


async def test_a_runtime_may_be_cancelled_at_every_step(autojump_clock: trio.testing.MockClock) -> None:
    """While it opens, works, drains and closes: every asker outside has an outcome, the journal is closed, no task is left."""
    number = 0
    tasks = trio.lowlevel.current_statistics().tasks_living
    seen = Counter[str]()
    while True:
        number += 1
        journal = CountingJournal(lag=0.5)
        runtime = Runtime(journal, seed=1, grace=3)
        outcomes = list[str]()

        async def ask(ref: ActorRef, message: Any, outcomes: list[str] = outcomes) -> None:
            try:
                await ref.ask(message)
                outcomes.append("reply")
            except (RuntimeClosed, Broken) as error:
                outcomes.append(type(error).__name__)

        asking = 0
        with trio.fail_after(60):
            async with trio.open_nursery() as askers:
                with cancelled_at_any_step(number) as scope:
                    async with runtime:
                        refs = [await runtime.open(name, Probe()) for name in "abc"]
                        for ref, message in ((refs[0], add("x", seconds=1)), (refs[0], hang), (refs[1], crash), (refs[1], add("y")), (refs[2], hang)):
                            askers.start_soon(ask, ref, message)
                            asking += 1
                            await trio.testing.wait_all_tasks_blocked()
                        await trio.sleep(2)
        assert len(outcomes) == asking
        seen.update(outcomes)
        assert journal.opened == journal.closed
        assert not runtime.is_open
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        for name in "abc":
            records = await journal.read(name)
            assert [record.number for record in records] == list(range(1, len(records) + 1))
        if not scope.cancelled_caught:
            break

    assert number > 30
    assert set(seen) == {"reply", "RuntimeClosed", "Broken"}
    assert runtime.report is not None
    assert runtime.report.cancelled == ("a", "c") or set(runtime.report.cancelled) == {"a", "c"}


# A journal that fails at every write.


@pytest.mark.parametrize("fault", ["refuse", "lose"])
@pytest.mark.parametrize("lag", [0.0, 0.3])
async def test_the_journal_may_fail_at_every_write(autojump_clock: trio.testing.MockClock, fault: Any, lag: Any) -> None:
    """Whoever was told that it worked finds it kept; whoever was told that it failed does not; the next message works."""
    place = -1
    while True:
        place += 1
        asked = list[int]()

        def fail(tried: int, place: int = place, asked: list[int] = asked) -> Fault:
            asked.append(tried)
            return fault if tried == place else None

        journal = MemoryJournal(fault=fail, lag=lag)
        told = dict[str, bool]()

        async def ask(ref: ActorRef, what: str, told: dict[str, bool] = told) -> None:
            try:
                await ref.ask(add(what))
                told[what] = True
            except JournalUnavailable:
                told[what] = False

        async with Runtime(journal, seed=1) as runtime:
            probe = Probe()
            try:
                refs = [await runtime.open(name, probe) for name in "ab"]
            except JournalUnavailable:
                refs = [await runtime.open(name, probe) for name in "ab"]
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    for ref in refs:
                        nursery.start_soon(ask, ref, f"{ref.id}{number}")
            for ref in refs:
                kept = await ref.ask(read)
                assert set(kept) == {what for what, worked in told.items() if worked and what.startswith(ref.id)}
                assert len(set(kept)) == len(kept)
                assert (ref.restarts, ref.status) == (0, "idle")
            assert Counter(told.values())[False] <= 1
        if place not in asked:
            break

    assert place >= 10
    assert all(told.values())

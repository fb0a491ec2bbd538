"""What a journal promises, on the one in memory: order, all or nothing, numbers without gaps, one writer, and faults that lose nothing kept."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ropewalk.actors.testing.loop import cancelled_at_step, in_trio
from ropewalk.runtime.errors import Fenced, JournalUnavailable
from ropewalk.runtime.journal import Claim, Commit, Fault, Journal, JournalStatistics, MemoryJournal, Record, Snapshot

T = TypeVar("T")
ACTORS = ["a", "b"]


def now(awaitable: Awaitable[T]) -> T:
    """The result of work that never waits."""
    steps = awaitable.__await__()
    try:
        next(steps)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("it waited")


class Writer:
    """Somebody who claimed a log, and how far it believes to have written it."""

    def __init__(self, actor_id: str, claim: Claim) -> None:
        self.actor_id = actor_id
        self.epoch = claim.epoch
        self.last = claim.last
        self.broken = False


class JournalMachine(RuleBasedStateMachine):
    """Writers come, write, fail and are fenced; the model is a list of records for each actor."""

    @initialize()
    def make(self) -> None:
        self.fault: Fault = None
        self.journal: Journal = MemoryJournal(fault=lambda tried: self.fault)
        self.model: dict[str, list[Record]] = {actor_id: [] for actor_id in ACTORS}
        self.owner: dict[str, Writer | None] = dict.fromkeys(ACTORS)
        self.snapshots: dict[str, Snapshot | None] = dict.fromkeys(ACTORS)
        self.writers: list[Writer] = []
        self.body = 0
        self.counts = {"appends": 0, "snapshots": 0, "failures": 0}
        now(self.journal.open())

    @rule(actor_id=st.sampled_from(ACTORS))
    def claim(self, actor_id: str) -> None:
        before = self.owner[actor_id]
        claim = now(self.journal.claim(actor_id))

        assert claim.last == len(self.model[actor_id])
        assert before is None or claim.epoch > before.epoch
        self.owner[actor_id] = writer = Writer(actor_id, claim)
        self.writers.append(writer)

    @rule(data=st.data(), size=st.integers(0, 3), fault=st.sampled_from([None, None, None, "refuse", "lose"]))
    def append(self, data: st.DataObject, size: int, fault: Fault) -> None:
        if not self.writers:
            return
        writer = data.draw(st.sampled_from(self.writers))
        bodies = [f"body {self.body + number}" for number in range(size)]
        self.body += size
        self.fault = fault
        if self.owner[writer.actor_id] is not writer:
            with pytest.raises(Fenced):
                self.write(writer, bodies)
        elif writer.broken or fault == "refuse":
            self.counts["failures"] += 1
            with pytest.raises(JournalUnavailable):
                self.write(writer, bodies)
        elif fault == "lose":
            self.counts["failures"] += 1
            writer.broken = True
            commit = self.write(writer, bodies)
            assert commit is not None
            for _ in range(2):
                with pytest.raises(JournalUnavailable):
                    trio.run(commit.wait)
        else:
            assert self.write(writer, bodies) is None
            self.model[writer.actor_id] += [Record(writer.last + number, writer.epoch, body) for number, body in enumerate(bodies, 1)]
            writer.last += size
            self.counts["appends"] += 1

    @rule(data=st.data(), off=st.sampled_from([-1, 1, 5]))
    def append_out_of_turn(self, data: st.DataObject, off: int) -> None:
        whole = [writer for writer in self.writers if self.owner[writer.actor_id] is writer and not writer.broken]
        if whole:
            writer = data.draw(st.sampled_from(whole))
            with pytest.raises(Fenced, match="does not follow"):
                self.journal.append(writer.actor_id, writer.epoch, writer.last + 1 + off, ["stray"])

    @rule(data=st.data())
    def save_snapshot(self, data: st.DataObject) -> None:
        if not self.writers:
            return
        writer = data.draw(st.sampled_from(self.writers))
        snapshot = Snapshot(writer.last, f"state at {writer.last}")
        if self.owner[writer.actor_id] is writer:
            now(self.journal.save_snapshot(writer.actor_id, writer.epoch, snapshot))
            self.snapshots[writer.actor_id] = snapshot
            self.counts["snapshots"] += 1
        else:
            with pytest.raises(Fenced):
                now(self.journal.save_snapshot(writer.actor_id, writer.epoch, snapshot))

    @rule(actor_id=st.sampled_from(ACTORS), after=st.integers(0, 12))
    def read_after(self, actor_id: str, after: int) -> None:
        assert list(now(self.journal.read(actor_id, after))) == [record for record in self.model[actor_id] if record.number > after]

    @invariant()
    def holds_what_was_acknowledged_and_no_more(self) -> None:
        for actor_id, records in self.model.items():
            assert list(now(self.journal.read(actor_id))) == records
            assert [record.number for record in records] == list(range(1, len(records) + 1))
            assert now(self.journal.snapshot(actor_id)) == self.snapshots[actor_id]

    @invariant()
    def knows_who_has_a_log(self) -> None:
        known = [actor_id for actor_id in ACTORS if self.model[actor_id]]
        assert now(listed(self.journal)) == known
        records = sum(map(len, self.model.values()))
        assert self.journal.statistics() == JournalStatistics(actors=len(known), records=records, **self.counts)

    def write(self, writer: Writer, bodies: list[str]) -> Commit | None:
        return self.journal.append(writer.actor_id, writer.epoch, writer.last + 1, bodies)


async def listed(journal: Journal) -> list[str]:
    return [actor.id for actor in await journal.actors()]


TestMemoryJournal = JournalMachine.TestCase


@given(st.lists(st.sampled_from([None, "refuse", "lose"]), min_size=1, max_size=12))
def test_whatever_goes_wrong_a_new_owner_finds_what_was_kept_and_goes_on(faults: list[Fault]) -> None:
    """The life of an actor: it is dropped at each failure, recovers, and loses nothing that it was told is kept."""
    journal = MemoryJournal(fault=lambda tried: faults[tried] if tried < len(faults) else None)
    kept = list[int]()
    for number in range(len(faults)):
        claim = now(journal.claim("a"))
        assert [record.body for record in now(journal.read("a"))] == kept
        try:
            commit = journal.append("a", claim.epoch, claim.last + 1, [number, number])
            if commit is not None:
                trio.run(commit.wait)
            kept += [number, number]
        except JournalUnavailable:
            assert faults[number] is not None

    assert len(kept) == 2 * faults.count(None)


def test_a_fault_is_asked_for_before_each_append_that_may_be_made() -> None:
    asked = list[int]()
    journal = MemoryJournal(fault=lambda tried: asked.append(tried))
    claim = now(journal.claim("a"))
    journal.append("a", claim.epoch, 1, ["one"])
    with pytest.raises(Fenced):
        journal.append("a", claim.epoch + 1, 2, ["fenced"])
    journal.append("a", claim.epoch, 2, ["two"])

    assert asked == [0, 1]


@pytest.mark.parametrize("actor_id", ["never claimed"])
def test_a_log_nobody_claimed_cannot_be_written(actor_id: str) -> None:
    journal = MemoryJournal()

    with pytest.raises(Fenced, match=actor_id):
        journal.append(actor_id, 1, 1, ["x"])
    with pytest.raises(Fenced, match=actor_id):
        now(journal.save_snapshot(actor_id, 1, Snapshot(0, None)))
    assert now(journal.read(actor_id)) == ()
    assert now(journal.snapshot(actor_id)) is None


def test_what_was_read_does_not_change_when_more_is_written() -> None:
    journal = MemoryJournal()
    claim = now(journal.claim("a"))
    journal.append("a", claim.epoch, 1, ["one"])
    read = now(journal.read("a"))
    journal.append("a", claim.epoch, 2, ["two"])

    assert [record.body for record in read] == ["one"]


def test_it_outlives_the_runtimes_that_use_it() -> None:
    journal = MemoryJournal()
    now(journal.open())
    journal.append("a", now(journal.claim("a")).epoch, 1, ["one"])
    now(journal.close())
    now(journal.open())

    assert [record.body for record in now(journal.read("a"))] == ["one"]


# A journal that takes its time.


@pytest.mark.anyio
async def test_a_slow_commit_is_durable_after_its_lag() -> None:
    journal = MemoryJournal(lag=0.02)
    claim = await journal.claim("a")
    started = anyio.current_time()
    commit = journal.append("a", claim.epoch, 1, ["one"])
    assert commit is not None

    await commit.wait()
    assert anyio.current_time() - started >= 0.019


@given(st.floats(0.1, 10), st.lists(st.floats(0, 20), min_size=1, max_size=6), st.random_module())
@in_trio
async def test_any_number_may_wait_for_a_commit_any_number_of_times(lag: float, delays: list[float], schedule: Any) -> None:
    """The lag runs from the append: who comes later waits less, who comes when it is over not at all."""
    journal = MemoryJournal(lag=lag)
    claim = await journal.claim("a")
    commit = journal.append("a", claim.epoch, 1, ["one"])
    assert commit is not None
    appended = trio.current_time()

    async def wait(commit: Commit, delay: float) -> None:
        await trio.sleep(delay)
        for _ in range(2):
            await commit.wait()
            assert trio.current_time() - appended == pytest.approx(max(lag, delay))

    async with trio.open_nursery() as nursery:
        for delay in delays:
            nursery.start_soon(wait, commit, delay)


async def test_a_commit_is_durable_also_when_nobody_waits_or_whoever_waits_is_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    journal = MemoryJournal(lag=5)
    number = 0
    while True:
        number += 1
        claim = await journal.claim("a")
        commit = journal.append("a", claim.epoch, number, [number])
        assert commit is not None
        with cancelled_at_step(number) as scope:
            await commit.wait()
        await commit.wait()
        assert len(await journal.read("a")) == number
        if not scope.cancelled_caught:
            break

    assert number > 1

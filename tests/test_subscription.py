"""A reader's buffer: bounded, with a policy each of which is a law over every interleaving of publishing and reading."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
import trio
import trio.testing
from hypothesis import event as note_example
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.actors.events import MessageAdded, ModelChunk, ReasoningDelta, Snapshot, TextDelta
from ropewalk.actors.testing.loop import cancelled_at_step, in_trio
from ropewalk.runtime.channel import Channel
from ropewalk.runtime.clock import Clock
from ropewalk.runtime.errors import InvalidOption, SlowReader
from ropewalk.runtime.event import Event, Gap
from ropewalk.runtime.publisher import Publisher
from ropewalk.runtime.subscription import Subscription

DELTAS = (TextDelta, ReasoningDelta)


async def nobody(session_id: str) -> Any:
    raise LookupError(session_id)


def make_channel(replay: int = 0) -> Channel:
    return Channel(Clock(1), replay, nobody)


# What a session does, and what a reader makes of it.


@attrs.frozen
class Publish:
    """A session publishes a delta of a block, or a message when `block` is None."""

    session_id: str
    block: int | None = None
    kind: type[Event] = TextDelta


@attrs.frozen
class Read:
    """The reader takes what is next, if anything is."""


publishes = st.builds(Publish, st.sampled_from("ab"), st.sampled_from([0, 0, 0, 1, None]), st.sampled_from([TextDelta, TextDelta, ReasoningDelta]))
bursts = st.builds(lambda step, times: [step] * times, st.one_of(publishes, publishes, publishes, st.just(Read())), st.integers(1, 6))
programs = st.lists(bursts, max_size=20).map(lambda steps: list(itertools.chain.from_iterable(steps)))


def run_step(channel: Channel, step: Publish, published: list[Event]) -> Any:
    """Publish as the step says, with a text nobody else has; `published` gets the event as it was."""
    publisher = channel.publisher(step.session_id)
    text = f"<{step.session_id}{publisher.seq + 1}>"
    fields = (f"e{publisher.seq}", {"role": "user", "content": []}, None) if step.block is None else (text, step.block)
    kind = MessageAdded if step.block is None else step.kind
    pending = publisher.publish(kind, "turn", None, *fields)
    published.append(publisher.as_of_now(kind, "turn", None, *fields))
    return pending


def play(program: Sequence[Publish | Read], policy: Any, buffer: int, kinds: Any = None) -> tuple[list[Event], list[Event], list[Event], Subscription]:
    """Run a program; returns what was published, what was read meanwhile, what is left in the buffer, and the reader."""
    channel, published, read, left = make_channel(), list[Event](), list[Event](), list[Event]()
    reader = channel.subscribe(kinds, buffer=buffer, overflow=policy)
    drive(reader.__aenter__())
    for step in program:
        if isinstance(step, Read):
            taken = reader.take()
            if taken is not None:
                read.append(taken)
        else:
            assert run_step(channel, step, published) is None, "only the policy 'wait' holds a session up"
        assert reader.statistics().buffered <= buffer
    while (taken := reader.take()) is not None:
        left.append(taken)
    return published, read, left, reader


def drive(coroutine: Any) -> Any:
    """Run a coroutine that never waits."""
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    return stopped.value.value


def covered(event: Event) -> range:
    """The numbers an event stands for."""
    first = getattr(event, "first_seq", None)
    return range(event.seq if first is None else first, event.seq + 1)


def of_session(events: Sequence[Event], session_id: str) -> list[Event]:
    return [event for event in events if event.session_id == session_id]


def is_cut_off(reader: Subscription) -> bool:
    return not reader.statistics().connected


def ends_with_slow_reader(reader: Subscription) -> None:
    for _ in range(2):
        with pytest.raises(SlowReader):
            drive(reader.__anext__())


# coalesce.


@given(programs, st.integers(1, 6))
def test_coalesce_loses_no_text_and_joins_only_adjacent_deltas_of_one_block(program: Any, buffer: Any) -> None:
    published, read, left, reader = play(program, "coalesce", buffer)
    got = [*read, *left]
    for session_id in "ab":
        originals = of_session(published, session_id)
        delivered = of_session(got, session_id)
        numbers = [number for event in delivered for number in covered(event)]
        assert numbers == list(range(1, len(numbers) + 1)), "no hole, nothing twice, in order"
        if not is_cut_off(reader):
            assert len(numbers) == len(originals)
        for event in delivered:
            parts = [originals[number - 1] for number in covered(event)]
            assert {type(part) for part in parts} == {type(event)}
            if isinstance(event, DELTAS):
                assert {(part.block, part.turn_id) for part in parts} == {(event.block, event.turn_id)}  # type: ignore[attr-defined]
                assert event.text == "".join(part.text for part in parts)  # type: ignore[attr-defined]
                assert (event.first_seq is None) == (len(parts) == 1)
            else:
                assert len(parts) == 1
    assert reader.statistics().joined == sum(len(covered(event)) - 1 for event in got)
    assert reader.statistics().delivered == len(got)
    assert reader.statistics().dropped == 0
    note_example("cut off" if is_cut_off(reader) else "joined" if reader.statistics().joined else "never full")


def fewest(events: Sequence[Event]) -> int:
    """How many events these can be joined to."""
    kept = dict[str, Event]()
    count = 0
    for event in events:
        before = kept.get(event.session_id)
        joined = None if before is None else before.joined(event)
        count += joined is None
        kept[event.session_id] = event if joined is None else joined
    return count


@given(programs, st.integers(1, 6))
def test_coalesce_cuts_a_reader_off_exactly_when_joining_all_that_can_be_joined_makes_no_room(program: Any, buffer: Any) -> None:
    channel, published = make_channel(), list[Event]()
    unread = list[Event]()
    reader = channel.subscribe(buffer=buffer)
    drive(reader.__aenter__())
    for step in program:
        if isinstance(step, Read):
            taken = reader.take()
            if taken is not None:
                unread = [event for event in unread if event.session_id != taken.session_id or event.seq not in covered(taken)]
        else:
            run_step(channel, step, published)
            unread.append(published[-1])
            assert is_cut_off(reader) == (fewest(unread) > buffer)
            if is_cut_off(reader):
                note_example("cut off")
                assert len(list(iter(reader.take, None))) <= buffer
                ends_with_slow_reader(reader)
                return


@given(programs)
def test_before_the_buffer_is_full_nothing_is_joined(program: Any) -> None:
    _, read, left, reader = play(program, "coalesce", 1000)

    assert all(len(covered(event)) == 1 for event in [*read, *left])
    assert reader.statistics().joined == 0


def test_a_reader_of_text_alone_gets_one_growing_delta() -> None:
    channel, published = make_channel(), list[Event]()
    reader = channel.subscribe(buffer=1)
    drive(reader.__aenter__())
    for _ in range(1000):
        run_step(channel, Publish("a", 0), published)

    (event,) = [reader.take()]
    assert isinstance(event, TextDelta)
    assert (event.first_seq, event.seq) == (1, 1000)
    assert event.text == "".join(original.text for original in published if isinstance(original, TextDelta))
    assert reader.take() is None


def test_deltas_on_both_sides_of_something_unseen_do_not_join() -> None:
    """Text and reasoning take turns: a reader of text alone must not think that its pieces were adjacent."""
    program = [Publish("a", 0, kind) for kind in (TextDelta, ReasoningDelta) * 3]

    _, _, left, reader = play(program, "coalesce", 2, {TextDelta})

    assert is_cut_off(reader)
    assert [covered(event) for event in left] == [range(1, 2), range(3, 4)]


def test_raw_chunks_make_room_for_what_has_a_number() -> None:
    """They say nothing that the numbered events do not say too, so a reader that is slow does without them."""
    channel, published = make_channel(), list[Event]()
    reader = channel.subscribe({ModelChunk, TextDelta, MessageAdded}, buffer=3)
    drive(reader.__aenter__())
    publisher = channel.publisher("a")
    for _ in range(10):
        publisher.publish(ModelChunk, "turn", None, {})
        run_step(channel, Publish("a", 0), published)
    run_step(channel, Publish("a"), published)
    publisher.publish(ModelChunk, "turn", None, {})

    left = list(iter(reader.take, None))
    assert [number for event in left if event.numbered for number in covered(event)] == list(range(1, 12))
    assert reader.statistics().dropped == 11 - sum(not event.numbered for event in left)
    assert not is_cut_off(reader)


# drop_oldest.


@given(programs, st.integers(1, 6))
def test_drop_oldest_drops_deltas_only_and_says_where_and_how_many(program: Any, buffer: Any) -> None:
    published, read, left, reader = play(program, "drop_oldest", buffer)
    got = [*read, *left]
    dropped = 0
    for session_id in "ab":
        originals, number = of_session(published, session_id), 0
        for event in of_session(got, session_id):
            if isinstance(event, Gap):
                lost = originals[number : number + event.dropped]
                assert all(isinstance(original, DELTAS) for original in lost)
                assert event.dropped == len(lost) >= 1
                assert event.seq == lost[-1].seq
                number += event.dropped
                dropped += event.dropped
            else:
                number += 1
                assert event == attrs_as_published(originals[number - 1], event)
        if not is_cut_off(reader):
            assert number == len(originals), "a gap or the event itself: nothing is passed over in silence"
    statistics = reader.statistics()
    assert statistics.dropped == dropped
    assert statistics.delivered == sum(not isinstance(event, Gap) for event in got)
    assert statistics.joined == 0
    for one, other in itertools.pairwise(of_session(got, "a")):
        if isinstance(one, Gap) and isinstance(other, Gap):
            note_example("two gaps: the reader was told of one before the other came to be")
    note_example("cut off" if is_cut_off(reader) else "dropped" if dropped else "never full")


def attrs_as_published(original: Event, event: Event) -> Event:
    """The original with the time of the event: the clock went on between them."""
    return type(original)(**{name: getattr(event if name == "at" else original, name) for name in original.__struct_fields__})


@given(programs, st.integers(1, 6))
def test_drop_oldest_cuts_a_reader_off_only_when_its_buffer_is_full_of_what_may_not_be_dropped(program: Any, buffer: Any) -> None:
    published, _, _, reader = play(program, "drop_oldest", buffer)
    messages = [event for event in published if isinstance(event, MessageAdded)]
    if len(messages) <= buffer:
        assert not is_cut_off(reader)
    if is_cut_off(reader):
        ends_with_slow_reader(reader)


def test_a_gap_stands_where_the_events_are_missing() -> None:
    program = [Publish("a", None), Publish("a", 0), Publish("a", None), Publish("a", 0), Publish("a", 0)]

    _, _, left, _ = play(program, "drop_oldest", 3)

    assert [(type(event), event.seq) for event in left] == [(MessageAdded, 1), (Gap, 2), (MessageAdded, 3), (Gap, 4), (TextDelta, 5)]


@pytest.mark.parametrize("sessions", [1, 500])
def test_a_reader_that_never_reads_keeps_its_buffer_and_one_gap_a_session(sessions: Any) -> None:
    channel, published = make_channel(), list[Event]()
    reader = channel.subscribe(buffer=4, overflow="drop_oldest")
    drive(reader.__aenter__())
    for _ in range(5):
        for number in range(sessions):
            run_step(channel, Publish(f"s{number}", 0), published)

    left = list(iter(reader.take, None))
    gaps = [event for event in left if isinstance(event, Gap)]
    assert len(left) - len(gaps) == 4
    assert len(gaps) <= sessions
    assert sum(gap.dropped for gap in gaps) == len(published) - 4


def test_gaps_side_by_side_are_one() -> None:
    program = [Publish("a"), Publish("b", 0), *[Publish("a", 0), Publish("b", 0)] * 500]

    _, _, left, _ = play(program, "drop_oldest", 4)

    assert [(event.session_id, event.dropped) for event in left if isinstance(event, Gap)] == [("b", 499), ("a", 499)]
    assert [type(event) for event in left if not isinstance(event, Gap)] == [MessageAdded, TextDelta, TextDelta, TextDelta]


# disconnect.


@given(programs, st.integers(1, 6))
def test_disconnect_gives_everything_up_to_where_the_buffer_was_full_and_then_says_so(program: Any, buffer: Any) -> None:
    published, read, left, reader = play(program, "disconnect", buffer)
    got = [*read, *left]

    assert [(event.session_id, event.seq) for event in got] == [(event.session_id, event.seq) for event in published[: len(got)]]
    if is_cut_off(reader):
        assert len(got) < len(published)
        ends_with_slow_reader(reader)
    else:
        assert len(got) == len(published)


async def test_a_reader_that_was_cut_off_costs_nothing_more() -> None:
    channel, published = make_channel(), list[Event]()
    async with channel.subscribe(buffer=1, overflow="disconnect") as reader:
        run_step(channel, Publish("a"), published)
        run_step(channel, Publish("a"), published)
        assert channel.statistics().subscriptions == 0
        assert not channel.publisher("a").wanted(MessageAdded)

        assert (await reader.__anext__()).seq == 1
        with pytest.raises(SlowReader, match="read faster"):
            await reader.__anext__()


# wait.


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("pr"), st.floats(0, 2)), max_size=30), st.random_module())
@in_trio
async def test_wait_holds_the_session_up_and_loses_nothing(buffer: Any, delays: Any, schedule: Any) -> None:
    channel, published, got = make_channel(), list[Event](), list[int]()
    publishing = [delay for who, delay in delays if who == "p"]
    reading = [delay for who, delay in delays if who == "r"]

    async def publish_all() -> None:
        for number, delay in enumerate(publishing, 1):
            await trio.sleep(delay)
            pending = run_step(channel, Publish("a", 0 if number % 2 else None), published)
            if pending is not None:
                await pending
            assert reader.statistics().buffered <= buffer
            assert number - len(got) <= buffer + 1, "one is in the hands of the reader at most"
        reader.close()

    async with channel.subscribe(sessions="a", buffer=buffer, overflow="wait") as reader, trio.open_nursery() as nursery:
        nursery.start_soon(publish_all)
        for delay in itertools.chain(reading, itertools.repeat(0.0)):
            try:
                got.append((await reader.__anext__()).seq)
            except StopAsyncIteration:
                break
            await trio.sleep(delay)

    assert got == list(range(1, len(publishing) + 1))


async def test_a_session_that_waits_goes_on_when_its_reader_leaves(autojump_clock: trio.testing.MockClock) -> None:
    channel, published = make_channel(), list[Event]()

    async def fill() -> None:
        for _ in range(3):
            pending = run_step(channel, Publish("a"), published)
            if pending is not None:
                await pending

    async with trio.open_nursery() as nursery, channel.subscribe(sessions="a", buffer=1, overflow="wait"):
        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked()
        assert len(published) == 2

    assert len(published) == 3


async def test_a_cancelled_session_hands_over_what_it_was_holding(autojump_clock: trio.testing.MockClock) -> None:
    """At whatever step: the buffer stretches by the one event rather than lose it."""
    number = 0
    while True:
        number += 1
        channel, published = make_channel(), list[Event]()
        async with channel.subscribe(sessions="a", buffer=2, overflow="wait") as reader:
            with cancelled_at_step(number) as scope, trio.move_on_after(5) as giving_up:
                for _ in range(2):
                    run_step(channel, Publish("a"), published)
                await run_step(channel, Publish("a"), published)
            assert [event.seq for event in iter(reader.take, None)] == [1, 2, 3]
        if giving_up.cancelled_caught and not scope.cancelled_caught:
            break


# The reader's side.


@pytest.mark.anyio
async def test_a_reader_waits_for_what_is_to_come_and_stops_at_the_end() -> None:
    channel, published, got = make_channel(), list[Event](), list[int]()

    async def read() -> None:
        async for event in reader:
            got.append(event.seq)

    async with channel.subscribe() as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        for _ in range(3):
            await anyio.wait_all_tasks_blocked()
            run_step(channel, Publish("a"), published)
        await anyio.wait_all_tasks_blocked()
        reader.close()

    assert got == [1, 2, 3]


@pytest.mark.anyio
async def test_several_may_read_one_subscription_and_nobody_gets_what_another_got() -> None:
    channel, published, got = make_channel(), list[Event](), list[int]()

    async def read() -> None:
        async for event in reader:
            got.append(event.seq)
            await anyio.lowlevel.checkpoint()

    async with channel.subscribe() as reader, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        for _ in range(10):
            run_step(channel, Publish("a"), published)
        await anyio.wait_all_tasks_blocked()
        reader.close()

    assert sorted(got) == list(range(1, 11))


async def test_a_reader_may_be_cancelled_at_every_step_and_go_on_reading(autojump_clock: trio.testing.MockClock) -> None:
    number = 0
    while True:
        number += 1
        channel, published, got = make_channel(), list[Event](), list[int]()

        async def publish_slowly(channel: Channel = channel, published: list[Event] = published) -> None:
            for _ in range(5):
                run_step(channel, Publish("a"), published)
                await trio.sleep(1)

        async with channel.subscribe() as reader, trio.open_nursery() as nursery:
            nursery.start_soon(publish_slowly)
            with cancelled_at_step(number) as scope:
                while len(got) < 5:
                    got.append((await reader.__anext__()).seq)
            while len(got) < 5:
                got.append((await reader.__anext__()).seq)
        assert got == [1, 2, 3, 4, 5]
        if not scope.cancelled_caught:
            break

    assert number > 4


@given(programs, st.sampled_from(["coalesce", "drop_oldest", "disconnect"]), st.integers(1, 6), st.integers(0, 60), st.integers(0, 60))
def test_a_reader_that_comes_and_goes_gets_what_is_published_between(program: Any, policy: Any, buffer: Any, comes: Any, goes: Any) -> None:
    channel, published, whole = make_channel(), list[Event](), list[tuple[str, int]]()
    channel.add_handler(lambda event: whole.append((event.session_id, event.seq)))
    reader = channel.subscribe(buffer=1000, overflow=policy)
    between = list[tuple[str, int]]()
    for place, step in enumerate(program):
        if place == comes:
            drive(reader.__aenter__())
        if place == goes and comes <= goes:
            reader.close()
        if isinstance(step, Publish):
            run_step(channel, step, published)
            if comes <= place < goes or goes < comes <= place:
                between.append((published[-1].session_id, published[-1].seq))

    assert [(event.session_id, event.seq) for event in iter(reader.take, None)] == between
    assert whole == [(event.session_id, event.seq) for event in published]


# Late readers.


class Late:
    """A channel with one session in it, which can be asked for a snapshot."""

    def __init__(self, replay: int) -> None:
        self.channel = Channel(Clock(1), replay, self.resident)
        self.publisher = self.channel.publisher("a")
        self.published: list[Event] = []

    async def resident(self, session_id: str) -> tuple[Publisher, Callable[[], Event]]:
        await anyio.lowlevel.checkpoint()
        return self.publisher, lambda: self.publisher.as_of_now(Snapshot, None, None, (), "", "idle")


late_policies = st.sampled_from(["coalesce", "drop_oldest", "disconnect", "wait"])


@given(st.integers(0, 12), st.integers(0, 15), st.integers(0, 15), st.integers(0, 5), late_policies, st.random_module())
@in_trio
async def test_a_late_reader_within_the_ring_gets_exactly_the_tail_and_one_beyond_it_a_snapshot(
    replay: int, before: int, cursor: int, after: int, policy: Any, schedule: Any
) -> None:
    late = Late(replay)
    late.publisher.begin_epoch(2)
    for _ in range(before):
        run_step(late.channel, Publish("a"), late.published)
    got, begins_with_snapshot = list[int](), False
    async with late.channel.subscribe(sessions="a", buffer=max(1, after), overflow=policy, after=f"2:{cursor}") as reader:
        for _ in range(after):
            assert run_step(late.channel, Publish("a"), late.published) is None
        for number, event in enumerate(iter(reader.take, None)):
            if isinstance(event, Snapshot):
                assert number == 0
                assert event.seq == before
                begins_with_snapshot = True
            else:
                got.append(event.seq)

    within = cursor <= before and before - cursor <= replay
    assert begins_with_snapshot != within
    assert got == list(range((cursor if within else before) + 1, before + after + 1))


@pytest.mark.parametrize("cursor", ["1:5", "0:0", "3:1", "2:6"])
async def test_a_cursor_of_another_time_begins_with_a_snapshot(cursor: Any) -> None:
    late = Late(100)
    late.publisher.begin_epoch(2)
    for _ in range(5):
        run_step(late.channel, Publish("a"), late.published)

    async with late.channel.subscribe(sessions="a", after=cursor) as reader:
        snapshot = await reader.__anext__()
        assert isinstance(snapshot, Snapshot)
        assert snapshot.cursor == "2:5"
        assert reader.take() is None


async def test_a_late_reader_gets_the_kinds_it_asked_for() -> None:
    late = Late(100)
    late.publisher.begin_epoch(1)
    for block in (0, None, 0):
        run_step(late.channel, Publish("a", block), late.published)

    async with late.channel.subscribe({MessageAdded}, sessions="a", after="1:0") as reader:
        assert [event.seq for event in iter(reader.take, None)] == [2]


async def test_a_late_reader_whose_session_cannot_be_had_is_told_why() -> None:
    channel = make_channel(replay=3)
    reader = channel.subscribe(sessions="a", after="1:1")

    with pytest.raises(LookupError):
        await reader.__aenter__()
    assert channel.statistics().subscriptions == 0


async def test_what_a_late_reader_begins_with_does_not_count_against_its_buffer() -> None:
    late = Late(100)
    late.publisher.begin_epoch(1)
    for _ in range(50):
        run_step(late.channel, Publish("a"), late.published)

    async with late.channel.subscribe(sessions="a", after="1:0", buffer=2, overflow="disconnect") as reader:
        for _ in range(2):
            run_step(late.channel, Publish("a"), late.published)
        assert reader.statistics().buffered == 52
        assert [event.seq for event in iter(reader.take, None)] == list(range(1, 53))
        assert reader.statistics().delivered == 52


@pytest.mark.parametrize("buffer", [0, -1, math.inf, "256"])
def test_a_buffer_is_a_whole_number_of_events(buffer: Any) -> None:
    with pytest.raises(InvalidOption, match="a whole number of events"):
        make_channel().subscribe(buffer=buffer)

"""Publishing: handlers in line, numbers without gaps, nothing built for nobody, and the right listeners for each session."""

from __future__ import annotations

import fnmatch
import functools
import json
import math
import re
from collections.abc import Awaitable, Callable, Generator
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.actors.events import MessageAdded, ModelChunk, TextDelta
from ropewalk.actors.testing.loop import cancelled_at_step, in_trio
from ropewalk.runtime.channel import Channel, ChannelStatistics
from ropewalk.runtime.clock import Clock
from ropewalk.runtime.errors import InvalidHandler, InvalidOption, RuntimeClosed
from ropewalk.runtime.event import Event, HandlerFailed
from ropewalk.runtime.handler import HandlerFault
from ropewalk.runtime.publisher import Publisher


class Note(Event, frozen=True, gc=False):
    """Counts how many of it are ever made."""

    text: str

    made: ClassVar[list[str]] = []

    def __post_init__(self) -> None:
        self.made.append(self.text)


class Part(Note, frozen=True, gc=False):
    """One of many in a turn, as the deltas of an answer are."""

    place: int


class Raw(Event, frozen=True, gc=False):
    """Unnumbered, as the chunks of a model are."""

    text: str

    numbered: ClassVar[bool] = False
    droppable: ClassVar[bool] = True
    made: ClassVar[list[str]] = []

    def __post_init__(self) -> None:
        self.made.append(self.text)


@pytest.fixture(autouse=True)
def nothing_made_yet() -> None:
    Note.made.clear()
    Raw.made.clear()


async def nobody(session_id: str) -> Any:
    raise LookupError(session_id)


def make_channel(replay: int = 0, clock: Clock | None = None) -> Channel:
    return Channel(clock or Clock(1), replay, nobody)


async def publish(publisher: Publisher, kind: type[Event], *fields: Any, state: dict[str, Any] | None = None) -> None:
    pending = publisher.publish(kind, None, state, *fields)
    if pending is not None:
        await pending


# Handlers.


class Recorder:
    """Notes down the events it is called with, under its name."""

    def __init__(self, log: list[tuple[str, str]], name: str = "") -> None:
        self.log = log
        self.name = name

    def note(self, event: Note) -> None:
        self.log.append((self.name, event.text))

    async def note_later(self, event: Note) -> None:
        await anyio.lowlevel.checkpoint()
        self.note(event)


class AsyncCall(Recorder):
    async def __call__(self, event: Note) -> None:
        await self.note_later(event)


class PlainCall(Recorder):
    def __call__(self, event: Note) -> None:
        self.note(event)


class Promise:
    """An awaitable that is not a coroutine."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self.work = work

    def __await__(self) -> Generator[Any, Any, None]:
        return self.work().__await__()


class Promising(Recorder):
    def __call__(self, event: Note) -> Promise:
        return Promise(functools.partial(self.note_later, event))


def as_function(recorder: Recorder) -> Callable[[Note], Any]:
    def handle(event: Note) -> None:
        recorder.note(event)

    return handle


def as_async_function(recorder: Recorder) -> Callable[[Note], Any]:
    async def handle(event: Note) -> None:
        await recorder.note_later(event)

    return handle


KINDS_OF_CALLABLES: list[Callable[[Recorder], Callable[[Note], Any]]] = [
    as_function,
    as_async_function,
    lambda recorder: recorder.note,
    lambda recorder: recorder.note_later,
    lambda recorder: lambda event: recorder.note(event),
    lambda recorder: lambda event: recorder.note_later(event),
    lambda recorder: functools.partial(recorder.note_later),
    lambda recorder: AsyncCall(recorder.log, recorder.name),
    lambda recorder: PlainCall(recorder.log, recorder.name),
    lambda recorder: Promising(recorder.log, recorder.name),
]


@pytest.mark.anyio
@pytest.mark.parametrize("make", KINDS_OF_CALLABLES)
async def test_whatever_a_callable_returns_is_awaited_if_it_can_be(make: Any) -> None:
    channel, log = make_channel(), list[tuple[str, str]]()
    channel.add_handler(make(Recorder(log, "it")), {Note})

    await publish(channel.publisher("a"), Note, "hello")

    assert log == [("it", "hello")]


@given(st.lists(st.sampled_from(KINDS_OF_CALLABLES), max_size=8), st.integers(0, 5), st.random_module())
@in_trio
async def test_handlers_are_called_one_after_the_other_in_the_order_they_were_added(makes: Any, events: Any, schedule: Any) -> None:
    channel, log = make_channel(), list[tuple[str, str]]()
    for place, make in enumerate(makes):
        channel.add_handler(make(Recorder(log, str(place))), {Note})

    for number in range(events):
        await publish(channel.publisher("a"), Note, str(number))

    assert log == [(str(place), str(number)) for number in range(events) for place in range(len(makes))]


@pytest.mark.anyio
async def test_a_lane_hands_out_as_publish_does() -> None:
    """To handlers that wait and fail, to a turn's own streams, and into the ring."""
    seen = dict[bool, list[dict[str, Any]]]()
    for in_lane in (False, True):
        clock = HandClock()
        clock.time = lambda: 1.0
        channel, log = make_channel(replay=10, clock=clock), list[tuple[str, str]]()
        for make in KINDS_OF_CALLABLES:
            channel.add_handler(make(Recorder(log, "it")), {Part})
        channel.add_handler(fail_always, {Part})
        publisher, stream = channel.publisher("a"), channel.subscribe()
        lane = publisher.lane(Part, "turn", {"a": 1})
        publisher.streams = (stream,)
        with structlog.testing.capture_logs():
            for text in "xyz":
                pending = lane(text, 0) if in_lane else publisher.publish(Part, "turn", {"a": 1}, text, 0)
                assert pending is not None
                await pending
        assert log == [("it", text) for text in "xyz" for _ in KINDS_OF_CALLABLES]
        assert publisher.ring is not None
        assert list(iter(stream.take, None)) == list(publisher.ring)
        seen[in_lane] = [event.to_dict() for event in publisher.ring]

    assert seen[True] == seen[False]
    assert [event["type"] for event in seen[True]] == ["Part", "HandlerFailed"] * 3


def fail_always(event: Event) -> None:
    raise ValueError


@pytest.mark.anyio
async def test_what_one_handler_writes_into_the_request_state_the_next_one_sees() -> None:
    channel, seen = make_channel(), list[int]()

    def count(event: Event) -> None:
        assert event.request_state is not None
        seen.append(event.request_state["count"])
        event.request_state["count"] += 1

    async def count_later(event: Event) -> None:
        await anyio.lowlevel.checkpoint()
        count(event)

    for handler in (count, count_later, count, count_later):
        channel.add_handler(handler)
    state = {"count": 0}

    await publish(channel.publisher("a"), Note, "x", state=state)
    await publish(channel.publisher("a"), Note, "y", state=state)

    assert seen == list(range(8))
    assert state == {"count": 8}


async def test_a_handler_that_takes_too_long_is_reported_and_left(autojump_clock: trio.testing.MockClock) -> None:
    channel, log = make_channel(), list[Event]()

    async def hang(event: Event) -> None:
        await trio.sleep_forever()

    channel.add_handler(hang, {Note}, timeout=7)
    channel.add_handler(log.append)

    await publish(channel.publisher("a"), Note, "x")

    assert trio.current_time() == pytest.approx(7)
    note, failed = log
    assert isinstance(note, Note)
    assert isinstance(failed, HandlerFailed)
    assert (failed.error, failed.kind) == ("TimeoutError", "Note")
    assert "hang" in failed.handler


async def test_a_handler_may_be_given_all_the_time_there_is(autojump_clock: trio.testing.MockClock) -> None:
    channel, log = make_channel(), list[tuple[str, str]]()

    async def slow(event: Note) -> None:
        await trio.sleep(86_400)
        Recorder(log).note(event)

    channel.add_handler(slow, timeout=None)

    await publish(channel.publisher("a"), Note, "x")

    assert log == [("", "x")]


@pytest.mark.anyio
async def test_a_failure_is_published_by_its_type_never_its_text_and_logged_with_all_there_is_to_say() -> None:
    channel, log = make_channel(), list[Event]()

    def leak(event: Event) -> None:
        raise ValueError("the password is hunter2")

    channel.add_handler(leak, {Note})
    channel.add_handler(log.append)
    with structlog.testing.capture_logs() as logs:
        await publish(channel.publisher("a"), Note, "x", state={"mine": 1})

    failed = log[1]
    assert isinstance(failed, HandlerFailed)
    assert (failed.seq, failed.error, failed.kind, failed.request_state) == (2, "ValueError", "Note", {"mine": 1})
    assert "hunter2" not in json.dumps(failed.to_dict())
    [entry] = logs
    assert (entry["event"], entry["event_kind"], entry["session_id"]) == ("handler_failed", "Note", "a")
    assert entry["error"] == "ValueError: the password is hunter2"
    assert re.search(r'File ".*test_channel.py", line \d+, in leak\n', entry["stack"])


@pytest.mark.anyio
async def test_a_handler_that_goes_on_failing_is_logged_ever_more_rarely_and_summed_up_at_its_end() -> None:
    channel = make_channel()

    def fail(event: Event) -> None:
        raise ValueError(f"failure on event {event.seq}")

    removed, left = channel.add_handler(fail, {Note}), channel.add_handler(fail, {Part})
    publisher = channel.publisher("a")
    with structlog.testing.capture_logs() as logs:
        for number in range(1234):
            await publish(publisher, Note, str(number))
        removed.remove()
        removed.remove()
        await publish(publisher, Part, "x", 0)
        await publish(publisher, Part, "x", 0)
        channel.close()
        left.remove()

    assert [(entry["event"], entry.get("failures")) for entry in logs] == [
        ("handler_failed", None),
        ("handler_failed_again", 10),
        ("handler_failed_again", 100),
        ("handler_failed_again", 1000),
        ("handler_failed_in_all", 1234),
        ("handler_failed", None),
        ("handler_failed_in_all", 2),
    ]
    assert [entry.get("error") for entry in logs[1:3]] == ["ValueError: failure on event 19", "ValueError: failure on event 199"]
    assert "stack" not in logs[1]


@pytest.mark.anyio
async def test_a_handler_is_not_told_of_its_own_failures_and_the_others_are() -> None:
    channel, told, log = make_channel(replay=10), list[Event](), list[Event]()

    def fail(event: Event) -> None:
        told.append(event)
        raise ValueError

    channel.add_handler(fail)
    channel.add_handler(log.append)
    publisher = channel.publisher("a")
    async with channel.subscribe() as reader:
        with structlog.testing.capture_logs() as logs:
            await publish(publisher, Note, "x")
        read = [reader.take(), reader.take(), reader.take()]

    assert [type(event) for event in told] == [Note]
    assert [type(event) for event in log] == [Note, HandlerFailed]
    assert read == [*log, None]
    assert list(publisher.ring or ()) == log
    assert len(logs) == 1


@pytest.mark.anyio
async def test_a_handler_may_be_added_to_fail_the_turn_but_only_after_everybody_had_the_event() -> None:
    channel, log = make_channel(), list[Event]()

    async def fail(event: Event) -> None:
        raise LookupError("no")

    channel.add_handler(fail, {Note}, on_error="fail_turn")
    channel.add_handler(log.append)

    with structlog.testing.capture_logs(), pytest.raises(HandlerFault, match="a handler failed on Note") as caught:
        await publish(channel.publisher("a"), Note, "x")

    assert isinstance(caught.value.__cause__, LookupError)
    assert [type(event) for event in log] == [Note, HandlerFailed]


@pytest.mark.anyio
@pytest.mark.parametrize("on_error", ["report", "fail_turn"])
async def test_a_handler_of_failures_that_fails_is_not_told_of_itself_for_ever(on_error: Any) -> None:
    channel, told, log = make_channel(), list[Event](), list[Event]()

    def fail(event: Event) -> None:
        told.append(event)
        raise ValueError

    channel.add_handler(fail, {HandlerFailed}, on_error=on_error)
    channel.add_handler(fail, {Note})
    channel.add_handler(log.append)
    publisher = channel.publisher("a")

    with structlog.testing.capture_logs():
        if on_error == "report":
            await publish(publisher, Note, "x")
        else:
            with pytest.raises(HandlerFault):
                await publish(publisher, Note, "x")

    assert [type(event) for event in told] == [Note, HandlerFailed]
    assert [type(event) for event in log] == [Note, HandlerFailed]
    assert publisher.seq == 2


class Behaviour:
    """A handler that does as it is told: nothing, raise, wait, wait and raise, hang."""

    def __init__(self, what: str, number: int) -> None:
        self.__qualname__ = f"handler {number}"
        self.what = what
        self.seen: list[int] = []

    def __call__(self, event: Event) -> Awaitable[None] | None:
        self.seen.append(event.seq)
        if self.what == "raise":
            raise ValueError
        return None if self.what == "nothing" else self.later()

    async def later(self) -> None:
        await trio.sleep(math.inf if self.what == "hang" else 0.5)
        if self.what == "wait and raise":
            raise ValueError


@given(st.lists(st.sampled_from(["nothing", "raise", "wait", "wait and raise", "hang", "reader"]), max_size=6), st.integers(1, 3), st.random_module())
@in_trio
async def test_whatever_the_others_do_everybody_gets_every_event_once_and_in_order(listeners: Any, events: Any, schedule: Any) -> None:
    channel = make_channel()
    behaviours = list[Behaviour]()
    publisher = channel.publisher("a")
    async with channel.subscribe(buffer=1000) as last:
        readers = [last]
        for what in listeners:
            if what == "reader":
                reader = channel.subscribe(buffer=1000)
                await reader.__aenter__()
                readers.append(reader)
            else:
                behaviours.append(Behaviour(what, len(behaviours)))
                channel.add_handler(behaviours[-1])
        with structlog.testing.capture_logs():
            for number in range(events):
                await publish(publisher, Note, str(number))
        everything = list(range(1, publisher.seq + 1))
        failures = dict[int, str]()
        for reader in readers:
            got = []
            while (event := reader.take()) is not None:
                got.append(event.seq)
                if isinstance(event, HandlerFailed):
                    failures[event.seq] = event.handler
            assert got == everything
            reader.close()
    for behaviour in behaviours:
        assert behaviour.seen == [seq for seq in everything if failures.get(seq) != behaviour.__qualname__]


class HandClock(Clock):
    """A clock whose stopwatch shows what it was set to."""

    def __init__(self) -> None:
        super().__init__(1)
        self.stopwatch = lambda: self.shown
        self.shown = 0.0


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["plain", "first step", "later step"])
async def test_a_handler_that_blocks_the_loop_is_named_in_a_warning(where: Any) -> None:
    clock = HandClock()
    channel = make_channel(clock=clock)

    def plain(event: Event) -> None:
        clock.shown += 0.25

    async def later(event: Event) -> None:
        if where == "later step":
            await anyio.lowlevel.checkpoint()
        clock.shown += 0.25

    channel.add_handler(plain if where == "plain" else later)
    with structlog.testing.capture_logs() as logs:
        await publish(channel.publisher("a"), Note, "x")

    (warning,) = logs
    assert warning["event"] == "handler_blocked_the_loop"
    assert warning["log_level"] == "warning"
    assert ("plain" if where == "plain" else "later") in warning["handler"]
    assert (warning["session_id"], warning["seconds"]) == ("a", 0.25)


async def test_a_handler_that_only_waits_blocks_nothing(autojump_clock: trio.testing.MockClock) -> None:
    clock = HandClock()
    channel = make_channel(clock=clock)

    async def wait(event: Event) -> None:
        clock.shown += 0.09
        await trio.sleep(3)
        clock.shown += 0.09

    channel.add_handler(wait)
    with structlog.testing.capture_logs() as logs:
        await publish(channel.publisher("a"), Note, "x")

    assert logs == []


# Numbers, and what is built.


@given(st.lists(st.sampled_from(["listen", "leave", "publish", "publish in lane", "publish raw"]), max_size=30))
@in_trio
async def test_numbers_have_no_gap_whether_or_not_anybody_listens_and_nothing_is_built_for_nobody(steps: Any) -> None:
    channel, seen, handler = make_channel(), list[Event](), None
    publisher = channel.publisher("a")
    Note.made.clear()
    Raw.made.clear()
    number, expected = 0, list[int]()
    lane = publisher.lane(Part, None, None)
    for step in steps:
        if step == "listen" and handler is None:
            handler = channel.add_handler(seen.append)
        elif step == "leave" and handler is not None:
            handler.remove()
            handler = None
        elif step == "publish":
            number += 1
            await publish(publisher, Note, str(number))
            if handler is not None:
                expected.append(number)
        elif step == "publish in lane":
            number += 1
            assert lane(str(number), 0) is None
            if handler is not None:
                expected.append(number)
        elif step == "publish raw":
            await publish(publisher, Raw, "raw")

    assert publisher.seq == number
    assert [event.seq for event in seen] == expected
    assert Note.made == [str(number) for number in expected]
    assert Raw.made == []


async def test_a_kind_nobody_named_is_not_built() -> None:
    channel = make_channel()
    channel.add_handler(lambda event: None, {TextDelta})
    publisher = channel.publisher("a")
    publisher.streams = (channel.subscribe({TextDelta}),)

    await publish(publisher, Note, "x")

    assert Note.made == []
    assert publisher.seq == 1
    assert not publisher.wanted(Note)
    assert publisher.wanted(TextDelta)


async def test_raw_events_are_for_those_who_name_them_and_take_no_number() -> None:
    channel = make_channel(replay=10)
    everything, raw = list[Event](), list[Event]()
    publisher = channel.publisher("a")
    channel.add_handler(everything.append)
    await publish(publisher, Raw, "before")
    assert not publisher.wanted(Raw)
    channel.add_handler(raw.append, {Raw})
    assert publisher.wanted(Raw)

    await publish(publisher, Note, "one")
    await publish(publisher, Raw, "two")
    await publish(publisher, Note, "three")

    assert Raw.made == ["two"]
    assert [event.seq for event in raw] == [1]
    assert [event.seq for event in everything] == [1, 2]


async def test_a_ring_wants_every_numbered_event() -> None:
    publisher = make_channel(replay=2).publisher("a")

    assert publisher.wanted(Note)
    assert not publisher.wanted(Raw)
    await publish(publisher, Note, "one")

    assert Note.made == ["one"]


async def test_an_event_says_where_and_when_and_can_be_json() -> None:
    clock = HandClock()
    clock.time = lambda: 12.5
    channel, seen = make_channel(clock=clock), list[Event]()
    channel.add_handler(seen.append, {MessageAdded, ModelChunk})
    publisher = channel.publisher("a")
    publisher.begin_epoch(3)

    await publish(publisher, MessageAdded, "e1", {"role": "user", "content": [{"image": {"source": {"bytes": b"xyz"}}}]}, None)

    assert seen[0].cursor == "3:1"
    assert json.loads(json.dumps(seen[0].to_dict())) == {
        "type": "MessageAdded",
        "session_id": "a",
        "epoch": 3,
        "seq": 1,
        "at": 12.5,
        "turn_id": None,
        "request_state": None,
        "entry_id": "e1",
        "message": {"role": "user", "content": [{"image": {"source": {"bytes": "eHl6"}}}]},
        "replaces": None,
    }


async def test_what_holds_itself_or_lies_too_deep_is_named_where_the_event_as_json_would_go_on_for_ever() -> None:
    channel, seen = make_channel(), list[Event]()
    channel.add_handler(seen.append)
    state: dict[str, Any] = {"fine": [1, b"xyz"], "twice": [], "object": object()}
    state["again"] = [state, state["twice"]]
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    state["deep"] = deep

    await publish(channel.publisher("a"), Note, "x", state=state)

    shown = json.loads(json.dumps(seen[0].to_dict()))
    assert (shown["type"], shown["text"]) == ("Note", "x")
    levels, inner = 0, shown["request_state"].pop("deep")
    while isinstance(inner, list):
        levels, inner = levels + 1, inner[0]
    assert (levels, inner) == (99, "<<non-serializable: list>>")
    assert shown["request_state"] == {
        "fine": [1, "eHl6"],
        "twice": [],
        "object": "<<non-serializable: object>>",
        "again": ["<<non-serializable: dict>>", []],
    }


async def test_a_new_epoch_counts_anew() -> None:
    channel, seen = make_channel(), list[Event]()
    channel.add_handler(seen.append)
    publisher = channel.publisher("a")
    for epoch in (1, 2):
        publisher.begin_epoch(epoch)
        for _ in range(2):
            await publish(publisher, Note, "x")

    assert [event.cursor for event in seen] == ["1:1", "1:2", "2:1", "2:2"]


# Who gets what.

IDS = ["user-1", "user-2", "user-22", "bot.1", "bot:1", "x"]
NOTED: list[type[Event]] = [Note, Part, Raw]
PLACES = ["*", "user-*", "user-?", "*1", "bot?1", "?", "nobody", *IDS]


@given(st.data())
def test_each_event_goes_to_those_whose_pattern_or_id_and_kinds_match_in_the_order_they_came(data: st.DataObject) -> None:
    channel = make_channel()
    listeners: list[tuple[str, Any, Any]] = []
    got: list[int] = []
    lanes: dict[str, tuple[Publisher, Callable[..., Any]]] = {}
    for _ in range(data.draw(st.integers(0, 25))):
        step = data.draw(st.sampled_from(["add", "remove", "publish", "publish", "forget"]))
        if step == "add":
            place = data.draw(st.sampled_from(PLACES))
            kinds = data.draw(st.none() | st.sets(st.sampled_from(NOTED), min_size=1, max_size=2))
            name = len(listeners)
            listeners.append((place, kinds, channel.add_handler(functools.partial(lambda name, event: got.append(name), name), kinds, place)))
        elif step == "remove" and listeners:
            name = data.draw(st.integers(0, len(listeners) - 1))
            listeners[name][2].remove()
            listeners[name] = ("", None, listeners[name][2])
        elif step == "publish":
            session_id, kind = data.draw(st.sampled_from(IDS)), data.draw(st.sampled_from(NOTED))
            got.clear()
            publisher = channel.publisher(session_id)
            fields = ("x", 0) if kind is Part else ("x",)
            if kind is Part and data.draw(st.booleans()):
                lane = lanes.setdefault(session_id, (publisher, publisher.lane(Part, None, None)))
                assert (lane[1](*fields) if lane[0] is publisher else publisher.publish(kind, None, None, *fields)) is None
            else:
                assert publisher.publish(kind, None, None, *fields) is None
            assert got == [
                name
                for name, (place, kinds, _) in enumerate(listeners)
                if (fnmatch.fnmatchcase(session_id, place) if set(place) & set("*?") else session_id == place)
                and (kind.numbered if kinds is None else kind in kinds)
            ]
        elif step == "forget":
            channel.forget(data.draw(st.sampled_from(IDS)))


def test_sessions_may_be_chosen_by_a_function() -> None:
    channel, seen = make_channel(), list[str]()
    channel.add_handler(lambda event: seen.append(event.session_id), sessions=lambda session_id: len(session_id) == 1)
    for session_id in IDS:
        channel.publisher(session_id).publish(Note, None, None, "x")

    assert seen == ["x"]


def test_thousands_of_listeners_to_one_session_each_cost_the_others_nothing() -> None:
    channel, seen = make_channel(), list[str]()
    for number in range(3000):
        channel.add_handler(lambda event: seen.append(event.session_id), sessions=f"s{number}")
    for number in range(3000):
        channel.publisher(f"s{number}").publish(Note, None, None, "x")

    assert seen == [f"s{number}" for number in range(3000)]
    assert channel.statistics() == ChannelStatistics(handlers=3000, subscriptions=0)


@pytest.mark.anyio
async def test_a_listener_that_was_removed_on_the_way_does_not_get_the_event() -> None:
    channel, seen = make_channel(), list[str]()

    async def remove_others(event: Event) -> None:
        await anyio.lowlevel.checkpoint()
        second.remove()
        reader.close()
        channel.add_handler(lambda event: seen.append("new"))

    first = channel.add_handler(remove_others)
    second = channel.add_handler(lambda event: seen.append("second"))
    channel.add_handler(lambda event: seen.append("third"))
    async with channel.subscribe() as reader:
        await publish(channel.publisher("a"), Note, "x")
        assert seen == ["third"]
        assert reader.take() is None

        first.remove()
        second.remove()
        await publish(channel.publisher("a"), Note, "y")

    assert seen == ["third", "third", "new"]


async def test_a_handler_may_remove_itself() -> None:
    channel, seen = make_channel(), list[str]()

    def once(event: Note) -> None:
        seen.append(event.text)
        handler.remove()

    handler = channel.add_handler(once)
    for text in "abc":
        await publish(channel.publisher("a"), Note, text)

    assert seen == ["a"]


# Cancelled while publishing.


async def test_a_cancelled_publisher_still_delivers_to_those_who_come_later(autojump_clock: trio.testing.MockClock) -> None:
    """At whatever step it is cancelled, and whoever it was waiting for: a reader has no hole, and a handler after a hanging one is called."""

    async def hang(event: Event) -> None:
        await trio.sleep(20)

    number = 0
    while True:
        number += 1
        channel, called = make_channel(), list[Event]()
        channel.add_handler(hang, {Note}, timeout=3)
        channel.add_handler(hang, {Note}, timeout=3)
        publisher = channel.publisher("a")
        started = trio.current_time()
        async with channel.subscribe(sessions="a", buffer=1, overflow="wait") as stuck, channel.subscribe() as reader:
            channel.add_handler(called.append)
            publisher.publish(HandlerFailed, None, None, "fills", "the", "buffer")
            with structlog.testing.capture_logs(), cancelled_at_step(number) as scope, trio.move_on_after(30) as giving_up:
                await publish(publisher, Note, "x")
            got = []
            while (event := reader.take()) is not None:
                got.append(event.seq)
            assert got == [event.seq for event in called] == list(range(1, publisher.seq + 1))
            assert [type(event) for event in called][:2] == [HandlerFailed, Note]
            assert stuck.statistics().buffered >= 1
        if not scope.cancelled_caught:
            assert giving_up.cancelled_caught
            break
        # Two handlers overran their timeouts, then the full buffer held it up; everybody who is left shares one moment.
        assert trio.current_time() - started <= 6 + 1 + 1e-6 or giving_up.cancel_called
        assert trio.current_time() - started <= 30 + 1 + 1e-6

    assert number > 3


async def test_a_handler_in_a_nursery_of_its_own_may_be_cancelled_too(autojump_clock: trio.testing.MockClock) -> None:
    """Its cancellation comes in a group, and must be recognised all the same."""
    channel = make_channel()

    async def two_at_once(event: Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)

    channel.add_handler(two_at_once, timeout=None)
    async with channel.subscribe() as reader:
        with trio.move_on_after(1) as scope:
            await publish(channel.publisher("a"), Note, "x")

        assert scope.cancelled_caught
        assert reader.take() is not None


# Bad input, and the end.


def call(channel: Channel, how: str, **arguments: Any) -> None:
    if how == "handler":
        channel.add_handler(arguments.pop("callback", print), **arguments)
    else:
        channel.subscribe(**arguments)


@pytest.mark.parametrize(
    ("how", "arguments", "error", "text"),
    [
        ("handler", {"callback": 3}, InvalidHandler, "3 is not callable"),
        ("handler", {"callback": None}, InvalidHandler, "not callable"),
        ("handler", {"on_error": "explode"}, InvalidOption, "'report' or 'fail_turn', not 'explode'"),
        ("handler", {"timeout": 0}, InvalidOption, "above 0"),
        ("handler", {"timeout": -1}, InvalidOption, "above 0"),
        ("handler", {"timeout": "5"}, InvalidOption, "above 0"),
        ("handler", {"kinds": {"Note"}}, InvalidOption, "event types"),
        ("handler", {"kinds": {int}}, InvalidOption, "event types"),
        ("handler", {"sessions": ["a"]}, InvalidOption, "a session id, or a pattern"),
        ("subscribe", {"sessions": None}, InvalidOption, "a session id, or a pattern"),
        ("subscribe", {"kinds": {"Note"}}, InvalidOption, "event types"),
        ("subscribe", {"buffer": 0}, InvalidOption, "at least 1"),
        ("subscribe", {"buffer": 2.5}, InvalidOption, "at least 1"),
        ("subscribe", {"overflow": "block"}, InvalidOption, "wait, coalesce, drop_oldest, disconnect"),
        ("subscribe", {"overflow": "wait"}, ValueError, "names one session"),
        ("subscribe", {"overflow": "wait", "sessions": "user-*"}, ValueError, "names one session"),
        ("subscribe", {"after": "1:1"}, ValueError, "names one session"),
        ("subscribe", {"after": "1", "sessions": "a"}, InvalidOption, "'epoch:seq'"),
        ("subscribe", {"after": "a:b", "sessions": "a"}, InvalidOption, "'epoch:seq'"),
        ("subscribe", {"after": "1:-1", "sessions": "a"}, InvalidOption, "'epoch:seq'"),
        ("subscribe", {"after": 5, "sessions": "a"}, InvalidOption, "'epoch:seq'"),
        ("subscribe", {"after": "9" * 5000 + ":1", "sessions": "a"}, InvalidOption, "'epoch:seq'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_door(how: Any, arguments: Any, error: Any, text: Any) -> None:
    channel = make_channel()

    with pytest.raises(error, match=text):
        call(channel, how, **arguments)

    assert channel.statistics() == ChannelStatistics(0, 0)


@pytest.mark.parametrize("replay", [-1, 1.5, None, "10"])
def test_a_ring_holds_a_whole_number_of_events(replay: Any) -> None:
    with pytest.raises(InvalidOption, match="0 or more"):
        make_channel(replay=replay)


@pytest.mark.anyio
async def test_statistics_count_who_listens() -> None:
    channel = make_channel()
    handler = channel.add_handler(print)
    async with channel.subscribe(), channel.subscribe(sessions="a"):
        assert channel.statistics() == ChannelStatistics(handlers=1, subscriptions=2)
    handler.remove()
    handler.remove()

    assert channel.statistics() == ChannelStatistics(handlers=0, subscriptions=0)


@pytest.mark.anyio
async def test_when_a_channel_closes_its_readers_get_the_rest_and_then_the_end() -> None:
    channel = make_channel()
    async with channel.subscribe() as events:
        await publish(channel.publisher("a"), Note, "x")
        channel.close()
        await publish(channel.publisher("a"), Note, "y")

        assert [event.seq async for event in events] == [1]

    with pytest.raises(RuntimeClosed):
        await channel.subscribe().__aenter__()
    assert channel.statistics() == ChannelStatistics(0, 0)


@pytest.mark.anyio
async def test_a_subscription_is_entered_once() -> None:
    channel = make_channel()
    async with channel.subscribe() as events:
        pass

    with pytest.raises(InvalidOption, match="subscribe anew"):
        await events.__aenter__()
    assert channel.statistics() == ChannelStatistics(0, 0)

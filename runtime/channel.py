"""Where events are published: handlers called in line, subscriptions with a buffer each, and a ring for late readers.

A session's events are published by one task, the one that works for the session, so they have one order and a handler
never runs beside itself for one session. Most events have no listener: then nothing is built and only the number is
taken. Whom an event goes to is looked up in a table shared by all sessions with the same listeners, made anew only when
a listener comes or goes.
"""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, cast

import anyio
import attrs

from ropewalk.runtime.clock import Clock
from ropewalk.runtime.errors import InvalidOption, RuntimeClosed
from ropewalk.runtime.event import Event, HandlerFailed
from ropewalk.runtime.handler import Handler, HandlerFault, OnError, exit_in
from ropewalk.runtime.subscription import ReaderOverflow, Subscription
from ropewalk.runtime.supervision import Exited, Failure, attempt

__all__ = ["Channel", "ChannelStatistics", "Publisher", "kinds_of"]

E = TypeVar("E", bound=Event)
CLOSING_SECONDS = 1.0


@attrs.frozen
class ChannelStatistics:
    """How many handlers and subscriptions a channel has."""

    handlers: int
    subscriptions: int


class Listener(Protocol):
    """What a publisher needs of whoever gets events."""

    def wants(self, kind: type[Event]) -> bool: ...
    def offer(self, event: Event) -> Any: ...


@attrs.frozen
class _Place:
    """A listener and the sessions it listens to: one id, or those that match. `number` grows with each that is added."""

    number: int
    listener: Listener
    session_id: str | None
    matches: Callable[[str], object]


class Publisher:
    """Publishes one session's events: numbers them, and gives each to those who want it.

    `epoch` and `seq` are the session's; `streams` are subscriptions that belong to one turn and come and go with it.
    `given` counts what `publish` gave to others than those.
    """

    __slots__ = ("_channel", "_generation", "_table", "epoch", "given", "ring", "seq", "session_id", "streams")

    def __init__(self, channel: Channel, session_id: str, replay: int) -> None:
        self._channel = channel
        self._generation = -1
        self._table: dict[type[Event], tuple[Listener, ...]] = {}
        self.session_id = session_id
        self.epoch = 0
        self.seq = 0
        self.given = 0
        self.ring: deque[Event] | None = deque(maxlen=replay) if replay else None
        self.streams: tuple[Subscription, ...] = ()

    def begin_epoch(self, epoch: int) -> None:
        """A new incarnation publishes from here on; its numbers begin at 1."""
        self.epoch = epoch
        self.seq = 0
        if self.ring is not None:
            self.ring.clear()

    def wanted(self, kind: type[Event]) -> bool:
        """Whether anybody would get an event of this kind, now or from the ring."""
        listeners = self._table.get(kind) if self._generation == self._channel.generation else None
        if listeners or (self.ring is not None and kind.numbered) or (listeners is None and self._listeners(kind)):
            return True
        return bool(self.streams) and any(stream.wants(kind) for stream in self.streams)

    @property
    def quiet(self) -> Mapping[type[Event], object]:
        """What is known of who gets which kind, when that is all there is to ask: of a kind with ``()`` nobody gets anything.

        Then publishing one does no more than add one to `seq`, which whoever has several to publish may do without a call
        for each. Good until somebody else's code has run.
        """
        return self._table if self._generation == self._channel.generation and not self.streams and self.ring is None else {}

    def publish(self, kind: type[Event], turn_id: str | None, request_state: dict[str, Any] | None, *fields: Any) -> Awaitable[None] | None:
        """Number an event and give it to its listeners. What comes back must be awaited before the next; None: all done."""
        if kind.numbered:
            self.seq += 1
        listeners = self._table.get(kind) if self._generation == self._channel.generation else None
        if listeners is None:
            listeners = self._listeners(kind)
        if listeners:
            self.given += 1
        for stream in self.streams:
            if stream.wants(kind):
                listeners += (stream,)
        kept = self.ring is not None and kind.numbered
        if not listeners and not kept:
            return None
        event = kind(self.session_id, self.epoch, self.seq, self._channel.clock.time(), turn_id, request_state, *fields)
        if kept and self.ring is not None:
            self.ring.append(event)
        for listener in listeners:
            result = listener.offer(event)
            if result is not None:
                return self._go_on(event, listener, listeners, result)
        return None

    def lane(self, kind: type[Event], turn_id: str | None, request_state: dict[str, Any] | None) -> Callable[[str, int], Awaitable[None] | None]:
        """`publish` for the deltas of one kind in one turn, as a function of their two fields: a text, and the place it belongs to.

        There are twenty or two thousand of them in a turn, so what stays the same is looked up once: who gets them too,
        until somebody comes or goes.
        """
        channel, now, session_id, epoch, ring = self._channel, self._channel.clock.time, self.session_id, self.epoch, self.ring
        make = cast("Callable[..., Event]", kind)
        table: object = None
        streams: tuple[Subscription, ...] = ()
        listeners: tuple[Listener, ...] = ()

        def publish(text: str, place: int) -> Awaitable[None] | None:
            nonlocal table, streams, listeners
            if self._generation != channel.generation or self._table is not table or self.streams is not streams:
                listeners = self._listeners(kind)
                table, streams = self._table, self.streams
                listeners += tuple(stream for stream in streams if stream.wants(kind))
            self.seq = seq = self.seq + 1
            if ring is None and not listeners:
                return None
            event = make(session_id, epoch, seq, now(), turn_id, request_state, text, place)
            if ring is not None:
                ring.append(event)
            for listener in listeners:
                result = listener.offer(event)
                if result is not None:
                    return self._go_on(event, listener, listeners, result)
            return None

        return publish

    def as_of_now(self, kind: type[E], turn_id: str | None, request_state: dict[str, Any] | None, *fields: Any) -> E:
        """An event that says how things stand, with the number of the last one published; it is not published itself."""
        return kind(self.session_id, self.epoch, self.seq, self._channel.clock.time(), turn_id, request_state, *fields)

    def look_up_again(self) -> None:
        """Somebody came or went who listens to this session alone."""
        self._generation = -1

    async def _go_on(self, event: Event, listener: Listener, listeners: tuple[Listener, ...], result: Any) -> None:
        """Finish a delivery that one listener made wait or fail: first that listener, then those after it, then tell of failures.

        A cancelled turn does not take the event from those who have not had it yet: they share a moment in which they are
        waited for, and after it still get the event, as far as they take it without waiting.
        """
        failed: deque[tuple[Handler, Failure]] = deque()
        faults: list[Failure] = []
        rest = iter(listeners[listeners.index(listener) + 1 :])
        try:
            await self._settle(listener, result, failed)
            for listener in rest:
                await self._settle(listener, listener.offer(event), failed)
            await self._report(event, failed, faults)
        except anyio.get_cancelled_exc_class():
            ends = anyio.current_time() + CLOSING_SECONDS
            for listener in rest:
                with anyio.CancelScope(deadline=ends, shield=True):
                    await self._settle(listener, listener.offer(event), failed)
            with anyio.CancelScope(deadline=ends, shield=True):
                await self._report(event, failed, faults)
            raise
        if faults:
            first = next((fault for fault in faults if exit_in(fault.error)), faults[0])
            raise HandlerFault(f"a handler failed on {type(event).__name__}, and the turn with it") from first.error

    async def _settle(self, listener: Listener, result: Any, failed: deque[tuple[Handler, Failure]]) -> None:
        if not isinstance(listener, Handler):
            if result is not None:
                await result
            return
        if inspect.isawaitable(result):
            result = await listener.settle(self.session_id, result)
        if isinstance(result, Failure):
            failed.append((listener, result))

    async def _report(self, event: Event, failed: deque[tuple[Handler, Failure]], faults: list[Failure]) -> None:
        """Tell of failed handlers, after everybody has had the event they failed on: events keep their order."""
        while failed:
            handler, failure = failed.popleft()
            handler.failed(event, failure)
            if handler.on_error == "fail_turn" or isinstance(failure.error, Exited):
                faults.append(failure)
            if type(event) is HandlerFailed:  # two handlers of failures that fail must not be told of each other for ever
                continue
            pending = self._publish_failure(event, handler, failure)
            told = None if pending is None else await attempt(pending)
            if isinstance(told, Failure):
                faults.append(told)

    def _publish_failure(self, event: Event, handler: Handler, failure: Failure) -> Awaitable[None] | None:
        """`publish` that a handler failed on an event, to all but that handler: what broke it once would break it again."""
        self.seq += 1
        others = tuple(listener for listener in self._listeners(HandlerFailed) if listener is not handler)
        if others:
            self.given += 1
        others += tuple(stream for stream in self.streams if stream.wants(HandlerFailed))
        if not others and self.ring is None:
            return None
        now, kind = self._channel.clock.time(), type(event).__name__
        told = HandlerFailed(self.session_id, self.epoch, self.seq, now, event.turn_id, event.request_state, handler.name, failure.kind, kind)
        if self.ring is not None:
            self.ring.append(told)
        for listener in others:
            result = listener.offer(told)
            if result is not None:
                return self._go_on(told, listener, others, result)
        return None

    def _listeners(self, kind: type[Event]) -> tuple[Listener, ...]:
        if self._generation != self._channel.generation:
            self._table = self._channel.table_for(self.session_id)
            self._generation = self._channel.generation
        listeners = self._table.get(kind)
        return self._channel.fill(self._table, kind) if listeners is None else listeners


class Channel:
    """Where a runtime's events are published; ``runtime.events``.

    :param resident: brings a session into memory and returns its publisher and a function that gives a `Snapshot` of it.
    """

    def __init__(self, clock: Clock, replay: int, resident: Callable[[str], Awaitable[tuple[Publisher, Callable[[], Event]]]]) -> None:
        if type(replay) is not int or replay < 0:
            raise InvalidOption(f"replay is how many events a session keeps for late readers, 0 or more, not {replay!r}")
        self.clock = clock
        self.generation = 0
        self._replay = replay
        self._resident = resident
        self._closed = False
        self._added = 0
        self._places: dict[Listener, _Place] = {}
        # Listeners of one session are kept apart, so that thousands of them cost the other sessions nothing.
        self._wide: dict[Listener, _Place] = {}
        self._narrow: dict[str, dict[Listener, _Place]] = {}
        self._publishers: dict[str, Publisher] = {}
        self._tables: dict[tuple[int, ...], dict[type[Event], tuple[Listener, ...]]] = {}

    def publisher(self, session_id: str) -> Publisher:
        """The publisher of one session, made on first use."""
        found = self._publishers.get(session_id)
        if found is None:
            found = self._publishers[session_id] = Publisher(self, session_id, self._replay)
        return found

    def forget(self, session_id: str) -> None:
        """Let go of a session's publisher; a later incarnation gets a new one. Subscriptions stay."""
        self._publishers.pop(session_id, None)

    def subscribe(
        self,
        kinds: Iterable[type[Event]] | None = None,
        sessions: str = "*",
        *,
        buffer: int = 256,
        overflow: ReaderOverflow = "coalesce",
        after: str | None = None,
    ) -> Subscription:
        """A place to read events from: ``async with channel.subscribe(...) as events: async for event in events: ...``.

        :param kinds: event types; None is every kind but the raw ones.
        :param sessions: a session id, or a pattern with ``*`` and ``?``.
        :param buffer: how many events may wait for the reader.
        :param overflow: `wait` (one session only), `coalesce`, `drop_oldest` or `disconnect`.
        :param after: a cursor: go on after that event, from the ring where it reaches back so far, else from a `Snapshot`.
            One session only; ``"0:0"`` asks for a snapshot.
        """
        if not isinstance(sessions, str):
            raise InvalidOption(f"sessions is a session id, or a pattern with * and ?, not {sessions!r:.200}")
        exact = not _is_pattern(sessions)
        if overflow == "wait" and not exact:
            raise ValueError("a subscription with overflow='wait' holds its session up, so it names one session, not a pattern")
        if after is not None and not exact:
            raise ValueError("a cursor belongs to one session: subscribe(after=...) names one session, not a pattern")
        cursor = _parse_cursor(after) if after is not None else None

        async def enter(subscription: Subscription) -> None:
            if self._closed:
                raise RuntimeClosed("the runtime is closed: nothing will be published any more")
            if cursor is not None:
                await self._catch_up(subscription, sessions, cursor)
            self._add(subscription, sessions)

        return Subscription(kinds_of(kinds), buffer, overflow, enter, self._remove)

    def add_handler(
        self,
        callback: Callable[[Any], Any],
        kinds: Iterable[type[Event]] | None = None,
        sessions: str | Callable[[str], object] = "*",
        *,
        on_error: OnError = "report",
        timeout: float | None = 5,
    ) -> Handler:
        """Call `callback(event)` in line with each event of these kinds of these sessions, in the order handlers were added.

        :param sessions: a session id, a pattern with ``*`` and ``?``, or a function that says whether an id is meant.
        :param on_error: `report` publishes `HandlerFailed` and goes on; `fail_turn` also ends the turn failed.
        :param timeout: seconds an awaitable result may take.
        """
        handler = Handler(callback, kinds_of(kinds), on_error, timeout, self._remove, self.clock.stopwatch)
        self._add(handler, sessions)
        return handler

    def statistics(self) -> ChannelStatistics:
        """A frozen record of who listens."""
        handlers = sum(isinstance(listener, Handler) for listener in self._places)
        return ChannelStatistics(handlers=handlers, subscriptions=len(self._places) - handlers)

    def close(self) -> None:
        """End every subscription, for good: readers get what is buffered, then their iteration ends."""
        self._closed = True
        for listener in list(self._places):
            if isinstance(listener, Subscription):
                listener.close()
            elif isinstance(listener, Handler):
                listener.sum_up()

    def table_for(self, session_id: str) -> dict[type[Event], tuple[Listener, ...]]:
        """The table of who gets what in this session, shared with every session that has the same listeners."""
        places = [place for place in self._wide.values() if place.matches(session_id)]
        own = self._narrow.get(session_id)
        if own is not None:
            places = sorted((*places, *own.values()), key=lambda place: place.number)
            return {Event: tuple(place.listener for place in places)}
        key = tuple(place.number for place in places)
        return self._tables.setdefault(key, {Event: tuple(place.listener for place in places)})

    def fill(self, table: dict[type[Event], tuple[Listener, ...]], kind: type[Event]) -> tuple[Listener, ...]:
        """Work out, once, who of a table's listeners wants a kind. The key `Event` holds them all."""
        listeners = table[kind] = tuple(listener for listener in table[Event] if listener.wants(kind))
        return listeners

    def _add(self, listener: Listener, sessions: str | Callable[[str], object]) -> None:
        self._added += 1
        if not isinstance(sessions, str):
            if not callable(sessions):
                raise InvalidOption(f"sessions is a session id, or a pattern with * and ?, not {sessions!r:.200}")
            place = _Place(self._added, listener, None, sessions)
        elif _is_pattern(sessions):
            place = _Place(self._added, listener, None, re.compile(fnmatch.translate(sessions)).match)
        else:
            place = _Place(self._added, listener, sessions, sessions.__eq__)
        self._places[listener] = place
        if place.session_id is None:
            self._wide[listener] = place
        else:
            self._narrow.setdefault(place.session_id, {})[listener] = place
        self._changed(place)

    def _remove(self, listener: Listener) -> None:
        place = self._places.pop(listener, None)
        if place is None:
            return
        if place.session_id is None:
            del self._wide[listener]
        else:
            own = self._narrow[place.session_id]
            del own[listener]
            if not own:
                del self._narrow[place.session_id]
        self._changed(place)

    def _changed(self, place: _Place) -> None:
        if place.session_id is None:
            self.generation += 1
            self._tables.clear()
        elif (publisher := self._publishers.get(place.session_id)) is not None:
            publisher.look_up_again()

    async def _catch_up(self, subscription: Subscription, session_id: str, cursor: tuple[int, int]) -> None:
        publisher, snapshot = await self._resident(session_id)
        epoch, seq = cursor
        ring = publisher.ring
        known = epoch == publisher.epoch and cursor != (0, 0)
        if known and seq == publisher.seq:
            return
        if known and ring and ring[0].seq <= seq + 1 <= publisher.seq:
            subscription.begin_with(event for event in ring if event.seq > seq and subscription.wants(type(event)))
        else:
            subscription.begin_with([snapshot()])


def _is_pattern(sessions: str) -> bool:
    return any(letter in sessions for letter in "*?[")


def kinds_of(kinds: Iterable[type[Event]] | None) -> frozenset[type[Event]] | None:
    """The kinds chosen, None for every kind but the raw ones; raises `InvalidOption` for what are no event types."""
    if kinds is None:
        return None
    chosen = frozenset(kinds) if isinstance(kinds, Iterable) else None
    if chosen is None or not all(isinstance(kind, type) and issubclass(kind, Event) for kind in chosen):
        raise InvalidOption(f"kinds is a list of event types, such as [TextDelta, TurnEnded], not {kinds!r:.200}")
    return chosen


_CURSOR = re.compile(r"([0-9]{1,20}):([0-9]{1,20})")


def _parse_cursor(cursor: object) -> tuple[int, int]:
    found = _CURSOR.fullmatch(cursor) if isinstance(cursor, str) else None
    if found is None:
        raise InvalidOption(f"a cursor is 'epoch:seq' as event.cursor gives it, not {cursor!r:.200}")
    return int(found[1]), int(found[2])

"""Where events are published: handlers called in line, subscriptions with a buffer each, and a ring for late readers.

Whom an event goes to is looked up in a table shared by all sessions with the same listeners, made anew only when a listener
comes or goes.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import attrs

from ropewalk.runtime.clock import Clock
from ropewalk.runtime.errors import InvalidOption, RuntimeClosed
from ropewalk.runtime.event import Event
from ropewalk.runtime.handler import Handler, OnError
from ropewalk.runtime.publisher import Listener, Publisher
from ropewalk.runtime.subscription import ReaderOverflow, Subscription

__all__ = ["Channel", "ChannelStatistics", "kinds_of"]


@attrs.frozen
class ChannelStatistics:
    """How many handlers and subscriptions a channel has."""

    handlers: int
    subscriptions: int


@attrs.frozen
class _Place:
    """A listener and the sessions it listens to: one id, or those that match. `number` grows with each that is added."""

    number: int
    listener: Listener
    session_id: str | None
    matches: Callable[[str], object]


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

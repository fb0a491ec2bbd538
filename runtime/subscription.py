"""One reader's place on a channel: a bounded buffer and a policy for when the reader is slower than the session."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Literal, Self, TypeAlias

import anyio
import attrs

from ropewalk.runtime.backend import ANY_BACKEND, Bell, Wakeup
from ropewalk.runtime.errors import InvalidOption, SlowReader
from ropewalk.runtime.event import Event, Gap

__all__ = ["ReaderOverflow", "Subscription", "SubscriptionStatistics"]

ReaderOverflow: TypeAlias = Literal["wait", "coalesce", "drop_oldest", "disconnect"]
"""What happens when a reader's buffer is full: the session waits, adjacent deltas are joined, the oldest deltas go, or the reader does."""

POLICIES = ("wait", "coalesce", "drop_oldest", "disconnect")


@attrs.frozen
class SubscriptionStatistics:
    """What a reader has had: events in its buffer now, `delivered` to it, `joined` into others, `dropped`; whether it is `connected`."""

    buffered: int
    buffer: int
    delivered: int
    joined: int
    dropped: int
    connected: bool


class Subscription:
    """An async iterator over events, in the order each session published them. Made by `Channel.subscribe`.

    Only deltas and raw chunks are ever joined or dropped. A reader whose buffer is full of anything else is disconnected:
    it gets what was buffered, then `SlowReader`. The buffer holds at most `buffer` events; beside it stand what a late reader
    begins with, `Gap` events, and, with policy `wait`, the one event that each cancelled turn was holding.
    """

    def __init__(
        self,
        kinds: frozenset[type[Event]] | None,
        buffer: int,
        overflow: ReaderOverflow,
        enter: Callable[[Subscription], Awaitable[None]],
        leave: Callable[[Subscription], None],
        new_wakeup: Callable[[], Wakeup] = ANY_BACKEND.wakeup,
    ) -> None:
        if type(buffer) is not int or buffer < 1:
            raise InvalidOption(f"a subscription's buffer is a whole number of events, at least 1, not {buffer!r}")
        if overflow not in POLICIES:
            raise InvalidOption(f"a subscription's overflow is one of {', '.join(POLICIES)}, not {overflow!r}")
        self.kinds = kinds
        self.buffer = buffer
        self.overflow = overflow
        self._enter = enter
        self._leave = leave
        self._begin: deque[Event] = deque()
        self._events: deque[Event] = deque()
        self._wake = Bell(new_wakeup)
        self._room: anyio.Event | None = None
        self._error: SlowReader | None = None
        self._closed = False
        self._taken = 0  # elements ever taken from the left end: makes the places in `_last` stable
        self._uncounted = 0  # events delivered that were not taken there, less the gaps that were
        self._last: dict[str, int] | None = None  # each session's newest buffered event, kept only once the buffer has been full
        self._joined = 0
        self._dropped = 0
        self._lost: dict[str, Gap] = {}  # what is missing before everything that is held of a session
        self._gaps = 0  # gaps among the held events: what is missing after something that could not be dropped

    # The reader's side.

    async def __aenter__(self) -> Self:
        if self._closed:
            raise InvalidOption("a subscription that was closed cannot be entered again; subscribe anew")
        await self._enter(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            event = self.take()
            if event is not None:
                return event
            if self._closed:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            await self._wake.rung()

    def take(self) -> Event | None:
        """The next event if one is there already, else None: lets a reader drain what has gathered in one go."""
        if self._begin:
            self._uncounted += 1
            return self._begin.popleft()
        if self._lost:
            return self._lost.pop(next(iter(self._lost)))
        if not self._events:
            return None
        self._taken += 1
        if self._room is not None:
            self._room.set()
            self._room = None
        event = self._events.popleft()
        if self._gaps and type(event) is Gap:
            self._gaps -= 1
            self._uncounted -= 1
        return event

    def close(self) -> None:
        """Leave the channel; what is buffered can still be taken, then the iteration ends."""
        self._leave(self)
        self.end()

    def statistics(self) -> SubscriptionStatistics:
        """A frozen record of what this reader has had and lost."""
        buffered = len(self._begin) + len(self._events) - self._gaps
        return SubscriptionStatistics(buffered, self.buffer, self._taken + self._uncounted, self._joined, self._dropped, not self._closed)

    # The publisher's side.

    def wants(self, kind: type[Event]) -> bool:
        """Whether events of this kind belong here."""
        return kind.numbered if self.kinds is None else kind in self.kinds

    def offer(self, event: Event) -> Awaitable[None] | None:
        """Buffer an event; with policy `wait`, the awaitable that must be awaited before the session goes on."""
        if self._closed:
            return None
        if len(self._events) - self._gaps < self.buffer:
            self._put(event)
        elif self.overflow == "wait":
            return self._put_when_room(event)
        elif self.overflow == "coalesce":
            self._coalesce(event)
        elif self.overflow == "drop_oldest":
            self._drop_oldest(event)
        else:
            self._disconnect()
        return None

    def begin_with(self, events: Iterable[Event]) -> None:
        """What a late reader gets before all that is published from now on; it does not count against the buffer."""
        self._begin.extend(events)

    def end(self) -> None:
        """Nothing more will come; called by the publisher, and by `close`."""
        self._closed = True
        self._wake.ring()
        if self._room is not None:
            self._room.set()
            self._room = None

    def _put(self, event: Event) -> None:
        if self._last is not None:
            self._last[event.session_id] = self._taken + len(self._events)
        self._events.append(event)
        if self._wake.waiting is not None:
            self._wake.ring()

    async def _put_when_room(self, event: Event) -> None:
        try:
            while len(self._events) >= self.buffer and not self._closed:
                if self._room is None:
                    self._room = anyio.Event()
                await self._room.wait()
        finally:  # a cancelled turn still hands over the event it was holding: the buffer stretches by one
            if not self._closed:
                self._put(event)

    def _coalesce(self, event: Event) -> None:
        if self._last is None:
            self._last = {held.session_id: self._taken + place for place, held in enumerate(self._events)}
        place = self._last.get(event.session_id, -1) - self._taken
        if place >= 0:
            joined = self._events[place].joined(event)
            if joined is not None:
                self._events[place] = joined
                self._joined += 1
                return
        self._compact()
        if len(self._events) < self.buffer:
            self._put(event)
        elif _is_raw(event):
            self._dropped += 1
        else:
            self._disconnect()

    def _compact(self) -> None:
        """Drop raw chunks and join every pair of adjacent deltas of a session, so that a full buffer has room again."""
        kept: list[Event] = []
        newest: dict[str, int] = {}
        for event in self._events:
            if _is_raw(event):
                self._dropped += 1
                continue
            place = newest.get(event.session_id)
            joined = kept[place].joined(event) if place is not None else None
            if joined is not None and place is not None:
                kept[place] = joined
                self._joined += 1
            else:
                newest[event.session_id] = len(kept)
                kept.append(event)
        self._events = deque(kept)
        self._last = {session: self._taken + place for session, place in newest.items()}

    def _drop_oldest(self, event: Event) -> None:
        for place, held in enumerate(self._events):
            if held.droppable:
                self._lose(held, place)
                self._put(event)
                return
        if event.droppable:
            self._lose(event, len(self._events))
        else:
            self._disconnect()

    def _lose(self, event: Event, place: int) -> None:
        """Put a gap where the event at `place` is missing, or make the one that is there already larger."""
        self._dropped += 1
        before = place - 1
        while before >= 0 and self._events[before].session_id != event.session_id:
            before -= 1
        if before < 0:
            self._lost[event.session_id] = _gap(event, self._lost.get(event.session_id))
        elif isinstance(found := self._events[before], Gap):
            self._events[before] = _gap(event, found)
        else:
            # It takes the place of the lost event, or of the one that never got in.
            self._gaps += 1
            self._events.insert(place, _gap(event, None))
            place += 1
        if place < len(self._events):
            del self._events[place]

    def _disconnect(self) -> None:
        why = "its policy is to be disconnected then" if self.overflow == "disconnect" else "none of them may be joined or dropped"
        self._error = SlowReader(f"the reader's buffer is full with {len(self._events)} events, and {why}; read faster or ask for fewer kinds")
        self._leave(self)
        self.end()


def _is_raw(event: Event) -> bool:
    """Whether an event says nothing that a numbered one does not say too, and joins with none."""
    return event.droppable and not event.numbered


def _gap(event: Event, before: Gap | None) -> Gap:
    dropped = 1 if before is None else before.dropped + 1
    return Gap(event.session_id, event.epoch, event.seq, event.at, event.turn_id, event.request_state, dropped)

"""Publishing one session's events: numbering them, and giving each to those who want it, in one order.

They are published by one task, the one that works for the session, so a handler never runs beside itself for one session. Most
events have no listener: then nothing is built and only the number is taken.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import anyio

from ropewalk.runtime.event import Event, HandlerFailed
from ropewalk.runtime.handler import Handler, HandlerFault, exit_in
from ropewalk.runtime.subscription import Subscription
from ropewalk.runtime.supervision import Exited, Failure, attempt

if TYPE_CHECKING:
    from ropewalk.runtime.channel import Channel

__all__ = ["Listener", "Publisher"]

E = TypeVar("E", bound=Event)
CLOSING_SECONDS = 1.0


class Listener(Protocol):
    """What a publisher needs of whoever gets events."""

    def wants(self, kind: type[Event]) -> bool: ...
    def offer(self, event: Event) -> Any: ...


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

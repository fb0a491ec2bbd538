"""An actor for tests: what it does with a message is the message."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio
import anyio.lowlevel
import trio

from ropewalk.runtime.cell import Cell
from ropewalk.runtime.envelope import Envelope
from ropewalk.runtime.errors import Refused, SessionExists
from ropewalk.runtime.event import Event
from ropewalk.runtime.journal import MemoryJournal
from ropewalk.runtime.journaled import Journaled
from ropewalk.runtime.ref import ActorRef

__all__ = [
    "Broken",
    "CountingJournal",
    "Did",
    "Probe",
    "ProbeActor",
    "Standing",
    "add",
    "add_after",
    "cancelled_at_any_step",
    "chain",
    "crash",
    "crash_after",
    "hang",
    "read",
    "refuse",
    "wait",
]


class Broken(Exception):
    """What a crashing actor raises."""


class Did(Event, frozen=True, gc=False):
    """A record was written."""

    what: Any


class Standing(Event, frozen=True, gc=False):
    """All records there are."""

    records: tuple[Any, ...]


class ProbeActor:
    """Calls each message with itself. `book.state` is the tuple of its records; `doing` is how many messages it handles just now."""

    def __init__(self, kind: Probe, cell: Cell, book: Journaled[tuple[Any, ...]]) -> None:
        self.kind = kind
        self.cell = cell
        self.book = book
        self.doing = 0

    async def receive(self, envelope: Envelope) -> Any:
        self.doing += 1
        self.kind.most_at_once = max(self.kind.most_at_once, self.doing)
        try:
            return await envelope.body(self)
        finally:
            self.doing -= 1

    async def passivate(self) -> None:
        if self.kind.leaving is not None:
            await self.kind.leaving(self)

    def snapshot(self) -> Standing:
        return self.cell.publisher.as_of_now(Standing, None, None, self.book.state)


class Probe:
    """The kind. `before` is awaited at the beginning of each activation, `leaving` when an incarnation is let go; `activations` are the ids
    in the order they were made.
    """

    def __init__(self, name: str = "probe", *, mailbox: int = 64, before: Callable[[Cell], Awaitable[Any]] | None = None) -> None:
        self.name = name
        self.mailbox = mailbox
        self.before = before
        self.leaving: Callable[[ProbeActor], Awaitable[Any]] | None = None
        self.begun: list[str] = []
        self.activations: list[str] = []
        self.most_at_once = 0

    async def activate(self, cell: Cell, *, create: bool, **seed: Any) -> ProbeActor:
        self.begun.append(cell.id)
        if self.before is not None:
            await self.before(cell)
        book = await Journaled[tuple[Any, ...]].recover(cell, lambda state, record: (*state, record), (), create=create)
        if seed and book.records:
            raise SessionExists(f"{cell.id} has records already")
        if not book.records:
            await book.write("made", *seed.get("records", ()))
        self.activations.append(cell.id)
        return ProbeActor(self, cell, book)

    def handle(self, cell: Cell) -> ActorRef:
        return ActorRef(cell)


class CountingJournal(MemoryJournal):
    """Knows how often it was opened and closed."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.opened = 0
        self.closed = 0

    async def open(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.opened += 1

    async def close(self) -> None:
        self.closed += 1
        await anyio.lowlevel.checkpoint()


# Messages.

Message = Callable[[ProbeActor], Awaitable[Any]]


def add(what: Any, seconds: float = 0.0) -> Message:
    """Write a record, publish that, and reply with how many there are."""

    async def body(actor: ProbeActor) -> int:
        await anyio.sleep(seconds)
        state = await actor.book.write(what)
        await actor.cell.publish(Did, what)
        return len(state)

    return body


def add_after(event: anyio.Event, what: Any) -> Message:
    """Write a record once the event has come."""

    async def body(actor: ProbeActor) -> int:
        await event.wait()
        return len(await actor.book.write(what))

    return body


async def read(actor: ProbeActor) -> tuple[Any, ...]:
    """The records but the first."""
    return actor.book.state[1:]


async def crash(actor: ProbeActor) -> None:
    raise Broken("meant")


def crash_after(event: anyio.Event) -> Message:
    async def body(actor: ProbeActor) -> None:
        await event.wait()
        await crash(actor)

    return body


async def refuse(actor: ProbeActor) -> None:
    raise Refused("not this")


async def hang(actor: ProbeActor) -> None:
    await anyio.sleep_forever()


def wait(seconds: float) -> Message:
    async def body(actor: ProbeActor) -> float:
        await anyio.sleep(seconds)
        return seconds

    return body


def chain(*refs: ActorRef, then: Message = read) -> Message:
    """Ask the first to ask the second, and so on; the last does `then`."""

    async def body(actor: ProbeActor) -> Any:
        return await refs[0].ask(chain(*refs[1:], then=then)) if refs else await then(actor)

    return body


# Cancelling.


class _StepCounter(trio.abc.Instrument):
    def __init__(self, step: int, cancel: Callable[[], object]) -> None:
        self._left = step
        self._cancel = cancel

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._cancel()


@contextlib.contextmanager
def cancelled_at_any_step(step: int) -> Generator[trio.CancelScope]:
    """Cancel the body right before the `step`-th step the scheduler gives to any task at all, so also while the body waits for others."""
    scope = trio.CancelScope()
    counter = _StepCounter(step, scope.cancel)
    trio.lowlevel.add_instrument(counter)
    try:
        with scope:
            yield scope
    finally:
        trio.lowlevel.remove_instrument(counter)

"""An actor's address, mailbox and life; a task only while there is work.

A cell outlives its actor: the actor is one incarnation, made from the journal by its kind, dropped when it fails, made
again for the next message. An idle cell is a small record. When a message comes, a worker from a pool of parked tasks
takes the cell, handles what waits in its mailbox, one message at a time, and parks again. Starting a task costs several
times what waking one does, which is why workers are kept (up to a bound); a parked task costs kilobytes, which is why
cells have none of their own.
"""

from __future__ import annotations

import contextvars
import types
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.abc
import structlog

from ropewalk.runtime.errors import Fenced, JournalUnavailable, MailboxFull, Quarantined, Refused, RuntimeClosed, WouldDeadlock
from ropewalk.runtime.mailbox import Mailbox
from ropewalk.runtime.outcome import Outcome
from ropewalk.runtime.supervision import Failure, RestartLedger, attempt

if TYPE_CHECKING:
    from ropewalk.runtime.channel import Publisher
    from ropewalk.runtime.clock import Clock
    from ropewalk.runtime.event import Event
    from ropewalk.runtime.journal import Journal
    from ropewalk.runtime.runtime import Runtime

__all__ = ["Actor", "ActorKind", "Cell", "Envelope", "WorkerPool", "messages_around", "refuse_deadlock"]

log = structlog.get_logger("ropewalk")


class Actor(Protocol):
    """One incarnation. Its methods are never run beside each other."""

    async def receive(self, envelope: Envelope) -> Any:
        """Handle one message to its end; what it returns is the reply, unless the envelope has been answered already.

        Raising `Refused` turns the message down. Any other exception ends this incarnation: the next message is handled by
        one made anew from the journal.
        """
        ...

    def snapshot(self) -> Event:
        """The actor's state as an event, for readers that come late."""
        ...


class ActorKind(Protocol):
    """What a runtime needs to know to keep actors of some kind."""

    @property
    def name(self) -> str:
        """What the journal calls this kind."""
        ...

    @property
    def mailbox(self) -> int:
        """How many messages may wait for one actor."""
        ...

    async def activate(self, cell: Cell, *, create: bool, **seed: Any) -> Actor:
        """Make an incarnation from the cell's journal; raises `UnknownSession` when there is none and `create` is False.

        `seed` is what the caller of `Runtime.open` gave for a new actor; `SessionExists` when there is one already.
        """
        ...

    def handle(self, cell: Cell) -> Any:
        """What `Runtime.open` returns: the face of the actor."""
        ...


class Envelope:
    """A message on its way to an actor, with the slot for its one outcome.

    `context` is the sender's `contextvars` context the message is handled in, None for a clean one. `awaited` says whether
    the sender waits for the outcome: only then can handling it deadlock with what the sender is part of.
    """

    __slots__ = ("awaited", "body", "context", "outcome")

    def __init__(self, body: Any, *, awaited: bool = True) -> None:
        self.body = body
        self.awaited = awaited
        self.context: contextvars.Context | None = contextvars.copy_context()
        self.outcome: Outcome[Any] = Outcome()


_working: contextvars.ContextVar[tuple[tuple[Cell, Envelope], ...]] = contextvars.ContextVar("ropewalk_working", default=())
"""The messages being handled around this code, outermost first: whoever waits for one of their cells waits for itself."""


def messages_around() -> tuple[tuple[Cell, Envelope], ...]:
    """The messages whose handling the calling code is part of, each with its cell, outermost first."""
    return _working.get()


def refuse_deadlock(cell: Cell) -> None:
    """Raise `WouldDeadlock` when the calling code is part of the message `cell` handles now and so must not wait for its next."""
    for working, envelope in _working.get():
        if working is cell and cell.current is envelope:
            raise WouldDeadlock(
                f"this code is part of the turn that {cell.id!r} works on, so waiting for its next one would wait for ever; use submit(), which does not wait, or another session"
            )


@types.coroutine
def _within(context: contextvars.Context, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await a coroutine with every step of it run in `context`: a parked worker lends its task, never its context variables."""
    run = context.run
    try:
        yielded = run(coroutine.send, None)
        while True:
            try:
                received = yield yielded
            except GeneratorExit:
                run(coroutine.close)
                raise
            except BaseException as error:  # thrown on into the coroutine, which is whose it is: cancellation too
                yielded = run(coroutine.throw, error)
            else:
                yielded = run(coroutine.send, received)
    except StopIteration as stop:
        return stop.value


class Cell:
    """One actor's place in a runtime. Made by the runtime only.

    `actor` is the incarnation, None while there is none; `current` the message being handled; `reason` why it is quarantined.
    """

    __slots__ = ("_activating", "_ledger", "actor", "busy", "current", "id", "journal", "kind", "mailbox", "publisher", "reason", "restarts", "runtime")

    def __init__(self, runtime: Runtime, actor_id: str, kind: ActorKind, journal: Journal, publisher: Publisher) -> None:
        self.runtime = runtime
        self.id = actor_id
        self.kind = kind
        self.journal = journal
        self.publisher = publisher
        self.mailbox: Mailbox[Envelope] = Mailbox(kind.mailbox, "reject")
        self.actor: Actor | None = None
        self.busy = False
        self.current: Envelope | None = None
        self.reason: str | None = None
        self.restarts = 0
        self._ledger: RestartLedger | None = None
        self._activating: anyio.Event | None = None

    @property
    def clock(self) -> Clock:
        """Where the actor gets time, randomness and ids from."""
        return self.runtime.clock

    def post(self, envelope: Envelope) -> None:
        """Put a message into the mailbox and see to it that it is handled.

        Raises `MailboxFull`, `Quarantined` or `RuntimeClosed`; then the message was not accepted.
        """
        self.refuse_if_unable()
        lost = self.mailbox.put(envelope)
        if lost is not None:
            lost.outcome.fail(MailboxFull(f"the message was dropped from the full mailbox of {self.id!r} for a later one"))
        if not self.busy:
            self.busy = True
            self.runtime.workers.give(self)

    def refuse_if_unable(self) -> None:
        """Raise `RuntimeClosed` or `Quarantined` when no message can be taken."""
        self.runtime.refuse_if_closed()
        if self.reason is not None:
            raise Quarantined(f"{self.id!r} failed more than {self.runtime.restart.max_restarts} times in {self.runtime.restart.within:g} s and takes no work: {self.reason}")

    async def activate(self, *, create: bool = True, **seed: Any) -> Actor:
        """The incarnation there is, else one made from the journal now. Several callers share one activation."""
        while self.actor is None:
            if self._activating is not None:
                await self._activating.wait()
                continue
            self._activating = done = anyio.Event()
            try:
                self.actor = await self.kind.activate(self, create=create, **seed)
            finally:
                self._activating = None
                done.set()
        return self.actor

    async def work(self) -> None:
        """Handle what waits in the mailbox until nothing does. Called by a worker; one at a time."""
        try:
            while (envelope := self.mailbox.take()) is not None:
                self.current = envelope
                outcome = await attempt(self._handle(envelope))
                self.current = None
                if type(outcome) is not Failure:
                    envelope.outcome.settle(outcome)
                elif isinstance(outcome.error, Refused):
                    envelope.outcome.fail(outcome.error)
                else:
                    envelope.outcome.fail(outcome.error)
                    del envelope
                    await self._failed(outcome.error)
                outcome = envelope = None  # type: ignore[assignment]  # a waiting cell keeps no message alive
        except anyio.get_cancelled_exc_class():
            self.drop_waiting(RuntimeClosed("the runtime was closed before the message was handled"))
            raise
        finally:
            self.busy = False
            self.current = None

    def drop_waiting(self, error: Exception) -> None:
        """Give every waiting message, and the one being handled, this error as its outcome."""
        if self.current is not None:
            self.current.outcome.fail(error)
        while (envelope := self.mailbox.take()) is not None:
            envelope.outcome.fail(error)

    async def _handle(self, envelope: Envelope) -> Any:
        actor = self.actor
        if actor is None:
            actor = await self.activate()
        context = envelope.context
        if context is None:
            context = contextvars.Context()
        else:
            envelope.context = None  # the context may hold the asker's whole world; let it go when the message is done
        outer = context.get(_working, ()) if envelope.awaited else ()
        context.run(_working.set, (*outer, (self, envelope)))
        return await _within(context, actor.receive(envelope))

    async def _failed(self, error: Exception) -> None:
        """End the incarnation; a fault of its own counts against its restart policy, a fault of the journal does not."""
        self.actor = None
        if isinstance(error, (JournalUnavailable, Fenced)):
            log.warning("incarnation_dropped", session_id=self.id, error=type(error).__name__)
            return
        policy = self.runtime.restart
        self._ledger = (self._ledger or RestartLedger()).failed(self.clock.monotonic(), policy)
        self.restarts += 1
        log.error("actor_failed", session_id=self.id, restarts=self.restarts, exc_info=error)
        if self._ledger.exhausted(policy):
            self.reason = f"{type(error).__name__}: {error}"
            self.drop_waiting(Quarantined(f"{self.id!r} was quarantined: {self.reason}"))
            log.error("actor_quarantined", session_id=self.id, reason=self.reason)
        else:
            await anyio.sleep(policy.backoff.delay(len(self._ledger.times), self.clock.random()))


class WorkerPool:
    """Tasks that work for cells, parked between two of them.

    :param tasks: the group every worker lives in.
    :param parked: how many may wait for work; the others end when they have none.
    """

    __slots__ = ("_all_idle", "_idle", "_parked", "_tasks", "working")

    def __init__(self, tasks: anyio.abc.TaskGroup, parked: int) -> None:
        self._tasks = tasks
        self._parked = parked
        self._idle: list[_Parked] = []
        self.working: dict[Cell, None] = {}
        self._all_idle: anyio.Event | None = None

    async def wait_idle(self) -> None:
        """Return when no cell is worked for."""
        while self.working:
            if self._all_idle is None:
                self._all_idle = anyio.Event()
            await self._all_idle.wait()

    def give(self, cell: Cell) -> None:
        """Have the cell worked for, by a parked worker if there is one."""
        self.working[cell] = None
        if self._idle:
            parked = self._idle.pop()
            parked.cell = cell
            parked.event.set()
        else:
            # A clean context: a worker must not carry the context variables of whoever made the first message come.
            contextvars.Context().run(self._tasks.start_soon, self._work, cell)

    async def _work(self, cell: Cell) -> None:
        while True:
            try:
                await cell.work()
            finally:
                del self.working[cell]
                if self._all_idle is not None and not self.working:
                    self._all_idle.set()
                    self._all_idle = None
            del cell
            if len(self._idle) >= self._parked:
                return
            place = _Parked()
            self._idle.append(place)
            await place.event.wait()
            assert place.cell is not None
            cell = place.cell


class _Parked:
    __slots__ = ("cell", "event")

    def __init__(self) -> None:
        self.cell: Cell | None = None
        self.event = anyio.Event()

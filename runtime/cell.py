"""An actor's address, mailbox and life; a task only while there is work.

A cell outlives its actor: the actor is one incarnation, made from the journal by its kind, dropped when it fails, made
again for the next message. An idle cell is a small record. When a message comes, a worker from a pool of parked tasks
takes the cell, handles what waits in its mailbox, one message at a time, and parks again. Starting a task costs several
times what waking one does, which is why workers are kept (up to a bound); a parked task costs kilobytes, which is why
cells have none of their own.
"""

from __future__ import annotations

import contextlib
import contextvars
import traceback
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio
import anyio.abc
import anyio.lowlevel

from ropewalk.runtime.backend import ANY_BACKEND, Backend, Wakeup
from ropewalk.runtime.errors import Fenced, JournalUnavailable, MailboxFull, Quarantined, Refused, RuntimeClosed, SessionExists, UnknownSession, WouldDeadlock
from ropewalk.runtime.log import log
from ropewalk.runtime.mailbox import Mailbox
from ropewalk.runtime.outcome import Outcome
from ropewalk.runtime.scopes import CancelScopeLeft, guarded
from ropewalk.runtime.supervision import Exited, Failure, RestartLedger, attempt_foreign, in_words, own_task, running_task, stepwise

if TYPE_CHECKING:
    from ropewalk.runtime.channel import Publisher
    from ropewalk.runtime.clock import Clock
    from ropewalk.runtime.event import Event
    from ropewalk.runtime.journal import Claim, Journal
    from ropewalk.runtime.runtime import Runtime

__all__ = ["Actor", "ActorKind", "Cell", "Envelope", "WorkerPool", "is_work_of", "messages_around", "refuse_deadlock", "surroundings", "waiting_for"]

BREATH = 64
"""After how many messages a worker lets others run: an actor that always has another message must not keep the loop."""


class Actor(Protocol):
    """One incarnation. Its methods are never run beside each other.

    One that has figures its handle shows may have ``summary()``: what is left of it to show while there is no incarnation.

    One that handles what may take long may have ``cancel()``: it ends that soon, as if its asker had left. One that
    keeps account of what waits for it may have ``turned_away(envelope)``: that message will not be handled. Both are called when the
    actor is to be deleted.

    One whose state runs ahead of what it has published may also have ``untold()``: it gives something to await before it is
    asked again, and None when a `snapshot` tells nothing that readers have not heard.
    """

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
    """What a runtime needs to know to keep actors of some kind.

    One whose records are more than plain JSON values has a ``codec`` too, a `Codec` that journals outside this process keep them by.
    """

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

    __slots__ = ("awaited", "body", "context", "outcome", "waited_by")

    def __init__(self, body: Any, *, awaited: bool = True, new_wakeup: Callable[[], Wakeup] = ANY_BACKEND.wakeup) -> None:
        self.body = body
        self.awaited = awaited
        self.context: contextvars.Context | None = contextvars.copy_context()
        self.outcome: Outcome[Any] = Outcome(new_wakeup)
        self.waited_by: tuple[tuple[Cell, Envelope | anyio.Event], ...] = ()


_working: contextvars.ContextVar[tuple[tuple[Cell, Envelope | anyio.Event], ...]] = contextvars.ContextVar("ropewalk_working", default=())
"""What this code is part of, outermost first: messages being handled, and activations (named by the event of their end)."""


surroundings = _working.get
"""What the calling code is part of, as above: empty for code that no actor runs, which is what most need to know."""


def messages_around() -> tuple[tuple[Cell, Envelope], ...]:
    """The messages whose handling the calling code is part of, each with its cell, outermost first."""
    working = _working.get()
    return tuple((cell, part) for cell, part in working if isinstance(part, Envelope)) if working else ()


def is_work_of(runtime: Runtime) -> bool:
    """Whether the calling code is part of something an actor of this runtime does now."""
    return any(cell.runtime is runtime and cell.does(part) for cell, part in _working.get())


def refuse_deadlock(cell: Cell) -> None:
    """Raise `WouldDeadlock` when `cell` cannot get to its next message before the calling code is done.

    So it is when the code is part of what the cell does now, or when what the cell does now waits, perhaps through others,
    for a cell that the code is part of.
    """
    if not (around := _working.get()):
        return
    held: set[Cell] = set()
    found = [working for working, part in around if working.does(part)]
    while found:
        holding = found.pop()
        if holding not in held:
            held.add(holding)
            found.extend(holding.waiting_cells())
    if cell in held:
        raise WouldDeadlock(
            f"this code is part of the turn that {cell.id!r} works on or waits for, so waiting for its next one would wait for ever; "
            "use submit(), which does not wait, or another session"
        )


@contextlib.contextmanager
def waiting_for(cell: Cell, envelope: Envelope) -> Generator[None]:
    """While it lasts, the calling code waits for a message it sent without waiting; raises `WouldDeadlock` where that would be for ever."""
    refuse_deadlock(cell)
    around, before = _working.get(), envelope.waited_by
    envelope.waited_by = (*before, *around)
    try:
        yield
    finally:
        left = list(envelope.waited_by)
        for part in around:
            left.remove(part)
        envelope.waited_by = tuple(left)


class Cell:
    """One actor's place in a runtime. Made by the runtime only.

    `actor` is the incarnation, None while there is none; `summary` what the last one left to show of it then; `current` the
    message being handled; `reason` why it is quarantined;
    `kept` whether somebody may hold a handle, so that the cell must stay the one of its id. `unguarded` counts the messages
    of this spell of work that ran code of others in the worker's task outside any `guarded` scope; an actor that knows it
    did not takes its message off again. `deleted` says that its log is gone, or about to be: no message is taken any more.
    `told` is what those wait for who wait until the actor has told more, None while nobody does.
    """

    __slots__ = (
        "_activating",
        "_idle",
        "_ledger",
        "_openers",
        "actor",
        "busy",
        "current",
        "deleted",
        "id",
        "journal",
        "kept",
        "kind",
        "mailbox",
        "publisher",
        "reason",
        "restarts",
        "runtime",
        "summary",
        "told",
        "unguarded",
    )

    def __init__(self, runtime: Runtime, actor_id: str, kind: ActorKind, journal: Journal, publisher: Publisher) -> None:
        self.runtime = runtime
        self.id = actor_id
        self.kind = kind
        self.journal = journal
        self.publisher = publisher
        self.mailbox: Mailbox[Envelope] = Mailbox(kind.mailbox, "reject")
        self.actor: Actor | None = None
        self.summary: Any = None
        self.busy = False
        self.current: Envelope | None = None
        self.reason: str | None = None
        self.restarts = 0
        self.kept = False
        self.deleted = False
        self.unguarded = 0
        self.told: anyio.Event | None = None
        self._ledger: RestartLedger | None = None
        self._activating: anyio.Event | None = None
        self._idle: anyio.Event | None = None
        self._openers = 0

    @property
    def clock(self) -> Clock:
        """Where the actor gets time, randomness and ids from."""
        return self.runtime.clock

    @property
    def activating(self) -> bool:
        """Whether an incarnation is being made, or somebody is about to make one."""
        return self._activating is not None or self._openers > 0

    def does(self, part: Envelope | anyio.Event) -> bool:
        """Whether this message is being handled now, or this activation under way."""
        return part is self.current or part is self._activating

    def waiting_cells(self) -> list[Cell]:
        """The cells that cannot go on before this one has handled what waits in its mailbox."""
        asked = [
            (cell, part)
            for envelope in self.mailbox.waiting()
            if envelope.awaited and envelope.context is not None
            for cell, part in envelope.context.get(_working, ())
        ]
        current = () if self.current is None else (self.current,)
        joined = [pair for envelope in (*current, *self.mailbox.waiting()) for pair in envelope.waited_by]
        return [cell for cell, part in (*asked, *joined) if cell.does(part)]

    async def publish(self, kind: type[Event], *fields: Any) -> None:
        """Publish an event of the actor's, outside any turn; returns when all handlers are done with it."""
        pending = self.publisher.publish(kind, None, None, *fields)
        if pending is not None:
            await pending

    def post(self, envelope: Envelope) -> None:
        """Put a message into the mailbox and see to it that it is handled.

        Raises `MailboxFull`, `Quarantined` or `RuntimeClosed`; then the message was not accepted.
        """
        if self.deleted or self.reason is not None or not self.runtime.is_here:
            self.refuse_if_unable()
        lost = self.mailbox.put(envelope)
        if lost is not None:
            lost.outcome.fail(MailboxFull(f"the message was dropped from the full mailbox of {self.id!r} for a later one"))
        if not self.busy:
            self.busy = True
            self.runtime.workers.give(self)

    def refuse_if_unable(self) -> None:
        """Raise `RuntimeClosed`, `UnknownSession` or `Quarantined` when no message can be taken."""
        self.runtime.refuse_if_closed()
        self.refuse_if_deleted()
        if self.reason is not None:
            policy = self.runtime.restart
            raise Quarantined(f"{self.id!r} failed more than {policy.max_restarts} times in {policy.within:g} s and takes no work: {self.reason}")

    def refuse_if_deleted(self) -> None:
        """Raise `UnknownSession` once the actor is being deleted."""
        if self.deleted:
            raise UnknownSession(f"the session {self.id!r} was deleted; Runtime.open begins a new one of that id")

    def revive(self) -> None:
        """End a quarantine: the next message is handled by a new incarnation, and earlier failures are forgotten."""
        self.reason = None
        self._ledger = None

    async def claim(self) -> Claim:
        """Become the only writer of the actor's log; see `Journal.claim`."""
        return await self.journal.claim(self.id, self.kind.name, getattr(self.kind, "codec", None))

    def drop_actor(self) -> None:
        """End the incarnation there is, as one that cannot go on; the next message is handled by one made anew."""
        summarise = getattr(self.actor, "summary", None)
        self.summary = self.summary if summarise is None else summarise()
        self.actor = None

    async def activate(self, *, create: bool = True, **seed: Any) -> Actor:
        """The incarnation there is, else one made from the journal now. Several callers share one activation.

        Raises `SessionExists` when there is one and a `seed` was given, and whatever `ActorKind.activate` raises.
        """
        while self.actor is None:
            self.refuse_if_deleted()
            if self._activating is None:
                return await self._make(create, seed)
            refuse_deadlock(self)
            self._openers += 1
            try:
                await self._activating.wait()
            finally:
                self._openers -= 1
        if seed:
            raise SessionExists(f"{self.id!r} exists already; {', '.join(seed)} can only be given for a new one")
        return self.actor

    async def work(self) -> None:
        """Handle what waits in the mailbox until nothing does. Called by a worker; one at a time."""
        handled = self.unguarded = 0
        try:
            while (envelope := self.mailbox.take()) is not None:
                self.current = envelope
                try:
                    outcome = await attempt_foreign(self._handle(envelope))
                except SystemExit as left:  # whoever asked for this is told to exit; the other actors' work goes on
                    envelope.outcome.fail(left)
                    outcome = Failure(Exited(left))
                self.current = None
                if self.told is not None:
                    self.wake()
                if type(outcome) is not Failure:
                    if not envelope.outcome.settled:
                        envelope.outcome.settle(outcome)
                else:
                    envelope.outcome.fail(outcome.error)
                    if not isinstance(outcome.error, Refused) and not self.deleted:
                        del envelope
                        await self._failed(outcome.error)
                outcome = envelope = None  # a waiting cell keeps no message alive
                handled += 1
                if not handled % BREATH:
                    await anyio.lowlevel.checkpoint()
        except BaseException:  # whatever ends a worker must not leave an asker waiting
            self.drop_waiting(RuntimeClosed("the runtime was closed before the message was handled"))
            raise
        finally:
            self.rest()

    def rest(self) -> None:
        """Be idle: nobody works for this cell now."""
        self.busy = False
        self.current = None
        if self.told is not None:  # a message may have been withdrawn before it was handled, so that nothing was told
            self.wake()
        if self._idle is not None:
            self._idle.set()
            self._idle = None

    def wait_told(self) -> Awaitable[None]:
        """What to await until the actor has told more of what it did, or is done with its message."""
        if self.told is None:
            self.told = anyio.Event()
        return self.told.wait()

    def wake(self) -> None:
        """Have those look again who wait for what is untold."""
        if self.told is not None:
            self.told.set()
            self.told = None

    async def wait_idle(self) -> None:
        """Return when no message is being handled and none waits."""
        while self.busy:
            if self._idle is None:
                self._idle = anyio.Event()
            await self._idle.wait()

    async def wait_rest(self) -> None:
        """Return when no message is being handled, and no incarnation made."""
        while self.busy or self._activating is not None:
            await self.wait_idle()
            if self._activating is not None:
                await self._activating.wait()

    def drop_waiting(self, error: Exception) -> None:
        """Give every waiting message, and the one being handled, this error as its outcome."""
        if self.current is not None:
            self.current.outcome.fail(error)
        while (envelope := self.mailbox.take()) is not None:
            envelope.outcome.fail(error)

    async def _make(self, create: bool, seed: dict[str, Any]) -> Actor:
        self._activating = done = anyio.Event()
        outer = _working.set((*_working.get(), (self, done)))
        try:
            with guarded():
                self.actor = await self.kind.activate(self, create=create, **seed)
                self.summary = None
        except CancelScopeLeft:
            if self.actor is None:
                raise
        finally:
            _working.reset(outer)
            self._activating = None
            done.set()
        return cast(Actor, self.actor)

    async def _handle(self, envelope: Envelope) -> Any:
        context = envelope.context
        if context is None:
            context = contextvars.Context()
        else:
            envelope.context = None  # the context may hold the asker's whole world; let it go when the message is done
        around = context.get(_working, ()) if envelope.awaited else ()
        actor = self.actor
        if actor is None:
            actor = await self._activate_within(around)
        self.unguarded += 1
        context.run(_working.set, (*around, (self, envelope)))
        # A parked worker lends its task, never its context variables.
        return await stepwise(context.run, actor.receive(envelope))

    async def _activate_within(self, around: tuple[tuple[Cell, Envelope | anyio.Event], ...]) -> Actor:
        """Activate for a message, which waits meanwhile: so does whoever waits for it, and nothing else of theirs comes in here."""
        outer = _working.set(around)
        try:
            return await self.activate()
        finally:
            _working.reset(outer)

    async def _failed(self, error: Exception) -> None:
        """End the incarnation; a fault of its own counts against its restart policy, a fault of the journal does not."""
        self.drop_actor()
        if isinstance(error, (JournalUnavailable, Fenced)):
            log.warning("incarnation_dropped", session_id=self.id, error=type(error).__name__)
            return
        policy = self.runtime.restart
        self._ledger = (self._ledger or RestartLedger()).failed(self.clock.monotonic(), policy)
        self.restarts += 1
        # Not `exc_info`: a logger may print the locals of every frame with it, which takes long and shows what was said.
        log.error("actor_failed", session_id=self.id, restarts=self.restarts, error=type(error).__name__, trace="".join(traceback.format_exception(error)))
        if self._ledger.exhausted(policy):
            self.reason = in_words(error)
            self.drop_waiting(Quarantined(f"{self.id!r} was quarantined: {self.reason}"))
            log.error("actor_quarantined", session_id=self.id, reason=self.reason)
        else:
            await anyio.sleep(policy.backoff.delay(len(self._ledger.times), self.clock.random()))


class WorkerPool:
    """Tasks that work for cells, parked between two of them.

    :param tasks: the group every worker lives in.
    :param parked: how many may wait for work; the others end when they have none.

    `working` are the cells being worked for, those that began first first; `cut_off` the ids of those whose work was ended from outside.
    """

    __slots__ = ("_all_idle", "_backend", "_ends", "_host", "_idle", "_parked", "_tasks", "cut_off", "working")

    def __init__(self, tasks: anyio.abc.TaskGroup, parked: int, backend: Backend) -> None:
        self._tasks = tasks
        self._backend = backend
        self._parked = parked
        self._idle: list[Wakeup] = []
        self.working: dict[Cell, None] = {}
        self.cut_off: list[str] = []
        self._all_idle: anyio.Event | None = None
        self._host = running_task()
        self._ends = backend.effective_deadline()

    async def wait_idle(self) -> None:
        """Return when no cell is worked for."""
        while self.working:
            if self._all_idle is None:
                self._all_idle = anyio.Event()
            await self._all_idle.wait()

    def give(self, cell: Cell) -> None:
        """Have the cell worked for, by a parked worker if there is one."""
        self.working[cell] = None
        while self._idle:
            parked = self._idle.pop()
            if not parked.done():  # else it was cancelled where it waited
                parked.set_result(cell)
                return
        # A clean context: a worker must not carry the context variables of whoever made the first message come.
        contextvars.Context().run(self._tasks.start_soon, self._work, cell)

    async def _work(self, first: Cell) -> None:
        own_task(self._host)
        with contextlib.suppress(CancelScopeLeft), guarded(self._backend.scope()):
            await self._work_on(first)

    async def _work_on(self, first: Cell) -> None:
        """Work for one cell after the other, as long as nobody leaves a cancel scope here that would end the work of others."""
        cell: Cell | None = first
        del first
        while cell is not None:
            try:
                await cell.work()
            except BaseException:
                self.cut_off.append(cell.id)
                raise
            finally:
                self._done_with(cell)
            # A look at the scopes costs as much as a wake-up, so it is kept for when there can be one too many.
            if (cell.unguarded and self._backend.effective_deadline() < self._ends) or len(self._idle) >= self._parked:
                return
            cell = None
            parked = self._backend.wakeup()
            self._idle.append(parked)
            try:
                cell = await parked
            except BaseException:
                if parked.done() and not parked.cancelled():  # it is the end of a worker that was given a cell just then
                    self._cut_off_before(parked.result())
                raise

    def _cut_off_before(self, cell: Cell) -> None:
        cell.drop_waiting(RuntimeClosed("the runtime was closed before the message was handled"))
        cell.rest()
        self._done_with(cell)

    def _done_with(self, cell: Cell) -> None:
        del self.working[cell]
        if self._all_idle is not None and not self.working:
            self._all_idle.set()
            self._all_idle = None

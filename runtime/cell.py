"""An actor's address, mailbox and life; a task only while there is work.

A cell outlives its actor: the actor is one incarnation, made from the journal by its kind, dropped when it fails, made
again for the next message. An idle cell is a small record. When a message comes, a worker from a pool of parked tasks
takes the cell, handles what waits in its mailbox, one message at a time, and parks again. One that is idle for long may lose
its incarnation too: letting it go is a message like any other, so nothing else of the actor's runs beside it.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio
import anyio.lowlevel

from ropewalk.runtime.envelope import Envelope
from ropewalk.runtime.errors import (
    Fenced,
    JournalUnavailable,
    MailboxFull,
    Quarantined,
    Refused,
    RuntimeClosed,
    SessionElsewhere,
    SessionExists,
    UnknownSession,
)
from ropewalk.runtime.event import SessionPassivated
from ropewalk.runtime.handler import exit_in
from ropewalk.runtime.log import log
from ropewalk.runtime.mailbox import Mailbox
from ropewalk.runtime.scopes import CancelScopeLeft, guarded
from ropewalk.runtime.supervision import Exited, Failure, RestartLedger, attempt, attempt_foreign, in_words, stepwise
from ropewalk.runtime.surroundings import refuse_deadlock, working_on

if TYPE_CHECKING:
    from ropewalk.runtime.clock import Clock
    from ropewalk.runtime.event import Event
    from ropewalk.runtime.journal import Claim, Journal
    from ropewalk.runtime.kind import Actor, ActorKind
    from ropewalk.runtime.publisher import Publisher
    from ropewalk.runtime.runtime import Runtime

__all__ = ["PASSIVATE", "Cell"]

OVERTAKEN = object()
"""What comes of handling a message before which others have to be handled, as its actor's activation found: nothing yet."""

ELSEWHERE_SECONDS = 0.1
"""How often it is asked whether another owner has let go of an actor."""

RELEASE_SECONDS = 5.0
"""How long an actor that could not be brought in may take to let go of its log."""

BREATH = 64
"""After how many messages a worker lets others run: an actor that always has another message must not keep the loop."""

PASSIVATE = object()
"""The body of the one message that a cell handles itself: let the incarnation go. It goes into the control lane."""


class Cell:
    """One actor's place in a runtime. Made by the runtime only.

    `actor` is the incarnation, None while there is none; `summary` what the last one left to show of it then; `dropped` the type and
    words of what it was lost to, when it could not go on and there has been none since: whoever waited for what it was doing has been
    told so, here and nowhere else. `current` is the message being handled; `reason` why it is quarantined;
    `kept` whether somebody may hold a handle, so that the cell must stay the one of its id. `unguarded` counts the messages
    of this spell of work that ran code of others in the worker's task outside any `guarded` scope; an actor that knows it
    did not takes its message off again. `deleted` says that its log is gone, or about to be: no message is
    taken any more. `overtaken`: activating for the current message found others to be handled before it. `told`
    is what those wait for who wait until the actor has told more, None while nobody does.
    `passivated` says that the incarnation was let go of and there has been none since: the runtime then knows the cell only
    as long as somebody else does, which is what a handle is for.
    """

    __slots__ = (
        "__weakref__",
        "_activating",
        "_claimed",
        "_idle",
        "_ledger",
        "_openers",
        "actor",
        "busy",
        "current",
        "deleted",
        "dropped",
        "id",
        "journal",
        "kept",
        "kind",
        "mailbox",
        "overtaken",
        "passivated",
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
        self.dropped: tuple[str, str] | None = None
        self.busy = False
        self.current: Envelope | None = None
        self.reason: str | None = None
        self.restarts = 0
        self.kept = False
        self.overtaken = False
        self.passivated = False
        self.deleted = False
        self.unguarded = 0
        self.told: anyio.Event | None = None
        self._ledger: RestartLedger | None = None
        self._activating: anyio.Event | None = None
        self._claimed = 0  # the epoch of the claim that the last activation made
        self._idle: anyio.Event | None = None
        self._openers = 0

    @property
    def clock(self) -> Clock:
        """Where the actor gets time, randomness and ids from."""
        return self.runtime.clock

    @property
    def activating(self) -> bool:
        """Whether an incarnation is being made or let go, or somebody is about to make one."""
        return self._activating is not None or self._openers > 0

    @property
    def at_work(self) -> bool:
        """Whether a message is being handled or waits. Letting the incarnation go is none of them."""
        return self.busy and not (self.following is None and any(part.body is PASSIVATE for part in self._messages))

    @property
    def following(self) -> Envelope | None:
        """The message that is being handled, else the next one that waits."""
        return next((part for part in self._messages if part.body is not PASSIVATE), None)

    @property
    def _messages(self) -> tuple[Envelope, ...]:
        return (*(() if self.current is None else (self.current,)), *self.mailbox.waiting())

    @property
    def status(self) -> Literal["idle", "busy", "quarantined", "passivated"]:
        """What there is of the actor now, and whether it has work."""
        if self.reason is not None:
            return "quarantined"
        return "busy" if self.busy and self.at_work else "passivated" if self.passivated else "idle"

    @property
    def passivates(self) -> bool:
        """Whether the actor may be let go of while it is idle; see `ActorKind`."""
        return getattr(self.kind, "passivates", True)

    @property
    def is_in_doubt(self) -> bool:
        """Whether a failure of the actor still counts, so that the cell must not be forgotten."""
        return self._ledger is not None and bool(self._ledger.counting(self.clock.monotonic(), self.runtime.restart))

    def does(self, part: Envelope | anyio.Event) -> bool:
        """Whether this message is being handled now, or this activation under way."""
        return part is self.current or part is self._activating

    def waiting_cells(self) -> list[Cell]:
        """The cells that cannot go on before this one has handled what waits in its mailbox."""
        asked = [
            (cell, part)
            for envelope in self.mailbox.waiting()
            if envelope.awaited and envelope.context is not None
            for cell, part in envelope.context.get(working_on, ())
        ]
        current = () if self.current is None else (self.current,)
        joined = [pair for envelope in (*current, *self.mailbox.waiting()) for pair in envelope.waited_by]
        return [cell for cell, part in (*asked, *joined) if cell.does(part)]

    async def publish(self, kind: type[Event], *fields: Any) -> None:
        """Publish an event of the actor's, outside any turn; returns when all handlers are done with it."""
        pending = self.publisher.publish(kind, None, None, *fields)
        if pending is not None:
            await pending

    def post(self, envelope: Envelope, *, control: bool = False) -> None:
        """Put a message into the mailbox, into its `control` lane or the ordinary one, and see to it that it is handled.

        Raises `MailboxFull`, `Quarantined` or `RuntimeClosed`; then the message was not accepted.
        """
        if self.deleted or self.reason is not None or not self.runtime.is_here:
            self.refuse_if_unable()
        if control:
            self.mailbox.put_control(envelope)
        else:
            lost = self.mailbox.put(envelope)
            if lost is not None:
                lost.outcome.fail(MailboxFull(f"the message was dropped from the full mailbox of {self.id!r} for a later one"))
        self._see_to_it()

    async def ask(self, body: Any, *, control: bool = False) -> Any:
        """Send a message and wait for its outcome. Whoever leaves before takes it back if it still waits.

        Raises `WouldDeadlock` too, and then it was not sent.
        """
        refuse_deadlock(self)
        envelope = Envelope(body)
        self.post(envelope, control=control)
        try:
            return await envelope.outcome.wait()
        finally:
            if not envelope.outcome.settled:
                self.mailbox.withdraw(envelope)

    def _see_to_it(self) -> None:
        """Have somebody work for this cell."""
        if not self.busy:
            self.busy = True
            if self.passivated or self.runtime.passivation is not None:
                self.runtime.take_up(self)
            self.runtime.workers.give(self)

    def put_first(self, envelopes: Sequence[Envelope]) -> None:
        """Have messages handled before all others, called while the actor is being activated: they were accepted before this process began."""
        if not envelopes:
            return
        self.runtime.workers.refuse_if_over()  # for who activates need not be work of the runtime's
        if self.current is not None and self.current.body is not PASSIVATE:  # what the actor is activated for is handled when its turn comes
            self.overtaken = True
            envelopes = (*envelopes, self.current)
        self.mailbox.put_first(envelopes)
        self._see_to_it()

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
        """Become the only writer of the actor's log; see `Journal.claim`. Waits for another owner that is alive, up to the runtime's `open_timeout`."""
        runtime = self.runtime
        gives_up = runtime.backend.now() + runtime.open_timeout
        while True:
            claim = await attempt(self.journal.claim(self.id, self.kind.name, getattr(self.kind, "codec", None)))
            if not isinstance(claim, Failure):
                self._claimed = claim.epoch
                return claim
            if not isinstance(claim.error, SessionElsewhere) or runtime.backend.now() >= gives_up:
                raise claim.error
            await anyio.sleep(min(ELSEWHERE_SECONDS, gives_up - runtime.backend.now()))

    def drop_actor(self, error: Exception | None = None) -> None:
        """End the incarnation there is, as one that cannot go on, for this reason; the next message is handled by one made anew.

        Where there is none, as when one could not be brought in, nothing is lost by that: what the last one was lost to stays what was told.
        """
        if self.actor is not None:
            self.dropped = ("", "") if error is None else (type(error).__name__, in_words(error))
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
            given = ", ".join(seed)
            raise SessionExists(f"{self.id!r} exists already; {given} can only be given for a new one: leave it out to go on, or take another id")
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
                if self.overtaken:
                    self.overtaken = False
                    if outcome is OVERTAKEN:
                        continue
                    self.mailbox.withdraw(envelope)
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
        if (self.passivated or self.runtime.passivation is not None) and self._activating is None:
            self.runtime.put_aside(self)

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
        if self.passivated:
            self.runtime.take_up(self)
        self._activating = done = anyio.Event()
        outer = working_on.set((*working_on.get(), (self, done)))
        self._claimed = 0
        try:
            try:
                with guarded():
                    self.actor = await self.kind.activate(self, create=create, **seed)
            except CancelScopeLeft:
                if self.actor is None:
                    raise
            except GeneratorExit:  # thrown away by an event loop that runs no more: nothing can be waited for
                raise
            except BaseException:
                if self.actor is None:
                    await self._give_back()
                raise
        finally:
            working_on.reset(outer)
            self._activating = None
            if self.actor is not None:  # also where a handler asked for an exit when it was told
                self.summary = self.dropped = None
            self.passivated = self.passivated and self.actor is None
            done.set()
            if not self.busy and (self.passivated or self.runtime.passivation is not None):
                self.runtime.put_aside(self)
        return cast("Actor", self.actor)

    def _turn_away(self, envelope: Envelope, left: SystemExit) -> None:
        """A handler asked for an exit when it was told that the actor is there: that is for whoever this message is of, and costs nobody else."""
        if self.actor is None:
            raise left
        turned_away = getattr(self.actor, "turned_away", None)
        if turned_away is not None:
            turned_away(envelope)
        envelope.outcome.fail(left)

    async def _give_back(self) -> None:
        """Own the log of an actor that could not be brought in no more: another owner may have more luck with it."""
        if self._claimed:
            with anyio.move_on_after(RELEASE_SECONDS, shield=True):
                await attempt(self.journal.release(self.id, self._claimed))

    async def _handle(self, envelope: Envelope) -> Any:
        context = envelope.context or contextvars.Context()
        around = context.get(working_on, ()) if envelope.awaited else ()
        actor = self.actor
        if envelope.body is PASSIVATE:
            handling = self._passivate(envelope)
        else:
            if actor is None:
                try:
                    actor = await self._activate_within(around)
                except SystemExit as left:
                    return self._turn_away(envelope, left)
                if self.overtaken:
                    return OVERTAKEN
            handling = actor.receive(envelope)
        envelope.context = None  # it may hold the asker's whole world; let it go when the message is done
        self.unguarded += 1
        context.run(working_on.set, (*around, (self, envelope)))
        # A parked worker lends its task, never its context variables.
        return await stepwise(context.run, handling)

    async def _passivate(self, envelope: Envelope) -> bool:
        """Let the incarnation go, unless somebody wants it; whether it is gone. Raises as the journal does; then it is gone too.

        One that was lost is made anew first: what it left undone has its end, as was told here, before that is forgotten here.
        """
        actor = self.actor
        if self.passivated or self.following is not None or self._activating is not None:
            return self.passivated and self.following is None
        try:
            if self.dropped is not None:
                actor = await self.activate()
            hook = getattr(actor, "passivate", None)
            if hook is not None:
                await hook()
        except SystemExit as left:  # of a handler that was told something on the way
            envelope.outcome.fail(left)
            return False
        if self.following is not None or self.actor is not actor:
            return False
        self._activating = gone = anyio.Event()  # from here on whoever wants an incarnation waits for the next one
        try:
            self.drop_actor()
            await self.journal.release(self.id, self.publisher.epoch)
            self.passivated, self.dropped = True, None
            self.runtime.passivations += 1
            pending = None if actor is None else self.publisher.publish(SessionPassivated, None, None)
            told = None if pending is None else await attempt(pending)
        finally:
            self._activating = None
            gone.set()
        asked_to_exit = exit_in(told.error) if isinstance(told, Failure) else None
        if asked_to_exit is not None:
            envelope.outcome.fail(asked_to_exit)
        return True

    async def _activate_within(self, around: tuple[tuple[Cell, Envelope | anyio.Event], ...]) -> Actor:
        """Activate for a message, which waits meanwhile: so does whoever waits for it, and nothing else of theirs comes in here."""
        outer = working_on.set(around)
        try:
            return await self.activate()
        finally:
            working_on.reset(outer)

    async def _failed(self, error: Exception) -> None:
        """End the incarnation; a fault of its own counts against its restart policy, a fault of the journal does not."""
        self.drop_actor(error)
        if isinstance(error, (JournalUnavailable, Fenced)):
            log.warning("incarnation_dropped", session_id=self.id, error=type(error).__name__)
            return
        policy = self.runtime.restart
        self._ledger = (self._ledger or RestartLedger()).failed(self.clock.monotonic(), policy)
        self.restarts += 1
        self.runtime.restarts += 1
        log.error("actor_failed", session_id=self.id, restarts=self.restarts, error=type(error).__name__, traceback_of=error)
        if self._ledger.exhausted(policy):
            self.reason = in_words(error)
            self.drop_waiting(Quarantined(f"{self.id!r} was quarantined: {self.reason}"))
            log.error("actor_quarantined", session_id=self.id, reason=self.reason)
        else:
            await anyio.sleep(policy.backoff.delay(len(self._ledger.times), self.clock.random()))

"""Where an agent's one conversation lives: in at most one runtime at a time, moving to whoever calls.

Between calls the conversation rests: its incarnation belongs to no runtime, and no runtime knows of it. A call takes it into
the caller's runtime, where it stays as long as anybody there uses it. Deciding who may have it is synchronous and under a
lock, because callers may be in different threads; all else happens in the event loop of the runtime that has it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import anyio
import attrs

from ropewalk.actors.errors import SessionBusy
from ropewalk.actors.messages import Message
from ropewalk.actors.session.activation import activate, adopt
from ropewalk.actors.session.actor import SessionActor
from ropewalk.actors.spec import AgentSpec
from ropewalk.actors.transient import Places
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.errors import Refused, RuntimeClosed
from ropewalk.runtime.handler import Handler
from ropewalk.runtime.journal import Journal, MemoryJournal
from ropewalk.runtime.log import log
from ropewalk.runtime.runtime import Runtime
from ropewalk.runtime.supervision import Failure, attempt
from ropewalk.runtime.surroundings import refuse_deadlock

__all__ = ["OwnSpec", "Residence", "Stay"]

SETTLING_SECONDS = 5.0
"""How long the last one to leave waits, even when cancelled, for the conversation to come to rest."""

_moving = threading.Lock()


class Stay:
    """The conversation's time in one runtime, from the first who comes to the last who leaves."""

    __slots__ = ("cell", "handlers", "is_kept", "process", "settling", "users")

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.handlers: tuple[Handler, ...] = ()
        self.is_kept = False
        self.process = os.getpid()
        self.settling: anyio.CancelScope | None = None
        self.users = 0

    @property
    def at_work(self) -> bool:
        """Whether anybody uses it, or a turn they left behind is being settled."""
        return self.users > 0 or self.cell.busy

    @property
    def is_over(self) -> bool:
        """Whether its runtime is gone: with a fork, whose child has no other threads, or closed."""
        return self.process != os.getpid() or (not self.cell.runtime.is_open and not self.cell.busy)


@attrs.frozen(eq=False, kw_only=True)
class OwnSpec(AgentSpec):
    """The spec as the agent's own session has it: an incarnation that rests is moved rather than made anew."""

    passivates: ClassVar[bool] = False

    residence: Residence

    async def activate(self, cell: Cell, *, create: bool, **seed: Any) -> SessionActor:
        """The incarnation for this cell; see `ActorKind.activate`."""
        return await self.residence.activate(self, cell)


class Residence:
    """One conversation and where it is.

    :param journal: where it is recorded; None is memory.
    :param opening: the messages it begins with, valid; `SessionExists` when the journal knows it already and there are any.
    """

    def __init__(self, session_id: str, journal: Journal | None, opening: Sequence[Message]) -> None:
        self.session_id = session_id
        self._journal: Journal = MemoryJournal() if journal is None else journal
        self._is_journal_given = journal is not None
        self._is_journal_open = False
        self._opening: list[Message] | None = list(opening)
        self._actor: SessionActor | None = None
        self._stay: Stay | None = None
        self._dropped: tuple[str, str] | None = None
        self._is_closed = False
        self.places = Places()

    # Coming and going.

    def refuse_deadlock(self) -> None:
        """Raise `WouldDeadlock` when the calling code is part of a turn of this conversation."""
        stay = self._stay
        if stay is not None:
            refuse_deadlock(stay.cell)

    def refuse_at_work(self) -> None:
        """Raise `SessionBusy` when somebody uses the conversation now."""
        stay = self._stay
        if stay is not None and stay.at_work and not stay.is_over:
            raise SessionBusy(f"the agent {self.session_id!r} is in the middle of a call; try again when it is done")

    def refuse_closed(self) -> None:
        """Raise `RuntimeClosed` after `close`."""
        if self._is_closed:
            raise RuntimeClosed(f"the agent {self.session_id!r} was closed; make a new one, with its messages if it is to go on")

    def enter(self, spec: OwnSpec, runtime: Runtime, listen: Callable[[Cell], tuple[Handler, ...]], *, alone: bool = False) -> Stay:
        """Have the conversation in this runtime, until `leave`. Called in the runtime's own event loop.

        Raises `SessionBusy` when it is at work in another one, or with `alone` at all; `RuntimeClosed` after `close`.

        :param listen: adds the handlers that listen during the stay.
        """
        with _moving:
            self.refuse_closed()
            stay = self._stay
            if stay is not None and stay.is_over:
                self._end(stay)
                stay = None
            if stay is not None and stay.cell.runtime is not runtime:
                raise SessionBusy(
                    f"the agent {self.session_id!r} is in the middle of a call from another thread or runtime; wait for it, "
                    "make both calls in one `async with Runtime():` block, where they queue, or give each caller an agent of its own"
                )
            if alone:
                self.refuse_at_work()
            is_new = stay is None
            if stay is None:
                stay = self._stay = self._move_in(spec, runtime)
            stay.users += 1
            if stay.settling is not None:
                stay.settling.cancel()  # whoever waits for the conversation to come to rest need not: it will not
        if is_new:
            self._listen(stay, listen)
        return stay

    async def leave(self, stay: Stay) -> None:
        """The last one to leave sees the conversation come to rest; when cancelled too, for a while."""
        with _moving:
            stay.users -= 1
        if not stay.users and stay.cell.busy:
            with anyio.move_on_after(SETTLING_SECONDS, shield=True) as stay.settling:
                await stay.cell.wait_idle()
            stay.settling = None
        if self._can_rest(stay):
            await self._put_to_rest(stay)
        elif not stay.users and stay.cell.runtime.is_open:
            stay.cell.runtime.start(self._rest_later, stay)

    def close(self) -> Journal | None:
        """Take no more calls; what runs goes on to its end. Returns the journal that has to be closed now, if there is one.

        While a call is at work there is none: whoever is the last to leave closes it.
        """
        with _moving:
            self._is_closed = True
            stay = self._stay
            return None if stay is not None and stay.at_work and not stay.is_over else self._journal_to_close()

    def _journal_to_close(self) -> Journal | None:
        """The given journal, once, when no call can come any more that would use it. Called under the lock."""
        if not self._is_closed:
            return None
        opened, self._is_journal_open = self._is_journal_open, False
        return self._journal if opened and self._is_journal_given else None

    def _listen(self, stay: Stay, listen: Callable[[Cell], tuple[Handler, ...]]) -> None:
        """Add the handlers: it looks at somebody else's objects, so not under the lock."""
        try:
            stay.handlers = listen(stay.cell)
        except BaseException:
            with _moving:
                self._end(stay)
            stay.cell.runtime.release(stay.cell)
            raise

    def _move_in(self, spec: OwnSpec, runtime: Runtime) -> Stay:
        if runtime.known(self.session_id) is not None:
            raise SessionBusy(f"another conversation called {self.session_id!r} is in this runtime now; give the agent a session_id of its own")
        cell = runtime.cell(self.session_id, spec, self._journal)
        cell.dropped = self._dropped
        return Stay(cell)

    async def _rest_later(self, stay: Stay) -> None:
        try:
            await stay.cell.wait_idle()
        finally:  # the runtime may end first, and its turns are given a while to settle then
            if stay.cell.busy:
                with anyio.move_on_after(SETTLING_SECONDS, shield=True):
                    await stay.cell.wait_idle()
            if self._can_rest(stay):
                await self._put_to_rest(stay)

    def _can_rest(self, stay: Stay) -> bool:
        """Whether nobody uses the conversation in its runtime any more and nothing is under way; if so, the stay has ended."""
        with _moving:
            if stay is not self._stay or stay.at_work:
                return False
            self._end(stay)
            return True

    async def _put_to_rest(self, stay: Stay) -> None:
        for handler in stay.handlers:
            handler.remove()
        stay.cell.runtime.release(stay.cell)
        if stay.is_kept:
            stay.cell.runtime.let_go(self._journal)
        with _moving:
            journal = None if self._stay is not None else self._journal_to_close()
        if journal is not None:
            with anyio.move_on_after(SETTLING_SECONDS, shield=True):
                closed = await attempt(journal.close())
                if isinstance(closed, Failure):  # whoever closed the agent has gone on long since
                    log.error("journal_not_closed", session_id=self.session_id, error=type(closed.error).__name__)

    def _end(self, stay: Stay) -> None:
        actor = stay.cell.actor
        # One that was in the middle of something when its thread was lost is made anew from the journal.
        self._actor = actor if isinstance(actor, SessionActor) and not stay.cell.busy else None
        self._dropped = stay.cell.dropped
        stay.cell.actor = None
        self._stay = None

    # The conversation.

    async def activate(self, spec: OwnSpec, cell: Cell) -> SessionActor:
        """Bring the conversation into this cell: as it rests, or else from the journal. Raises `Refused` when it is not in this cell's runtime."""
        if self._stay is None or self._stay.cell is not cell:
            raise Refused(f"the agent {self.session_id!r} is not in this runtime now; call the agent itself")
        if not self._is_journal_open:
            await self._journal.open()
            self._is_journal_open = True
        if not self._stay.is_kept:
            cell.runtime.keep(self._journal)
            self._stay.is_kept = True
        try:
            actor = self._actor
            if actor is not None:
                actor.spec = spec
                actor = await adopt(actor, cell)
            if actor is None:
                seed = {"messages": self._opening} if self._opening else {}
                actor = await activate(spec, cell, create=True, **seed)
            self._opening = None
            cell.actor = actor  # before it is let go of here: another thread may be reading
            return actor
        finally:
            self._actor = None

    def view(self) -> list[Message] | None:
        """The messages as they are, shared ones, safe to call from any thread; None when the journal has to be asked first."""
        stay = self._stay
        actor = self._actor if stay is None or stay.cell.actor is None else stay.cell.actor
        if isinstance(actor, SessionActor):
            return list(actor.state.view.messages)
        opening = self._opening
        return None if opening is None or (self._is_journal_given and not opening) else list(opening)

    def open_with(self, before: list[Message], wanted: list[Message]) -> bool:
        """Have the conversation begin with other messages than `before`; False when it may have begun, or begins with others by now."""
        with _moving:
            self.refuse_closed()
            opening = self._opening
            if opening is None or self._is_journal_given or self._stay is not None or opening != before:
                return False
            self._opening = wanted
            return True


def _forget() -> None:
    """In a child process: whoever held the lock stayed with the parent."""
    global _moving
    _moving = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

"""The runtime: opens actors by id, keeps the tree every task hangs from, and closes in order.

It knows nothing of conversations. A `kind` says how an actor is made from its journal and what its handle is; a session
of an agent is one kind, a bank account can be another.
"""

from __future__ import annotations

import contextvars
import os
import re
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from ropewalk.runtime.backend import ANY_BACKEND, running_backend
from ropewalk.runtime.cell import PASSIVATE, Cell
from ropewalk.runtime.channel import Channel
from ropewalk.runtime.clock import Clock
from ropewalk.runtime.deletion import delete
from ropewalk.runtime.errors import DuplicateKind, InvalidOption, InvalidSessionId, RuntimeClosed, SessionExists, UnknownSession
from ropewalk.runtime.event import Event
from ropewalk.runtime.handler import Handler, OnError
from ropewalk.runtime.journal import Journal, KnownActor, journal_at
from ropewalk.runtime.journal.keeping import Keeping
from ropewalk.runtime.kind import ActorKind
from ropewalk.runtime.passivation import Passivation
from ropewalk.runtime.publisher import Publisher
from ropewalk.runtime.recovery import Recovery, RecoveryReport
from ropewalk.runtime.reports import RuntimeStatistics, SessionInfo, ShutdownReport
from ropewalk.runtime.seconds import is_seconds
from ropewalk.runtime.services import Services
from ropewalk.runtime.supervision import RestartPolicy, leaves, unwrap
from ropewalk.runtime.surroundings import is_work_of, refuse_deadlock
from ropewalk.runtime.workers import WorkerPool

__all__ = ["Runtime", "SyncCalls", "check_session_id", "current_runtime", "enclosing_runtime"]

T = TypeVar("T")

SyncCalls: TypeAlias = Literal["thread", "inline"]
"""Where users' plain functions run: in worker threads, or on the loop (for tests in virtual time)."""

GRACE_SECONDS = 5.0
OPEN_SECONDS = 5.0
AFTER_CANCEL_SECONDS = 5.0
_SESSION_ID = re.compile(r"[A-Za-z0-9_:@-][A-Za-z0-9._:@-]{0,199}")

current_runtime: contextvars.ContextVar[Runtime | None] = contextvars.ContextVar("ropewalk_runtime", default=None)
"""The innermost runtime whose ``async with`` block this code stands in."""


def enclosing_runtime() -> Runtime | None:
    """The innermost runtime this code stands in, None where there is none that is open and whose event loop runs this code."""
    runtime = current_runtime.get()
    return runtime if runtime is not None and runtime.is_here else None


def check_session_id(session_id: object) -> str:
    """The id itself; raises `InvalidSessionId` when it is not one."""
    if isinstance(session_id, str) and _SESSION_ID.fullmatch(session_id):
        return session_id
    raise InvalidSessionId(f"a session id is 1 to 200 characters of A-Z a-z 0-9 . _ : @ - and does not start with a dot, not {session_id!r:.300}")


class Runtime:
    """Keeps actors, thousands at once, in one process: ``async with Runtime() as runtime: ...``, on trio or asyncio.

    :param journal: where actors are recovered from: the path of an SQLite file, or a `Journal`; None keeps them in memory.
    :param specs: kinds whose actors may be found in the journal.
    :param replay: how many events each session keeps for late readers; 0 keeps none.
    :param clock: time, randomness and ids; `seed` makes one whose randomness and ids repeat.
    :param restart: how often an actor may fail before it is quarantined.
    :param sync_calls: where users' plain functions run.
    :param workers: how many tasks may stay parked between two messages.
    :param grace: seconds the busy actors get to finish when the runtime closes; then they are cancelled.
    :param idle_seconds: after how many seconds without a message an actor leaves memory; None lets it stay.
    :param open_timeout: seconds to wait for an actor that another living runtime has, before `SessionElsewhere`.
    :param resident_limit: how many actors may be in memory; above it those that have been idle for longest leave. None is no limit.

    Leaving the block first lets the mailboxes drain for `grace` seconds: nothing is accepted from outside then, but actors
    may still send to one another. Leaving it with an exception cancels at once. `report` says afterwards how it went.
    """

    def __init__(
        self,
        journal: Journal | str | os.PathLike[str] | None = None,
        specs: Iterable[Any] = (),
        *,
        replay: int = 0,
        clock: Clock | None = None,
        seed: int | None = None,
        restart: RestartPolicy | None = None,
        sync_calls: SyncCalls = "thread",
        workers: int = 1024,
        grace: float = GRACE_SECONDS,
        idle_seconds: float | None = None,
        resident_limit: int | None = None,
        open_timeout: float = OPEN_SECONDS,
    ) -> None:
        if sync_calls not in ("thread", "inline"):
            raise InvalidOption(f"sync_calls is 'thread' or 'inline', not {sync_calls!r}")
        if not is_seconds(grace):
            raise InvalidOption(f"grace is 0 or more seconds, not {grace!r}")
        if not is_seconds(open_timeout):
            raise InvalidOption(f"open_timeout is 0 or more seconds, not {open_timeout!r}")
        if type(workers) is not int or workers < 0:
            raise InvalidOption(f"workers is how many tasks may stay parked, 0 or more, not {workers!r}")
        if clock is not None and seed is not None:
            raise InvalidOption("a clock has its own randomness: give a clock or a seed, not both")
        self.clock = clock or Clock(seed)
        self.passivation = Passivation(self, idle_seconds, resident_limit) if idle_seconds is not None or resident_limit is not None else None
        self.journal = journal_at(journal)
        self.restart = restart or RestartPolicy()
        self.sync_calls: SyncCalls = sync_calls
        self.events = Channel(self.clock, replay, self._resident)
        self.report: ShutdownReport | None = None
        self.resources: dict[Any, Any] = {}
        """What kinds share among their actors of this runtime (limiters, watchdogs), by keys of their own."""
        self._kinds: dict[str, ActorKind] = {}
        for spec in specs:
            kind = self._kind(spec)
            if self._kinds.setdefault(kind.name, kind) is not kind:
                raise DuplicateKind(f"two specs are named {kind.name!r}; sessions find theirs by name, so give each its own")
        self.open_timeout = open_timeout
        self._parked = workers
        self._grace = grace
        self._cells: dict[str, Cell] = {}
        self._passive: weakref.WeakValueDictionary[str, Cell] = weakref.WeakValueDictionary()
        self.deletions: dict[str, anyio.Event] = {}
        """The ids of actors that are being deleted, each with what is set when that has ended, well or not."""
        self.restarts = 0
        self.passivations = 0
        self._state: Literal["new", "open", "closing", "closed"] = "new"
        self._tasks: anyio.abc.TaskGroup
        self._services: Services
        self._keeping: Keeping
        self.workers: WorkerPool
        self.backend = ANY_BACKEND
        self._life: AbstractAsyncContextManager[None]
        self._outer: contextvars.Token[Runtime | None] | None = None
        self._thread: int | None = None

    # Opening and closing.

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise RuntimeClosed("a Runtime is entered once; make a new one")
        self._life = self._live()
        await self._life.__aenter__()
        self._outer = current_runtime.set(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        if self._outer is not None:
            current_runtime.reset(self._outer)
        try:
            return await self._life.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # The only group there is: what the body raised, and what the tree reports, come wrapped in it.
            failure = error if error is not None and leaves(group) == leaves(error) else unwrap(group)
        if failure is None or failure is error:
            return False
        raise failure

    @asynccontextmanager
    async def _live(self) -> AsyncGenerator[None]:
        await self.journal.open()
        try:
            async with anyio.create_task_group() as grounds, self._serving(grounds), anyio.create_task_group() as self._tasks:
                self.keep(self.journal)
                self.backend = running_backend()
                self.clock.monotonic = self.backend.now
                self.workers = WorkerPool(self._tasks, self._parked, self.backend)
                self._state = "open"
                self._thread = threading.get_ident()
                if self.passivation is not None:
                    self.start(self.passivation.run)
                try:
                    yield
                    self._state = "closing"
                    with anyio.move_on_after(self._grace):
                        await self.workers.wait_idle()
                finally:
                    self._state = "closing"
                    self.report = ShutdownReport(cancelled=(*(cell.id for cell in reversed(self.workers.working)), *reversed(self.workers.cut_off)))
                    self._tasks.cancel_scope.cancel()
        finally:
            self._state = "closed"
            self.events.close()
            for cell in self._cells.values():
                cell.drop_waiting(RuntimeClosed("the runtime was closed before the message was handled"))
            self._cells.clear()
            with anyio.move_on_after(AFTER_CANCEL_SECONDS, shield=True):
                await self.journal.close()

    @asynccontextmanager
    async def _serving(self, tasks: anyio.abc.TaskGroup) -> AsyncGenerator[None]:
        self._services, self._keeping = Services(tasks), Keeping(tasks)
        try:
            yield
            await self._services.close(self._grace)
        finally:
            self._keeping.stop()  # the last actor has ended, and with it the last word to be kept

    @property
    def is_open(self) -> bool:
        """Whether it takes work."""
        return self._state == "open"

    @property
    def is_here(self) -> bool:
        """Whether it is open and the calling code runs in its event loop: a worker thread of its own is not here."""
        return self._state == "open" and self._thread == threading.get_ident()

    def refuse_if_closed(self) -> None:
        """Raise `RuntimeClosed` unless the runtime is open here, or is closing and the calling code is work it still waits for."""
        if self._state != "open" and not (self._state == "closing" and is_work_of(self)):
            hint = "enter it with `async with Runtime(...) as runtime:` first" if self._state == "new" else "it takes no more work"
            raise RuntimeClosed(f"the runtime is {self._state}: {hint}")
        if self._thread != threading.get_ident():
            raise RuntimeClosed(
                "the runtime is open in another thread's event loop, and its sessions are used there: "
                "from a thread that this loop started, anyio.from_thread.run(session.ask, ...) does that"
            )

    # Actors.

    async def open(self, session_id: str, kind: Any, *, create: bool = True, **seed: Any) -> Any:
        """The handle of an actor, which is brought into memory, or made.

        :param kind: an `AgentSpec`, an `Agent`, or any other `ActorKind`.
        :param create: False raises `UnknownSession` where there is none.
        :param seed: what the kind takes for a new actor, such as ``messages=[...]``; `SessionExists` when it is not new.

        One that is being deleted is waited for, and then there is none.
        """
        self.refuse_if_closed()
        kind = self._kind(kind)
        check_session_id(session_id)
        while (deletion := self.deletions.get(session_id)) is not None:
            if (deleted := self.known(session_id)) is not None:
                refuse_deadlock(deleted)
            await deletion.wait()
            self.refuse_if_closed()
        cell = self._cell(session_id, kind)
        if cell.kind.name != kind.name:
            raise SessionExists(f"{session_id!r} is a {cell.kind.name!r} in this runtime and cannot be opened as a {kind.name!r}")
        if cell.passivated and not cell.busy and not cell.activating:
            cell.kind, cell.mailbox.bound = kind, kind.mailbox  # as if nobody held a handle of it
        try:
            await cell.activate(create=create, **seed)
            cell.kept = True
        finally:
            if not cell.kept and not cell.activating:
                self.release(cell)
        if self.passivation is not None:
            self.passivation.touch(cell)
            if self.passivation.is_full:  # whoever opens one after the other must let those leave for which there is no room
                await anyio.lowlevel.checkpoint()
        self.refuse_if_closed()
        return cell.kind.handle(cell)

    def find(self, session_id: str) -> Any:
        """The handle of an actor in this runtime's memory, None when there is none of this id, or it was let go of: `open` brings it back."""
        cell = self._cells.get(session_id)
        return cell.kind.handle(cell) if cell is not None and cell.kept and cell.status != "passivated" else None

    async def passivate(self, session_id: str) -> bool:
        """Let an actor go from memory; its handles stay valid, and its next message brings it back from the journal.

        It waits for the message that is being handled. Returns whether the actor is out of memory: False where it is quarantined,
        is being brought in, or has messages that wait, which come first. Raises `JournalUnavailable` when the journal fails;
        then the incarnation is dropped, and nothing that was acknowledged is lost. Raises `WouldDeadlock` in code of the actor's own
        message, and `InvalidOption` for an `Agent`'s own conversation, which rests by itself between calls.
        """
        self.refuse_if_closed()
        cell = self._cells.get(check_session_id(session_id))
        if cell is None or cell.status == "passivated":
            return True
        if not cell.passivates:
            raise InvalidOption(f"{session_id!r} is an agent's own conversation, which leaves this runtime by itself when no call is at work")
        if cell.reason is not None:
            return False
        return bool(await cell.ask(PASSIVATE, control=True))

    async def recover(self) -> RecoveryReport:
        """Go on with everything that runtimes which are gone left unfinished in the journal; returns when all of it has come to an end.

        At most 50 actors are at it at once. To serve others meanwhile, run it in a task of its own; an actor that is opened
        goes on with its own unfinished work by itself. What is recovered leaves memory when it is done.

        Raises `RuntimeClosed` when the runtime closes meanwhile.
        """
        self.refuse_if_closed()
        recovery = Recovery(self._kinds.get, self._to_recover, self._recovered)
        await recovery.take(self._unfinished())
        if not self.is_open:
            raise RuntimeClosed("the runtime closed while it recovered; what it did not come to the end of waits in the journal")
        return recovery.report

    def _to_recover(self, actor_id: str, kind: ActorKind) -> Cell | None:
        if not self.is_open or actor_id in self.deletions:
            return None
        cell = self._cell(actor_id, kind)
        return cell if cell.actor is None and not cell.busy and cell.reason is None else None

    async def _recovered(self, cell: Cell) -> None:
        if not cell.kept and cell.reason is None:
            await self.passivate(cell.id)

    async def delete(self, session_id: str) -> None:
        """Forget an actor and all that was said in it: its log is gone from the journal when this returns.

        What it is doing is ended as if it were cancelled; messages that wait, and whoever uses a handle of it from now on, get
        `UnknownSession`. Its id can be opened anew, which waits for the end of this. Raises `UnknownSession` when there is none,
        `SessionElsewhere` when another living runtime owns it, `WouldDeadlock` in code of its own.
        """
        self.refuse_if_closed()
        await delete(self, check_session_id(session_id))

    def revive(self, session_id: str) -> None:
        """Let a quarantined actor work again; raises `UnknownSession` when there is none of this id in this runtime's memory."""
        cell = self._cells.get(session_id)
        if cell is None:
            raise UnknownSession(f"there is no session {session_id!r:.200} in this runtime's memory")
        cell.revive()

    async def list_sessions(self) -> AsyncIterator[SessionInfo]:
        """Every session the runtime or its journal knows, by id."""
        seen = dict(self._cells)
        for cell in sorted(seen.values(), key=lambda cell: cell.id):
            yield SessionInfo(cell.id, cell.kind.name, cell.status, len(cell.mailbox))
        unfinished = {actor.id async for actor in self._unfinished()}
        after = ""
        while page := await self.journal.actors(after):
            for actor in page:
                if actor.id not in seen:
                    left = "unfinished" if actor.kind in self._kinds else "unclaimed"
                    yield SessionInfo(actor.id, actor.kind or None, left if actor.id in unfinished else "passivated", 0)  # type: ignore[arg-type]
            after = page[-1].id

    async def _unfinished(self) -> AsyncIterator[KnownActor]:
        after = ""
        while page := await self.journal.unfinished(after):
            for actor in page:
                yield actor
            after = page[-1].id

    def statistics(self) -> RuntimeStatistics:
        """A frozen record of what the runtime holds now."""
        cells = self._cells.values()
        return RuntimeStatistics(
            known=len(self._cells) + len(self._passive),
            resident=sum(cell.actor is not None for cell in cells),
            busy=sum(cell.busy and cell.at_work for cell in cells),
            quarantined=sum(cell.reason is not None for cell in cells),
            restarts=self.restarts,
            passivations=self.passivations,
            events=self.events.statistics(),
            journal=self.journal.statistics(),
        )

    # Events.

    def add_handler(
        self,
        callback: Callable[[Any], Any],
        kinds: Iterable[type[Event]] | None = None,
        sessions: str = "*",
        *,
        on_error: OnError = "report",
        timeout: float | None = 5,
    ) -> Handler:
        """Call `callback(event)` in line with events of every session that matches; see `Channel.add_handler`."""
        return self.events.add_handler(callback, kinds, sessions, on_error=on_error, timeout=timeout)

    # For kinds.

    def cell(self, actor_id: str, kind: ActorKind, journal: Journal | None = None) -> Cell:
        """The cell of this id, made if need be; with a `journal` of its own where the kind keeps one."""
        cell = self._cell(actor_id, kind, journal)
        cell.kept = True
        return cell

    def keep(self, journal: Journal) -> None:
        """See to it that what is appended to a journal becomes durable, until `let_go` or the end of the last actor."""
        self._keeping.keep(journal)

    def let_go(self, journal: Journal) -> None:
        """The other end of `keep`: nothing more is appended to the journal here."""
        self._keeping.let_go(journal)

    def known(self, actor_id: str) -> Cell | None:
        """The cell of this id, None when there is none; also of an actor that was let go of while somebody holds its handle."""
        return self._cells.get(actor_id) or self._passive.get(actor_id)

    def take_up(self, cell: Cell) -> None:
        """A cell has something to do: it is known to the runtime, if it was not, and no more at rest."""
        if cell.passivated and self._cells.get(cell.id) is not cell:
            self._passive.pop(cell.id, None)
            self._cells[cell.id] = cell
            cell.publisher = self.events.publisher(cell.id)
        if self.passivation is not None:
            self.passivation.woken(cell)

    def put_aside(self, cell: Cell) -> None:
        """A cell has nothing to do: one that was let go of is forgotten but for its handles, any other is at rest."""
        if self.passivation is not None:
            self.passivation.left(cell)
        if self._cells.get(cell.id) is not cell:
            return
        if cell.passivated and not cell.is_in_doubt:
            del self._cells[cell.id]
            self.events.forget(cell.id)
            del cell.publisher  # until `take_up` gives it a new one: a handle that is held keeps as little as can be
            self._passive[cell.id] = cell
        elif self.passivation is not None:
            self.passivation.rested(cell)

    def release(self, cell: Cell) -> None:
        """Forget an idle cell; whoever opens its id next gets a new one."""
        if self._cells.get(cell.id) is cell and not cell.busy:
            del self._cells[cell.id]
            self.events.forget(cell.id)
            if self.passivation is not None:
                self.passivation.left(cell)

    def resource(self, key: Any, make: Callable[[], T]) -> T:
        """Something the actors of a kind share in this runtime, made on first use and gone with the runtime."""
        found = self.resources.get(key)
        if found is None:
            found = self.resources[key] = make()
        return found

    async def service(self, owner: object, make: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        """Something shared that has a life of its own: ``make()`` is entered at the first use for `owner`, and left when the last actor has ended.

        Raises what entering it raised; the next use tries again.
        """
        return await self._services.use(owner, make)

    def start(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Run something that belongs to the runtime beside its actors, under its tree and in a clean context. Its failure closes the runtime."""
        contextvars.Context().run(self._tasks.start_soon, work, *arguments)

    def _cell(self, actor_id: str, kind: ActorKind, journal: Journal | None = None) -> Cell:
        cell = self.known(actor_id)
        if cell is None:
            cell = self._cells[actor_id] = Cell(self, actor_id, kind, journal or self.journal, self.events.publisher(actor_id))
        return cell

    async def _resident(self, session_id: str) -> tuple[Publisher, Callable[[], Event]]:
        self.refuse_if_closed()
        cell = self.known(session_id)
        if cell is None:
            raise InvalidOption(f"no session {session_id!r:.200} is open in this runtime; open it before subscribing after a cursor")
        actor = await cell.activate()
        while (untold := getattr(actor, "untold", _nothing)()) is not None:
            await untold
            actor = await cell.activate()
        return cell.publisher, actor.snapshot

    def _kind(self, kind: Any) -> ActorKind:
        made = getattr(kind, "actor_kind", None)
        if made is not None:
            kind = made()
        if isinstance(kind, type) or not all(hasattr(kind, name) for name in ("name", "mailbox", "activate", "handle")):
            raise InvalidOption(
                f"an actor's kind is an AgentSpec, an Agent, or an object with name, mailbox, activate and handle, not {kind!r:.200}; "
                "as in runtime.open('user-42', AgentSpec(model=...)), or Runtime(specs=[AgentSpec(model=...)])"
            )
        return kind  # type: ignore[no-any-return]


def _nothing() -> None:
    """What is untold by an actor that never runs ahead."""

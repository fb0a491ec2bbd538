"""A session's face: what users call. It decides nothing; it checks what it is given and hands it on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import attrs
import msgspec

from ropewalk.actors.events import Event
from ropewalk.actors.messages import Block, Message
from ropewalk.actors.result import AgentResult, EventLoopMetrics, MetricsLedger
from ropewalk.actors.session.acceptance import accept, withdraw
from ropewalk.actors.session.actor import Figures, SessionActor
from ropewalk.actors.session.direct import AddMessages, CallTool, Pin, Rewind, SetMessages, direct_tool_use, run_direct
from ropewalk.actors.session.history import TranscriptReader, settled_place
from ropewalk.actors.session.keyed import checked_key
from ropewalk.actors.session.prompt import Prompt, prompt_messages, request_state_of
from ropewalk.actors.session.relatives import redact_everywhere
from ropewalk.actors.session.stream import AskStream, OnLeave, Turn, is_part_of
from ropewalk.actors.session.submission import submit
from ropewalk.actors.spec import AgentSpec, WhenBusy, check_when_busy
from ropewalk.actors.validity import copied
from ropewalk.actors.view import TranscriptEntry
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.handler import Handler, OnError
from ropewalk.runtime.mailbox import MailboxStatistics
from ropewalk.runtime.runtime import check_session_id
from ropewalk.runtime.supervision import contain
from ropewalk.runtime.surroundings import messages_around, refuse_deadlock

if TYPE_CHECKING:
    from ropewalk.runtime.runtime import Runtime

__all__ = ["PromptLike", "Session", "SessionStatistics"]

PromptLike: TypeAlias = str | Sequence[dict[str, Any]]
"""Text, a list of content blocks, or a list of messages that ends with the user's."""

_NOTHING = Figures()


@attrs.frozen
class SessionStatistics:
    """What a session holds and has done: messages in its view, settled turns, model calls, tokens (input, output, total), its mailbox, restarts."""

    status: str
    messages: int
    turns: int
    cycles: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    restarts: int
    mailbox: MailboxStatistics


class Session:
    """One conversation, addressed by its `id`. Made by `Runtime.open`; any number of handles may name one session."""

    __slots__ = ("_cell",)

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def __repr__(self) -> str:
        return f"<Session {self.id!r}, {self.status}>"

    @property
    def id(self) -> str:
        """The session's id."""
        return self._cell.id

    @property
    def spec(self) -> AgentSpec:
        """The description of the agent this is a session of."""
        return cast(AgentSpec, self._cell.kind)

    @property
    def status(self) -> str:
        """What the session does now: idle, running, reducing, quarantined, deleted, or passivated, which is idle and out of memory.

        In doubt is idle too: the last turn had a tool call whose outcome nobody knows, because its process died or the turn failed then.
        """
        if self._cell.deleted:
            return "deleted"
        actor, status = self._actor, self._cell.status
        if status not in ("idle", "busy"):
            return status
        if actor is not None and actor.driver is not None:
            return actor.driver.status
        return "running" if status == "busy" else "idle" if actor is None else actor.status

    def statistics(self) -> SessionStatistics:
        """A frozen record of what the session holds and has done; between two incarnations, as the last one knew it."""
        cell, figures = self._cell, self._figures
        return SessionStatistics(self.status, **msgspec.structs.asdict(figures), restarts=cell.restarts, mailbox=cell.mailbox.statistics())

    # Prompts.

    async def ask(
        self,
        prompt: PromptLike,
        *,
        request_state: dict[str, Any] | None = None,
        context: Any = None,
        key: str | None = None,
        when_busy: WhenBusy | None = None,
    ) -> AgentResult:
        """Send a prompt and wait for its turn's result.

        The caller owns the work: leaving (a timeout, a cancellation) withdraws the prompt, or cancels its turn. With a `key` the
        session owns it: leaving cancels nothing, the death of the process loses nothing, and asking again with the key joins the work
        or gives its first outcome, a failure too, for ever.

        :param prompt: text, a list of content blocks, or a list of messages that ends with the user's.
        :param request_state: JSON values that every event of the turn carries; copied, and returned as ``result.state``.
        :param context: a live object for tools and handlers; never recorded.
        :param key: what the prompt is known by in this session if it is sent again. Raises `KeyReused` with another prompt.
        :param when_busy: this prompt's own policy in place of the spec's.
        """
        if key is not None:
            refuse_deadlock(self._cell)
            turn = await self.submit(prompt, request_state=request_state, context=context, key=key, when_busy=when_busy)
            return await turn.result()
        made = self._prompt(prompt, request_state, context, owned=True)
        refuse_deadlock(self._cell)
        accept(self._cell, made, self._policy(when_busy))
        outcome = made.outcome
        try:
            return await outcome.wait()
        finally:
            if not outcome.settled:
                withdraw(self._cell, made)

    async def submit(
        self,
        prompt: PromptLike,
        *,
        request_state: dict[str, Any] | None = None,
        context: Any = None,
        key: str | None = None,
        when_busy: WhenBusy | None = None,
    ) -> Turn:
        """Send a prompt and return once it is durable. The session owns the work; the handle can wait for it, watch it and cancel it.

        :param key: as for `ask`: sending the prompt again gives a handle of the same work, done or not.
        """
        made = self._prompt(prompt, request_state, context, owned=False, key=key)
        return Turn(self._cell, await submit(self._cell, made, self._policy(when_busy)))

    def stream(
        self,
        prompt: PromptLike,
        *,
        request_state: dict[str, Any] | None = None,
        context: Any = None,
        when_busy: WhenBusy | None = None,
        kinds: Iterable[type[Event]] | None = None,
        on_leave: OnLeave = "continue",
    ) -> AskStream:
        """Send a prompt and watch its turn: ``async with session.stream("Hi") as events: async for event in events: ...``.

        :param kinds: event types; None is every kind but the raw ones.
        :param on_leave: whether leaving before the end lets the turn go on, or cancels it.
        """
        made = self._prompt(prompt, request_state, context, owned=False)
        policy = self._policy(when_busy)
        return AskStream(self._cell, made, lambda: accept(self._cell, made, policy), kinds, on_leave)

    async def cancel(self) -> bool:
        """End the running turn; what was streamed is kept. Returns, once it is settled, whether there was one.

        Code of that turn (a tool, a handler) is answered at once: the turn cannot end before it does.
        """
        actor = self._actor
        driver = None if actor is None else actor.driver
        prompt = self._about_to_run() if driver is None else driver.prompt
        if prompt is None:
            return False
        withdraw(self._cell, prompt)
        if driver is None:
            if contain(refuse_deadlock, self._cell) is None:
                await prompt.outcome.wait_settled()
        elif driver.finish is not None and messages_around():
            pass  # its end is decided and only being told: two that waited for each other's telling would never end
        elif not is_part_of(self._cell, prompt):
            await driver.wait_ended()
        return True

    async def wait_idle(self) -> None:
        """Return when no turn runs and no prompt waits. Raises `WouldDeadlock` in code that a turn of this session waits for."""
        refuse_deadlock(self._cell)
        await self._cell.wait_idle()

    # History.

    async def messages(self) -> list[Message]:
        """The view, as copies. During a turn it may end in calls that still run."""
        return copied(cast(SessionActor, await self._cell.activate()).state.view.messages)

    def transcript(self) -> AsyncIterator[TranscriptEntry]:
        """Everything ever said, in order, with what took each entry out of the view: as it stands when reading begins.

        Read from the journal in pages, so its length costs time and no room.
        """
        return TranscriptReader(self._cell.journal, self._cell.id, self._cell.activate)

    async def add_messages(self, messages: Sequence[Message]) -> None:
        """Put messages at the end of the view; they are copied, and repaired where they can be. Raises `InvalidConversation`."""
        await self._cell.ask(AddMessages(copied(messages)))

    async def set_messages(self, messages: Sequence[Message]) -> None:
        """Have the view show these messages; the transcript keeps what leaves it. Raises `InvalidConversation`."""
        await self._cell.ask(SetMessages(copied(messages)))

    async def rewind(self, to: str) -> None:
        """Have the view be what it was right after an entry of the transcript, by its id; what came later leaves it, and what had left comes back.

        Waits its turn like a prompt. The transcript keeps everything. Raises `InvalidOption` where there is no such entry, and
        where the conversation was in the middle of a turn; the text says which entry near it would do.
        """
        await self._cell.ask(Rewind(to))

    async def fork(self, session_id: str, at: str | None = None) -> Session:
        """Another session of the same spec that begins with this one's past and goes on apart; what they share is not copied.

        :param session_id: the id of the new session; `SessionExists` where there is one.
        :param at: the id of the entry that its past ends with, one that a turn ended with; None is as far as this session is settled.

        May be asked during a turn. Raises `InvalidOption` where no turn ended with that entry; the text says which entry near it would do.
        """
        check_session_id(session_id)
        self.runtime.refuse_if_closed()
        await self._cell.activate()
        journal = self._cell.journal
        await journal.fork(self.id, await settled_place(journal, self.id, at), session_id)
        return cast(Session, await self.runtime.open(session_id, self.spec, create=False))

    async def pin(self, entry_id: str, *, pinned: bool = True) -> None:
        """See to it that no reduction takes an entry out of the view, or changes it; with ``pinned=False`` it may again.

        A pinned call keeps its results and pinned results their call. Waits its turn like a prompt. Raises `InvalidOption`
        where there is no such entry, and where the entry to pin is not in the view.
        """
        await self._cell.ask(Pin(entry_id, pinned))

    async def redact(self, entry_id: str) -> None:
        """Take what an entry said out of this session, and out of every other that shares it: an entry stays, and says "[redacted]".

        When this returns, the words are in none of the journal's files, in no view and not among the events kept for late readers:
        what reductions made of the entry, and messages that it was joined with, are redacted as far as they say the same. Calls and
        results keep their ids. Waits its turn like a prompt, here and in each relative. Events that readers have had already,
        results that askers were given, request states and backups are theirs.

        Raises `InvalidOption` where there is no such entry, `SessionElsewhere` where another living runtime has a relative;
        whatever is raised, asking again takes up where it was left.
        """
        await redact_everywhere(self._cell, entry_id)

    # Tools.

    async def call_tool(
        self, name: str, tool_input: dict[str, Any] | None = None, *, record: bool = True, context: Any = None, words: str | None = None
    ) -> Block:
        """Call one of the agent's tools; returns its ``{"toolUseId", "status", "content"}``.

        :param record: whether the call joins the history, as four messages; then it waits its turn like a prompt.
        :param words: what the record's first message says before what was called.
        """
        tool_use = direct_tool_use(self.spec, self.runtime, name, {} if tool_input is None else tool_input)
        if record:
            call = CallTool(tool_use, context, words)
            try:
                return cast(Block, await self._cell.ask(call))
            finally:
                call.scope.cancel()  # who leaves takes the call with them
        self.runtime.refuse_if_closed()
        return await run_direct(self.spec, self.runtime, self.id, tool_use, context)

    # Events.

    def add_handler(
        self, callback: Callable[[Any], Any], kinds: Iterable[type[Event]] | None = None, *, on_error: OnError = "report", timeout: float | None = 5
    ) -> Handler:
        """Call `callback(event)` in line with this session's events; see `Channel.add_handler`."""
        return self.runtime.add_handler(callback, kinds, self.id, on_error=on_error, timeout=timeout)

    @property
    def runtime(self) -> Runtime:
        """The runtime this session lives in."""
        return self._cell.runtime

    @property
    def metrics(self) -> EventLoopMetrics:
        """The session's accounts as they stand."""
        actor = self._actor
        if actor is None:
            figures = self._figures
            return MetricsLedger(figures.cycles, (figures.input_tokens, figures.output_tokens, figures.total_tokens)).snapshot()
        return actor.ledger.snapshot()

    @property
    def _figures(self) -> Figures:
        actor = self._actor
        return (self._cell.summary or _NOTHING) if actor is None else actor.summary()

    @property
    def _actor(self) -> SessionActor | None:
        return cast("SessionActor | None", self._cell.actor)

    def _prompt(self, prompt: object, request_state: object, context: Any, *, owned: bool, key: str | None = None) -> Prompt:
        if key is not None:
            checked_key(key)
        runtime, messages = self._cell.runtime, prompt_messages(prompt)
        return Prompt(runtime.clock.new_id(), messages, request_state_of(request_state), context, owned=owned, key=key, new_wakeup=runtime.backend.wakeup)

    def _about_to_run(self) -> Prompt | None:
        """The prompt that was sent to an idle session a moment ago, so that its turn has not begun."""
        following = self._cell.following if self._cell.busy else None
        return following if isinstance(following, Prompt) else None

    def _policy(self, when_busy: WhenBusy | None) -> WhenBusy:
        return cast(AgentSpec, self._cell.kind).when_busy if when_busy is None else check_when_busy(when_busy)

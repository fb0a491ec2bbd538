"""The one-line face: an agent and its one conversation behind a plain object.

An `Agent` describes itself by an `AgentSpec` and keeps its conversation in a `Residence`, which lives in no runtime while
nobody calls. A sync call takes it into the process' portal, an async one into the caller's runtime. So one agent may be used
here and there, one call after the other, and what it leaves behind when it is dropped is nothing.
"""

from __future__ import annotations

import enum
import inspect
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AsyncExitStack, contextmanager
from types import TracebackType
from typing import Any, Final, Literal, Self, TypedDict, TypeVar, Unpack

import attrs

from ropewalk.actors.agent_stream import AgentStream
from ropewalk.actors.conversation import ConversationManager
from ropewalk.actors.direct_tools import DirectTool, DirectTools
from ropewalk.actors.errors import SessionBusy
from ropewalk.actors.events import Event
from ropewalk.actors.handlers import CALLBACK_KINDS, CallbackAdapter, PrintingCallbackHandler, TurnCallbacks, ending
from ropewalk.actors.handlers.callbacks import Keywords
from ropewalk.actors.limits import Limits
from ropewalk.actors.message_list import MessageList
from ropewalk.actors.messages import Block, Message
from ropewalk.actors.models import Model
from ropewalk.actors.portal import portal
from ropewalk.actors.residence import OwnSpec, Residence, Stay
from ropewalk.actors.result import AgentResult
from ropewalk.actors.session.actor import SessionActor
from ropewalk.actors.session.direct import direct_tool_use, run_direct
from ropewalk.actors.session.handle import PromptLike, Session
from ropewalk.actors.session.prompt import prompt_messages, request_state_of
from ropewalk.actors.session.stream import AskStream, OnLeave
from ropewalk.actors.spec import AgentSpec, Resume, WhenBusy, check_when_busy
from ropewalk.actors.transient import Place
from ropewalk.actors.validity import copied, door
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.clock import Clock
from ropewalk.runtime.errors import InvalidHandler, InvalidOption
from ropewalk.runtime.handler import Handler
from ropewalk.runtime.journal import Journal, journal_at
from ropewalk.runtime.runtime import Runtime, check_session_id, current_runtime
from ropewalk.runtime.supervision import Failure, attempt, contain

__all__ = ["Agent", "DirectTool", "DirectTools", "SpecOptions"]

T = TypeVar("T")

CallbackHandler = Callable[..., Any]


class _Default(enum.Enum):
    PRINTING = "a new PrintingCallbackHandler"

    def __repr__(self) -> str:
        return "PrintingCallbackHandler()"


PRINTING: Final = _Default.PRINTING


class SpecOptions(TypedDict, total=False):
    """What an `Agent` takes beside its own arguments, as `AgentSpec` does."""

    name: str
    handlers: Iterable[Callable[[Any], Any]]
    limits: Limits
    when_busy: WhenBusy
    mailbox: int
    model_concurrency: int | None
    ladder: Sequence[str]
    context: Any
    resume: Resume


@attrs.frozen
class _Request:
    """One prompt, with what `Session.ask` and `Session.stream` take beside it."""

    prompt: PromptLike
    options: dict[str, Any]


class Agent:
    """A model, its tools and one conversation: ``Agent(model=...)("Hi there!")``.

    :param model: an object that keeps the `Model` protocol; None takes what ``$ROPEWALK_MODEL`` names. Raises `NoModel`.
    :param messages: what the conversation begins with; copied, and repaired where it can be. Raises `InvalidConversation`.
    :param tools: functions decorated with `tool`, and `Tool` objects.
    :param callback_handler: called with the keyword events of each turn, sync or async; None for silence.
    :param conversation_manager: how the conversation is kept small; None is `SlidingWindowConversationManager()`.
    :param record_direct_tool_call: whether ``agent.tool.NAME(...)`` joins the conversation unless the call says otherwise.
    :param session_id: the conversation's name; None makes one up.
    :param journal: where to keep it: the path of an SQLite file, or a `Journal`; None is memory, for as long as the agent lives.
        It needs a `session_id`, under which the next start goes on; raises `InvalidOption` without.

    May be called sync, then async, then sync again. While a call is at work, further ones from the same runtime (all sync
    ones share one) do what `when_busy` says; others raise `SessionBusy`.
    """

    def __init__(
        self,
        model: Model | str | None = None,
        messages: Sequence[Message] | None = None,
        tools: Iterable[Any] | None = None,
        system_prompt: str | None = None,
        callback_handler: CallbackHandler | Literal[_Default.PRINTING] | None = PRINTING,
        conversation_manager: ConversationManager | None = None,
        record_direct_tool_call: bool = True,
        session_id: str | None = None,
        journal: Journal | str | os.PathLike[str] | None = None,
        **options: Unpack[SpecOptions],
    ) -> None:
        if unknown := [name for name in options if name not in SpecOptions.__annotations__]:
            raise TypeError(_unexpected(unknown[0]))
        described: dict[str, Any] = {
            "model": model,
            "tools": tools,
            "system_prompt": system_prompt,
            "conversation_manager": conversation_manager,
            "resume": "fail",
            **options,
        }
        self._spec = AgentSpec(**described)
        self.callback_handler = PrintingCallbackHandler() if callback_handler is PRINTING else callback_handler
        self.record_direct_tool_call = record_direct_tool_call
        if journal is not None and session_id is None:
            raise InvalidOption(
                "an agent with a journal needs a session_id: session_id='me' names the conversation to go on with at the next start, or to begin "
                "where there is none of that name; leave journal= out for one that lasts as long as the agent"
            )
        kept = None if journal is None else journal_at(journal)
        opening = [] if messages is None else door(copied(messages))
        self._residence = Residence(Clock().new_id() if session_id is None else check_session_id(session_id), kept, opening)
        self._own_spec = self._as_own(self._spec)

    def __repr__(self) -> str:
        view = self._residence.view()
        return f"<Agent {self._spec.name!r}, session {self.session_id!r}, {'not loaded' if view is None else f'{len(view)} messages'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # What it is.

    @property
    def session_id(self) -> str:
        """The name of its conversation."""
        return self._residence.session_id

    @property
    def spec(self) -> AgentSpec:
        """Its description."""
        return self._spec

    @property
    def callback_handler(self) -> CallbackHandler | None:
        """Who is called with the keyword events; what is set counts from the next call on. Raises `InvalidHandler`."""
        return self._callback_handler

    @callback_handler.setter
    def callback_handler(self, handler: CallbackHandler | None) -> None:
        if handler is not None and not callable(handler):
            raise InvalidHandler(
                f"a callback handler is called with keywords; {handler!r:.200} is not callable, give a function, an object with __call__, or None"
            )
        self._callback_handler = handler

    @property
    def system_prompt(self) -> str | None:
        """The instructions every model call begins with. Setting it raises `SessionBusy` during a call."""
        return self._spec.system_prompt

    @system_prompt.setter
    def system_prompt(self, prompt: str | None) -> None:
        self._residence.refuse_at_work()
        self._spec = attrs.evolve(self._spec, system_prompt=prompt)
        self._own_spec = self._as_own(self._spec)

    @property
    def messages(self) -> list[Message]:
        """The conversation now, as a list of copies whose mutators change it; so does assigning a list. See `MessageList`."""
        return MessageList(self, self._messages())

    @messages.setter
    def messages(self, messages: Sequence[Message]) -> None:
        wanted = list(messages)
        if wanted != self._messages():
            self.change_messages(lambda there: there.__setitem__(slice(None), wanted))

    @property
    def tool(self) -> DirectTools:
        """Its tools, to be called without the model: ``agent.tool.calculator(expression="1+1")``."""
        return DirectTools(self)

    def actor_kind(self) -> AgentSpec:
        """What `Runtime.open` makes sessions of when it is given an agent: its description."""
        return self._spec

    # Prompts.

    def __call__(
        self, prompt: PromptLike, *, request_state: dict[str, Any] | None = None, context: Any = None, when_busy: WhenBusy | None = None
    ) -> AgentResult:
        """Send a prompt and wait for its turn's result. Ctrl-C cancels the turn.

        :param prompt: text, a list of content blocks, or a list of messages that ends with the user's.
        :param request_state: JSON values for handlers and tools; copied, and returned as ``result.state``.
        :param context: a live object for tools and handlers.
        :param when_busy: what to do when a turn is running, in place of the agent's own policy.

        Raises `ModelError` and kin, or `TurnFailed`, once the conversation is settled; `WouldDeadlock` from within its own turn.
        """
        request = self._request(prompt, request_state, context, when_busy)
        return portal().call(lambda runtime: self._ask_in(runtime, request))

    async def invoke_async(
        self, prompt: PromptLike, *, request_state: dict[str, Any] | None = None, context: Any = None, when_busy: WhenBusy | None = None
    ) -> AgentResult:
        """Send a prompt and wait for its turn's result, in the runtime this code stands in, or in one opened for the call.

        Leaving (a timeout, a cancellation) cancels the turn. Arguments and errors are those of calling the agent.
        """
        request = self._request(prompt, request_state, context, when_busy)
        async with self._residence.places.find() as runtime:
            return await self._ask_in(runtime, request)

    def stream(
        self,
        prompt: PromptLike,
        *,
        request_state: dict[str, Any] | None = None,
        context: Any = None,
        when_busy: WhenBusy | None = None,
        kinds: Iterable[type[Event]] | None = None,
        on_leave: OnLeave = "continue",
    ) -> AgentStream[Event]:
        """Send a prompt and watch its turn: ``async for event in agent.stream("Hi"): ...``.

        :param kinds: event types; None is every kind but the raw ones.
        :param on_leave: whether leaving before the end lets the turn go on, or cancels it.
        """
        request = self._request(prompt, request_state, context, when_busy)
        chosen = None if kinds is None else frozenset(kinds)
        return AgentStream(self._residence, lambda: self._watch(request, chosen, on_leave), _event_itself, on_leave)

    def stream_async(
        self,
        prompt: PromptLike,
        *,
        request_state: dict[str, Any] | None = None,
        context: Any = None,
        when_busy: WhenBusy | None = None,
        on_leave: OnLeave = "continue",
    ) -> AgentStream[Keywords]:
        """Send a prompt and watch its turn as the dicts that callback handlers get; the agent's own gets each of them first."""
        request = self._request(prompt, request_state, context, when_busy)
        return AgentStream(self._residence, lambda: self._watch(request, CALLBACK_KINDS, on_leave), _as_keywords(), on_leave)

    def close(self) -> None:
        """Take no more calls; what runs goes on to its end, and what was said can still be read. Closing twice does nothing.

        A given journal is closed once nothing uses it any more: at once, or when what runs has come to its end.
        """
        journal = self._residence.close()
        if journal is not None:
            portal().see_to(lambda runtime: journal.close())

    # Its conversation.

    def change_messages(self, change: Callable[[list[Message]], T]) -> tuple[T, list[Message]]:
        """Have `change` work on a list of the messages, which then is the conversation; returns what it gave, and the messages.

        The list passes the door: what can be repaired is. Raises `InvalidConversation` otherwise, `SessionBusy` during a call
        or when the conversation went on while `change` worked, and whatever `change` raises; then nothing has changed.
        """
        self._residence.refuse_closed()
        self._residence.refuse_at_work()
        before = self._view()
        draft = copied(before)
        # Somebody else's code, which may call agents: in the caller's own thread, and under no lock.
        value = change(draft)
        wanted = door(copied(draft))
        if not self._residence.open_with(before, wanted):
            portal().call(lambda runtime: self._replace_in(runtime, before, wanted))
        return value, self._messages()

    def _messages(self) -> list[Message]:
        return copied(self._view())

    def _view(self) -> list[Message]:
        view = self._residence.view()
        if view is None:
            portal().call(self._load_in)
            view = self._residence.view() or []
        return view

    async def _load_in(self, runtime: Runtime) -> None:
        stay = self._residence.enter(self._own_spec, runtime, self._listen)
        try:
            await stay.cell.activate()
        finally:
            await self._residence.leave(stay)

    async def _replace_in(self, runtime: Runtime, before: list[Message], wanted: list[Message]) -> None:
        stay = self._residence.enter(self._own_spec, runtime, self._listen, alone=True)
        try:
            actor = await stay.cell.activate()
            if isinstance(actor, SessionActor):
                if actor.state.view.messages != before:
                    raise SessionBusy(f"the agent {self.session_id!r} was called while its messages were being changed; nothing has changed, try again")
                await Session(stay.cell).set_messages(wanted)
        finally:
            await self._residence.leave(stay)

    # Tools.

    def call_tool(self, name: str, tool_input: dict[str, Any], words: str | None = None, record: bool | None = None) -> Block:
        """What ``agent.tool.NAME(...)`` does; `name` is exact. Raises `InvalidTool` when there is none of this name."""
        if self._is_recorded(record):
            self._residence.refuse_deadlock()
            return portal().call(lambda runtime: self._record_tool_in(runtime, name, tool_input, words))
        return portal().call(lambda runtime: self._run_tool(runtime, name, tool_input))

    async def call_tool_async(self, name: str, tool_input: dict[str, Any], words: str | None = None, record: bool | None = None) -> Block:
        """What ``await agent.tool.NAME.invoke_async(...)`` does; see `call_tool`."""
        recorded = self._is_recorded(record)
        if recorded:
            self._residence.refuse_deadlock()
        async with self._residence.places.find() as runtime:
            return await (self._record_tool_in(runtime, name, tool_input, words) if recorded else self._run_tool(runtime, name, tool_input))

    def _is_recorded(self, record: bool | None) -> bool:
        self._residence.refuse_closed()
        return self.record_direct_tool_call if record is None else record

    async def _run_tool(self, runtime: Runtime, name: str, tool_input: dict[str, Any]) -> Block:
        return await run_direct(self._spec, runtime, self.session_id, direct_tool_use(self._spec, runtime, name, tool_input), None)

    async def _record_tool_in(self, runtime: Runtime, name: str, tool_input: dict[str, Any], words: str | None) -> Block:
        stay = self._residence.enter(self._own_spec, runtime, self._listen)
        try:
            await stay.cell.activate()
            return await Session(stay.cell).call_tool(name, tool_input, words=words)
        finally:
            await self._residence.leave(stay)

    # Turns.

    def _request(self, prompt: PromptLike, request_state: dict[str, Any] | None, context: Any, when_busy: WhenBusy | None) -> _Request:
        prompt_messages(prompt)  # what is no prompt, or no request state, is refused before anything begins
        request_state_of(request_state)
        policy = None if when_busy is None else check_when_busy(when_busy)
        self._residence.refuse_deadlock()
        return _Request(prompt, {"request_state": request_state, "context": context, "when_busy": policy})

    async def _ask_in(self, runtime: Runtime, request: _Request) -> AgentResult:
        stay = self._residence.enter(self._own_spec, runtime, self._listen)
        try:
            if stay.cell.actor is None:
                await stay.cell.activate()
            with _around(runtime):
                outcome = await attempt(Session(stay.cell).ask(request.prompt, **request.options))
            if isinstance(outcome, Failure):
                await self._broke_off(stay, outcome.error)
                raise outcome.error
            return outcome
        finally:
            await self._residence.leave(stay)

    async def _watch(self, request: _Request, kinds: Iterable[type[Event]] | None, on_leave: OnLeave) -> tuple[Place, Stay, AskStream]:
        self._residence.refuse_deadlock()
        place = self._residence.places.find()
        async with AsyncExitStack() as undo:
            runtime = await undo.enter_async_context(place)
            stay = self._residence.enter(self._own_spec, runtime, self._listen)
            undo.push_async_callback(self._residence.leave, stay)
            if stay.cell.actor is None:
                await stay.cell.activate()
            with _around(runtime):
                events = Session(stay.cell).stream(request.prompt, **request.options, kinds=kinds, on_leave=on_leave)
            await events.__aenter__()
            undo.pop_all()  # from here on the stream sees to it
        return place, stay, events

    # Listening.

    def _listen(self, cell: Cell) -> tuple[Handler, ...]:
        """Add the handlers that listen while the conversation is in the cell's runtime: the spec's, then the callback."""

        def outcome() -> AgentResult | BaseException | None:
            actor = cell.actor
            return actor.driver.result if isinstance(actor, SessionActor) and actor.driver is not None else None

        add = cell.runtime.events.add_handler
        handlers = [add(handler, sessions=cell.id) for handler in self._spec.handlers]
        if self._callback_handler is not None:
            handlers.append(add(TurnCallbacks(self._callback_handler, outcome), CALLBACK_KINDS, cell.id))
        return tuple(handlers)

    async def _broke_off(self, stay: Stay, error: Exception) -> None:
        """See that callbacks hear the end of a turn that could publish none."""
        for handler in stay.handlers:
            if isinstance(handler.callback, TurnCallbacks) and not stay.cell.busy:
                told = contain(handler.callback.broke_off, error)
                if told is not None and not isinstance(told, Failure):
                    await attempt(told)

    def _as_own(self, spec: AgentSpec) -> OwnSpec:
        # Handlers are added for each stay, and one session needs no bound on how many call the model: so a runtime keeps nothing.
        described: dict[str, Any] = {**attrs.asdict(spec, recurse=False), "handlers": (), "model_concurrency": None}
        return OwnSpec(residence=self._residence, **described)


def _unexpected(name: str) -> str:
    """What to say of an argument that there is not."""
    import difflib

    known = [*inspect.signature(Agent.__init__).parameters, *SpecOptions.__annotations__]
    known = [name for name in known if name not in ("self", "options")]
    alike = difflib.get_close_matches(name, known, 1)
    return f"Agent takes no argument {name!r:.100}; " + (f"did you mean {alike[0]!r}?" if alike else f"it takes {', '.join(known)}")


@contextmanager
def _around(runtime: Runtime) -> Generator[None]:
    """Have the turn that is asked for here find a runtime around it, for agents that it calls in turn."""
    before = current_runtime.set(runtime)
    try:
        yield
    finally:
        current_runtime.reset(before)


def _event_itself(given: Event | AgentResult | Exception) -> Sequence[Event]:
    return (given,) if isinstance(given, Event) else ()


def _as_keywords() -> Callable[[Event | AgentResult | Exception], Sequence[Keywords]]:
    adapter = CallbackAdapter()

    def convert(given: Event | AgentResult | Exception) -> Sequence[Keywords]:
        return adapter.feed(given) if isinstance(given, Event) else (ending(given),)

    return convert

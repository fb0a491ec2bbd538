"""A state machine over sessions: random users, a random model, random faults, and the laws that hold whatever they do.

Subclass it, give it your own agent with `make_spec`, add rules and invariants of your own with `arule` and `ainvariant`,
and run ``YourMachine.TestCase``. A failing run is shrunk to the shortest sequence of steps that still fails.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import attrs
import hypothesis.strategies as st
import trio
import trio.testing

from ropewalk.actors.errors import ContextWindowOverflow, ModelError, ModelThrottled
from ropewalk.actors.events import (
    Event,
    MessageAdded,
    PromptAccepted,
    PromptSettled,
    SessionActivated,
    SessionPassivated,
    Snapshot,
    TextDelta,
    ToolEnded,
    TurnEnded,
    TurnStarted,
)
from ropewalk.actors.messages import Message
from ropewalk.actors.result import AgentResult
from ropewalk.actors.session.handle import Session
from ropewalk.actors.session.state import SessionState
from ropewalk.actors.spec import AgentSpec
from ropewalk.actors.testing.clock import VirtualClock
from ropewalk.actors.testing.fold import EventFold
from ropewalk.actors.testing.loop import TrioStateMachine, ainitialize, ainvariant, arule
from ropewalk.actors.testing.scripted import Reply, Script, ScriptedModel, ToolUse
from ropewalk.actors.tools import ToolContext, tool
from ropewalk.actors.validity import is_open, is_valid
from ropewalk.runtime.errors import JournalUnavailable, MailboxFull, Quarantined, RopewalkError
from ropewalk.runtime.journal import Fault, MemoryJournal
from ropewalk.runtime.runtime import Runtime
from ropewalk.runtime.subscription import Subscription
from ropewalk.runtime.supervision import Backoff, RestartPolicy

__all__ = ["Asked", "SessionMachine", "replies"]

Rudeness: TypeAlias = Literal["fail", "crash", "exit"]
"""How somebody's code misbehaves: with an exception, with what is none (as extension modules panic), or by leaving the process."""


class Panic(BaseException):
    """What an extension module may raise: no `Exception`, and no wish to exit either."""


class Wordless(RuntimeError):
    """An exception that cannot even say what it is."""

    def __str__(self) -> str:
        raise AttributeError("args")


def misbehave(rudeness: Rudeness) -> None:
    """Do it."""
    if rudeness == "exit":
        raise SystemExit(3)
    raise Panic("panicked") if rudeness == "crash" else Wordless


def panic(messages: Sequence[Message]) -> Script:
    """A step of a script: the model panics."""
    raise Panic("panicked")


@attrs.define(eq=False)
class Asked:
    """A prompt that was sent: the text, who sent it, and what came of it (`result` or `error`, each at most once)."""

    text: str
    session: Session
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    result: AgentResult | None = None
    error: BaseException | None = None
    left: bool = False
    outcomes: int = 0


@tool
async def work(seconds: float = 0.0, rudeness: Rudeness | None = None) -> str:
    """Work for some seconds, then say so, or misbehave."""
    await trio.sleep(seconds)
    if rudeness is not None:
        misbehave(rudeness)
    return "worked"


@tool
async def note(key: str, context: ToolContext) -> str:
    """Write something into the request state."""
    context.request_state[key] = True
    return "noted"


TOOLS = (work, note)
RUDENESS: st.SearchStrategy[Rudeness] = st.sampled_from(["fail", "crash", "exit"])


def replies() -> st.SearchStrategy[Script]:
    """What a model may do next: answer, reason, call tools well or badly, be slow, be throttled, overflow, die at once or in mid-answer."""
    texts = st.sampled_from(["", "yes", "one two three", "a longer answer of several words"])
    calls = st.one_of(
        st.builds(ToolUse, st.just("work"), st.fixed_dictionaries({}, optional={"seconds": st.sampled_from([0.0, 1.0, 100.0]), "rudeness": RUDENESS})),
        st.builds(ToolUse, st.just("note"), st.fixed_dictionaries({"key": st.sampled_from("ab")})),
        st.just(ToolUse("unknown")),
        st.just(ToolUse("work", "{not json")),
    )
    errors = st.sampled_from(
        [
            ModelError("the provider is down"),
            ContextWindowOverflow(),
            ContextWindowOverflow(tokens=100, limit=60),
            ModelThrottled(retry_after=2.0),
            KeyError("bug"),
        ]
    )
    answers = st.builds(
        Reply,
        text=texts,
        reasoning=st.sampled_from(["", "hm"]),
        tool_uses=st.lists(calls, max_size=3),
        delay=st.sampled_from([0.0, 1.0, 30.0]),
        pace=st.sampled_from([0.0, 0.5]),
        stop_reason=st.sampled_from([None, None, None, "max_tokens", "content_filtered", "what"]),
        error=st.one_of(st.none(), st.none(), errors),
    )
    return st.one_of(texts, answers, errors, st.just(panic))


class SessionMachine(TrioStateMachine):
    """Two sessions of one agent under random use. Override `make_spec` to try your own tools, handlers, managers or model.

    `events` are those a reader of everything got, `asked` the prompts sent, `script` what the model will do next (it says
    "ok" when there is nothing), `faults` what goes wrong with the next journal writes, `rude` how a handler takes the next event
    of a kind.
    """

    names: Sequence[str] = ("one", "two")

    def __init__(self) -> None:
        super().__init__()
        self.script: list[Script] = []
        self.faults: list[Fault] = []
        self.rude: dict[type[Event], Rudeness | None] = {}
        self.is_journal_whole = True
        self.asked: list[Asked] = []
        self.events: list[Event] = []
        self.late: list[tuple[str, Subscription, list[Event], str]] = []
        self.journal = MemoryJournal(fault=lambda writes: self.faults.pop(0) if self.faults else None)
        self.runtime: Runtime
        self.sessions: list[Session]
        self.reader: Subscription

    # What a user overrides.

    def make_spec(self) -> AgentSpec:
        """The agent under test. Call `self.model()` for a model that does what the rules say."""
        return AgentSpec(name="machine", model=self.model(), tools=TOOLS, mailbox=3)

    def model(self) -> ScriptedModel:
        """A model that plays `script`."""
        return ScriptedModel(lambda messages: self.script.pop(0) if self.script else "ok")

    # Setting up and taking down.

    @ainitialize(seed=st.integers(0, 2**32 - 1), entropy=st.random_module())
    async def start(self, seed: int, entropy: Any) -> None:
        restart = RestartPolicy(max_restarts=1000, within=1.0, backoff=Backoff(0.1, 1.0, 0.1))
        self.runtime = Runtime(self.journal, clock=VirtualClock(seed), sync_calls="inline", restart=restart, replay=50, grace=1000.0)
        await self.runtime.__aenter__()
        spec = self.make_spec()
        self.runtime.add_handler(self.handle, sessions=self.names[0])
        self.runtime.add_handler(self.handle_later, sessions=self.names[1], on_error="fail_turn")
        self.reader = self.runtime.events.subscribe(buffer=100_000, overflow="disconnect")
        await self.reader.__aenter__()
        self.sessions = [await self.runtime.open(name, spec) for name in self.names]

    def teardown(self) -> None:
        """Let everything come to its end, check that every prompt got its one outcome, and close."""
        try:
            if hasattr(self, "sessions"):
                self.loop.run(self._finish)
        finally:  # a law that fails in the end must leave no run behind: the next example begins one
            super().teardown()

    async def _finish(self) -> None:
        self.faults.clear()
        self.script.clear()
        self.rude.clear()
        await self.runtime.__aexit__(None, None, None)
        await trio.testing.wait_all_tasks_blocked()
        self._drain()
        for asked in self.asked:
            assert asked.outcomes == 1, f"prompt {asked.text!r} got {asked.outcomes} outcomes"
        self.check_events()

    async def send(self, which: int, text: str, steps: Sequence[Script] = (), patience: float = math.inf) -> None:
        """For rules: somebody asks a session, and leaves when it has taken longer than `patience` seconds. What the model does next are `steps`."""
        self.script[:0] = steps
        asked = Asked(text, self.sessions[which], trio.CancelScope(deadline=trio.current_time() + patience))
        self.asked.append(asked)
        self.loop.nursery.start_soon(self._ask, asked)
        await trio.testing.wait_all_tasks_blocked()

    # Rules.

    @arule(which=st.integers(0, 1), steps=st.lists(replies(), max_size=4), text=st.sampled_from(["hi", "and then?"]))
    async def ask(self, which: int, steps: list[Script], text: str) -> None:
        """Somebody asks; the model will do `steps`."""
        self.script.extend(steps)
        await self.send(which, text)

    @arule(which=st.integers(0, 1), steps=st.lists(replies(), max_size=4), leave=st.sampled_from(["continue", "cancel"]), reads=st.integers(0, 5))
    async def stream(self, which: int, steps: list[Script], leave: Any, reads: int) -> None:
        """Somebody streams, and leaves after some events."""
        self.script.extend(steps)
        self.loop.nursery.start_soon(self._stream, self.sessions[which], leave, reads)
        await trio.testing.wait_all_tasks_blocked()

    @arule(which=st.integers(0, 1))
    async def cancel(self, which: int) -> None:
        """Somebody cancels the running turn."""
        await self.sessions[which].cancel()
        assert self.sessions[which].status in ("idle", "running", "quarantined", "reducing", "passivated", "in doubt")

    @arule(number=st.integers(0, 9))
    async def leave(self, number: int) -> None:
        """An asker loses patience."""
        if number < len(self.asked):
            self.asked[-1 - number].scope.cancel()
            await trio.testing.wait_all_tasks_blocked()

    @arule(seconds=st.sampled_from([0.1, 1.0, 50.0, 500.0]))
    async def wait(self, seconds: float) -> None:
        """Time passes."""
        await trio.sleep(seconds)

    @arule(fault=st.sampled_from(["refuse", "lose"]), after=st.integers(0, 3))
    async def break_journal(self, fault: Fault, after: int) -> None:
        """A journal write to come will fail."""
        self.faults.extend((*(None for _ in range(after)), fault))
        self.is_journal_whole = False

    @arule(
        kind=st.sampled_from([TurnStarted, TextDelta, MessageAdded, ToolEnded, TurnEnded, PromptAccepted, PromptSettled, SessionActivated, SessionPassivated]),
        rudeness=RUDENESS | st.just(None),
    )
    async def be_rude(self, kind: type[Event], rudeness: Rudeness | None) -> None:
        """A handler will misbehave when it is called with the next event of a kind, or (None) only take its time."""
        self.rude[kind] = rudeness

    @arule(which=st.integers(0, 1), patience=st.sampled_from([0.0, 0.5, 2.0]))
    async def look(self, which: int, patience: float) -> None:
        """Somebody reads the history, which may bring the session back, and does not wait for long."""
        with trio.move_on_after(patience):
            with contextlib.suppress(JournalUnavailable, SystemExit):
                await self.sessions[which].messages()

    @arule(which=st.integers(0, 1), patience=st.sampled_from([0.0, 2.0]))
    async def passivate(self, which: int, patience: float) -> None:
        """Somebody lets the session go from memory, and does not wait for long."""
        with trio.move_on_after(patience):
            with contextlib.suppress(JournalUnavailable, SystemExit):
                await self.runtime.passivate(self.names[which])

    @arule(which=st.integers(0, 1), record=st.booleans())
    async def call_tool(self, which: int, record: bool) -> None:
        """Somebody calls a tool directly."""
        asked = Asked("direct", self.sessions[which])
        self.loop.nursery.start_soon(self._call_tool, asked, record)
        await trio.testing.wait_all_tasks_blocked()

    @arule(which=st.integers(0, 1), cursor=st.sampled_from(["0:0", "1:3", "last"]))
    async def read_late(self, which: int, cursor: str) -> None:
        """A reader comes late, after some event it knows or one long gone."""
        session = self.sessions[which]
        self._drain()
        if cursor == "last":
            known = [event for event in self.events if event.session_id == session.id]
            cursor = known[-1].cursor if known else "0:0"
        subscription = self.runtime.events.subscribe(sessions=session.id, after=cursor, buffer=100_000, overflow="disconnect")
        try:
            await subscription.__aenter__()
        except (JournalUnavailable, SystemExit):  # the latter where it brings the session back, and a handler takes that ill
            return
        self.late.append((session.id, subscription, [], cursor))

    # Laws.

    @ainvariant()
    async def views_are_valid_or_open(self) -> None:
        """Whatever happened, the view is a conversation; when nothing is under way it is one a model may be shown."""
        for session in getattr(self, "sessions", ()):
            actor = session._actor
            if actor is not None:
                view: list[Message] = actor.state.view.messages
                assert not view or is_valid(view) or is_open(view), view
                if session.status == "idle":
                    assert not view or is_valid(view), view

    @ainvariant()
    async def nothing_waits_in_an_idle_session(self) -> None:
        """A prompt that is recorded as waiting does wait."""
        for session in getattr(self, "sessions", ()):
            actor = session._actor
            if actor is not None and session.status == "idle" and actor.writer.broken is None:
                assert actor.state.waiting is None, actor.state.waiting

    @ainvariant()
    async def live_is_replayed(self) -> None:
        """What is in memory is what the journal's records give."""
        for session in getattr(self, "sessions", ()):
            actor = session._actor
            if actor is None or not actor.writer.is_durable:
                continue
            state = SessionState()
            for record in await self.journal.read(session.id):
                state.apply(record.body)
            assert state.view.entries == actor.state.view.entries
            assert state.view.messages == actor.state.view.messages

    @ainvariant()
    async def late_readers_see_the_same(self) -> None:
        """Folding what a late reader got gives what folding everything gives."""
        if not hasattr(self, "reader"):
            return
        self._drain()
        for session_id, subscription, got, cursor in self.late:
            while (event := subscription.take()) is not None:
                got.append(event)
            everything, tail = EventFold(), EventFold()
            for event in self.events:
                if event.session_id == session_id:
                    everything.take(event)
            if not (got and isinstance(got[0], Snapshot)):
                for event in self.events:
                    if event.session_id == session_id:
                        tail.take(event)
                        if event.cursor == cursor:
                            break
            for event in got:
                tail.take(event)
            if got and _place(got[-1]) > max((_place(event) for event in self.events if event.session_id == session_id), default=(0, 0)):
                continue  # a slow handler still keeps that event from the reader of everything: they are compared once it has it
            assert tail.picture() == everything.picture()

    def check_events(self) -> None:
        """Numbers without a gap in each epoch, one end to each turn, one settlement to each prompt that was accepted."""
        last: dict[str, tuple[int, int]] = {}
        running: dict[str, str | None] = dict.fromkeys(self.names)
        for event in self.events:
            epoch, seq = last.get(event.session_id, (0, 0))
            assert event.seq == (seq + 1 if event.epoch == epoch else 1) and event.epoch >= epoch, event
            last[event.session_id] = (event.epoch, event.seq)
            if isinstance(event, TurnStarted):
                assert running[event.session_id] is None, "a turn began inside another"
                running[event.session_id] = event.turn_id
            elif isinstance(event, TurnEnded):
                was = running[event.session_id]
                assert was == event.turn_id or (was is None and event.epoch > 1), "a turn ended that was not running"
                running[event.session_id] = None
        settled = [event.prompt_id for event in self.events if isinstance(event, PromptSettled)]
        accepted = {event.prompt_id for event in self.events if isinstance(event, PromptAccepted)}
        assert len(settled) == len(set(settled)), "a prompt was settled twice"
        assert set(settled) <= accepted, "a prompt was settled that was never accepted"
        if self.is_journal_whole:  # else what was left open is settled by the next message, which may never come
            assert set(settled) == accepted, "a prompt was never settled"
            assert not any(running.values()), "a turn never ended"
            assert not any(session.statistics().restarts for session in self.sessions), "somebody else's code cost an incarnation"

    # How the rules do it.

    def handle(self, event: Event) -> None:
        """The handler of the first session, which misbehaves where it was told to."""
        rudeness = self.rude.pop(type(event), None)
        if rudeness is not None:
            misbehave(rudeness)

    async def handle_later(self, event: Event) -> None:
        """The handler of the second, which does the same a moment later."""
        if type(event) in self.rude:
            rudeness = self.rude.pop(type(event))
            await trio.sleep(1.0)
            if rudeness is not None:
                misbehave(rudeness)

    async def _ask(self, asked: Asked) -> None:
        with asked.scope:
            try:
                asked.result = await asked.session.ask(asked.text)
                asked.outcomes += 1
            except RopewalkError as error:
                asked.error = error
                asked.outcomes += 1
                assert isinstance(error, ModelError | MailboxFull | JournalUnavailable | Quarantined) or type(error).__name__ == "TurnFailed", error
            except SystemExit:
                asked.outcomes += 1
        if asked.scope.cancelled_caught:
            asked.left = True
            asked.outcomes += 1

    async def _stream(self, session: Session, leave: Any, reads: int) -> None:
        try:
            async with session.stream("stream", on_leave=leave) as events:
                async for _ in events:
                    reads -= 1
                    if reads <= 0:
                        break
        except (RopewalkError, SystemExit):
            pass

    async def _call_tool(self, asked: Asked, record: bool) -> None:
        try:
            result = await asked.session.call_tool("work", {"seconds": 1.0}, record=record)
            assert result["status"] == "success"
        except (RopewalkError, SystemExit):
            pass

    def _drain(self) -> None:
        while (event := self.reader.take()) is not None:
            self.events.append(event)


def _place(event: Event) -> tuple[int, int]:
    return event.epoch, event.seq

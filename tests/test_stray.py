"""What a hostile neighbour tried: each of these once took something down that was not its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ropewalk import (
    Agent,
    AgentSpec,
    Event,
    HandlerFailed,
    InvalidOption,
    JournalUnavailable,
    MemoryJournal,
    MessageAdded,
    NullConversationManager,
    PromptAccepted,
    PromptSettled,
    Runtime,
    SessionActivated,
    TextDelta,
    TurnEnded,
    TurnFailed,
    TurnStarted,
    ViewChanged,
    WouldDeadlock,
    tool,
)
from ropewalk.actors.portal import portal
from ropewalk.actors.validity import is_valid
from ropewalk.runtime.journal import Fault
from ropewalk.runtime.supervision import Failure, attempt, leaves
from ropewalk.testing import Reply, ScriptedModel, ToolUse


async def await_a_cancelled_task() -> None:
    """What any client library may do to whoever calls it, on asyncio."""
    task = asyncio.ensure_future(asyncio.sleep(3600))
    task.cancel()
    await task


class StrayModel:
    context_window = None

    async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"messageStart": {"role": "assistant"}}
        await await_a_cancelled_task()


@tool
async def stray() -> str:
    """Cancel the task it runs in."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
    return "never"


@tool
async def pending() -> str:
    """Cancel the task it runs in, and return before that strikes."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return "returned"


@tool
async def fine() -> str:
    """Do well."""
    return "fine"


CALLS = [["stray"], ["pending"], ["stray", "fine"], ["pending", "fine"]]


@pytest.mark.parametrize("names", CALLS, ids="+".join)
def test_a_tool_that_cancels_its_own_task_costs_its_own_result(names: list[str]) -> None:
    async def main() -> None:
        async with Runtime() as runtime:
            model = ScriptedModel([Reply(tool_uses=[ToolUse(name) for name in names]), "after"])
            session = await runtime.open("bad", AgentSpec(model=model, tools=[stray, pending, fine]))
            assert str(await session.ask("go")) == "after"
            assert is_valid(await session.messages())
            innocent = await runtime.open("innocent", AgentSpec(model=ScriptedModel(["well"])))
            assert str(await innocent.ask("how are you?")) == "well"

    anyio.run(main, backend="asyncio")


def test_a_stray_cancellation_in_a_handler_or_a_model_is_a_failure_of_theirs() -> None:
    async def main() -> None:
        async with Runtime() as runtime:
            innocent = await runtime.open("innocent", AgentSpec(model=ScriptedModel([Reply(text="well", delay=0.05)])))
            work = await innocent.submit("how are you?")
            failed: list[HandlerFailed] = []
            runtime.add_handler(failed.append, kinds={HandlerFailed})

            async def handler(event: object) -> None:
                await await_a_cancelled_task()

            def sync_handler(event: object) -> None:
                raise asyncio.CancelledError

            session = await runtime.open("bad", AgentSpec(model=ScriptedModel(["one two"])))
            session.add_handler(handler, kinds={TextDelta})
            session.add_handler(sync_handler, kinds={TextDelta})
            assert str(await session.ask("go")) == "one two"
            assert len(failed) == 4
            other = await runtime.open("model", AgentSpec(model=StrayModel()))
            with pytest.raises(TurnFailed):
                await other.ask("go")
            assert await other.messages() == []
            assert str(await work.result()) == "well"

    anyio.run(main, backend="asyncio")


@pytest.mark.anyio
async def test_what_is_shown_is_a_copy() -> None:
    model = ScriptedModel(lambda messages: "ok")
    async with Runtime() as runtime:
        session = await runtime.open("s", AgentSpec(model=model))
        session.add_handler(lambda event: event.message["content"].clear(), kinds={MessageAdded})
        result = await session.ask("one")
        result.message["content"].clear()
        async for entry in session.transcript():
            entry.message["content"].clear()
        (await session.messages())[0]["content"].clear()
        await session.ask("two")

        assert is_valid(list(model.requests[-1].messages))
        assert len(model.requests[-1].messages) == 3


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["stream", "submit", "events"])
async def test_waiting_without_asking_hides_no_deadlock(way: str) -> None:
    sessions: dict[str, Any] = {}

    @tool
    async def delegate() -> str:
        """Have the other session work, and wait for it."""
        if way == "stream":
            async with sessions["b"].stream("sub") as events:
                async for _ in events:
                    pass
        elif way == "events":
            async for _ in (await sessions["b"].submit("sub")).events():
                pass
        else:
            await (await sessions["b"].submit("sub")).result()
        return "done"

    @tool
    async def back() -> str:
        """Ask who waits for this."""
        with pytest.raises(WouldDeadlock):
            await sessions["a"].ask("question")
        return "refused"

    async with Runtime() as runtime:
        for name, given in (("a", delegate), ("b", back)):
            model = ScriptedModel([Reply(tool_uses=[ToolUse(given.name)]), "end"])
            sessions[name] = await runtime.open(name, AgentSpec(name=name, model=model, tools=[given]))
        with anyio.fail_after(10):
            assert str(await sessions["a"].ask("go")) == "end"


async def read_all(events: Any) -> None:
    async for _ in events:
        pass


async def wait_for_next(session: Any, *, read: bool) -> None:
    turn = await session.submit("more")
    await (read_all(turn.events()) if read else turn.result())


WAITS: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
    "ask": lambda session, stream: session.ask("more"),
    "read its turn": lambda session, stream: read_all(stream.turn.events()),
    "read its stream": lambda session, stream: read_all(stream),
    "result": lambda session, stream: stream.turn.result(),
    "result of the next": lambda session, stream: wait_for_next(session, read=False),
    "read the next": lambda session, stream: wait_for_next(session, read=True),
}
DEEDS: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
    "messages": lambda session, stream: session.messages(),
    "transcript": lambda session, stream: read_all(session.transcript()),
    "submit": lambda session, stream: session.submit("more"),
    "cancel": lambda session, stream: session.cancel(),
    "cancel its turn": lambda session, stream: stream.turn.cancel(),
}


@given(
    who=st.sampled_from(["tool", "handler", "manager"]),
    deeds=st.lists(st.sampled_from([*WAITS, *DEEDS]), min_size=1, max_size=4),
    randomness=st.random_module(),
)
async def test_whatever_code_of_a_turn_does_with_its_session_it_never_waits_for_itself(who: str, deeds: list[str], randomness: object) -> None:
    did: list[str] = []

    async def act() -> None:
        if did:
            return
        did.append("began")
        for deed in deeds:
            if deed in DEEDS:
                await DEEDS[deed](session, stream)
                continue
            with pytest.raises(WouldDeadlock):
                await WAITS[deed](session, stream)
        did.append("ended")

    class Manager(NullConversationManager):
        async def apply_management(self, messages: list[Any]) -> None:
            if who == "manager":
                await act()

    @tool
    async def busy() -> str:
        """Do something with the session."""
        if who == "tool":
            await act()
        return "done"

    async def handle(event: object) -> None:
        if who == "handler":
            await act()

    async with Runtime() as runtime:
        model = ScriptedModel(lambda messages: "end" if len(messages) > 1 else Reply(tool_uses=[ToolUse("busy")]))
        session = await runtime.open("s", AgentSpec(model=model, tools=[busy], conversation_manager=Manager()))
        session.add_handler(handle, kinds={TextDelta}, on_error="fail_turn")
        stream = session.stream("go")
        with trio.fail_after(10):
            async with stream:
                result = await stream.turn.result()
        assert result.stop_reason in ("end_turn", "cancelled")
        assert did == ["began", "ended"] or any("cancel" in deed for deed in deeds)
        assert is_valid(await session.messages())


def enter_and_stay(how: str) -> None:
    scope = anyio.CancelScope() if how == "open" else anyio.move_on_after(0 if how == "over" else 3600)
    scope.__enter__()
    if how == "cancelled":
        scope.cancel()


class Leaving:
    """Code of every kind that enters cancel scopes and never leaves them: `who` is who does it now, `how` what scope it is."""

    context_window = None

    def __init__(self) -> None:
        self.who = ""
        self.how = ""

    def does(self, who: str) -> None:
        if who == self.who:
            enter_and_stay(self.how)

    async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
        self.does("model")
        calls = ["leave", "leave"] if self.who == "tools" else ["leave"] if self.who == "tool" else []
        calling = calls and "toolResult" not in messages[-1]["content"][0]
        model = ScriptedModel([Reply(tool_uses=[ToolUse(name) for name in calls]) if calling else "done"])
        async for chunk in model.stream(messages):
            yield chunk

    def spec(self) -> AgentSpec:
        does = self.does

        @tool
        async def leave() -> str:
            """Enter a scope, and stay in it."""
            does(self.who)
            await anyio.lowlevel.checkpoint()
            return "left"

        class Manager(NullConversationManager):
            async def apply_management(self, messages: list[Any]) -> None:
                does("manager")

        return AgentSpec(model=self, tools=[leave], conversation_manager=Manager())

    def listen(self, session: Any) -> None:
        async def handle(event: object) -> None:
            self.does("handler")
            await anyio.lowlevel.checkpoint()

        session.add_handler(handle, kinds={TurnStarted})
        session.add_handler(handle, kinds={TurnStarted}, timeout=None)
        for kind in (TurnStarted, PromptSettled):
            session.add_handler(lambda event: self.does(type(event).__name__), kinds={kind})


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(
    leaks=st.lists(
        st.tuples(
            st.sampled_from(["", "tool", "tools", "model", "manager", "handler", "TurnStarted", "PromptSettled"]),
            st.sampled_from(["open", "late", "over", "cancelled"]),
        ),
        max_size=4,
    ),
    randomness=st.random_module(),
)
def test_a_cancel_scope_that_is_never_left_harms_nobody_but_whose_turn_it_is(backend: str, leaks: list[tuple[str, str]], randomness: object) -> None:
    async def main() -> None:
        leaving = Leaving()
        async with Runtime() as runtime:
            bad = await runtime.open("bad", leaving.spec())
            innocent = await runtime.open("innocent", AgentSpec(name="innocent", model=ScriptedModel(lambda messages: "well")))
            leaving.listen(bad)
            for leaving.who, leaving.how in [*leaks, ("", "open")]:
                came = await attempt(bad.ask("go"))
                if leaving.who in ("tool", "tools"):
                    assert str(came) == "done"
                    results = [block["toolResult"] for message in await bad.messages() for block in message["content"] if "toolResult" in block]
                    assert results[-1]["status"] == "error"
                    assert "never left" in results[-1]["content"][0]["text"]
                else:
                    assert str(came) == "done" or isinstance(came, Failure)
                assert is_valid(await bad.messages())
                assert str(await innocent.ask("how are you?")) == "well"
            assert str(came) == "done"
            assert runtime.statistics().restarts == 0

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_handler_that_never_leaves_a_scope_spoils_no_opening(backend: str) -> None:
    async def main() -> None:
        async with Runtime() as runtime:
            spec = AgentSpec(model=ScriptedModel(["well"]), handlers=[lambda event: enter_and_stay("open") if isinstance(event, SessionActivated) else None])
            session = await runtime.open("s", spec)
            with anyio.CancelScope():
                assert str(await session.ask("how are you?")) == "well"

    anyio.run(main, backend=backend)


@tool
async def leave() -> str:
    """Exit."""
    raise SystemExit(3)


@tool
def leave_plainly() -> str:
    """Exit from a worker thread."""
    raise SystemExit(3)


def exiting(who: str) -> AgentSpec:
    class Model:
        context_window = None

        async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
            yield {"contentBlockDelta": {"delta": {"text": "so"}}}
            raise SystemExit(3)

    def handle(event: object) -> None:
        if isinstance(event, TextDelta):
            raise SystemExit(3)

    calls = [ToolUse(name) for name in who.split("+")] if "leave" in who else []
    model = Model() if who == "model" else ScriptedModel([Reply(tool_uses=calls) if calls else "so", "after"])
    return AgentSpec(model=model, tools=[leave, leave_plainly, fine], handlers=[handle] if who == "handler" else [])


EXITING = ["leave", "leave_plainly", "leave+fine", "leave+leave_plainly", "model", "handler"]


@pytest.mark.anyio
@pytest.mark.parametrize("who", EXITING)
async def test_code_of_a_turn_that_exits_has_whoever_asked_exit_and_nobody_else(who: str) -> None:
    async with Runtime() as runtime:
        gate = anyio.Event()

        @tool
        async def wait() -> str:
            """Wait."""
            await gate.wait()
            return "waited"

        innocent = await runtime.open("innocent", AgentSpec(name="innocent", model=ScriptedModel([Reply(tool_uses=[ToolUse("wait")]), "well"]), tools=[wait]))
        work = await innocent.submit("how are you?")
        session = await runtime.open("bad", exiting(who))
        with pytest.raises(SystemExit) as left:
            await session.ask("go")
        assert left.value.code == 3
        assert session.status in ("idle", "in doubt")
        assert is_valid(await session.messages())
        turn = await session.submit("go on")
        with contextlib.suppress(SystemExit):
            await turn.result()
        assert runtime.statistics().restarts == 0
        gate.set()
        assert str(await work.result()) == "well"


@pytest.mark.parametrize("who", EXITING)
def test_code_of_an_agents_turn_that_exits_has_its_sync_caller_exit_and_no_other(who: str) -> None:
    spec = exiting(who)
    agent = Agent(model=spec.model, tools=[leave, leave_plainly, fine], handlers=spec.handlers, callback_handler=None)
    before = portal()
    with pytest.raises(SystemExit):
        agent("go")
    assert portal() is before
    assert is_valid(agent.messages)

    async def read() -> None:
        async for _ in agent.stream("go on"):
            pass

    with contextlib.suppress(SystemExit):
        anyio.run(read, backend="trio")
    assert is_valid(agent.messages)


@pytest.mark.anyio
@pytest.mark.parametrize("on_error", ["report", "fail_turn"])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("kind", [PromptAccepted, TurnStarted, MessageAdded, TextDelta, TurnEnded, PromptSettled])
async def test_a_handler_that_exits_keeps_no_event_from_the_others(kind: type[Event], is_async: bool, on_error: Any) -> None:
    def leave_at(event: Event) -> None:
        raise SystemExit(3)

    async def leave_later(event: Event) -> None:
        await anyio.lowlevel.checkpoint()
        raise SystemExit(3)

    heard: list[Event] = []
    async with Runtime() as runtime:
        session = await runtime.open("s", AgentSpec(model=ScriptedModel(lambda messages: "so")))
        handler = session.add_handler(leave_later if is_async else leave_at, [kind], on_error=on_error)
        session.add_handler(heard.append)
        with pytest.raises(SystemExit):
            await session.ask("go")
        handler.remove()
        assert str(await session.ask("again")) == "so"
        assert runtime.statistics().restarts == 0

    assert [event.seq for event in heard] == list(range(heard[0].seq, heard[0].seq + len(heard)))
    assert [type(event) for event in heard].count(TurnEnded) == [type(event) for event in heard].count(PromptSettled) == 2
    assert "SystemExit" in [event.error for event in heard if isinstance(event, HandlerFailed)]


@pytest.mark.anyio
async def test_an_exit_outside_of_any_turn_is_its_askers_and_costs_no_incarnation() -> None:
    def leave_at(event: Event) -> None:
        raise SystemExit(3)

    async with Runtime() as runtime:
        session = await runtime.open("s", AgentSpec(model=ScriptedModel(["so"]), tools=[leave, leave_plainly, fine]))
        with pytest.raises(SystemExit):
            await session.call_tool("leave")
        with pytest.raises(SystemExit):
            await session.call_tool("leave_plainly", record=False)
        assert await session.messages() == []
        handler = session.add_handler(leave_at, [MessageAdded, ViewChanged])
        with pytest.raises(SystemExit):
            await session.call_tool("fine")
        with pytest.raises(SystemExit):
            await session.set_messages([])
        handler.remove()
        assert await session.messages() == []
        assert str(await session.ask("go")) == "so"
        assert runtime.statistics().restarts == 0


class Panic(BaseException):
    """What an extension module may raise: no `Exception`, and no wish to exit either."""


class Wordless(RuntimeError):
    """An exception that cannot even say what it is."""

    def __str__(self) -> str:
        raise AttributeError("args")


def raising(who: str, error: BaseException) -> AgentSpec:
    """Code of every kind that raises an error, `who` says whose."""

    def raise_it() -> None:
        raise error

    @tool
    async def later() -> str:
        """Raise it."""
        raise_it()
        return "never"

    @tool
    def plainly() -> str:
        """Raise it in a worker thread."""
        raise_it()
        return "never"

    class Model:
        context_window = None

        async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
            yield {"contentBlockDelta": {"delta": {"text": "so"}}}
            raise_it()

    class Manager(NullConversationManager):
        def apply_management(self, messages: list[Any]) -> None:
            raise_it()

    calls = [ToolUse(name) for name in who.split("+") if name in ("later", "plainly", "fine")]
    return AgentSpec(
        model=Model() if who == "model" else ScriptedModel([Reply(tool_uses=calls), "so"] if calls else ["so"]),
        tools=[later, plainly, fine],
        conversation_manager=Manager() if who == "manager" else None,
    )


RAISING = ["later", "plainly", "later+fine", "later+plainly", "model", "manager", "TextDelta", "TurnEnded", "PromptSettled"]


@pytest.mark.anyio
@pytest.mark.parametrize("error", [Panic("panicked"), Wordless(), BaseExceptionGroup("both", [Panic(), ValueError()])], ids=["panic", "wordless", "group"])
@pytest.mark.parametrize("on_error", ["report", "fail_turn"])
@pytest.mark.parametrize("who", RAISING)
async def test_whatever_code_of_a_turn_raises_is_a_failure_of_its_own(who: str, on_error: Any, error: BaseException) -> None:
    async with Runtime() as runtime:
        gate = anyio.Event()

        @tool
        async def wait() -> str:
            """Wait."""
            await gate.wait()
            return "waited"

        innocent = await runtime.open("innocent", AgentSpec(name="innocent", model=ScriptedModel([Reply(tool_uses=[ToolUse("wait")]), "well"]), tools=[wait]))
        work = await innocent.submit("how are you?")
        session = await runtime.open("bad", raising(who, error))

        async def handle(event: Event) -> None:
            if type(event).__name__ == who:
                raise error

        ends: list[Event] = []
        session.add_handler(handle, on_error=on_error)
        session.add_handler(ends.append, [TurnEnded])
        came = await attempt(session.ask("go"))
        assert isinstance(came, Failure) == (who == "model" or (who == "TextDelta" and on_error == "fail_turn"))
        assert str(came) == "so" if not isinstance(came, Failure) else isinstance(came.error, TurnFailed)
        assert len(ends) == 1
        assert is_valid(await session.messages())
        gate.set()
        assert str(await work.result()) == "well"
        assert runtime.statistics().restarts == 0


@pytest.mark.parametrize("who", ["later", "later+fine", "model", "TextDelta"])
def test_an_interrupt_that_strikes_in_code_of_a_turn_leaves_no_turn_without_an_end(who: str) -> None:
    """On trio, where Ctrl-C is raised in whatever runs; asyncio cancels its main task instead."""
    events: list[Event] = []
    outcomes: list[Any] = []
    journal = MemoryJournal()

    async def ask(session: Any) -> None:
        try:
            outcomes.append(await session.ask("go"))
        except BaseException as error:
            outcomes.append(error)
            raise

    async def main() -> None:
        async with Runtime(journal) as runtime:
            innocent = await runtime.open("innocent", AgentSpec(name="innocent", model=ScriptedModel([Reply(text="well", delay=3600)])))
            bad = await runtime.open("bad", raising(who, KeyboardInterrupt()))

            def handle(event: Event) -> None:
                events.append(event)
                if type(event).__name__ == who:
                    raise KeyboardInterrupt

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, innocent)
                await anyio.wait_all_tasks_blocked()
                bad.add_handler(handle)
                innocent.add_handler(events.append)
                tasks.start_soon(ask, bad)

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - trio wraps the interrupt in groups
        anyio.run(main, backend="trio")
    assert KeyboardInterrupt in {type(leaf) for leaf in leaves(caught.value)}
    ends = [event for event in events if isinstance(event, TurnEnded)]
    assert [(event.session_id, event.stop_reason) for event in sorted(ends, key=lambda end: end.session_id)] == [
        ("bad", "cancelled"),
        ("innocent", "cancelled"),
    ]
    assert len(outcomes) == 2

    async def go_on() -> None:
        async with Runtime(journal) as runtime:
            session = await runtime.open("bad", AgentSpec(model=ScriptedModel(["well"])))
            assert is_valid(await session.messages())
            assert str(await session.ask("go on")) == "well"

    anyio.run(go_on, backend="trio")


@pytest.mark.anyio
async def test_a_stream_is_entered_once() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("s", AgentSpec(model=ScriptedModel(["one", "two"])))
        stream = session.stream("hi")
        async with stream:
            pass
        with pytest.raises(InvalidOption, match="entered before"):
            await stream.__aenter__()
        await anyio.wait_all_tasks_blocked()
        assert len(await session.messages()) == 2


@pytest.mark.anyio
async def test_a_journal_that_fails_while_the_runtime_is_cancelled_starts_no_turn() -> None:
    faults: list[Fault] = []
    journal = MemoryJournal(fault=lambda number: faults.pop() if faults else None)
    called: list[str] = []

    class Dying:
        context_window = None

        async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
            called.append(messages[-1]["content"][0]["text"])
            try:
                yield {"messageStart": {"role": "assistant"}}
                await anyio.sleep(3600)
            finally:
                faults.append("refuse")

    outcomes: list[BaseException] = []

    async def ask(session: Any, text: str) -> None:
        with pytest.raises(Exception, match=r"refused|closed") as caught:
            await session.ask(text)
        outcomes.append(caught.value)

    async with anyio.create_task_group() as tasks, Runtime(journal, grace=0) as runtime:
        session = await runtime.open("s", AgentSpec(model=Dying()))
        for text in ("1", "2", "3"):
            tasks.start_soon(ask, session, text)
        await anyio.wait_all_tasks_blocked()

    assert len(called) == 1
    assert sorted(type(error).__name__ for error in outcomes) == [JournalUnavailable.__name__, "RuntimeClosed", "RuntimeClosed"]

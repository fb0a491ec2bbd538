"""The agent as an object: sync and async, in runtimes of others and in none, its message list, its portal, and what it refuses."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
import trio.testing

from ropewalk import (
    Agent,
    AgentSpec,
    AgentStream,
    HandlerFailed,
    InvalidConversation,
    InvalidHandler,
    InvalidOption,
    InvalidPrompt,
    InvalidRequestState,
    InvalidSessionId,
    InvalidTool,
    JournalUnavailable,
    MemoryJournal,
    ModelChunk,
    ModelError,
    NoModel,
    Refused,
    Runtime,
    RuntimeClosed,
    Session,
    SessionBusy,
    SessionExists,
    TextDelta,
    ToolInputDelta,
    ToolStarted,
    Turn,
    TurnEnded,
    TurnStarted,
    ViewChanged,
    WouldDeadlock,
    tool,
)
from ropewalk.actors.portal import THREAD_NAME, Portal, portal
from ropewalk.runtime.journal import Fault
from ropewalk.runtime.runtime import current_runtime
from ropewalk.runtime.supervision import Failure, attempt, contain
from ropewalk.testing import Reply, ScriptedModel, ToolUse

PATIENCE = 10.0
"""Seconds after which something that should come is said not to come."""


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"text": text}]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"text": text}]}


def counting() -> ScriptedModel:
    """Says how many messages it was shown."""
    return ScriptedModel(lambda messages: str(len(messages)))


def silent(model: Any = None, **options: Any) -> Agent:
    return Agent(model=counting() if model is None else model, callback_handler=None, **options)


def texts(agent: Agent) -> list[str]:
    return [block["text"] for message in agent.messages for block in message["content"]]


class Gated:
    """A model that says it was called, then waits until some thread lets it answer."""

    context_window = None

    def __init__(self) -> None:
        self.called = threading.Event()
        self.go = threading.Event()

    async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"contentBlockDelta": {"delta": {"text": "so "}}}
        self.called.set()
        await anyio.to_thread.run_sync(self.go.wait, PATIENCE, abandon_on_cancel=True)
        yield {"contentBlockDelta": {"delta": {"text": "far"}}}
        yield {"messageStop": {"stopReason": "end_turn"}}


class Endless:
    """A model that says a word and then nothing for ever; `on_call` is called in between."""

    context_window = None

    def __init__(self, on_call: Callable[[], None] = lambda: None) -> None:
        self._on_call = on_call

    async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"contentBlockDelta": {"delta": {"text": "word"}}}
        self._on_call()
        await anyio.sleep_forever()


class Background:
    """A call in a thread of its own."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._came: Any = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._came = contain(self._work)

    def join(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if isinstance(self._came, Failure):
            raise self._came.error
        return self._came


async def read(stream: AgentStream[Any], into: list[Any]) -> None:
    async for event in stream:
        into.append(event)  # noqa: PERF401 - what was read stays when the stream raises


def run_script(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


# Here and there -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_one_agent_goes_on_sync_and_async_in_any_order() -> None:
    agent = silent()

    answers = [
        str(agent("a")),
        str(await agent.invoke_async("b")),
        str(agent("c")),
        str(await agent.invoke_async("d")),
    ]
    async with Runtime():
        answers.append(str(await agent.invoke_async("e")))
        answers.append(str(agent("f")))
        answers.append(str(await agent.invoke_async("g")))
    result = agent("h")

    assert answers == ["1", "3", "5", "7", "9", "11", "13"]
    assert texts(agent) == [said for prompt, answer in zip("abcdefg", answers, strict=True) for said in (prompt, answer)] + ["h", "15"]
    assert result.metrics.cycle_count == 8


@pytest.mark.anyio
async def test_an_async_call_uses_the_runtime_around_it_and_leaves_nothing_there() -> None:
    agent = silent()
    async with Runtime() as runtime, runtime.events.subscribe(kinds={TurnStarted, TurnEnded}) as events:
        await agent.invoke_async("Hi")
        heard = [events.take(), events.take()]
        statistics = runtime.statistics()

    assert [type(event) for event in heard] == [TurnStarted, TurnEnded]
    assert {event.session_id for event in heard if event is not None} == {agent.session_id}
    assert (statistics.known, statistics.events.handlers, statistics.journal.actors) == (0, 0, 0)


@pytest.mark.anyio
async def test_the_innermost_runtime_is_the_one() -> None:
    agent = silent()
    async with Runtime() as outer, Runtime() as inner, outer.events.subscribe() as far, inner.events.subscribe() as near:
        await agent.invoke_async("Hi")

        assert far.take() is None
        assert near.take() is not None


@pytest.mark.anyio
async def test_calls_at_the_same_time_queue_with_a_runtime_around_them_and_without() -> None:
    agent = silent()
    answers: list[str] = []

    async def ask(prompt: str) -> None:
        answers.append(str(await agent.invoke_async(prompt)))

    async def ask_five() -> None:
        async with anyio.create_task_group() as group:
            for prompt in "abcde":
                group.start_soon(ask, prompt)

    await ask_five()
    async with Runtime():
        await ask_five()

    assert answers == [str(number) for number in range(1, 21, 2)]


@pytest.mark.anyio
async def test_what_one_caller_does_harms_no_other() -> None:
    """The first opens the runtime that both use, and leaves it before the second is done."""
    model = Gated()
    agent = silent(model)
    second: list[str] = []

    async def ask() -> None:
        second.append(str(await agent.invoke_async("second")))

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(agent.invoke_async, "first")
                await anyio.to_thread.run_sync(model.called.wait, PATIENCE)
                group.start_soon(ask)
                scope.cancel()
        model.go.set()

    assert second == ["so far"]
    assert texts(agent) == ["first", "so ", "second", "so far"]


@pytest.mark.anyio
@pytest.mark.parametrize("around", [True, False], ids=["runtime", "none"])
async def test_leaving_a_call_cancels_its_turn_and_the_agent_is_at_rest_then(around: bool) -> None:
    scopes: list[anyio.CancelScope] = []
    agent = silent(Endless(lambda: scopes[0].cancel()))

    async with Runtime() if around else nullcontext() as runtime:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await agent.invoke_async("Hi")
        assert scope.cancelled_caught
        assert runtime is None or runtime.statistics().known == 0

    assert texts(agent) == ["Hi", "word"]
    agent.messages.clear()
    assert agent.messages == []


async def test_a_tool_that_will_not_stop_is_waited_for_a_while_only(autojump_clock: trio.testing.MockClock) -> None:
    """Then its turn is settled without its caller, and until then the agent is at work there and nowhere else."""

    @tool
    async def stubborn() -> str:
        """Go on."""
        with anyio.CancelScope(shield=True):
            await anyio.sleep(60)
        return "done"

    agent = silent(ScriptedModel([Reply(tool_uses=[ToolUse("stubborn")]), "later"]), tools=[stubborn])
    began = trio.current_time()
    async with Runtime() as runtime:
        with anyio.move_on_after(1):
            await agent.invoke_async("Hi")
        assert trio.current_time() - began == pytest.approx(6)
        async with Runtime():
            with pytest.raises(SessionBusy, match="another thread or runtime"):
                await agent.invoke_async("too soon")
        with pytest.raises(SessionBusy):
            agent.messages.clear()

        await anyio.sleep(60)
        assert runtime.statistics().known == 0
        async with Runtime():
            assert str(await agent.invoke_async("now")) == "later"

    assert [message["role"] for message in agent.messages] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("where", ["model", "tool", "tools"])
def test_an_event_loop_that_ends_while_a_turn_is_left_behind_cancels_it(where: str) -> None:
    """Asyncio ends all tasks in any order, a different one each time."""

    @tool
    async def hang() -> str:
        """Hang."""
        await anyio.sleep_forever()
        return "never"

    calls = [ToolUse("hang")] * ("model", "tool", "tools").index(where)

    async def leave(agent: Agent) -> None:
        async for event in agent.stream("Hi"):
            if isinstance(event, ToolStarted if calls else TextDelta):
                break

    for run in [asyncio.run] * 12 + [lambda coroutine: trio.run(lambda: coroutine)]:
        agent = silent(ScriptedModel([Reply(text="word", tool_uses=calls)]) if calls else Endless(), tools=[hang])
        run(leave(agent))
        assert [*agent.messages[0]["content"], agent.messages[1]["content"][0]] == [{"text": "Hi"}, {"text": "word"}]
        interrupted = [block["toolResult"]["content"] for message in agent.messages[2:] for block in message["content"]]
        assert interrupted == [[{"text": "Tool was interrupted."}]] * len(calls)


@pytest.mark.anyio
async def test_another_event_loop_does_not_keep_this_ones_calls_from_queueing() -> None:
    model = Gated()
    agent = silent(model)
    answers: list[str] = []
    elsewhere = ""

    async def ask() -> None:
        answers.append(str(await agent.invoke_async("Hi")))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.to_thread.run_sync(model.called.wait, PATIENCE)
        elsewhere = await anyio.to_thread.run_sync(lambda: outcome_of(lambda: anyio.run(agent.invoke_async, "from another loop")))
        group.start_soon(ask)
        await anyio.lowlevel.checkpoint()
        model.go.set()

    assert (elsewhere, answers) == ("SessionBusy", ["so far", "so far"])


@pytest.mark.anyio
async def test_a_runtime_that_is_closed_or_in_another_thread_is_not_the_one_around() -> None:
    agent = silent()
    async with Runtime() as runtime:
        context = contextvars.copy_context()
        elsewhere = await anyio.to_thread.run_sync(lambda: anyio.run(agent.invoke_async, "in another loop"))
        assert runtime.events.statistics().handlers == 0

    assert str(elsewhere) == "1"
    assert context[current_runtime] is runtime
    context.run(current_runtime.set, runtime)
    assert str(await agent.invoke_async("after it was closed")) == "3"


@pytest.mark.anyio
async def test_context_variables_and_the_runtime_reach_what_the_turn_calls() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    other = silent()

    @tool
    async def ask_other() -> str:
        """Ask another agent."""
        around = current_runtime.get()
        assert around is not None
        before = around.statistics().known
        answer = await other.invoke_async("Hi")
        return f"{variable.get()} {before} {answer}"

    def calling() -> Agent:
        return silent(ScriptedModel([Reply(tool_uses=[ToolUse("ask_other")]), "done"]), tools=[ask_other])

    variable.set("mine")
    agents = [calling(), calling(), calling()]
    agents[0]("sync")
    await agents[1].invoke_async("async")
    async with Runtime():
        await agents[2].invoke_async("inside")

    results = [agent.messages[2]["content"][0]["toolResult"]["content"][0]["text"] for agent in agents]
    assert results == ["mine 1 1", "mine 1 3", "mine 1 5"]


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("around", [True, False], ids=["runtime", "none"])
async def test_a_stream_shows_its_turn_and_leaves_the_agent_at_rest(around: bool) -> None:
    agent = silent(ScriptedModel(["a b c", "d"]))

    async with Runtime() if around else nullcontext():
        stream = agent.stream("Hi")
        assert stream.turn is None
        events = [event async for event in stream]
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "a b c"
        assert isinstance(events[-1], TurnEnded)
        assert not any(isinstance(event, ModelChunk) for event in events)
        turn: Turn | None = stream.turn
        assert turn is not None
        assert (await turn.result()).stop_reason == "end_turn"
        assert [event async for event in stream] == []
    assert str(agent("sync, at once")) == "d"


@pytest.mark.anyio
async def test_a_stream_can_be_asked_for_some_kinds() -> None:
    agent = silent(ScriptedModel(["a b c"]))

    kinds = [type(event) async for event in agent.stream("Hi", kinds={TextDelta, ModelChunk})]

    assert kinds.count(TextDelta) == 3
    assert kinds[1:3] == [ModelChunk, TextDelta]


@pytest.mark.anyio
async def test_a_stream_that_is_left_lets_the_turn_go_on_and_the_next_call_queues_behind_it() -> None:
    agent = silent(ScriptedModel(["a b c", "d"]))

    async for event in agent.stream("first"):
        if isinstance(event, TextDelta):
            break
    result = await agent.invoke_async("second")

    assert str(result) == "d"
    assert texts(agent) == ["first", "a b c", "second", "d"]


@pytest.mark.anyio
async def test_a_stream_may_be_left_in_any_order_with_scopes_of_the_readers() -> None:
    agent = silent(ScriptedModel(["a b c", "d e f"]))
    first, second = agent.stream("first"), agent.stream("second")

    with anyio.CancelScope():
        await anext(first)
    with anyio.CancelScope():
        await anext(second)
    with anyio.CancelScope():
        await first.aclose()
    rest = [event async for event in second]
    await first.aclose()

    assert isinstance(rest[-1], TurnEnded)
    assert texts(agent) == ["first", "a b c", "second", "d e f"]


@pytest.mark.anyio
@pytest.mark.parametrize("around", [True, False], ids=["runtime", "none"])
async def test_a_stream_can_be_told_to_end_the_turn_when_it_is_left(around: bool) -> None:
    agent = silent(Endless())

    async with Runtime() if around else nullcontext():
        async with agent.stream("Hi", on_leave="cancel") as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        assert texts(agent) == ["Hi", "word"]
        agent.messages.pop()
    assert texts(agent) == ["Hi"]


@pytest.mark.anyio
async def test_a_stream_that_was_closed_before_its_first_step_sends_nothing() -> None:
    model = counting()
    agent = silent(model)
    stream = agent.stream("Hi")

    await stream.aclose()

    assert [event async for event in stream] == []
    assert model.calls == 0


@pytest.mark.anyio
async def test_a_stream_ends_with_what_failed_the_turn() -> None:
    agent = silent(ScriptedModel([Reply(text="a b", error=ModelError("down"))] * 2))

    events: list[Any] = []
    dicts: list[Any] = []
    with pytest.raises(ModelError, match="down"):
        await read(agent.stream("Hi"), events)
    with pytest.raises(ModelError, match="down"):
        await read(agent.stream_async("Hi"), dicts)

    assert isinstance(events[-1], TurnEnded)
    assert dicts[-1] == {"force_stop": True, "force_stop_reason": "down"}
    assert agent.messages == []


@pytest.mark.anyio
async def test_the_callback_handler_gets_each_dict_before_the_reader_does() -> None:
    log: list[tuple[str, dict[str, Any]]] = []
    agent = Agent(model=ScriptedModel(["a b"]), callback_handler=lambda **event: log.append(("handler", event)))

    async for event in agent.stream_async("Hi", request_state={"n": 1}):
        log.append(("reader", event))  # noqa: PERF401 - in turn with the handler

    handler = [event for who, event in log if who == "handler"]
    reader = [event for who, event in log if who == "reader"]
    assert handler == reader
    assert [next(iter(event)) for event in reader][:3] == ["init_event_loop", "start", "start_event_loop"]
    assert [event["data"] for event in reader if "data" in event] == ["a ", "b"]
    assert reader[-1]["result"].state == {"n": 1}
    for place in range(len(reader)):
        assert log.index(("handler", handler[place])) < log.index(("reader", reader[place]))


@pytest.mark.anyio
async def test_a_reader_who_is_slow_misses_raw_chunks_but_no_word() -> None:
    words = [f"{number} " for number in range(2000)]
    call = ToolUse("note", json.dumps({"text": "x" * 10}))
    agent = silent(ScriptedModel([Reply(text=words, tool_uses=[call]), "end"]), tools=[note])
    stream = agent.stream_async("Hi")

    events = [await anext(stream)]
    turn = stream.turn
    assert turn is not None
    await turn.result()
    events += [event async for event in stream]

    assert "".join(event["data"] for event in events if "data" in event) == "".join(words) + "end"
    assert events[-1]["result"].stop_reason == "end_turn"
    assert len(events) < 400


class LongInput:
    """A model that streams the input of its first call in a thousand pieces."""

    context_window = None

    async def stream(self, messages: list[Any], **options: Any) -> AsyncIterator[dict[str, Any]]:
        if len(messages) == 1:
            yield {"contentBlockStart": {"start": {"toolUse": {"name": "note", "toolUseId": "t"}}}}
            for piece in ['{"text": "', *["x"] * 998, '"}']:
                yield {"contentBlockDelta": {"delta": {"toolUse": {"input": piece}}}}
            yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}


@pytest.mark.anyio
async def test_a_reader_who_is_slow_misses_nothing_of_a_tools_input() -> None:
    agent = silent(LongInput(), tools=[note])
    typed, dicts = agent.stream("Hi"), agent.stream_async("Hi again")
    first = [await anext(typed), await anext(dicts)]
    for turn in (typed.turn, dicts.turn):
        assert turn is not None
        await turn.result()

    pieces = [event.text async for event in typed if isinstance(event, ToolInputDelta)]
    [*_, last] = [event async for event in dicts]

    whole = '{"text": "' + "x" * 998 + '"}'
    assert len(first) == 2
    assert "".join(pieces) == whole
    assert len(pieces) < 300
    assert last["result"].stop_reason == "end_turn"
    assert agent.messages[2]["content"][0]["toolResult"]["content"] == [{"text": "x" * 998}]


@tool
def note(text: str) -> str:
    """Note."""
    return text


# The list of messages -------------------------------------------------------------------------------------------------


def talked() -> Agent:
    """An agent after two turns."""
    agent = silent(ScriptedModel(["1", "2", "3"]))
    agent("a")
    agent("b")
    return agent


def fresh() -> Agent:
    """An agent with the same messages that has not been called."""
    return silent(ScriptedModel(["3"]), messages=[user("a"), assistant("1"), user("b"), assistant("2")])


def reverse_three(messages: list[dict[str, Any]]) -> None:
    messages.pop()
    messages.reverse()


MUTATIONS: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], list[str]]] = {
    "append": (lambda messages: messages.append(user("c")), ["a", "1", "b", "2", "c"]),
    "extend": (lambda messages: messages.extend([user("c"), assistant("3")]), ["a", "1", "b", "2", "c", "3"]),
    "insert": (lambda messages: messages.insert(0, user("c")), ["c", "a", "1", "b", "2"]),
    "pop": (lambda messages: messages.pop(), ["a", "1", "b"]),
    "pop first": (lambda messages: messages.pop(2), ["a", "1", "2"]),
    "remove": (lambda messages: messages.remove(user("b")), ["a", "1", "2"]),
    "clear": (lambda messages: messages.clear(), []),
    "sort": (lambda messages: messages.sort(key=lambda message: message["role"], reverse=True), ["a", "b", "1", "2"]),
    "reverse": (reverse_three, ["b", "1", "a"]),
    "set item": (lambda messages: messages.__setitem__(0, user("c")), ["c", "1", "b", "2"]),
    "set slice": (lambda messages: messages.__setitem__(slice(1, 3), iter([assistant("9")])), ["a", "9", "2"]),
    "delete item": (lambda messages: messages.__delitem__(-1), ["a", "1", "b"]),
    "delete slice": (lambda messages: messages.__delitem__(slice(2, None)), ["a", "1"]),
    "add in place": (lambda messages: messages.__iadd__([user("c")]), ["a", "1", "b", "2", "c"]),
    "multiply in place": (lambda messages: messages.__imul__(2), ["a", "1", "b", "2"] * 2),
}


@pytest.mark.parametrize("make", [talked, fresh])
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutator_changes_the_conversation_and_the_list(make: Callable[[], Agent], name: str) -> None:
    mutate, expected = MUTATIONS[name]
    agent = make()
    messages = agent.messages

    mutate(messages)

    assert texts(agent) == expected
    assert messages == agent.messages
    agent("next")
    assert agent.messages[-1] == assistant("3")


MUTATIONS_THAT_CALL: dict[str, Callable[[list[dict[str, Any]], Callable[[], Any]], object]] = {
    "sort": lambda messages, call: messages.sort(key=lambda message: (call(), message["role"])[1], reverse=True),
    "extend": lambda messages, call: messages.extend(user("c") for _ in range(1) if call()),
    "set slice": lambda messages, call: messages.__setitem__(slice(0, 1), (user("c") for _ in range(1) if call())),
    "insert": lambda messages, call: messages.insert(type("Place", (), {"__index__": lambda self: 0 if call() else 1})(), user("c")),
    "remove": lambda messages, call: messages.remove(type("Like", (), {"__eq__": lambda self, other: call() and other == user("b")})()),
}


@pytest.mark.parametrize("make", [talked, fresh])
@pytest.mark.parametrize("name", MUTATIONS_THAT_CALL)
def test_a_mutator_may_call_other_agents(make: Callable[[], Agent], name: str) -> None:
    agent, other = make(), silent()
    before = texts(agent)

    Background(lambda: MUTATIONS_THAT_CALL[name](agent.messages, lambda: str(other("Hi")))).join()

    assert texts(other)[:2] == ["Hi", "1"]
    assert texts(agent) != before


@pytest.mark.parametrize("make", [talked, fresh])
@pytest.mark.parametrize("name", ["sort", "insert", "remove"])
def test_a_mutator_that_calls_its_own_agent_has_lost_its_place_and_changes_nothing(make: Callable[[], Agent], name: str) -> None:
    agent = make()
    called: list[object] = []

    def call_once() -> bool:
        if not called:
            called.append(agent("c"))
        return True

    with pytest.raises(SessionBusy, match="nothing has changed"):
        MUTATIONS_THAT_CALL[name](agent.messages, call_once)

    assert texts(agent) == ["a", "1", "b", "2", "c", "3"]


def test_a_callback_handler_that_calls_an_agent_when_it_is_looked_at_holds_nobody_up() -> None:
    other = silent()

    class Proxy:
        def __getattr__(self, name: str) -> str:
            if not other.messages:
                other.messages.append(user("looked"))
            return "proxy"

        def __call__(self, **event: Any) -> None: ...

    agent = Agent(model=counting(), callback_handler=Proxy())
    assert str(Background(lambda: agent("Hi")).join()) == "1"
    assert "looked" in texts(other)


def test_the_messages_of_an_agent_with_a_journal_of_its_own_can_be_changed_before_its_first_call() -> None:
    agent = silent(messages=[user("a")], session_id="me", journal=MemoryJournal())
    agent.messages.append(assistant("1"))
    assert texts(agent) == ["a", "1"]


def test_what_a_mutator_of_a_list_gives_this_one_gives() -> None:
    agent = talked()
    messages = agent.messages

    assert messages.pop() == assistant("2")
    with pytest.raises(ValueError, match="not in list"):
        messages.remove(user("nobody said this"))
    with pytest.raises(IndexError):
        messages.pop(17)
    with pytest.raises(IndexError):
        del messages[17]
    assert len(agent.messages) == 3


@pytest.mark.parametrize("make", [talked, fresh])
def test_a_list_can_be_assigned(make: Callable[[], Agent]) -> None:
    agent = make()

    agent.messages = [{"role": "user", "content": "Hello", "extra": 1}]
    assert agent.messages == [user("Hello")]

    agent.messages += [assistant("Hi")]
    assert texts(agent) == ["Hello", "Hi"]

    agent.messages = []
    assert agent.messages == []


@pytest.mark.parametrize("make", [talked, fresh])
def test_what_is_no_conversation_is_refused_and_changes_nothing(make: Callable[[], Agent]) -> None:
    agent = make()
    before = agent.messages
    messages = agent.messages

    for mutate in (
        lambda: messages.pop(0),
        lambda: messages.append({"role": "system", "content": []}),
        lambda: messages.append("Hello"),  # type: ignore[arg-type]
        lambda: setattr(agent, "messages", [assistant("I begin")]),
    ):
        with pytest.raises(InvalidConversation):
            mutate()
        assert agent.messages == messages == before
    assert str(agent("c")) == "3"


def test_the_door_repairs_what_it_can() -> None:
    agent = silent()
    calling = {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t", "name": "x", "input": {}}}]}

    agent.messages.extend([user("a"), user("b"), calling])

    assert [message["role"] for message in agent.messages] == ["user", "assistant", "user"]
    assert agent.messages[2]["content"][0]["toolResult"]["content"] == [{"text": "Tool was interrupted."}]


def test_the_list_shows_copies_and_is_a_list_like_any() -> None:
    agent = talked()
    messages = agent.messages

    messages[0]["content"][0]["text"] = "changed"

    assert agent.messages[0] == user("a")
    assert isinstance(messages, list)
    assert json.loads(json.dumps(messages)) == messages
    for made in (copy.copy(messages), copy.deepcopy(messages), pickle.loads(pickle.dumps(messages)), messages[:], [*messages], sorted(messages, key=str)):
        assert type(made) is list


def test_a_list_that_is_behind_catches_up_before_it_changes_anything() -> None:
    agent = silent()
    messages = agent.messages
    agent("a")

    messages.append(user("b"))

    assert [message["content"][0]["text"] for message in messages] == ["a", "1", "b"] == texts(agent)


def test_an_unused_agent_is_changed_without_a_thread() -> None:
    script = """
        import threading
        from ropewalk import Agent
        from ropewalk.testing import ScriptedModel

        agent = Agent(model=ScriptedModel())
        agent.messages.append({"role": "user", "content": [{"text": "Hi"}]})
        agent.messages += [{"role": "assistant", "content": [{"text": "Ho"}]}]
        agent.system_prompt = "Be kind"
        assert len(agent.messages) == 2, agent.messages
        assert threading.active_count() == 1, threading.enumerate()
    """

    assert run_script(script).stderr == ""


@pytest.mark.anyio
async def test_the_list_can_be_changed_in_async_code_too() -> None:
    agent = silent()
    async with Runtime():
        await agent.invoke_async("a")
        agent.messages.append(user("b"))
        await agent.invoke_async("c")

    assert agent.messages == [user("a"), assistant("1"), {"role": "user", "content": [{"text": "b"}, {"text": "c"}]}, assistant("3")]


@pytest.mark.anyio
async def test_handlers_of_the_spec_hear_of_a_changed_list() -> None:
    heard: list[Any] = []
    agent = silent(handlers=[heard.append])
    await agent.invoke_async("a")
    heard.clear()

    agent.messages.pop()

    assert [event.reason for event in heard if isinstance(event, ViewChanged)] == ["replaced"]
    assert portal().runtime.statistics().events.handlers == 0


# At work --------------------------------------------------------------------------------------------------------------


def test_during_a_turn_the_agent_can_be_read_but_not_changed() -> None:
    model = Gated()
    agent = silent(model)
    call = Background(lambda: agent("Hi"))
    assert model.called.wait(PATIENCE)

    changes: list[Callable[[], object]] = [
        lambda: agent.messages.append(user("x")),
        lambda: setattr(agent, "messages", []),
        lambda: setattr(agent, "system_prompt", "x"),
    ]
    for change in changes:
        with pytest.raises(SessionBusy, match="middle of a call"):
            change()
    assert texts(agent) == ["Hi"]
    with pytest.raises(SessionBusy):
        agent("now", when_busy="reject")
    model.go.set()

    assert str(call.join()) == "so far"
    assert texts(agent) == ["Hi", "so far"]
    agent.system_prompt = "Be kind"
    assert agent.system_prompt == "Be kind"


def test_sync_calls_from_several_threads_queue() -> None:
    agent = silent()
    calls = [Background(lambda: str(agent("Hi"))) for _ in range(8)]

    assert sorted(int(call.join()) for call in calls) == list(range(1, 17, 2))
    assert len(agent.messages) == 16


@pytest.mark.anyio
@pytest.mark.parametrize("around", [True, False], ids=["runtime", "none"])
async def test_two_places_at_once_is_busy_and_harms_nothing(around: bool) -> None:
    model = Gated()
    agent = silent(model)
    call = Background(lambda: agent("Hi"))
    await anyio.to_thread.run_sync(model.called.wait, PATIENCE)

    async with Runtime() if around else nullcontext():
        with pytest.raises(SessionBusy, match="from another thread or runtime"):
            await agent.invoke_async("no")
        with pytest.raises(SessionBusy):
            await anext(agent.stream("no"))
    model.go.set()

    assert str(await anyio.to_thread.run_sync(call.join)) == "so far"
    assert str(await agent.invoke_async("yes")) == "so far"


@pytest.mark.anyio
async def test_a_session_handle_that_is_out_of_date_can_do_no_harm() -> None:
    handles: list[Session] = []
    agent = silent()
    async with Runtime() as runtime:
        agent.callback_handler = lambda **event: handles.append(runtime.find(agent.session_id))
        await agent.invoke_async("a")
        assert runtime.find(agent.session_id) is None
        with pytest.raises(Refused, match="call the agent itself"):
            await handles[0].ask("no")
        assert str(await agent.invoke_async("b")) == "3"


@pytest.mark.anyio
async def test_a_sync_call_while_an_async_one_is_at_work_is_busy() -> None:
    model = Gated()
    agent = silent(model)
    async with Runtime(), anyio.create_task_group() as group:
        group.start_soon(agent.invoke_async, "Hi")
        await anyio.to_thread.run_sync(model.called.wait, PATIENCE)
        with pytest.raises(SessionBusy):
            agent("no")
        with pytest.raises(SessionBusy):
            agent.messages.clear()
        model.go.set()

    assert texts(agent) == ["Hi", "so far"]


def test_two_agents_of_one_name_do_not_mix() -> None:
    model = Gated()
    one, other = silent(model, session_id="same"), silent(session_id="same")
    call = Background(lambda: one("Hi"))
    assert model.called.wait(PATIENCE)

    with pytest.raises(SessionBusy, match="session_id of its own"):
        other("Hi")
    model.go.set()
    call.join()

    assert str(other("Hi")) == "1"
    assert str(one("again")) == "so far"


# Waiting for itself ---------------------------------------------------------------------------------------------------


def outcome_of(call: Callable[[], Any]) -> str:
    """What a call gives, or the name of what it raises."""
    outcome = contain(call)
    return type(outcome.error).__name__ if isinstance(outcome, Failure) else str(outcome)


def self_calling(use: Callable[[Agent], Any], *, is_async: bool) -> tuple[Agent, list[str]]:
    """An agent with a tool that uses its agent, and what came of it."""
    came: list[str] = []

    @tool(name="again")
    def sync_again() -> str:
        """Again."""
        came.append(outcome_of(lambda: use(agent)))
        return "done"

    @tool(name="again")
    async def async_again() -> str:
        """Again."""
        outcome = contain(use, agent)
        if not isinstance(outcome, Failure):
            outcome = await attempt(outcome)
        came.append(type(outcome.error).__name__ if isinstance(outcome, Failure) else str(outcome))
        return "done"

    model = ScriptedModel([Reply(tool_uses=[ToolUse("again")]), "end", "more"])
    agent = silent(model, tools=[async_again if is_async else sync_again, note])
    return agent, came


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("use", "is_async"),
    [
        (lambda agent: agent("Hi"), False),
        (lambda agent: agent.tool.note(text="x"), False),
        (lambda agent: agent.invoke_async("Hi"), True),
        (lambda agent: read(agent.stream("Hi"), []), True),
        (lambda agent: agent.tool.note.invoke_async(text="x"), True),
    ],
    ids=["call", "direct call", "await", "stream", "await direct call"],
)
async def test_a_tool_that_waits_for_its_own_agent_is_told_so(use: Callable[[Agent], Any], is_async: bool) -> None:
    agent, came = self_calling(use, is_async=is_async)
    assert str(agent("Go")) == "end"
    assert came == ["WouldDeadlock"]

    for around in (True, False):
        agent, came = self_calling(use, is_async=is_async)
        async with Runtime() if around else nullcontext():
            assert str(await agent.invoke_async("Go")) == "end"
        assert came == ["WouldDeadlock"]
        assert len(agent.messages) == 4


@pytest.mark.anyio
async def test_a_tool_may_use_the_agents_other_tools_without_a_record() -> None:
    def use(agent: Agent) -> str:
        return str(agent.tool.note(text="x", record_direct_tool_call=False)["status"])

    agent, came = self_calling(use, is_async=False)
    agent("Go")
    assert came == ["success"]

    agent, came = self_calling(use, is_async=False)
    async with Runtime():
        await agent.invoke_async("Go")
    assert came == ["success"]
    assert len(agent.messages) == 4


def test_a_sync_call_in_the_portals_own_thread_is_told_to_be_async() -> None:
    other = silent()
    came: list[str] = []

    @tool
    async def ask_other() -> str:
        """Ask another agent the wrong way."""
        with pytest.raises(WouldDeadlock, match="invoke_async"):
            other("Hi")
        came.append(str(await other.invoke_async("Hi")))
        return "done"

    silent(ScriptedModel([Reply(tool_uses=[ToolUse("ask_other")]), "end"]), tools=[ask_other])("Go")

    assert came == ["1"]


def test_a_handler_that_calls_its_own_agent_is_told_so() -> None:
    came: list[str] = []

    def call_again(**event: Any) -> None:
        if "data" in event:
            came.append(outcome_of(lambda: agent("again")))

    agent = Agent(model=ScriptedModel(["Hi"]), callback_handler=call_again)
    agent("Hi")

    assert came == ["WouldDeadlock"]


def test_agents_that_would_wait_for_each_other_are_told_so() -> None:
    came: list[str] = []

    @tool
    def ask_first() -> str:
        """Ask the first agent."""
        came.append(outcome_of(lambda: first("Hi")))
        return "done"

    @tool
    def ask_second() -> str:
        """Ask the second agent."""
        came.append(outcome_of(lambda: second("Hi")))
        return "done"

    first = silent(ScriptedModel([Reply(tool_uses=[ToolUse("ask_second")]), "first"]), tools=[ask_second])
    second = silent(ScriptedModel([Reply(tool_uses=[ToolUse("ask_first")]), "second"]), tools=[ask_first])
    assert str(first("Go")) == "first"

    assert came == ["WouldDeadlock", "second"]


@pytest.mark.anyio
@pytest.mark.parametrize("around", [True, False], ids=["runtime", "none"])
async def test_tools_are_called_from_async_code_with_a_record_and_without(around: bool) -> None:
    agent = silent(tools=[note])

    async with Runtime() if around else nullcontext():
        recorded = await agent.tool.note.invoke_async(text="x")
        unrecorded = await agent.tool.note.invoke_async(text="y", record_direct_tool_call=False)

    assert [result["content"] for result in (recorded, unrecorded)] == [[{"text": "x"}], [{"text": "y"}]]
    assert [message["role"] for message in agent.messages] == ["user", "assistant"] * 2
    assert repr(agent.tool.note) == f"<tool 'note' of {agent!r}>"
    assert await agent.tool.note.invoke_async(text=7) == agent.messages[6]["content"][0]["toolResult"]


# Names, journals, closing ---------------------------------------------------------------------------------------------


def test_an_agent_names_its_conversation_or_is_named() -> None:
    one, other = silent(), silent()

    assert one.session_id != other.session_id
    assert silent(session_id="me").session_id == "me"
    agent = silent(session_id="me", name="helper")
    assert repr(agent) == "<Agent 'helper', session 'me', 0 messages>"
    agent("Hi")
    assert repr(agent) == "<Agent 'helper', session 'me', 2 messages>"
    assert repr(agent.tool) == "<tools of <Agent 'helper', session 'me', 2 messages>: none>"


def test_a_journal_that_is_given_outlives_the_agent() -> None:
    journal = MemoryJournal()
    silent(session_id="me", journal=journal)("a")

    second = silent(session_id="me", journal=journal)
    assert "not loaded" in repr(second)
    assert texts(second) == ["a", "1"]
    assert str(second("b")) == "3"

    third = silent(session_id="me", journal=journal)
    third.messages.append(user("c"))
    assert texts(third) == ["a", "1", "b", "3", "c"]


def test_a_journal_without_the_name_of_a_conversation_is_refused_for_it_would_begin_anew_at_each_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"session_id='me' names the conversation to go on with"):
        silent(journal=tmp_path / "chat.db")
    assert not list(tmp_path.iterdir())


def test_two_agents_may_take_turns_with_one_journal() -> None:
    journal = MemoryJournal()
    one, other = silent(session_id="me", journal=journal), silent(session_id="me", journal=journal)

    assert [str(agent("Hi")) for agent in (one, other, one, other)] == ["1", "3", "5", "7"]


def test_messages_are_for_a_new_conversation_only() -> None:
    journal = MemoryJournal()
    silent(session_id="me", journal=journal, messages=[user("a"), assistant("b")])("c")

    with pytest.raises(SessionExists, match=r"'me' exists already, .* leave messages= out to go on with it, .* another session id"):
        silent(session_id="me", journal=journal, messages=[user("x")])("y")
    assert str(silent(session_id="me", journal=journal, messages=[])("d")) == "5"


def test_a_journal_that_fails_fails_the_call_and_the_next_one_goes_on() -> None:
    heard: list[dict[str, Any]] = []
    writes = 0
    failing = -1

    def fault(write: int) -> Fault:
        nonlocal writes
        writes = write + 1
        return "refuse" if write == failing else None

    def listen(**event: Any) -> Any:
        heard.append(event)
        if "force_stop" in event and clumsy:
            raise RuntimeError("no")
        return anyio.lowlevel.checkpoint() if "force_stop" in event else None

    clumsy = False
    agent = Agent(model=counting(), session_id="me", journal=MemoryJournal(fault=fault), callback_handler=listen)
    agent("a")

    heard.clear()
    failing = writes  # the prompt's own record: the turn does not begin
    with pytest.raises(JournalUnavailable):
        agent("b")
    assert heard == []

    failing = writes + 1  # the answer's
    with pytest.raises(JournalUnavailable) as raised:
        agent("c")
    assert heard[0] == {"init_event_loop": True}
    assert heard[-1] == {"force_stop": True, "force_stop_reason": str(raised.value)}

    clumsy, failing = True, writes + 2  # one more for what the lost turn left open
    with pytest.raises(JournalUnavailable):
        agent("e")
    assert "force_stop" in heard[-1]

    assert agent("d").stop_reason == "end_turn"
    assert texts(agent)[:2] == ["a", "1"]
    assert "d" in texts(agent)


def test_a_closed_agent_can_be_read_but_not_called() -> None:
    with silent(tools=[note]) as agent:
        agent("Hi")
    agent.close()

    for call in (
        lambda: agent("Hi"),
        lambda: agent.tool.note(text="x"),
        lambda: agent.tool.note(text="x", record_direct_tool_call=False),
        lambda: agent.messages.clear(),
    ):
        with pytest.raises(RuntimeClosed, match="was closed"):
            call()
    assert texts(agent) == ["Hi", "1"]


@pytest.mark.anyio
async def test_a_closed_agent_is_closed_for_async_callers_too() -> None:
    with silent() as agent:
        await agent.invoke_async("Hi")

    with pytest.raises(RuntimeClosed):
        await agent.invoke_async("Hi")
    with pytest.raises(RuntimeClosed):
        await anext(agent.stream("Hi"))


class Watched(MemoryJournal):
    """A journal that counts its openings and closings."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    async def open(self) -> None:
        self.calls.append("open")

    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.calls.append("close")

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any], durability: Any = None, **more: Any) -> Any:
        assert "close" not in self.calls, "written to after it was closed"
        return super().append(actor_id, epoch, first, bodies, **more)


@pytest.mark.anyio
async def test_a_journal_is_opened_with_its_first_use_and_closed_with_the_agent() -> None:
    journal = Watched()
    with silent(session_id="me", journal=journal) as agent:
        assert journal.calls == []
        agent("a")
        await agent.invoke_async("b")
        assert journal.calls == ["open"]
    agent.close()
    assert journal.calls == ["open", "close"]

    unused = Watched()
    with silent(session_id="me", journal=unused):
        pass
    assert unused.calls == []


@pytest.mark.parametrize("closings", [1, 2])
def test_closing_during_a_call_closes_the_journal_when_the_call_is_over(closings: int) -> None:
    model, journal = Gated(), Watched()
    agent = silent(model, session_id="me", journal=journal)
    call = Background(lambda: agent("Hi"))
    assert model.called.wait(PATIENCE)
    for _ in range(closings):
        agent.close()
    with pytest.raises(RuntimeClosed):
        agent("more")
    assert journal.calls == ["open"]
    model.go.set()

    assert str(call.join()) == "so far"
    assert texts(agent) == ["Hi", "so far"]
    assert journal.calls == ["open", "close"]
    agent.close()
    assert journal.calls == ["open", "close"]


@pytest.mark.anyio
@pytest.mark.parametrize("around", [False, True])
async def test_an_exception_that_closes_the_agent_lets_a_running_turn_write_its_end_first(around: bool) -> None:
    model, journal = Gated(), Watched()
    async with Runtime() if around else nullcontext():
        with pytest.raises(ZeroDivisionError), silent(model, session_id="me", journal=journal) as agent:  # noqa: PT012 - where it is raised is the point
            stream = agent.stream("Hi")
            async for event in stream:
                if isinstance(event, TextDelta):
                    raise ZeroDivisionError
        assert journal.calls == ["open"]
        model.go.set()
        assert stream.turn is not None
        assert str(await stream.turn.result()) == "so far"
        with anyio.fail_after(PATIENCE):
            while "close" not in journal.calls:
                await anyio.lowlevel.checkpoint()
    assert texts(agent) == ["Hi", "so far"]
    assert journal.calls == ["open", "close"]


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["cancelled", "its runtime ends"])
async def test_a_call_that_is_cut_off_after_its_agent_was_closed_closes_the_journal_too(how: str) -> None:
    journal = Watched()
    agent = silent(Endless(), session_id="me", journal=journal)
    async with anyio.create_task_group() as tasks:
        if how == "cancelled":
            tasks.start_soon(agent.invoke_async, "Hi")
        else:
            with pytest.raises(ZeroDivisionError):  # noqa: PT012 - where it is raised is the point
                async with Runtime():
                    stream = agent.stream("Hi")
                    await stream.__aenter__()
                    await anyio.wait_all_tasks_blocked()
                    agent.close()
                    raise ZeroDivisionError
        await anyio.wait_all_tasks_blocked()
        agent.close()
        assert journal.calls == (["open"] if how == "cancelled" else ["open", "close"])
        tasks.cancel_scope.cancel()
    assert texts(agent) == ["Hi", "word"]
    assert journal.calls == ["open", "close"]


def test_closing_another_agent_in_the_portals_own_thread_closes_its_journal_soon() -> None:
    journal = Watched()
    other = silent(session_id="me", journal=journal)
    other("Hi")

    @tool
    async def close_it() -> str:
        """Close the other agent."""
        other.close()
        while "close" not in journal.calls:
            await anyio.lowlevel.checkpoint()
        return "closed"

    agent = silent(ScriptedModel([Reply(tool_uses=[ToolUse("close_it")]), "done"]), tools=[close_it])
    assert str(agent("go")) == "done"
    assert journal.calls == ["open", "close"]


@pytest.mark.anyio
async def test_a_runtime_opens_sessions_as_an_agent_is_described() -> None:
    heard: list[Any] = []
    agent = silent(name="helper", tools=[note], handlers=[heard.append], system_prompt="Be kind")
    async with Runtime() as runtime:
        session = await runtime.open("user-1", agent)
        result = await session.ask("Hi")
        call = await session.call_tool("note", {"text": "x"})

    assert isinstance(agent.actor_kind(), AgentSpec)
    assert (str(result), call["status"]) == ("1", "success")
    assert session.spec is agent.spec
    assert any(isinstance(event, TurnEnded) for event in heard)
    assert agent.messages == []


def test_the_system_prompt_is_what_the_model_is_told() -> None:
    model = counting()
    agent = silent(model, system_prompt="one")
    agent("a")
    agent.system_prompt = "two"
    agent("b")
    agent.system_prompt = None
    agent("c")

    assert [request.system_prompt for request in model.requests] == ["one", "two", None]
    assert len(agent.messages) == 6


def test_the_callback_handler_can_be_changed() -> None:
    agent, heard = silent(), list[str]()
    agent("a")
    agent.callback_handler = lambda **event: heard.extend(event)
    agent("b")
    agent.callback_handler = None
    seen = len(heard)
    agent("c")

    assert seen == len(heard) > 0
    with pytest.raises(InvalidHandler, match="not callable"):
        agent.callback_handler = "print"  # type: ignore[assignment]


@pytest.mark.anyio
async def test_a_handler_that_fails_is_reported_by_its_name() -> None:
    def clumsy(**event: Any) -> None:
        raise RuntimeError("secret")

    agent = Agent(model=counting(), callback_handler=clumsy)
    async with Runtime() as runtime, runtime.events.subscribe(kinds={HandlerFailed}) as failures:
        await agent.invoke_async("Hi")
        failure = failures.take()

    assert isinstance(failure, HandlerFailed)
    assert (failure.handler.rpartition(".")[2], failure.error, failure.kind) == ("clumsy", "RuntimeError", "TurnStarted")


FAILING = """
from ropewalk import Agent
from ropewalk.testing import ScriptedModel

def listen(event):
    local = "of no concern"
    raise KeyError(f"no {type(event).__name__} today")

Agent(model=ScriptedModel(["one two three"]), handlers=[listen])("Hi")
"""

AGAIN = """
    for _ in range(1000):
        try:
            raise error
        except KeyError:
            pass
    raise error
"""


def test_a_handler_that_fails_is_logged_to_standard_error_with_its_text_and_place_and_once() -> None:
    run = run_script(FAILING)

    assert (run.returncode, run.stdout.rstrip()) == (0, "one two three")
    assert run.stderr.count("Traceback") == 1
    assert "KeyError: 'no SessionActivated today'" in run.stderr
    assert 'File "<string>", line 7, in listen' in run.stderr
    assert "of no concern" not in run.stderr
    assert 2 <= run.stderr.count("[warning") <= 4


def test_the_log_goes_where_the_program_has_structlog_send_it() -> None:
    run = run_script("import structlog\nstructlog.configure(processors=[structlog.processors.JSONRenderer(default=repr)])\n" + FAILING)

    assert (run.returncode, run.stderr) == (0, "")
    assert '"event": "handler_failed"' in run.stdout
    assert "no SessionActivated today" in run.stdout
    assert '"stack": "Traceback' in run.stdout


def test_no_renderer_is_given_the_variables_of_a_failing_handler() -> None:
    """The one that structlog has by default would show them all, and take seconds to."""
    run = run_script("import structlog\nstructlog.configure()\n" + FAILING)

    assert run.stderr == ""
    assert "in listen" in run.stdout
    assert "of no concern" not in run.stdout


def test_of_an_error_that_is_raised_again_and_again_the_last_frames_are_logged() -> None:
    """It carries those of every time before."""
    run = run_script(FAILING.replace("def listen", "error = KeyError()\ndef listen").replace('raise KeyError(f"no {type(event).__name__} today")', AGAIN))

    assert run.returncode == 0
    assert run.stderr.count("in listen") <= 50


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Agent(), NoModel),
        (lambda: Agent(model="openai:some"), NoModel),
        (lambda: silent(model=7), InvalidOption),
        (lambda: silent(messages=[assistant("Hi")]), InvalidConversation),
        (lambda: silent(messages="Hi"), InvalidConversation),
        (lambda: silent(tools=[print]), InvalidTool),
        (lambda: silent(system_prompt=7), InvalidOption),
        (lambda: Agent(model=counting(), callback_handler="print"), InvalidHandler),  # type: ignore[arg-type]
        (lambda: silent(session_id=".hidden"), InvalidSessionId),
        (lambda: silent(session_id="me", journal=":memory:"), InvalidOption),
        (lambda: silent(conversation_manager=7), InvalidOption),
        (lambda: silent(when_busy="whenever"), InvalidOption),
        (lambda: silent(flavour="sweet"), TypeError),
    ],
)
def test_what_cannot_be_an_agent_is_refused_at_the_door(make: Callable[[], Agent], error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"prompt": ""}, InvalidPrompt),
        ({"prompt": 7}, InvalidPrompt),
        ({"prompt": "Hi", "request_state": {"x": object()}}, InvalidRequestState),
        ({"prompt": "Hi", "when_busy": "whenever"}, InvalidOption),
    ],
)
async def test_what_cannot_be_asked_is_refused_at_the_door(arguments: dict[str, Any], error: type[Exception]) -> None:
    model = counting()
    agent = silent(model)

    with pytest.raises(error):
        agent(**arguments)
    with pytest.raises(error):
        await agent.invoke_async(**arguments)
    with pytest.raises(error):
        agent.stream(**arguments)
    with pytest.raises(error):
        agent.stream_async(**arguments)

    assert (model.calls, agent.messages) == (0, [])


def test_a_stream_has_two_ways_to_be_left() -> None:
    with pytest.raises(InvalidOption, match="on_leave"):
        silent().stream("Hi", on_leave="whenever")  # type: ignore[arg-type]


# The portal -----------------------------------------------------------------------------------------------------------


def portal_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def test_a_thousand_sync_calls_use_one_thread() -> None:
    agent = silent(ScriptedModel(lambda messages: threading.current_thread().name, remember=0))
    agent("warm up")
    [thread] = portal_threads()
    count = threading.active_count()

    names = {str(agent("Hi")) for _ in range(1000)}

    assert names == {THREAD_NAME}
    assert portal_threads() == [thread]
    assert threading.active_count() <= count
    assert thread.daemon


def test_agents_that_are_dropped_leave_nothing() -> None:
    def use_one() -> weakref.ref[Agent]:
        agent = silent(handlers=[lambda event: None], model_concurrency=1)
        agent("Hi")
        agent.messages.append(user("more"))
        return weakref.ref(agent)

    use_one()
    runtime = portal().runtime
    before = len(runtime.resources)

    references = [use_one() for _ in range(20)]
    gc.collect()

    assert [reference() for reference in references] == [None] * 20
    statistics = runtime.statistics()
    assert (statistics.known, statistics.events.handlers, statistics.events.subscriptions) == (0, 0, 0)
    assert len(runtime.resources) == before


def interrupt_main() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def main_is_in(function: Any) -> bool:
    """Whether the main thread is in a call of this function now."""
    frame: FrameType | None = sys._current_frames()[threading.main_thread().ident or 0]
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def test_ctrl_c_cancels_the_turn_and_is_raised_when_it_is_settled() -> None:
    """The signal comes from the model itself, in the portal's thread, while the main thread waits for it."""
    heard: list[dict[str, Any]] = []
    agent = Agent(model=Endless(interrupt_main), callback_handler=lambda **event: heard.append(event))

    with pytest.raises(KeyboardInterrupt):
        agent("Hi")

    assert texts(agent) == ["Hi", "word"]
    assert heard[-1]["result"].stop_reason == "cancelled"
    assert portal().runtime.statistics().known == 0
    agent.messages.clear()


def test_ctrl_c_before_the_call_has_begun_takes_it_back() -> None:
    """The signal comes from a handler that keeps the portal's event loop from taking the call."""
    entered, go = threading.Event(), threading.Event()

    def block(**event: Any) -> None:
        if "data" in event:
            entered.set()
            while not main_is_in(Portal.call):
                go.wait(0.001)
            interrupt_main()
            go.wait(PATIENCE)

    other = Background(lambda: Agent(model=ScriptedModel(["Hi"]), callback_handler=block)("Hi"))
    model = counting()
    agent = silent(model)
    assert entered.wait(PATIENCE)

    with pytest.raises(KeyboardInterrupt):
        agent("Hi")
    go.set()

    assert str(other.join()) == "Hi"
    assert (agent.messages, model.calls) == ([], 0)
    assert str(agent("again")) == "1"


def test_after_a_fork_the_child_has_a_portal_of_its_own() -> None:
    script = """
        import os, threading, warnings
        from ropewalk import Agent
        from ropewalk.testing import ScriptedModel

        def model():
            return ScriptedModel(lambda messages: str(len(messages)))

        class Gated:
            context_window = None
            called, go = threading.Event(), threading.Event()

            async def stream(self, messages, **options):
                import anyio.to_thread

                yield {"contentBlockDelta": {"delta": {"text": "so far"}}}
                if not self.called.is_set():
                    self.called.set()
                    await anyio.to_thread.run_sync(self.go.wait, abandon_on_cancel=True)
                yield {"messageStop": {"stopReason": "end_turn"}}

        used, unused, busy = (Agent(model=made, callback_handler=None) for made in (model(), model(), Gated()))
        used("before")
        at_work = threading.Thread(target=busy, args=("at work",))
        at_work.start()
        Gated.called.wait()

        warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads forks is the point
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            answers = [str(used("in the child")), str(unused("in the child")), str(busy("in the child"))]
            names = [thread.name for thread in threading.enumerate()]
            os.write(writing, f"{answers} {names.count('ropewalk-portal')} {busy.messages[0]}".encode())
            os._exit(0)
        os.waitpid(child, 0)
        Gated.go.set()
        at_work.join()
        print(os.read(reading, 10000).decode())
        print(used("after"), len(used.messages), len(unused.messages), len(busy.messages))
    """
    run = run_script(script)

    assert run.stderr == ""
    child, parent = run.stdout.splitlines()
    assert child.startswith("['3', '1', 'so far'] 1 ")
    assert parent == "3 4 0 2"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_process_ends_whatever_still_runs(backend: str) -> None:
    script = """
        import threading, time
        from ropewalk import Agent, tool
        from ropewalk.runtime.supervision import contain
        from ropewalk.testing import Reply, ScriptedModel, ToolUse

        hanging = threading.Event()

        @tool
        def hang() -> str:
            "Hang."
            hanging.set()
            threading.Event().wait()

        agent = Agent(model=ScriptedModel([Reply(tool_uses=[ToolUse("hang")])]), tools=[hang], callback_handler=None)
        threading.Thread(target=contain, args=(agent, "Hi"), daemon=True).start()
        hanging.wait()
        print("done")
    """
    run = run_script(script, ROPEWALK_BACKEND=backend)

    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(("backend", "library"), [("asyncio", "asyncio"), ("trio", "trio"), ("uvloop", "asyncio"), ("", "asyncio")])
def test_the_environment_names_the_portals_backend(backend: str, library: str) -> None:
    if backend == "uvloop":
        pytest.importorskip("uvloop")
    script = """
        import sniffio
        from ropewalk import Agent, tool
        from ropewalk.testing import Reply, ScriptedModel, ToolUse

        @tool
        async def which() -> str:
            "Which?"
            return sniffio.current_async_library()

        agent = Agent(model=ScriptedModel(), tools=[which], callback_handler=None)
        print(agent.tool.which()["content"][0]["text"])
    """
    run = run_script(script, ROPEWALK_BACKEND=backend)

    assert (run.stdout, run.stderr) == (f"{library}\n", "")


def test_a_backend_that_is_none_is_refused() -> None:
    run = run_script("from ropewalk.actors.portal import portal; portal()", ROPEWALK_BACKEND="gevent")

    assert "InvalidOption: $ROPEWALK_BACKEND is one of asyncio, uvloop, trio, not 'gevent'" in run.stderr


def test_a_portal_that_died_is_replaced() -> None:
    script = """
        import threading
        from ropewalk import Agent, RuntimeClosed
        from ropewalk.testing import ScriptedModel
        from ropewalk.actors.portal import portal

        threading.excepthook = lambda arguments: None

        def die(messages):
            raise KeyboardInterrupt  # no code can be sure of having come to this by itself

        agent = Agent(model=ScriptedModel(lambda messages: "alive"), callback_handler=None)
        agent("Hi")
        first = portal()
        try:
            Agent(model=ScriptedModel([die]), callback_handler=None)("Hi")
        except RuntimeClosed:
            print("closed")
        first.stop(10)
        print(agent("Hi"), portal() is first, len(agent.messages))
    """
    run = run_script(script)

    assert run.stdout == "closed\nalive False 4\n", run.stderr


@pytest.mark.anyio
async def test_a_turn_that_the_journal_ended_is_not_gone_on_with_at_the_next_call() -> None:
    """Whoever asked was told that it failed, though no record could say so then."""
    faults: list[Any] = []
    asked: list[str] = []

    def answer(messages: Sequence[dict[str, Any]]) -> str:
        asked.append(messages[-1]["content"][-1]["text"])
        if len(asked) == 1:
            faults.append("refuse")
        return f"{asked[-1]}!"

    journal = MemoryJournal(fault=lambda number: faults.pop() if faults else None)
    agent = Agent(ScriptedModel(answer), callback_handler=None, session_id="me", journal=journal, resume="continue")
    with pytest.raises(JournalUnavailable):
        async for _ in agent.stream("first"):
            pass
    assert str(await agent.invoke_async("second")) == "second!"
    assert [message["content"][0]["text"] for message in agent.messages] == ["second", "second!"]
    agent.close()

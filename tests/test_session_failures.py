"""What fails beside and below a session: handlers, tools, models. History is left as the design says, and the next prompt works."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from ropewalk import (
    AgentSpec,
    HandlerFailed,
    Limits,
    ModelError,
    ModelThrottled,
    PromptSettled,
    Runtime,
    Session,
    TextDelta,
    Tool,
    ToolEnded,
    TurnEnded,
    TurnFailed,
    TurnStarted,
    tool,
)
from ropewalk.testing import Reply, ScriptedModel, ToolUse, in_trio
from talk import agent, assert_sound, calls, echo, result_block, results, said, told, transcript, virtual_runtime, wait

pytestmark = pytest.mark.anyio

USE = ToolUse("echo", {"text": "hi"}, id="x")
ACTED = [told("go"), said("first", calls("echo", "x", text="hi")), results(("x", "hi"))]
BEFORE = [told("before"), said("then")]


async def ask_and_fail(session: Session, kind: type[Exception] = ModelError, **options: Any) -> Exception:
    """Ask, and hand back what the turn raised; one end and one settlement are told of."""
    ends: list[Any] = []
    handle = session.add_handler(ends.append, [TurnEnded, PromptSettled])
    with pytest.raises(kind) as caught:
        await session.ask("go", **options)
    handle.remove()
    assert [type(event) for event in ends] == [TurnEnded, PromptSettled]
    assert ends[0].stop_reason is None
    assert ends[1].outcome == "failed"
    return caught.value


async def goes_on(session: Session) -> None:
    """The session is sound, answers the next prompt, and is sound again."""
    await assert_sound(session)
    before = await session.messages()
    assert str(await session.ask("again")) == "fine"
    after = await session.messages()
    if before and before[-1]["role"] == "user":
        assert after[-2]["content"] == [*before[-1]["content"], {"text": "again"}]
        assert after[: len(before) - 1] == before[:-1]
    else:
        assert after == [*before, told("again"), said("fine")]
    await assert_sound(session)


# --- models -----------------------------------------------------------------------------------------------------------


class Provider:
    """A model that plays these chunks, or raises them, once, and is fine ever after."""

    context_window = None

    def __init__(self, *chunks: Any) -> None:
        self._chunks = chunks
        self._played = False

    async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
        if self._played:
            yield {"contentBlockDelta": {"delta": {"text": "fine"}}}
            yield {"messageStop": {"stopReason": "end_turn"}}
            return
        self._played = True
        for chunk in self._chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


def text(words: str) -> dict[str, Any]:
    return {"contentBlockDelta": {"delta": {"text": words}}}


DYING: dict[str, tuple[Any, list[Any]]] = {
    "at once": ([ModelError("down")], []),
    "in mid-answer": ([text("so "), text("far"), ModelError("down")], [said("so far")]),
    "in mid-call": (
        [
            {"contentBlockStart": {"start": {"toolUse": {"name": "echo", "toolUseId": "x"}}}},
            {"contentBlockDelta": {"delta": {"toolUse": {"input": '{"te'}}}},
            ModelError("down"),
        ],
        [said('[tool call cut off: echo {"te]')],
    ),
    "after a whole call": (
        [{"contentBlockStart": {"start": {"toolUse": {"name": "echo", "toolUseId": "x"}}}}, {"contentBlockStop": {}}, ModelError("down")],
        [said(calls("echo", "x"))],
    ),
    "while reasoning": (
        [{"contentBlockDelta": {"delta": {"reasoningContent": {"text": "hm"}}}}, ModelError("down")],
        [said({"reasoningContent": {"reasoningText": {"text": "hm"}}})],
    ),
    "throttled in mid-answer": ([text("so"), ModelThrottled("down")], [said("so")]),
    "without messageStop": ([text("so")], [said("so")]),
    "without a chunk": ([], []),
}


@pytest.mark.parametrize("before", [[], BEFORE], ids=["empty", "with history"])
@pytest.mark.parametrize("how", DYING)
async def test_a_model_that_dies_before_any_tool_leaves_the_view_as_before(how: str, before: list[Any]) -> None:
    chunks, aside = DYING[how]
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(Provider(*chunks)), messages=before)
        error = await ask_and_fail(session)
        assert str(error) == "down" or "ended without" in str(error)
        assert await session.messages() == before
        assert await transcript(session) == [*[(message, None) for message in before], (told("go"), "failed"), *[(message, "failed") for message in aside]]
        await goes_on(session)


BUGS: dict[str, list[Any]] = {
    "an exception that is no model's": [KeyError("bug")],
    "one in mid-answer": [text("so"), ZeroDivisionError("bug")],
    "a group of one": [ExceptionGroup("several", [KeyError("bug")])],
}


@pytest.mark.parametrize("how", BUGS)
async def test_a_bug_of_a_provider_is_reported_as_one(how: str) -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(Provider(*BUGS[how])))
        error = await ask_and_fail(session, TurnFailed)
        assert type(error.__cause__) in (KeyError, ZeroDivisionError)
        assert type(error.__cause__).__name__ in str(error)
        assert "Provider" in str(error)
        assert await session.messages() == []
        await goes_on(session)


NONSENSE: dict[str, Any] = {
    "no dict": "text",
    "a text that is none": {"contentBlockDelta": {"delta": {"text": 5}}},
    "a delta that is none": {"contentBlockDelta": "x"},
    "an input before its tool": {"contentBlockDelta": {"delta": {"toolUse": {"input": "{}"}}}},
}


@pytest.mark.parametrize("how", NONSENSE)
async def test_chunks_that_are_none_fail_the_turn_and_say_why(how: str) -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(Provider(text("so"), NONSENSE[how])))
        assert isinstance(await ask_and_fail(session, ModelError), ModelError)
        assert await session.messages() == []
        await goes_on(session)


async def test_a_model_that_is_no_async_iterator_is_a_bug_of_the_provider() -> None:
    class Wrong:
        context_window = None
        wrong = True

        def stream(self, messages: Any, **options: Any) -> Any:
            if self.wrong:
                self.wrong = False
                return None
            return ScriptedModel(["fine"]).stream(messages)

    async with Runtime() as runtime:
        session = await runtime.open("me", agent(Wrong()))
        error = await ask_and_fail(session, TurnFailed)
        assert isinstance(error.__cause__, TypeError)
        await goes_on(session)


@pytest.mark.parametrize("last", [ModelError("down"), KeyError("bug"), Reply(text="second", error=ModelError("down"))], ids=["error", "bug", "in mid-answer"])
async def test_a_model_that_dies_after_a_tool_acted_leaves_what_was_done(last: Any) -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent([Reply(text="first", tool_uses=[USE]), last, "fine"]), messages=BEFORE)
        await ask_and_fail(session, TurnFailed if isinstance(last, KeyError) else ModelError)
        assert await session.messages() == [*BEFORE, *ACTED, said("[turn failed]")]
        everything = await transcript(session)
        assert [message for message, because in everything if because is None] == await session.messages()
        assert [entry for entry in everything if entry[1] is not None] == ([(said("second"), "failed")] if isinstance(last, Reply) else [])
        await goes_on(session)


async def test_what_a_failed_turn_streamed_was_told_and_is_withdrawn() -> None:
    events: list[Any] = []
    async with Runtime() as runtime:
        session = await runtime.open("me", agent([Reply(text="so far", error=ModelError("down")), "fine"]))
        session.add_handler(events.append, [TextDelta, TurnEnded])
        await ask_and_fail(session)
        assert [type(event).__name__ for event in events] == ["TextDelta", "TextDelta", "TurnEnded"]
        assert events[-1].error == "ModelError"


# --- tools ------------------------------------------------------------------------------------------------------------


def rude_tools() -> list[Any]:
    @tool
    async def raises() -> str:
        """Raise."""
        raise RuntimeError("no")

    @tool
    async def exits_its_scope() -> str:
        """Have its own work cancelled."""
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep(1)
        return "went on"

    @tool
    def blocks() -> str:
        """Return what is no text."""
        return b"bytes"  # type: ignore[return-value]

    @tool(timeout=0.01)
    async def late() -> str:
        """Come too late."""
        await anyio.sleep(3600)
        return "never"

    async def nothing(tool_input: dict[str, Any], context: Any) -> AsyncIterator[str]:
        for _ in ():
            yield ""

    return [raises, exits_its_scope, blocks, late, Tool("nothing", "Yield nothing.", {"type": "object"}, nothing)]


async def test_rude_tools_cost_their_own_result_and_nothing_else() -> None:
    tools = rude_tools()
    uses = [ToolUse(one.name, id=one.name) for one in tools]
    async with Runtime() as runtime:
        session = await runtime.open("me", agent([Reply(tool_uses=uses), "on we go", "fine"], tools=tools))
        assert str(await session.ask("go")) == "on we go"
        blocks = [block["toolResult"] for block in (await session.messages())[2]["content"]]
        assert [block["toolUseId"] for block in blocks] == [one.name for one in tools]
        assert [block["status"] for block in blocks] == ["error", "success", "error", "error", "error"]
        assert [block["content"][0]["text"].split("'")[0].strip() for block in blocks] == [
            "Error: RuntimeError - no",
            "went on",
            "Error: the tool returned bytes; a tool returns text, JSON values or content blocks",
            "Error: Tool",
            "Tool",
        ]
        await goes_on(session)


@in_trio
async def test_a_tool_that_hangs_is_cancelled_at_once_and_its_call_answered() -> None:
    uses = [ToolUse("echo", {"text": "hi"}, id="a"), ToolUse("wait", id="b")]
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent([Reply(text="first", tool_uses=uses), "fine"]))
        turn = await session.submit("go")
        await trio.sleep(10)
        began = trio.current_time()
        await turn.cancel()
        assert trio.current_time() == began
        assert (await turn.result()).stop_reason == "cancelled"
        asking = said("first", calls("echo", "a", text="hi"), calls("wait", "b"))
        assert await session.messages() == [told("go"), asking, results(("a", "hi"), ("b", "Tool was interrupted.", "error"))]
        await goes_on(session)


@in_trio
async def test_a_direct_call_that_hangs_goes_with_its_caller() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(["fine"]))
        with trio.move_on_after(5) as scope:
            await session.call_tool("wait")
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert [message["role"] for message in await session.messages()] == ["user", "assistant", "user", "assistant"]
        [answer] = (await session.messages())[2]["content"]
        assert answer["toolResult"]["content"] == [{"text": "Tool was interrupted."}]
        await goes_on(session)


@in_trio
async def test_a_direct_call_that_waits_goes_with_its_caller() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent([Reply(text="ok", delay=100), "fine"]))
        turn = await session.submit("go")
        with trio.move_on_after(5):
            await session.call_tool("echo")
        assert str(await turn.result()) == "ok"
        assert await session.messages() == [told("go"), said("ok")]
        await goes_on(session)


# --- handlers ---------------------------------------------------------------------------------------------------------


def raising(event: Any) -> None:
    raise RuntimeError("the secret is 42")


async def raising_late(event: Any) -> None:
    await anyio.lowlevel.checkpoint()
    raise RuntimeError("the secret is 42")


async def hanging(event: Any) -> None:
    await anyio.sleep(3600)


class Bad:
    def __call__(self, event: Any) -> Any:
        return raising_late(event)


@pytest.mark.parametrize("handler", [raising, raising_late, Bad()], ids=["sync", "async", "object"])
async def test_a_handler_that_raises_is_reported_and_harms_nobody(handler: Any) -> None:
    heard: list[Any] = []
    failures: list[Any] = []
    async with Runtime() as runtime:
        session = await runtime.open("me", agent([Reply(text="first", tool_uses=[USE]), "done", "fine"]))
        session.add_handler(handler)
        session.add_handler(heard.append)
        session.add_handler(failures.append, [HandlerFailed])
        assert str(await session.ask("go")) == "done"
        assert await session.messages() == [*ACTED, said("done")]
        told_of = [event for event in heard if not isinstance(event, HandlerFailed)]
        assert [event.kind for event in failures if event.kind != "HandlerFailed"] == [type(event).__name__ for event in told_of]
        assert {(event.error, "secret" in str(event.to_dict())) for event in failures} == {("RuntimeError", False)}
        assert {event.handler for event in failures} == {getattr(handler, "__qualname__", "Bad")}
        await goes_on(session)


@in_trio
async def test_a_handler_that_never_returns_is_cut_off_by_its_timeout() -> None:
    failures: list[Any] = []
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(["done", "fine"]))
        handle = session.add_handler(hanging, [TurnStarted, TurnEnded], timeout=7)
        session.add_handler(failures.append, [HandlerFailed])
        began = trio.current_time()
        assert str(await session.ask("go")) == "done"
        assert trio.current_time() - began == 14
        assert [(event.error, event.kind) for event in failures] == [("TimeoutError", "TurnStarted"), ("TimeoutError", "TurnEnded")]
        handle.remove()
        await goes_on(session)


@in_trio
async def test_a_turn_is_cancelled_at_once_while_a_handler_hangs() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent([Reply(text="one two"), "fine"]))
        heard: list[Any] = []
        handle = session.add_handler(hanging, [TextDelta], timeout=None)
        session.add_handler(heard.append, [TextDelta, TurnEnded])
        turn = await session.submit("go")
        await trio.sleep(10)
        began = trio.current_time()
        await turn.cancel()
        assert trio.current_time() == began
        assert await session.messages() == [told("go"), said("one ")]
        assert [type(event).__name__ for event in heard] == ["TextDelta", "TurnEnded"]
        handle.remove()
        await goes_on(session)


FATAL: dict[str, tuple[Any, list[Any]]] = {
    "TurnStarted": (TurnStarted, []),
    "TextDelta": (TextDelta, []),
    "ToolEnded": (ToolEnded, [*ACTED[:2], results(("x", "hi")), said("[turn failed]")]),
}


@pytest.mark.parametrize("where", FATAL)
@pytest.mark.parametrize("handler", [raising, raising_late], ids=["sync", "async"])
async def test_a_handler_added_to_fail_the_turn_does(where: str, handler: Callable[[Any], Any]) -> None:
    kind, left = FATAL[where]
    failures: list[Any] = []
    async with Runtime() as runtime:
        session = await runtime.open(
            "me", agent(lambda messages: "fine" if messages[-1] == told("again") or len(messages) == 5 else Reply(text="first", tool_uses=[USE]))
        )
        handle = session.add_handler(handler, [kind], on_error="fail_turn")
        session.add_handler(failures.append, [HandlerFailed])
        error = await ask_and_fail(session, TurnFailed)
        assert isinstance(error.__cause__, RuntimeError)
        assert "RuntimeError: the secret is 42" in str(error)
        assert await session.messages() == left
        assert [event.kind for event in failures] == [where]
        handle.remove()
        await goes_on(session)


async def test_a_handler_cannot_fail_a_turn_that_has_ended() -> None:
    heard: list[Any] = []
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["done", "fine"]))
        session.add_handler(raising, [TurnEnded, PromptSettled], on_error="fail_turn")
        session.add_handler(heard.append, [TurnEnded, PromptSettled])
        assert str(await session.ask("go")) == "done"
        assert [type(event) for event in heard] == [TurnEnded, PromptSettled]
        assert session.statistics().restarts == 0
        await goes_on(session)


async def test_a_handler_that_may_fail_turns_harms_nothing_outside_of_one() -> None:
    async with Runtime() as runtime:
        spec = agent(["fine"])
        handle = runtime.add_handler(raising, on_error="fail_turn")
        session = await runtime.open("me", spec)
        await session.add_messages([told("a"), said("b")])
        await session.set_messages([told("a"), said("c")])
        result = await session.call_tool("echo", {"text": "hi"})
        handle.remove()
        assert result["status"] == "success"
        assert len(await session.messages()) == 6
        assert session.statistics().restarts == 0
        await goes_on(session)


# --- messages that are refused ----------------------------------------------------------------------------------------


async def test_a_refused_change_of_the_view_is_no_failure_of_the_session() -> None:
    from ropewalk import InvalidConversation

    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["fine"]))
        for _ in range(10):
            with pytest.raises(InvalidConversation, match="starts with a user message"):
                await session.add_messages([said("I begin")])
            with pytest.raises(InvalidConversation, match="role"):
                await session.set_messages([{"role": "nobody", "content": []}])
        assert session.statistics().restarts == 0
        assert session.status == "idle"
        await goes_on(session)


# --- beside each other ------------------------------------------------------------------------------------------------


@in_trio
async def test_a_failing_and_a_hanging_session_do_not_concern_the_others() -> None:
    async with virtual_runtime() as runtime:
        bad = await runtime.open("bad", agent([KeyError("bug"), "fine"], name="bad"))
        stuck = await runtime.open("stuck", agent([Reply(tool_uses=[ToolUse("wait", {"seconds": 50}, id="x")]), "late"], name="stuck", tools=[wait]))
        good = await runtime.open("good", agent(["fine"] * 5, name="good"))
        turn = await stuck.submit("go")
        await ask_and_fail(bad, TurnFailed)
        began = trio.current_time()
        for _ in range(4):
            await good.ask("hello")
        assert trio.current_time() == began
        assert stuck.status == "running"
        await goes_on(good)
        await goes_on(bad)
        assert str(await turn.result()) == "late"


def test_the_kit_is_what_it_says() -> None:
    spec = agent(["a"], tools=[echo])
    assert isinstance(spec, AgentSpec)
    assert spec.limits == Limits()
    assert result_block("x", "y")["toolResult"]["toolUseId"] == "x"

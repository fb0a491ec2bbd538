"""A session through its public face: prompts, turns, streams, history, tools, events, limits. On every backend; what is about time, on trio."""

from __future__ import annotations

import contextvars
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ropewalk import (
    AgentResult,
    AgentSpec,
    CycleStarted,
    InvalidTool,
    Limits,
    MailboxFull,
    MemoryJournal,
    MessageAdded,
    ModelChunk,
    ModelError,
    ModelRetry,
    ModelThrottled,
    PromptAccepted,
    PromptSettled,
    Runtime,
    Session,
    SessionActivated,
    SessionBusy,
    SessionExists,
    TextDelta,
    Tool,
    ToolContext,
    ToolEnded,
    ToolProgress,
    ToolStarted,
    TurnEnded,
    TurnFailed,
    TurnStarted,
    UnknownSession,
    ViewChanged,
    WouldDeadlock,
    tool,
)
from ropewalk.actors.session.assembly import Assembly
from ropewalk.actors.session.stream import AskStream
from ropewalk.actors.testing.chunks import TOOL_NAMES, StreamedAnswer, streamed_answers
from ropewalk.actors.validity import is_open, is_valid
from ropewalk.testing import Reply, ScriptedModel, ToolUse, in_trio
from talk import Gate, agent, assert_sound, calls, echo, kinds, result_block, results, said, told, transcript, virtual_runtime, wait

pytestmark = pytest.mark.anyio


class GatedModel:
    """Says some words, waits at its gate, says the rest; one gate for all calls."""

    context_window = None

    def __init__(self, before: str = "", after: str = "done") -> None:
        self.gate = Gate()
        self.calls = 0
        self._before = before
        self._after = after

    async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
        self.calls += 1
        for text in (self._before, None, self._after):
            if text is None:
                await self.gate()
            elif text:
                yield {"contentBlockDelta": {"delta": {"text": text}}}
        yield {"messageStop": {"stopReason": "end_turn"}}


async def read_all(stream: AsyncIterator[Any], events: list[Any]) -> None:
    async for event in stream:
        events.append(event)  # noqa: PERF401  # what was read before it raised is wanted too


# --- asking -----------------------------------------------------------------------------------------------------------


async def test_a_prompt_gets_its_answer() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["Hello there."]))
        result = await session.ask("Hi!")

        assert (result.stop_reason, str(result), result.state, result.interrupts) == ("end_turn", "Hello there.", {}, ())
        assert result.message == said("Hello there.")
        assert await session.messages() == [told("Hi!"), said("Hello there.")]
        assert result.metrics.cycle_count == 1
        await assert_sound(session)


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("Hi!", [told("Hi!")]),
        ([{"text": "a"}, {"text": "b"}], [told("a", "b")]),
        ([told("a"), said("b"), told("c")], [told("a"), said("b"), told("c")]),
        (({"text": "a"},), [told("a")]),
    ],
)
async def test_a_prompt_is_text_or_blocks_or_messages(prompt: Any, shown: list[Any]) -> None:
    model = ScriptedModel(["ok"])
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        await session.ask(prompt)

        assert list(model.requests[0].messages) == shown
        assert await session.messages() == [*shown, said("ok")]
        await assert_sound(session)


async def test_the_model_sees_the_prompt_the_tools_and_all_that_was_said() -> None:
    model = ScriptedModel(["one", "two"])
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, tools=[echo], system_prompt="Be brief."))
        await session.ask("1?")
        await session.ask("2?")

        first, second = model.requests
        assert list(first.messages) == [told("1?")]
        assert list(second.messages) == [told("1?"), said("one"), told("2?")]
        assert (second.system_prompt, second.tool_specs) == ("Be brief.", (echo.spec,))


async def test_what_a_caller_holds_is_not_what_the_session_holds() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["ok", "ok"]))
        prompt = [told("a", "b")]
        await session.ask(prompt)
        prompt[0]["content"].clear()
        (await session.messages())[0]["content"].clear()

        assert await session.messages() == [told("a", "b"), said("ok")]


async def test_tools_run_together_and_answer_in_the_order_of_the_calls() -> None:
    uses = [
        ToolUse("wait", {"seconds": 0.02}, id="a"),
        ToolUse("echo", {"text": "hi"}, id="b"),
        ToolUse("fail", id="c"),
        ToolUse("nobody", id="d"),
        ToolUse("echo", "{", id="e"),
    ]
    model = ScriptedModel([Reply(text="let me see", tool_uses=uses), "so it is"])
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        result = await session.ask("go")

        prompt, asking, answering, answer = await session.messages()
        assert (prompt, answer, result.message) == (told("go"), said("so it is"), said("so it is"))
        assert [block.get("toolUse", {}).get("toolUseId") for block in asking["content"]] == [None, "a", "b", "c", "d", "e"]
        blocks = [block["toolResult"] for block in answering["content"]]
        assert [block["toolUseId"] for block in blocks] == ["a", "b", "c", "d", "e"]
        assert [block["status"] for block in blocks] == ["success", "success", "error", "error", "error"]
        said_by_tools = [block["content"][0]["text"] for block in blocks]
        assert said_by_tools[:4] == ["waited", "hi", "Error: RuntimeError - no", "Unknown tool: nobody"]
        assert "not a JSON object" in said_by_tools[4]
        assert result.metrics.tool_metrics["echo"].call_count == 2
        assert (result.metrics.tool_metrics["wait"].success_count, result.metrics.tool_metrics["fail"].error_count) == (1, 1)
        await assert_sound(session)


async def test_a_thousand_cycles_are_one_turn() -> None:
    model = ScriptedModel([*(Reply(tool_uses=[ToolUse("echo")]) for _ in range(1000)), "at last"])
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, limits=Limits(cycles=None)))
        result = await session.ask("go")

        assert (result.metrics.cycle_count, str(result)) == (1001, "at last")
        assert session.statistics().messages == 40
        assert len([entry async for entry in session.transcript()]) == 2002


# --- several prompts --------------------------------------------------------------------------------------------------


async def test_prompts_are_answered_in_the_order_they_came() -> None:
    model = GatedModel()
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        session = await runtime.open("me", agent(model))
        turns = [await session.submit(f"{number}?") for number in range(5)]
        tasks.start_soon(turns[0].result)
        assert [turn.turn_id is None for turn in turns] == [False, True, True, True, True]
        assert session.statistics().mailbox.waiting == 4
        model.gate.open()
        for turn in turns:
            await turn.result()

        prompts = [message["content"][0]["text"] for message in (await session.messages())[::2]]
        assert prompts == ["0?", "1?", "2?", "3?", "4?"]
        await assert_sound(session)


async def test_one_prompt_more_than_the_mailbox_holds_is_refused_and_nothing_lost() -> None:
    model = GatedModel()
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, mailbox=2))
        turns = [await session.submit(f"{number}?") for number in range(3)]
        for send in (session.ask, session.submit):
            with pytest.raises(MailboxFull, match="2"):
                await send("too much")
        with pytest.raises(MailboxFull):
            async with session.stream("too much"):
                pass
        assert session.statistics().mailbox.refused == 3
        model.gate.open()
        assert [str(await turn.result()) for turn in turns] == ["done"] * 3
        assert len(await session.messages()) == 6
        await assert_sound(session)


@pytest.mark.parametrize("by", ["spec", "message"])
async def test_a_busy_session_may_reject(by: str) -> None:
    model = GatedModel()
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, when_busy="reject" if by == "spec" else "queue"))
        turn = await session.submit("1?")
        own: Any = {} if by == "spec" else {"when_busy": "reject"}
        with pytest.raises(SessionBusy, match="queue"):
            await session.ask("2?", **own)
        waiting = await session.submit("3?", when_busy="queue")
        model.gate.open()
        await turn.result()
        await waiting.result()
        assert str(await session.ask("4?", when_busy="reject")) == "done"
        assert [message["content"][0]["text"] for message in (await session.messages())[::2]] == ["1?", "3?", "4?"]
        await assert_sound(session)


async def test_sessions_work_beside_each_other() -> None:
    model = GatedModel()
    async with Runtime() as runtime:
        spec = agent(model)
        turns = [await (await runtime.open(f"s{number}", spec)).submit("hi") for number in range(10)]
        assert model.calls == 10
        assert runtime.statistics().busy == 10
        model.gate.open()
        for turn in turns:
            assert str(await turn.result()) == "done"


async def test_an_asker_who_leaves_takes_the_waiting_prompt_with_them() -> None:
    model = GatedModel()
    events: list[Any] = []
    async with Runtime() as runtime:
        runtime.add_handler(events.append, kinds=[PromptAccepted, PromptSettled, TurnStarted])
        session = await runtime.open("me", agent(model))
        running = await session.submit("stays")
        with anyio.move_on_after(0.01):
            await session.ask("leaves")
        assert session.statistics().mailbox.waiting == 0
        model.gate.open()
        await running.result()

        assert await session.messages() == [told("stays"), said("done")]
        await assert_sound(session)
    assert [event.outcome for event in events if isinstance(event, PromptSettled)] == ["cancelled", "end_turn"]
    assert sum(isinstance(event, TurnStarted) for event in events) == 1


async def test_an_asker_who_leaves_ends_the_turn_and_what_was_streamed_stays() -> None:
    model = GatedModel(before="so far ")
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        with anyio.move_on_after(0.02) as scope:
            await session.ask("hi")
        assert scope.cancelled_caught
        model.gate.open()
        result = await session.ask("go on")

        assert await session.messages() == [told("hi"), said("so far "), told("go on"), said("so far done")]
        assert str(result) == "so far done"
        await assert_sound(session)


# --- submit and the turn's handle -------------------------------------------------------------------------------------


@in_trio
async def test_submit_returns_once_the_prompt_is_durable_whatever_the_model_does() -> None:
    async with virtual_runtime(journal=MemoryJournal(lag=2.0)) as runtime:
        session = await runtime.open("me", agent([Reply(text="slow", delay=100), "next"]))
        began = trio.current_time()
        first = await session.submit("1?")
        assert trio.current_time() - began == 2
        second = await session.submit("2?")
        assert trio.current_time() - began == 4
        assert not first.done
        assert first.turn_id is not None
        assert second.turn_id is None
        assert str(await second.result()) == "next"
        assert first.done
        assert str(await first.result()) == "slow"


async def test_a_result_can_be_had_by_many_and_again() -> None:
    model = GatedModel()
    got: list[AgentResult] = []
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        turn = await session.submit("hi")

        async def take() -> None:
            got.append(await turn.result())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            tasks.start_soon(take)
            with anyio.move_on_after(0.01):
                await turn.result()
            model.gate.open()
        assert [str(result) for result in (*got, await turn.result())] == ["done"] * 3
        assert repr(turn) == f"<Turn of prompt {turn.prompt_id} in me>"


async def test_nobody_need_wait_for_a_submitted_prompt() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["ok"]))
        await session.submit("hi")
    assert [record.body for record in await runtime.journal.read("me")][-1].stop_reason == "end_turn"


async def test_the_events_of_a_turn_from_now_on() -> None:
    model = GatedModel(before="not this ")
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        running, waiting = await session.submit("1?"), await session.submit("2?")
        await model.gate.reached()
        late, early = running.events(), waiting.events()
        model.gate.open()
        assert kinds([event async for event in late]) == ["TextDelta", "MessageAdded", "TurnEnded"]
        assert kinds([event async for event in early]) == ["TurnStarted", "MessageAdded", "CycleStarted", "TextDelta", "MessageAdded", "TurnEnded"]
        assert [event async for event in running.events()] == []
        assert {event.turn_id for event in [event async for event in waiting.events([TurnEnded])]} == set()


@pytest.mark.parametrize("which", ["running", "waiting"])
async def test_a_turn_can_be_cancelled_by_its_handle(which: str) -> None:
    model = GatedModel(before="so ")
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        running, waiting = await session.submit("1?"), await session.submit("2?")
        await model.gate.reached()
        cancelled = running if which == "running" else waiting
        await cancelled.cancel()
        assert cancelled.done
        assert (await cancelled.result()).stop_reason == "cancelled"
        await cancelled.cancel()
        model.gate.open()
        other = waiting if which == "running" else running
        assert str(await other.result()) == "so done"
        shown = await session.messages()
        assert shown == ([told("1?"), said("so "), told("2?"), said("so done")] if which == "running" else [told("1?"), said("so done")])
        await assert_sound(session)


async def test_the_session_cancels_its_running_turn_and_says_whether_there_was_one() -> None:
    model = GatedModel(before="so ")
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        assert not await session.cancel()
        turn = await session.submit("1?", request_state={"a": 1})
        await model.gate.reached()
        assert session.status == "running"
        assert await session.cancel()
        assert session.status == "idle"
        result = await turn.result()
        assert (result.stop_reason, str(result), result.state) == ("cancelled", "so ", {"a": 1})
        assert not await session.cancel()
        await assert_sound(session)


async def test_a_prompt_that_was_only_just_sent_can_be_cancelled() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["never"]))
        async with session.stream("hi") as events:
            assert session.status == "running"
            assert await session.cancel()
            assert [event async for event in events if isinstance(event, TextDelta)] == []
        assert (await events.turn.result()).stop_reason == "cancelled"
        assert await session.messages() == []
        await anyio.wait_all_tasks_blocked()
        await assert_sound(session)


# --- streams ----------------------------------------------------------------------------------------------------------


async def test_a_stream_tells_its_turn_from_the_beginning_to_the_end() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["It is four."]))
        async with session.stream("2 + 2?") as stream:
            events = [event async for event in stream]

        assert kinds(events) == ["PromptAccepted", "TurnStarted", "MessageAdded", "CycleStarted", "TextDelta", "MessageAdded", "TurnEnded"]
        assert [event.text for event in events if isinstance(event, TextDelta)] == ["It ", "is ", "four."]
        assert [event.seq for event in events] == list(range(events[0].seq, events[0].seq + len(events)))
        assert {event.turn_id for event in events[1:]} == {stream.turn.turn_id}
        assert events[0] == PromptAccepted("me", 1, 2, events[0].at, None, None, stream.turn.prompt_id)
        assert isinstance(events[-1], TurnEnded)
        assert events[-1].stop_reason == "end_turn"
        assert str(await stream.turn.result()) == "It is four."


async def test_a_stream_of_a_turn_with_tools() -> None:
    model = ScriptedModel([Reply(reasoning="hm, well", text="let me see", tool_uses=[ToolUse("count", {"to": 3}, id="a")]), "three"])
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, tools=[count]))
        async with session.stream("how many?") as stream:
            events = [event async for event in stream]

        first = ["ReasoningDelta", "TextDelta", "ToolInputDelta", "MessageAdded", "ToolStarted", "ToolProgress", "ToolEnded", "MessageAdded"]
        assert kinds(events) == [
            "PromptAccepted",
            "TurnStarted",
            "MessageAdded",
            "CycleStarted",
            *first,
            "CycleStarted",
            "TextDelta",
            "MessageAdded",
            "TurnEnded",
        ]
        assert [event.data for event in events if isinstance(event, ToolProgress)] == [1, 2]
        added = [event.message for event in events if isinstance(event, MessageAdded)]
        assert added == await session.messages()


@tool
async def count(to: int) -> AsyncIterator[int]:
    """Count."""
    for number in range(1, to + 1):
        yield number


async def test_a_stream_behind_other_prompts_misses_nothing_and_shows_its_own_only() -> None:
    model = GatedModel()
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        await session.submit("1?")
        await model.gate.reached()
        async with session.stream("2?") as stream, session.stream("3?") as later:
            await session.submit("4?")
            model.gate.open()
            events, others = [event async for event in stream], [event async for event in later]
        for own, of in ((events, stream), (others, later)):
            assert kinds(own) == ["PromptAccepted", "TurnStarted", "MessageAdded", "CycleStarted", "TextDelta", "MessageAdded", "TurnEnded"]
            assert {event.turn_id for event in own} == {None, of.turn.turn_id}


async def test_a_stream_shows_the_kinds_asked_for_and_raw_chunks_only_then() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["a b", "a b", "a b"]))
        async with session.stream("hi", kinds=[TextDelta]) as stream:
            assert [event.to_dict()["text"] async for event in stream] == ["a ", "b"]
        async with session.stream("hi", kinds=[ModelChunk]) as stream:
            chunks = [event.to_dict()["chunk"] async for event in stream]
        assert [next(iter(chunk)) for chunk in chunks] == [
            "messageStart",
            "contentBlockDelta",
            "contentBlockDelta",
            "contentBlockStop",
            "messageStop",
            "metadata",
        ]
        async with session.stream("hi") as stream:
            assert not any([isinstance(event, ModelChunk) async for event in stream])


@pytest.mark.parametrize(("error", "raised"), [(ModelError("down"), ModelError), (KeyError("bug"), TurnFailed)])
async def test_a_stream_raises_what_failed_its_turn_after_the_last_event(error: Exception, raised: type[Exception]) -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent([Reply(text="so far", error=error)]))
        events: list[Any] = []
        async with session.stream("hi") as stream:
            with pytest.raises(raised) as caught:
                await read_all(stream, events)
        assert isinstance(events[-1], TurnEnded)
        assert (events[-1].stop_reason, events[-1].error) == (None, type(error).__name__)
        with pytest.raises(raised) as again:
            await stream.turn.result()
        assert again.value is caught.value
        await assert_sound(session)


@pytest.mark.parametrize("on_leave", ["continue", "cancel"])
async def test_leaving_a_stream_lets_the_turn_go_on_or_ends_it(on_leave: Any) -> None:
    model = GatedModel(before="so ")
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        async with session.stream("hi", on_leave=on_leave) as stream:
            async for event in stream:
                if isinstance(event, TextDelta):
                    break
        model.gate.open()
        result = await stream.turn.result()
        assert (result.stop_reason, str(result)) == (("end_turn", "so done") if on_leave == "continue" else ("cancelled", "so "))
        assert [event async for event in stream if isinstance(event, TurnEnded)] == []
        await assert_sound(session)


async def test_leaving_a_stream_that_failed_raises_nothing() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent([ModelError("down"), "ok"]))
        async with session.stream("hi") as stream:
            pass
        await stream.turn._prompt.outcome.wait_settled()
        assert str(await session.ask("again")) == "ok"


async def test_a_stream_is_safe_inside_an_async_generator() -> None:
    model = GatedModel(before="so ")
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))

        async def words(prompt: str) -> AsyncIterator[str]:
            async with session.stream(prompt, kinds=[TextDelta], on_leave="cancel") as stream:
                async for event in stream:
                    yield event.to_dict()["text"]

        with anyio.move_on_after(10):
            left = words("left early")
            async with anyio.create_task_group():
                assert await anext(left) == "so "
            await left.aclose()  # type: ignore[attr-defined]
        cut = words("cut off")
        with anyio.move_on_after(0.02) as scope:
            assert [word async for word in cut] == []
        assert scope.cancelled_caught
        model.gate.open()
        assert [word async for word in words("to the end")] == ["so ", "done"]
        shown = await session.messages()
        assert shown == [told("left early"), said("so "), told("cut off"), said("so "), told("to the end"), said("so done")]
        await assert_sound(session)


async def test_a_reader_who_never_reads_holds_nothing_up_and_loses_no_text() -> None:
    text = "word " * 2000
    async with Runtime() as runtime:
        session = await runtime.open("me", agent([text]))
        async with session.stream("much, please") as stream:
            assert str(await stream.turn.result()) == text
            events = [event async for event in stream]
        assert len(events) <= 256
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == text
        joined = [event for event in events if isinstance(event, TextDelta) and event.first_seq is not None]
        assert joined
        covered = [number for event in events for number in range(getattr(event, "first_seq", None) or event.seq, event.seq + 1)]
        assert covered == list(range(covered[0], covered[-1] + 1))


# --- request state, context, context variables ------------------------------------------------------------------------


async def test_the_request_state_is_one_dict_for_handlers_tools_and_the_result() -> None:
    given = {"counter": 0, "deep": {"list": [1]}}
    seen: list[int] = []

    def counting(event: TextDelta) -> None:
        assert event.request_state is not None
        event.request_state["counter"] += 1
        seen.append(id(event.request_state))

    @tool
    async def peek(context: ToolContext) -> str:
        """Look."""
        seen.append(id(context.request_state))
        context.request_state["deep"]["list"].append(context.request_state["counter"])
        return "seen"

    async with Runtime() as runtime:
        runtime.add_handler(counting, [TextDelta])
        session = await runtime.open("me", agent([Reply(text="one two", tool_uses=[ToolUse("peek")]), "three"], tools=[peek]))
        result = await session.ask("go", request_state=given)

        assert result.state == {"counter": 3, "deep": {"list": [1, 2]}}
        assert set(seen) == {id(result.state)}
        assert given == {"counter": 0, "deep": {"list": [1]}}
        assert "counter" not in json.dumps(await session.messages())


async def test_what_one_handler_writes_the_next_one_sees() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["ok"]))
        session.add_handler(lambda event: event.request_state.update(trace=["first"]), [TurnStarted])
        session.add_handler(lambda event: event.request_state["trace"].append("second"), [TurnStarted])
        assert (await session.ask("go")).state == {"trace": ["first", "second"]}


async def test_each_turn_has_a_request_state_of_its_own_and_none_outside() -> None:
    events: list[Any] = []
    async with Runtime() as runtime:
        runtime.add_handler(events.append)
        session = await runtime.open("me", agent(["a", "b"]))
        first, second = await session.ask("1", request_state={"n": 1}), await session.ask("2")
        assert (first.state, second.state) == ({"n": 1}, {})
        for event in events:
            assert (event.request_state is None) == (event.turn_id is None)


async def test_the_context_reaches_tools_and_is_never_recorded() -> None:
    seen: list[Any] = []

    @tool
    async def peek(context: ToolContext) -> str:
        """Look."""
        seen.append((context.context, context.session_id, context.turn_id, context.cancelled, context.tool_use["toolUseId"]))
        return "seen"

    mine, common = object(), object()
    async with Runtime() as runtime:
        spec = agent([Reply(tool_uses=[ToolUse("peek", id="x")]), "ok"] * 2, tools=[peek], context=common)
        session = await runtime.open("me", spec)
        first = await session.submit("go", context=mine)
        await first.result()
        second = await session.submit("go")
        await second.result()
        await session.call_tool("peek", record=False, context=mine)
        await session.call_tool("peek", record=False)
        assert [place[0] for place in seen] == [mine, common, mine, common]
        assert [place[1:4] for place in seen[:3]] == [("me", first.turn_id, False), ("me", second.turn_id, False), ("me", None, False)]
        json.dumps(await session.messages())


user_name: contextvars.ContextVar[str] = contextvars.ContextVar("user_name", default="nobody")


async def test_a_turn_runs_in_a_copy_of_its_askers_context_variables() -> None:
    seen: list[str] = []

    @tool
    async def whoami() -> str:
        """Say who asks."""
        name = user_name.get()
        user_name.set("changed by a tool")
        return name

    async with Runtime() as runtime:
        runtime.add_handler(lambda event: seen.append(user_name.get()), [TurnStarted, TurnEnded])
        session = await runtime.open("me", agent([Reply(tool_uses=[ToolUse("whoami")]), "ok"] * 3, tools=[whoami]))
        for name in ("ann", "bob"):
            token = user_name.set(name)
            await session.ask("who am I?")
            assert user_name.get() == name
            user_name.reset(token)
        await session.ask("who am I?")

        answers = [message["content"][0]["toolResult"]["content"][0]["text"] for message in (await session.messages())[2::4]]
        assert answers == ["ann", "bob", "nobody"]
        assert seen[::2] == ["ann", "bob", "nobody"]


# --- history ----------------------------------------------------------------------------------------------------------


async def test_a_new_session_can_begin_with_messages() -> None:
    model = ScriptedModel(["ok"])
    before = [told("a"), said("b")]
    async with Runtime() as runtime:
        spec = agent(model)
        session = await runtime.open("me", spec, messages=before)
        before[0]["content"].clear()
        assert await session.messages() == [told("a"), said("b")]
        await session.ask("c")
        assert list(model.requests[0].messages) == [told("a"), said("b"), told("c")]
        with pytest.raises(SessionExists, match="messages"):
            await runtime.open("me", spec, messages=[told("x")])
        with pytest.raises(UnknownSession, match="you"):
            await runtime.open("you", spec, create=False)
        assert (await runtime.open("me", spec, create=False)).id == "me"
        await assert_sound(session)


async def test_messages_from_outside_pass_the_door() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["ok"]), messages=[told("a"), said(calls("echo", "x"))])
        assert await session.messages() == [told("a"), said(calls("echo", "x")), results(("x", "Tool was interrupted.", "error"))]
        await session.add_messages([told("joined"), said("b"), said("c"), told(result_block("nobody", "asked"), "d")])
        assert await session.messages() == [
            told("a"),
            said(calls("echo", "x")),
            told(result_block("x", "Tool was interrupted.", "error"), "joined"),
            said("b", "c"),
            told("d"),
        ]
        await session.ask("e")
        assert (await session.messages())[-2:] == [told("d", "e"), said("ok")]
        await assert_sound(session)


async def test_added_messages_wait_for_the_running_turn() -> None:
    model = GatedModel()
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        session = await runtime.open("me", agent(model))
        turn = await session.submit("1?")
        tasks.start_soon(session.add_messages, [told("by the way"), said("noted")])
        await anyio.wait_all_tasks_blocked()
        assert await session.messages() == [told("1?")]
        model.gate.open()
        await turn.result()
        await session.add_messages([])
        assert await session.messages() == [told("1?"), said("done"), told("by the way"), said("noted")]
        await assert_sound(session)


async def test_in_the_middle_of_a_turn_the_view_is_open() -> None:
    gate = Gate()

    @tool
    async def held() -> str:
        """Wait at the gate."""
        await gate()
        return "through"

    async with Runtime() as runtime:
        session = await runtime.open("me", agent([Reply(tool_uses=[ToolUse("held", id="x")]), "done"], tools=[held]))
        turn = await session.submit("go")
        await gate.reached()
        view = await session.messages()
        assert view == [told("go"), said(calls("held", "x"))]
        assert is_open(view)
        assert (session.status, session.statistics().messages) == ("running", 2)
        gate.open()
        await turn.result()
        await assert_sound(session)


async def test_plain_functions_run_in_threads_and_beside_each_other() -> None:
    meet = threading.Barrier(2, timeout=10)

    @tool
    def together() -> str:
        """Wait for the other one."""
        meet.wait()
        return str(threading.get_ident())

    async with Runtime() as runtime:
        session = await runtime.open("me", agent([Reply(tool_uses=[ToolUse("together"), ToolUse("together")]), "done"], tools=[together]))
        await session.ask("go")
        names = {block["toolResult"]["content"][0]["text"] for block in (await session.messages())[2]["content"]}
        assert len(names) == 2
        assert str(threading.get_ident()) not in names


async def test_the_view_can_be_replaced_and_the_transcript_keeps_what_left() -> None:
    events: list[Any] = []
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["b", "d", "f"]))
        await session.ask("a")
        await session.ask("c")
        session.add_handler(events.append, [ViewChanged])
        await session.set_messages([told("new"), *(await session.messages())[1:2]])
        assert await session.messages() == [told("new"), said("b")]
        assert await transcript(session) == [(told("a"), "replaced"), (said("b"), None), (told("c"), "replaced"), (said("d"), "replaced"), (told("new"), None)]
        [event] = events
        assert (event.reason, event.removed, [entry.message for entry in event.inserted]) == ("replaced", ("e1", "e3", "e4"), [told("new")])
        await session.ask("e")
        assert await session.messages() == [told("new"), said("b"), told("e"), said("f")]
        await session.set_messages([])
        assert await session.messages() == []
        await assert_sound(session)


async def test_the_transcript_tells_everything_ever_said() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["b", "d"]), messages=[told("before"), said("hello")])
        turn = await session.submit("a")
        await turn.result()
        entries = [entry async for entry in session.transcript()]
        assert [(entry.id, entry.turn_id, entry.in_view, entry.left_because) for entry in entries] == [
            ("e1", None, True, None),
            ("e2", None, True, None),
            ("e3", turn.turn_id, True, None),
            ("e4", turn.turn_id, True, None),
        ]
        assert [entry.message for entry in entries] == await session.messages()


async def test_a_prompt_joins_a_view_that_ends_in_a_user_message_results_first() -> None:
    model = ScriptedModel([Reply(tool_uses=[ToolUse("echo", {"text": "hi"}, id="x")]), "and now?", ModelError("down"), "well"])
    events: list[Any] = []
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, limits=Limits(cycles=1)))
        assert (await session.ask("go")).stop_reason == "limit_cycles"
        cut = [told("go"), said(calls("echo", "x", text="hi")), results(("x", "hi"))]
        assert await session.messages() == cut
        session.add_handler(events.append, [MessageAdded])
        await session.ask("go on")
        assert await session.messages() == [*cut[:2], told(result_block("x", "hi"), "go on"), said("and now?")]
        assert [(event.entry_id, event.replaces) for event in events] == [("e4", "e3"), ("e5", None)]
        assert (await transcript(session))[2] == (cut[2], "joined")
        await assert_sound(session)

        # A turn that failed gives the message back as it was, and the next prompt joins it again.
        await session.set_messages(cut)
        with pytest.raises(ModelError):
            await session.ask("fail")
        assert await session.messages() == cut
        await session.ask([told("well?"), said("hm"), told("say")])
        assert await session.messages() == [*cut[:2], told(result_block("x", "hi"), "well?"), said("hm"), told("say"), said("well")]
        await assert_sound(session)


async def test_an_answer_without_content_is_recorded_as_blank() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["", Reply(reasoning="hm")]))
        assert str(await session.ask("hi")) == "[blank text]"
        await session.ask("hi")
        assert (await session.messages())[1] == said("[blank text]")
        await assert_sound(session)


async def test_statistics_and_metrics_add_up() -> None:
    model = ScriptedModel([Reply(tool_uses=[ToolUse("echo")], usage={"inputTokens": 10, "outputTokens": 2}), "b", "c"])
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        first = await session.ask("1?")
        second = await session.ask("2?")
        statistics = session.statistics()
        assert (statistics.status, statistics.messages, statistics.turns, statistics.cycles) == ("idle", 6, 2, 3)
        assert (statistics.input_tokens, statistics.output_tokens, statistics.total_tokens) == (12, 4, 16)
        assert (statistics.mailbox.waiting, statistics.mailbox.bound, statistics.restarts) == (0, 64, 0)
        assert (first.metrics.cycle_count, second.metrics.cycle_count) == (2, 3)
        assert first.metrics.accumulated_usage == {"inputTokens": 11, "outputTokens": 3, "totalTokens": 14}
        assert second.metrics.accumulated_usage == session.metrics.accumulated_usage == {"inputTokens": 12, "outputTokens": 4, "totalTokens": 16}
        assert [trace.tools for trace in second.metrics.traces] == [("echo",), (), ()]
        assert repr(session) == "<Session 'me', idle>"


# --- direct calls -----------------------------------------------------------------------------------------------------


async def test_a_direct_call_is_recorded_as_four_messages() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["ok"]))
        result = await session.call_tool("echo", {"text": "hi"})
        assert list(result) == ["toolUseId", "status", "content"]
        tool_use_id = result["toolUseId"]
        assert tool_use_id.startswith("tooluse_echo_")
        assert await session.messages() == [
            told('agent.tool.echo direct tool call.\nInput parameters: {"text": "hi"}\n'),
            said(calls("echo", tool_use_id, text="hi")),
            results((tool_use_id, "hi")),
            said("agent.echo was called"),
        ]
        assert (await session.call_tool("fail"))["status"] == "error"
        await session.ask("and?")
        assert len(await session.messages()) == 10
        await assert_sound(session)


async def test_a_direct_call_joins_a_view_that_ends_in_a_user_message() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(), messages=[told("a")])
        await session.call_tool("echo", {"text": "hi"})
        first = (await session.messages())[0]
        assert first == told("a", 'agent.tool.echo direct tool call.\nInput parameters: {"text": "hi"}\n')
        assert (await transcript(session))[0] == (told("a"), "called")
        await assert_sound(session)


async def test_a_direct_call_without_a_record_leaves_no_trace_and_does_not_wait() -> None:
    model = GatedModel()
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        turn = await session.submit("1?")
        result = await session.call_tool("echo", {"text": "hi"}, record=False)
        assert result["content"] == [{"text": "hi"}]
        assert not turn.done
        model.gate.open()
        await turn.result()
        assert await session.messages() == [told("1?"), said("done")]
        await assert_sound(session)


async def test_what_a_caller_does_to_the_input_of_a_direct_call_changes_no_history() -> None:
    @tool
    async def greet(names: list[str]) -> str:
        """Greet."""
        return " ".join(names)

    async with Runtime() as runtime:
        session = await runtime.open("me", agent(tools=[greet]))
        names = ["ann"]
        result = await session.call_tool("greet", {"names": names})
        names.append("bob")
        result["content"].clear()
        assert (await session.messages())[1]["content"][0]["toolUse"]["input"] == {"names": ["ann"]}
        assert (await session.messages())[2]["content"][0]["toolResult"]["content"] == [{"text": "ann"}]


# --- handlers ---------------------------------------------------------------------------------------------------------


async def test_handlers_of_the_spec_the_runtime_and_the_session_hear_what_is_theirs() -> None:
    heard: list[tuple[str, str]] = []

    def hearing(name: str) -> Any:
        return lambda event: heard.append((name, event.session_id))

    async with Runtime() as runtime:
        runtime.add_handler(hearing("runtime"), [TurnEnded])
        spec = agent(lambda messages: "ok", handlers=[lambda event: heard.append(("spec", event.session_id)) if isinstance(event, TurnEnded) else None])
        one, two = await runtime.open("one", spec), await runtime.open("two", spec)
        other = await runtime.open("other", agent(lambda messages: "ok", name="another"))
        handle = one.add_handler(hearing("session"), [TurnEnded])
        for session in (one, two, other):
            await session.ask("hi")
        assert heard == [("runtime", "one"), ("spec", "one"), ("session", "one"), ("runtime", "two"), ("spec", "two"), ("runtime", "other")]
        handle.remove()
        heard.clear()
        await one.ask("hi")
        assert heard == [("runtime", "one"), ("spec", "one")]


async def test_a_handler_of_the_spec_hears_of_the_first_event() -> None:
    heard: list[str] = []
    async with Runtime() as runtime:
        await runtime.open("one", agent(handlers=[lambda event: heard.append(type(event).__name__)]))
        assert heard == ["SessionActivated"]


async def test_an_async_handler_is_awaited_before_the_next_event() -> None:
    heard: list[str] = []

    async def slow(event: Any) -> None:
        await anyio.sleep(0.001)
        heard.append(type(event).__name__)

    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["a b"]))
        session.add_handler(slow)
        await session.ask("hi")
        assert heard == [
            "PromptAccepted",
            "TurnStarted",
            "MessageAdded",
            "CycleStarted",
            "TextDelta",
            "TextDelta",
            "MessageAdded",
            "TurnEnded",
            "PromptSettled",
        ]


async def test_a_handler_may_send_another_prompt_but_not_wait_for_it() -> None:
    sent: list[Any] = []

    async def chain(event: Any) -> None:
        with pytest.raises(WouldDeadlock, match="submit"):
            await session.ask("and then?")
        if not sent:
            sent.append(await session.submit("and then?"))
            with pytest.raises(WouldDeadlock):
                await sent[0].result()

    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["a", "b"]))
        session.add_handler(chain, [TurnStarted], on_error="fail_turn")
        await session.ask("first")
        assert str(await sent[0].result()) == "b"
        await assert_sound(session)


async def test_code_of_a_turn_cannot_wait_for_its_own_session_in_any_way() -> None:
    refused: list[str] = []

    async def stream(session: Session) -> None:
        async with session.stream("again") as events:
            async for _ in events:
                pass

    ways = {
        "ask": lambda session: session.ask("again"),
        "stream": stream,
        "call_tool": lambda session: session.call_tool("echo"),
        "add_messages": lambda session: session.add_messages([told("x")]),
        "set_messages": lambda session: session.set_messages([told("x")]),
    }

    @tool
    async def selfish(context: ToolContext) -> str:
        """Wait for the own session."""
        for name, way in ways.items():
            with pytest.raises(WouldDeadlock, match="me"):
                await way(session)  # type: ignore[no-untyped-call]
            refused.append(name)
        return str(await other.ask("you there?"))

    async with Runtime() as runtime:
        session: Session = await runtime.open("me", agent([Reply(tool_uses=[ToolUse("selfish", id="x")]), "ok"], tools=[selfish, echo]))
        other = await runtime.open("you", agent(["yes"], name="other"))
        await session.ask("go")
        assert refused == list(ways)
        assert (await session.messages())[2] == results(("x", "yes"))
        assert len(await session.messages()) == 4
        await assert_sound(session)


async def test_a_tool_is_refused_its_own_turns_events_also_those_that_have_gathered() -> None:
    read = list[AskStream]()

    @tool
    async def peek() -> str:
        """Read what has gathered for who asked."""
        with pytest.raises(WouldDeadlock):
            await anext(read[0])
        return "refused"

    async with Runtime() as runtime:
        session = await runtime.open("me", agent([Reply(tool_uses=[ToolUse("peek", id="x")]), "ok"], tools=[peek]))
        async with session.stream("go") as events:
            read.append(events)
            await events.turn.result()
            kinds = [type(event) async for event in events]
        assert kinds[:3] == [PromptAccepted, TurnStarted, MessageAdded]
        assert kinds[-1] is TurnEnded
        assert (await session.messages())[2] == results(("x", "refused"))


async def test_two_sessions_that_wait_for_each_other_are_told_so() -> None:
    @tool
    async def ask_other(context: ToolContext) -> str:
        """Ask the other session."""
        return str(await sessions[context.session_id].ask("and you?"))

    async with Runtime() as runtime:
        spec = agent(lambda messages: "ok" if len(messages) > 1 else Reply(tool_uses=[ToolUse("ask_other")]), tools=[ask_other])
        one, two = await runtime.open("one", spec), await runtime.open("two", spec)
        sessions = {"one": two, "two": one}
        await one.ask("hi")
        [result] = (await two.messages())[2]["content"]
        assert result["toolResult"]["status"] == "error"
        assert "WouldDeadlock" in result["toolResult"]["content"][0]["text"]
        await assert_sound(one)
        await assert_sound(two)


async def test_a_turn_may_cancel_itself() -> None:
    submitted = anyio.Event()

    @tool
    async def stop() -> str:
        """Stop."""
        await submitted.wait()
        assert await session.cancel()
        await turns[0].cancel()
        await anyio.sleep(3600)
        return "never"

    async with Runtime() as runtime:
        session = await runtime.open("me", agent([Reply(tool_uses=[ToolUse("stop", id="x")])], tools=[stop]))
        turns = [await session.submit("go")]
        submitted.set()
        assert (await turns[0].result()).stop_reason == "cancelled"
        assert (await session.messages())[-1] == results(("x", "Tool was interrupted.", "error"))
        await assert_sound(session)


@pytest.mark.parametrize("kind", [TurnStarted, CycleStarted, TextDelta, MessageAdded, ToolStarted, ToolEnded])
async def test_a_handler_may_cancel_the_turn_it_hears_of_even_when_nothing_in_it_ever_waits(kind: type[Any]) -> None:
    async def cancelling(event: Any) -> None:
        assert await session.cancel()

    class Hasty:
        context_window = None
        calls = 0

        async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
            self.calls += 1
            for text in ("one ", "two "):
                yield {"contentBlockDelta": {"delta": {"text": text}}}
            yield {"contentBlockStart": {"start": {"toolUse": {"name": "now", "toolUseId": f"x{self.calls}"}}}}
            yield {"contentBlockStop": {}}
            yield {"messageStop": {"stopReason": "tool_use"}}

    @tool
    async def now() -> str:
        """Do it at once."""
        return "done"

    model = Hasty()
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, tools=[now]))
        session.add_handler(cancelling, [kind])
        result = await session.ask("go")
        assert (result.stop_reason, model.calls) == ("cancelled", 0 if kind in (TurnStarted, CycleStarted, MessageAdded) else 1)
        if kind is TextDelta:
            assert await session.messages() == [told("go"), said("one ")]
        if kind is ToolEnded:
            assert (await session.messages())[-1] == results(("x1", "done"))
        await assert_sound(session)


# --- how many at once -------------------------------------------------------------------------------------------------


@in_trio
async def test_model_concurrency_is_first_come_first_served() -> None:
    order: list[str] = []
    at_once = most = 0

    class Slow:
        context_window = None

        async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            order.append(messages[-1]["content"][0]["text"])
            try:
                await trio.sleep(1)
                yield {"messageStop": {"stopReason": "end_turn"}}
            finally:
                at_once -= 1

    async with virtual_runtime() as runtime:
        spec = agent(Slow(), model_concurrency=3)
        began = trio.current_time()
        turns = []
        for number in range(10):
            session = await runtime.open(f"s{number}", spec)
            turns.append(await session.submit(str(number)))
            await trio.sleep(0.01)
        await turns[5].cancel()
        for turn in turns:
            await turn.result()
        assert order == ["0", "1", "2", "3", "4", "6", "7", "8", "9"]
        assert (most, round(trio.current_time() - began)) == (3, 3)


@in_trio
async def test_waiting_for_the_model_is_not_the_models_silence() -> None:
    async with virtual_runtime() as runtime:
        spec = agent(lambda messages: Reply(text="ok", delay=9), model_concurrency=1, limits=Limits(stream_idle_seconds=10))
        turns = [await (await runtime.open(f"s{number}", spec)).submit("hi") for number in range(5)]
        assert [(await turn.result()).stop_reason for turn in turns] == ["end_turn"] * 5


# --- limits and stop reasons ------------------------------------------------------------------------------------------


def busy_model(**usage: int) -> ScriptedModel:
    return ScriptedModel(lambda messages: Reply(text="on", tool_uses=[ToolUse("echo")], usage=usage or None))


@pytest.mark.parametrize(
    ("limits", "reason", "cycles"),
    [
        (Limits(cycles=3), "limit_cycles", 3),
        (Limits(output_tokens=10), "limit_output_tokens", 4),
        (Limits(total_tokens=10), "limit_total_tokens", 2),
        (Limits(output_tokens=1, total_tokens=1, cycles=1), "limit_cycles", 1),
    ],
)
async def test_a_limit_ends_the_turn_with_its_stop_reason_at_the_top_of_a_cycle(limits: Limits, reason: str, cycles: int) -> None:
    model = busy_model(inputTokens=4, outputTokens=3)
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, limits=limits))
        result = await session.ask("go")
        assert (result.stop_reason, model.calls, result.metrics.cycle_count) == (reason, cycles, cycles)
        assert str(result) == "on"
        assert (await session.messages())[-1]["content"][0]["toolResult"]["status"] == "success"
        await assert_sound(session)
        assert (await session.ask("go on")).stop_reason == reason
        await assert_sound(session)


@in_trio
async def test_seconds_end_a_running_model_call() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent([Reply(text="one two three", pace=2), "ok"], limits=Limits(seconds=5)))
        began = trio.current_time()
        result = await session.ask("go")
        assert (result.stop_reason, str(result), trio.current_time() - began) == ("limit_seconds", "one ", 5)
        await session.ask("go on")
        assert await session.messages() == [told("go"), said("one "), told("go on"), said("ok")]
        await assert_sound(session)


@in_trio
async def test_seconds_end_a_call_before_the_first_word_and_the_prompt_stays() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent([Reply(text="one", delay=10), "ok"], limits=Limits(seconds=5)))
        assert (await session.ask("go")).stop_reason == "limit_seconds"
        assert await session.messages() == [told("go")]
        await session.ask("well?")
        assert await session.messages() == [told("go", "well?"), said("ok")]
        await assert_sound(session)


@in_trio
async def test_seconds_end_running_tools_and_results_that_are_in_stay() -> None:
    uses = [ToolUse("wait", {"seconds": 1}, id="a"), ToolUse("wait", {"seconds": 100}, id="b")]
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent([Reply(tool_uses=uses), "ok"], limits=Limits(seconds=5)))
        assert (await session.ask("go")).stop_reason == "limit_seconds"
        assert (await session.messages())[-1] == results(("a", "waited"), ("b", "Tool was interrupted.", "error"))
        await session.ask("well?")
        assert (await session.messages())[-2] == told(result_block("a", "waited"), result_block("b", "Tool was interrupted.", "error"), "well?")
        await assert_sound(session)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(text="so"), "end_turn"),
        (Reply(text="so", stop_reason="max_tokens"), "max_tokens"),
        (Reply(text="so", stop_reason="stop_sequence"), "stop_sequence"),
        (Reply(text="so", stop_reason="content_filtered"), "content_filtered"),
        (Reply(text="so", stop_reason="guardrail_intervened"), "guardrail_intervened"),
        (Reply(text="so", stop_reason="tool_use"), "end_turn"),
        (Reply(text="so", stop_reason="something new"), "end_turn"),
    ],
)
async def test_the_models_stop_reason_is_the_turns(reply: Reply, reason: str) -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent([reply, "ok"]))
        assert (await session.ask("go")).stop_reason == reason
        assert await session.messages() == [told("go"), said("so")]
        await session.ask("on")
        await assert_sound(session)


@given(streamed_answers(stop_reasons=["max_tokens"]), st.floats(0, 1), st.random_module())
async def test_an_answer_that_met_the_token_limit_is_kept_and_what_was_cut_off_is_told(answer: StreamedAnswer, share: float, randomness: object) -> None:
    ending = [chunk for chunk in answer.chunks if "messageStop" in chunk]
    said_before = [chunk for chunk in answer.chunks if "messageStop" not in chunk]
    chunks = [*said_before[: round(share * len(said_before))], *ending]
    ran: list[dict[str, Any]] = []
    tools = [Tool(name, "Work.", {"type": "object"}, lambda given, context: ran.append(given)) for name in TOOL_NAMES]
    streams: list[list[dict[str, Any]]] = [chunks, [{"contentBlockDelta": {"delta": {"text": "on"}}}, {"messageStop": {"stopReason": "end_turn"}}]]

    class Model:
        context_window = None

        async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
            assert is_valid(list(messages))
            for chunk in streams.pop(0):
                yield chunk

    async with Runtime() as runtime:
        session = await runtime.open("me", agent(Model(), tools=tools))
        result = await session.ask("go")
        assembly = Assembly(str)
        for chunk in chunks:
            assembly.feed(chunk)
        kept, _ = assembly.message()
        raw = assembly.raw()

        assert (result.stop_reason, result.message) == ("max_tokens", kept)
        assert (await session.messages())[1] == kept
        assert ran == []
        beside = [(message, why) for message, why in await transcript(session) if why is not None]
        assert beside == ([] if raw is None or raw == kept else [(raw, "max_tokens")])
        assert str(await session.ask("more")) == "on"
        assert is_valid(await session.messages())
        await assert_sound(session)


async def test_calls_under_end_turn_are_run_and_those_under_another_reason_are_answered() -> None:
    called = ToolUse("echo", {"text": "hi"}, id="x")
    model = ScriptedModel([Reply(tool_uses=[called], stop_reason="end_turn"), "ok", Reply(tool_uses=[called], stop_reason="content_filtered"), "ok"])
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        assert (await session.ask("go")).stop_reason == "end_turn"
        assert (await session.messages())[2:] == [results(("x", "hi")), said("ok")]
        assert (await session.ask("go")).stop_reason == "content_filtered"
        assert (await session.messages())[-1] == results(("x", "Tool was interrupted.", "error"))
        await session.ask("go")
        await assert_sound(session)


# --- silence and patience ---------------------------------------------------------------------------------------------


@in_trio
@pytest.mark.parametrize("before", ["", "so far "])
async def test_a_model_that_falls_silent_fails_the_turn(before: str) -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open(
            "me",
            agent(
                [Reply(text=[before, "never"] if before else "never", pace=60 if before else 0, delay=0 if before else 1000), "ok"],
                limits=Limits(stream_idle_seconds=80),
            ),
        )
        began = trio.current_time()
        if before:
            assert str(await session.ask("go")) == "so far never"
            return
        with pytest.raises(ModelError, match="80 s"):
            await session.ask("go")
        assert 80 <= trio.current_time() - began <= 100
        assert await session.messages() == []
        assert str(await session.ask("go")) == "ok"
        await assert_sound(session)


@in_trio
async def test_the_shortest_silence_is_noticed_in_time_beside_longer_ones() -> None:
    async with virtual_runtime() as runtime:
        patient = await runtime.open("patient", agent([Reply(text="ok", delay=500)], limits=Limits(stream_idle_seconds=1000)))
        hasty = await runtime.open("hasty", agent([Reply(text="ok", delay=500)], name="hasty", limits=Limits(stream_idle_seconds=2)))
        turn = await patient.submit("hi")
        await trio.sleep(10)
        began = trio.current_time()
        with pytest.raises(ModelError, match="2 s"):
            await hasty.ask("hi")
        assert 2 <= trio.current_time() - began <= 2.5
        assert str(await turn.result()) == "ok"


@in_trio
async def test_a_slow_listener_is_not_the_models_silence() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(["one two three"], limits=Limits(stream_idle_seconds=10)))

        async def slow(event: Any) -> None:
            await trio.sleep(30)

        session.add_handler(slow, [TextDelta], timeout=None)
        assert str(await session.ask("go")) == "one two three"


@pytest.mark.anyio
@pytest.mark.parametrize("buffer", [1, 2, 3])
async def test_who_submits_may_be_the_reader_that_holds_the_session_up(buffer: int) -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", AgentSpec(model=ScriptedModel(["one two"])))
        async with runtime.events.subscribe(sessions="me", buffer=buffer, overflow="wait") as events:
            with anyio.fail_after(5):
                turn = await session.submit("go")
                async for event in events:
                    if isinstance(event, TurnEnded):
                        break
        assert str(await turn.result()) == "one two"


@pytest.mark.anyio
async def test_the_handle_of_a_stream_that_was_refused_says_so_to_whoever_waits() -> None:
    async with Runtime() as runtime:
        gate = anyio.Event()

        @tool
        async def wait() -> str:
            """Wait."""
            await gate.wait()
            return "waited"

        model = ScriptedModel([Reply(tool_uses=[ToolUse("wait")]), "one", "two"])
        session = await runtime.open("me", AgentSpec(model=model, tools=[wait], mailbox=1))
        running, waiting = await session.submit("1"), await session.submit("2")
        stream = session.stream("3")
        with pytest.raises(MailboxFull):
            async with stream:
                pass
        with pytest.raises(MailboxFull), anyio.fail_after(5):
            await stream.turn.result()
        with pytest.raises(MailboxFull), anyio.fail_after(5):
            await anext(aiter(stream))
        gate.set()
        assert [str(await turn.result()) for turn in (running, waiting)] == ["one", "two"]


@in_trio
async def test_a_throttled_model_is_asked_again_when_it_says() -> None:
    model = ScriptedModel([ModelThrottled(retry_after=30), ModelThrottled(), "ok"])
    events: list[Any] = []
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(model))
        session.add_handler(events.append, [ModelRetry])
        began = trio.current_time()
        result = await session.ask("go")
        waited = trio.current_time() - began
        assert (str(result), model.calls, result.metrics.cycle_count) == ("ok", 3, 1)
        assert [(event.attempt, event.error, event.withdrawn) for event in events] == [(2, "ModelThrottled", None), (3, "ModelThrottled", None)]
        assert events[0].delay == 30
        assert 0 < events[1].delay <= 2
        assert waited == events[0].delay + events[1].delay
        assert await session.messages() == [told("go"), said("ok")]
        await assert_sound(session)


@in_trio
async def test_patience_ends_and_the_error_is_the_providers() -> None:
    model = ScriptedModel([*[ModelThrottled("slow down")] * 6, "ok"])
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(model))
        with pytest.raises(ModelThrottled, match="slow down"):
            await session.ask("go")
        assert model.calls == 6
        assert await session.messages() == []
        assert str(await session.ask("go")) == "ok"
        await assert_sound(session)


@in_trio
async def test_a_turn_that_waits_for_a_throttled_model_is_cancelled_at_once() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent([ModelThrottled(retry_after=1000), "ok"]))
        turn = await session.submit("go")
        await trio.sleep(5)
        began = trio.current_time()
        assert await session.cancel()
        assert trio.current_time() == began
        assert (await turn.result()).stop_reason == "cancelled"
        assert await session.messages() == []
        await assert_sound(session)


# --- the life of a session --------------------------------------------------------------------------------------------


async def test_two_handles_name_one_session() -> None:
    async with Runtime() as runtime:
        spec = agent(["a", "b"])
        one, two = await runtime.open("me", spec), await runtime.open("me", spec)
        await one.ask("1")
        assert await two.messages() == await one.messages() == [told("1"), said("a")]
        assert runtime.find("me").id == "me"
        assert runtime.find("you") is None


async def test_a_session_goes_on_in_the_next_runtime_with_the_same_journal() -> None:
    journal = MemoryJournal()
    spec = agent(["a", "b"])
    async with Runtime(journal, specs=[spec]) as runtime:
        await (await runtime.open("me", spec)).ask("1")
    async with Runtime(journal, specs=[spec]) as runtime:
        session = await runtime.open("me", spec, create=False)
        activated: list[Any] = []
        session.add_handler(activated.append, [SessionActivated, TurnEnded])
        assert session.statistics().turns == 1
        await session.ask("2")
        assert await session.messages() == [told("1"), said("a"), told("2"), said("b")]
        assert (session.metrics.cycle_count, activated[0].epoch) == (2, 2)
        await assert_sound(session)


async def test_closing_waits_for_work_under_way() -> None:
    model = GatedModel()
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        turn = await session.submit("hi")
        await model.gate.reached()
        model.gate.open()
    assert str(await turn.result()) == "done"
    assert runtime.report is not None
    assert runtime.report.cancelled == ()


@in_trio
async def test_what_a_tool_puts_into_the_request_state_may_refuse_to_be_compared() -> None:
    """As arrays do. It is not recorded, and the turn ends as any other."""

    class Array:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise ValueError("the truth of an array is ambiguous")

    @tool
    async def measure(context: ToolContext) -> str:
        """Measure something."""
        context.request_state["measured"] = Array()
        return "measured"

    spec = agent([Reply(tool_uses=[ToolUse("measure")]), "done"], tools=[measure])
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", spec)
        result = await session.ask("go", request_state={"measured": None}, key="k")
        assert str(result) == "done"
        assert type(result.state["measured"]) is Array
        assert (await session.ask("go", key="k")).state == {"measured": None}
        await assert_sound(session)


@in_trio
async def test_closing_ends_what_does_not_finish_and_says_so() -> None:
    journal = MemoryJournal()
    async with virtual_runtime(journal=journal, grace=3) as runtime:
        session = await runtime.open("me", agent([Reply(tool_uses=[ToolUse("wait", id="x")])], tools=[wait]))
        turn = await session.submit("hi")
        waiting = await session.submit("later")
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
    assert trio.current_time() - began == 3
    assert runtime.report is not None
    assert runtime.report.cancelled == ("me",)
    assert turn.done
    assert waiting.done
    async with virtual_runtime(journal=journal) as runtime:
        session = await runtime.open("me", agent(["I do not know", "later it is", "ok"]))
        await session.ask("hello?")
        doubt = ("x", "The process ended before this tool's result was known; it may or may not have had its effect.", "error")
        turn_gone_on_with = [told("hi"), said(calls("wait", "x")), results(doubt), said("I do not know")]
        assert await session.messages() == [*turn_gone_on_with, told("later"), said("later it is"), told("hello?"), said("ok")]
        await assert_sound(session)


async def test_a_spec_without_tools_or_prompt_is_enough() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", AgentSpec(model=ScriptedModel(["ok"])))
        with pytest.raises(InvalidTool, match="none at all"):
            await session.call_tool("echo")
        assert str(await session.ask("hi")) == "ok"

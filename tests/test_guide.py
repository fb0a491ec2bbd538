"""The shapes that users of the session guide know, cell by cell: messages, results, metrics, callbacks, direct calls."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest

from ropewalk import (
    Agent,
    AgentResult,
    CallbackAdapter,
    CompositeCallbackHandler,
    ContextWindowOverflow,
    ConversationManager,
    EventLoopMetrics,
    InvalidHandler,
    MessageAdded,
    ModelError,
    ModelRetry,
    PrintingCallbackHandler,
    ReductionEnded,
    ReductionStarted,
    SlidingWindowConversationManager,
    TextDelta,
    ToolContext,
    TurnFailed,
    TurnStarted,
    tool,
)
from ropewalk.testing import Reply, ScriptedModel, ToolUse

START: list[dict[str, Any]] = [{"start": True}, {"start_event_loop": True}]


@tool
def calculator(expression: str, mode: str = "evaluate") -> dict[str, Any]:
    """Calculate.

    Args:
        expression: What to calculate.
        mode: How.
    """
    left, _, right = expression.partition(" * ")
    return {"status": "success", "content": [{"text": f"Result: {int(left) * int(right)}"}]}


class Provider:
    """A model that says every kind of chunk, as a provider's stream has them; an answer may end in an exception."""

    context_window = None

    def __init__(self, *answers: Iterable[Any]) -> None:
        self._answers = iter(answers)

    async def stream(self, messages: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
        for chunk in next(self._answers):
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


def text_block(*pieces: str) -> list[dict[str, Any]]:
    deltas = [{"contentBlockDelta": {"delta": {"text": piece}}} for piece in pieces]
    return [{"contentBlockStart": {"start": {}}}, *deltas, {"contentBlockStop": {}}]


def tool_block(name: str, tool_use_id: str, *pieces: str) -> list[dict[str, Any]]:
    deltas = [{"contentBlockDelta": {"delta": {"toolUse": {"input": piece}}}} for piece in pieces]
    return [{"contentBlockStart": {"start": {"toolUse": {"name": name, "toolUseId": tool_use_id}}}}, *deltas, {"contentBlockStop": {}}]


def answer(stop_reason: str, *blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    usage = {"usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}, "metrics": {"latencyMs": 7}}
    chunks = [chunk for block in blocks for chunk in block]
    return [{"messageStart": {"role": "assistant"}}, *chunks, {"messageStop": {"stopReason": stop_reason}}, {"metadata": usage}]


def calculating(*after: Any) -> ScriptedModel:
    """Asks for one calculation, then says the answer."""
    call = ToolUse("calculator", {"expression": "123 * 456", "mode": "evaluate"}, id="tooluse_1")
    return ScriptedModel([Reply(text="Let me calculate.", tool_uses=[call]), "It is 56088.", *after])


def silent(model: Any, **options: Any) -> Agent:
    return Agent(model=model, callback_handler=None, **options)


def listening(model: Any, **options: Any) -> tuple[Agent, list[dict[str, Any]]]:
    """An agent, and what its callback handler is called with."""
    heard: list[dict[str, Any]] = []
    return Agent(model=model, callback_handler=lambda **event: heard.append(event), **options), heard


def gist(event: dict[str, Any]) -> str:
    """One callback event in a word or two."""
    if "event" in event:
        return f"event:{next(iter(event['event']))}"
    if "message" in event:
        kinds = [kind for block in event["message"]["content"] for kind in block]
        return f"message({event['message']['role']} {'+'.join(kinds)})"
    return "+".join(event)


def said(agent: Agent) -> list[tuple[str, list[str]]]:
    return [(message["role"], [kind for block in message["content"] for kind in block]) for message in agent.messages]


# Messages and results -------------------------------------------------------------------------------------------------


def test_a_plain_prompt_prints_the_answer_and_leaves_two_messages(capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent(model=ScriptedModel(["I'm doing well, thank you!"]))

    result = agent("Hows it hanging!?!")

    assert capsys.readouterr().out == "I'm doing well, thank you!"
    assert agent.messages == [
        {"role": "user", "content": [{"text": "Hows it hanging!?!"}]},
        {"role": "assistant", "content": [{"text": "I'm doing well, thank you!"}]},
    ]
    assert [list(message) for message in agent.messages] == [["role", "content"], ["role", "content"]]
    assert str(result) == "I'm doing well, thank you!"


def test_messages_given_at_first_are_what_the_model_is_shown() -> None:
    model = ScriptedModel(["Your name is Strands Agent!"])
    before = [{"role": "user", "content": [{"text": "Hello, my name is Ada!"}]}, {"role": "assistant", "content": [{"text": "Hi there!"}]}]
    agent = silent(model, messages=before)

    agent("What's my name?")

    assert list(model.requests[0].messages) == [*before, {"role": "user", "content": [{"text": "What's my name?"}]}]
    assert len(agent.messages) == 4
    assert len(before) == 2


def test_a_result_has_its_fields_and_metrics() -> None:
    result = silent(Provider(answer("end_turn", text_block("Your name", " is Ada"))))("What's my name?")

    metrics = result.metrics
    assert result.stop_reason == "end_turn"
    assert result.message == {"role": "assistant", "content": [{"text": "Your name is Ada"}]}
    assert result.state == {}
    assert (metrics.cycle_count, metrics.tool_metrics) == (1, {})
    assert (len(metrics.cycle_durations), len(metrics.traces)) == (1, 1)
    assert metrics.accumulated_usage == {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}
    assert metrics.accumulated_metrics == {"latencyMs": 7}
    assert re.fullmatch(
        r"AgentResult\(stop_reason='end_turn', message=\{'role': 'assistant', 'content': \[\{'text': 'Your name is Ada'\}\]\}, "
        r"metrics=EventLoopMetrics\(cycle_count=1, tool_metrics=\{\}, cycle_durations=\[[\d.e-]+\], traces=\[<Trace Cycle 1 [^>]*>\], "
        r"accumulated_usage=\{'inputTokens': 10, 'outputTokens': 5, 'totalTokens': 15\}, accumulated_metrics=\{'latencyMs': 7\}\), "
        r"state=\{\}, interrupts=\(\)\)",
        repr(result),
    )


def test_metrics_are_cumulative_and_an_old_result_does_not_change() -> None:
    agent = silent(Provider(*(answer("end_turn", text_block("fine")) for _ in range(2))))

    first = agent("One", request_state={"call": 1})
    kept = repr(first)
    second = agent("Two")

    assert repr(first) == kept
    assert (first.metrics.cycle_count, second.metrics.cycle_count) == (1, 2)
    assert (len(second.metrics.cycle_durations), len(second.metrics.traces)) == (2, 2)
    assert second.metrics.cycle_durations[0] == first.metrics.cycle_durations[0]
    assert second.metrics.accumulated_usage == {"inputTokens": 20, "outputTokens": 10, "totalTokens": 30}
    assert second.metrics.accumulated_metrics == {"latencyMs": 14}
    assert (first.state, second.state) == ({"call": 1}, {})


# Tools ----------------------------------------------------------------------------------------------------------------


def test_a_tool_turn_is_four_messages_and_names_the_tool_after_the_first_text(capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent(model=calculating(), tools=[calculator])

    result = agent("What is 123 * 456?")

    assert agent.messages == [
        {"role": "user", "content": [{"text": "What is 123 * 456?"}]},
        {
            "role": "assistant",
            "content": [
                {"text": "Let me calculate."},
                {"toolUse": {"toolUseId": "tooluse_1", "name": "calculator", "input": {"expression": "123 * 456", "mode": "evaluate"}}},
            ],
        },
        {"role": "user", "content": [{"toolResult": {"status": "success", "content": [{"text": "Result: 56088"}], "toolUseId": "tooluse_1"}}]},
        {"role": "assistant", "content": [{"text": "It is 56088."}]},
    ]
    assert list(agent.messages[1]["content"][1]["toolUse"]) == ["toolUseId", "name", "input"]
    assert list(agent.messages[2]["content"][0]["toolResult"]) == ["status", "content", "toolUseId"]
    assert capsys.readouterr().out == "Let me calculate.\nTool #1: calculator\nIt is 56088."
    assert result.metrics.cycle_count == 2
    assert result.metrics.tool_metrics["calculator"].call_count == 1


def test_the_first_direct_call_is_recorded_as_four_messages_and_the_second_is_not() -> None:
    agent = silent(ScriptedModel(), tools=[calculator])

    result = agent.tool.calculator(expression="123 * 456")
    again = agent.tool.calculator(expression="1 * 2", record_direct_tool_call=False)

    tool_use_id = result["toolUseId"]
    assert re.fullmatch(r"tooluse_calculator_\d{9}", tool_use_id)
    assert agent.messages == [
        {"role": "user", "content": [{"text": 'agent.tool.calculator direct tool call.\nInput parameters: {"expression": "123 * 456"}\n'}]},
        {"role": "assistant", "content": [{"toolUse": {"toolUseId": tool_use_id, "name": "calculator", "input": {"expression": "123 * 456"}}}]},
        {"role": "user", "content": [{"toolResult": {"status": "success", "content": [{"text": "Result: 56088"}], "toolUseId": tool_use_id}}]},
        {"role": "assistant", "content": [{"text": "agent.calculator was called"}]},
    ]
    assert result == agent.messages[2]["content"][0]["toolResult"]
    assert (again["status"], again["content"]) == ("success", [{"text": "Result: 2"}])
    assert len(agent.messages) == 4


def test_an_agent_may_be_told_not_to_record_direct_calls_and_a_call_may_differ() -> None:
    agent = silent(ScriptedModel(), tools=[calculator], record_direct_tool_call=False)

    agent.tool.calculator(expression="1 * 2")
    assert agent.messages == []

    agent.tool.calculator(record_direct_tool_call=True, user_message_override="Look:", expression="1 * 2")
    assert [block["text"] for block in agent.messages[0]["content"]] == [
        "Look:\n",
        'agent.tool.calculator direct tool call.\nInput parameters: {"expression": "1 * 2"}\n',
    ]


def test_a_recorded_call_shows_only_what_a_model_could_have_said() -> None:
    @tool
    def look(thing: Any, size: int = 1) -> str:
        """Look at a thing."""
        return type(thing).__name__

    agent = silent(ScriptedModel(), tools=[look])

    result = agent.tool.look(thing=object(), colour="red")

    assert result["content"] == [{"text": "object"}]
    assert agent.messages[1]["content"][0]["toolUse"]["input"] == {"thing": "<<non-serializable: object>>"}
    assert json.loads(json.dumps(agent.messages)) == agent.messages


def test_a_direct_call_goes_on_with_the_conversation() -> None:
    model = ScriptedModel(["It was 56088."])
    agent = silent(model, tools=[calculator])

    agent.tool.calculator(expression="123 * 456")
    agent("What was it?")

    assert said(agent) == [
        ("user", ["text"]),
        ("assistant", ["toolUse"]),
        ("user", ["toolResult"]),
        ("assistant", ["text"]),
        ("user", ["text"]),
        ("assistant", ["text"]),
    ]
    assert len(model.requests[0].messages) == 5


def test_tools_are_found_under_the_name_python_can_say() -> None:
    @tool(name="read-file")
    def read(path: str) -> str:
        """Read a file."""
        return path

    agent = silent(ScriptedModel(), tools=[read, calculator])

    assert agent.tool.read_file(path="x")["content"] == [{"text": "x"}]
    assert dir(agent.tool) == ["calculator", "read_file"]
    with pytest.raises(AttributeError, match=r"^Tool 'nope' not found$"):
        agent.tool.nope()


def test_a_failing_direct_call_is_a_result_too() -> None:
    agent = silent(ScriptedModel(), tools=[calculator])

    result = agent.tool.calculator(expression="a * b")

    assert result["status"] == "error"
    assert result["content"][0]["text"].startswith("Error: ")
    assert len(agent.messages) == 4


# Request state --------------------------------------------------------------------------------------------------------


def test_seven_text_deltas_count_to_seven() -> None:
    without: list[str] = []

    def count(**event: Any) -> None:
        if "request_state" in event:
            state = event["request_state"]
            state["counter"] = state.get("counter", 0) + 1
        else:
            without.append(gist(event))

    agent = Agent(model=Provider(answer("end_turn", text_block(*"abcdefg"))), callback_handler=count)

    result = agent("Hi there!")

    assert result.state == {"counter": 7}
    assert without.count("event:contentBlockDelta") == 7
    assert not any("request_state" in name for name in without)


def test_request_state_goes_through_handler_and_tool_and_comes_back_once() -> None:
    @tool
    def remember(context: ToolContext) -> str:
        """Remember."""
        context.request_state["tool"] = context.request_state["handler"]
        return "done"

    def note(**event: Any) -> None:
        if "data" in event:
            event["request_state"]["handler"] = event["request_state"]["caller"]

    given = {"caller": "yes"}
    model = ScriptedModel([Reply(text="Now.", tool_uses=[ToolUse("remember")]), "Done.", "Fresh."])
    agent = Agent(model=model, tools=[remember], callback_handler=note)

    assert agent("Go", request_state=given).state == {"caller": "yes", "handler": "yes", "tool": "yes"}
    assert given == {"caller": "yes"}
    assert agent("Again", request_state={"caller": 1}).state == {"caller": 1, "handler": 1}


def test_a_users_key_replaces_no_key_of_an_event() -> None:
    agent, heard = listening(ScriptedModel(["Hi"]))

    agent("Hi", request_state={"data": "mine", "event": "mine", "result": "mine"})

    [delta] = [event for event in heard if "data" in event]
    assert delta["data"] == "Hi"
    assert delta["request_state"]["data"] == "mine"
    assert isinstance(heard[-1]["result"], AgentResult)


# Saving, restoring, managing ------------------------------------------------------------------------------------------


def test_a_conversation_survives_json() -> None:
    agent = silent(ScriptedModel(["Hi! 😊", "again"]), system_prompt="Be kind 🌱")
    agent("Hello 👋")
    saved = json.dumps({"messages": agent.messages, "system_prompt": agent.system_prompt})

    restored = json.loads(saved)
    model = ScriptedModel(["I remember 👋"])
    other = silent(model, messages=restored["messages"], system_prompt=restored["system_prompt"])
    other("What did I say?")

    assert restored["messages"] == agent.messages
    assert other.messages[:2] == agent.messages
    assert model.requests[0].system_prompt == "Be kind 🌱"
    assert model.requests[0].messages[0]["content"] == [{"text": "Hello 👋"}]


def test_a_result_message_is_plain_json() -> None:
    result = silent(ScriptedModel(["Hi"]))("Hi")

    assert json.loads(json.dumps(result.message)) == result.message


def test_the_window_counts_messages() -> None:
    agent = silent(ScriptedModel(lambda messages: str(len(messages))), conversation_manager=SlidingWindowConversationManager(window_size=4))

    answers = [str(agent(f"Prompt {number}")) for number in range(5)]

    assert answers == ["1", "3", "5", "5", "5"]
    assert len(agent.messages) == 4


class OldManager(ConversationManager):
    """The signature of the guide."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def apply_management(self, messages: Any) -> None:
        self.calls.append(f"apply {len(messages)}")
        del messages[:-2]

    def reduce_context(self, messages: Any, e: Exception | None = None) -> None:
        self.calls.append(f"reduce {type(e).__name__}")
        del messages[:-1]


class NewManager(ConversationManager):
    """The signature of later versions."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def apply_management(self, agent: Any, **kwargs: Any) -> None:
        self.calls.append(f"apply {len(agent.messages)}")
        agent.messages = agent.messages[-2:]

    def reduce_context(self, agent: Any, e: Exception | None = None, **kwargs: Any) -> None:
        self.calls.append(f"reduce {type(e).__name__}")
        del agent.messages[:-1]


@pytest.mark.parametrize("make", [OldManager, NewManager])
def test_a_custom_manager_works_in_either_signature(make: Callable[[], OldManager | NewManager]) -> None:
    manager = make()
    model = ScriptedModel(["one", "two", ContextWindowOverflow(), "three"])
    agent = silent(model, conversation_manager=manager)

    for prompt in "abc":
        agent(prompt)

    assert manager.calls == ["apply 2", "apply 4", "reduce ContextWindowOverflow", "apply 2"]
    assert [message["content"][0]["text"] for message in agent.messages] == ["c", "three"]


# Callbacks ------------------------------------------------------------------------------------------------------------

BEFORE = ["init_event_loop", "start", "start_event_loop"]


def test_the_callbacks_of_a_text_turn_come_in_order() -> None:
    agent, heard = listening(Provider(answer("end_turn", text_block("Hi", " there"))))

    result = agent("Hello", request_state={"a": 1})

    assert [gist(event) for event in heard] == [
        *BEFORE,
        "event:messageStart",
        "event:contentBlockStart",
        "event:contentBlockDelta",
        "data+delta+request_state",
        "event:contentBlockDelta",
        "data+delta+request_state",
        "event:contentBlockStop",
        "event:messageStop",
        "event:metadata",
        "message(assistant text)",
        "result",
    ]
    assert heard[0] == {"init_event_loop": True}
    assert heard[1:3] == START
    assert heard[6] == {"data": "Hi", "delta": {"text": "Hi"}, "request_state": {"a": 1}}
    assert heard[-1]["result"] is result


def test_the_callbacks_of_a_tool_turn_come_in_order() -> None:
    model = Provider(
        answer("tool_use", text_block("Let me see"), tool_block("calculator", "t1", '{"expression": ', '"2 * 3"}')),
        answer("end_turn", text_block("6")),
    )
    agent, heard = listening(model, tools=[calculator])

    agent("2 * 3?")

    streamed = ["event:contentBlockDelta", "type+delta+current_tool_use+request_state"]
    text = ["event:contentBlockStart", "event:contentBlockDelta", "data+delta+request_state", "event:contentBlockStop"]
    assert [gist(event) for event in heard] == [
        *BEFORE,
        "event:messageStart",
        *text,
        "event:contentBlockStart",
        *streamed,
        *streamed,
        "event:contentBlockStop",
        "event:messageStop",
        "event:metadata",
        "message(assistant text+toolUse)",
        "message(user toolResult)",
        "start",
        "start",
        "start_event_loop",
        "event:messageStart",
        *text,
        "event:messageStop",
        "event:metadata",
        "message(assistant text)",
        "result",
    ]
    pieces = [event for event in heard if "current_tool_use" in event]
    assert [piece["type"] for piece in pieces] == ["tool_use_stream"] * 2
    assert [piece["delta"]["toolUse"]["input"] for piece in pieces] == ['{"expression": ', '"2 * 3"}']
    assert pieces[-1]["current_tool_use"] == {"toolUseId": "t1", "name": "calculator", "input": '{"expression": "2 * 3"}'}


def test_reasoning_is_told_piece_by_piece_with_its_signature() -> None:
    def delta(**said: Any) -> dict[str, Any]:
        return {"contentBlockDelta": {"delta": {"reasoningContent": said}}}

    model = Provider(answer("end_turn", [delta(text="Hm"), delta(text="m"), delta(signature="sig"), {"contentBlockStop": {}}], text_block("Yes")))
    agent, heard = listening(model)

    agent("Think")

    thoughts = [event for event in heard if event.get("reasoning")]
    assert [event.get("reasoningText", event.get("reasoning_signature")) for event in thoughts] == ["Hm", "m", "sig"]
    assert thoughts[0] == {"reasoningText": "Hm", "delta": {"reasoningContent": {"text": "Hm"}}, "reasoning": True, "request_state": {}}


def test_what_a_tool_reports_is_told() -> None:
    @tool
    async def count() -> AsyncIterator[str]:
        """Count."""
        yield "one"
        yield "two"

    agent, heard = listening(ScriptedModel([Reply(tool_uses=[ToolUse("count", id="t1")]), "done"]), tools=[count])

    agent("Count")

    [event] = [event for event in heard if event.get("type") == "tool_stream"]
    assert event["tool_stream_event"] == {"tool_use": {"toolUseId": "t1", "name": "count", "input": {}}, "data": "one"}


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ModelError("the provider is down"), ModelError), (RuntimeError("a bug"), TurnFailed), (RuntimeError(), TurnFailed)],
    ids=["provider", "bug", "wordless"],
)
def test_a_turn_that_fails_ends_in_force_stop_and_its_error(error: Exception, raised: type[Exception]) -> None:
    agent, heard = listening(Provider([{"messageStart": {"role": "assistant"}}, error]))

    with pytest.raises(raised):
        agent("Hi")

    assert [gist(event) for event in heard] == [*BEFORE, "event:messageStart", "force_stop+force_stop_reason"]
    assert heard[-1] == {"force_stop": True, "force_stop_reason": str(error) or "RuntimeError"}
    assert agent.messages == []


def test_an_overflow_that_is_recovered_from_starts_again() -> None:
    model = ScriptedModel([ContextWindowOverflow(), "Hi"])
    before = [{"role": role, "content": [{"text": f"word {number} " * 50}]} for number in range(3) for role in ("user", "assistant")]
    agent, heard = listening(model, messages=before)

    agent("Hello")

    order = [gist(event) for event in heard if "event" not in event]
    assert order == [*BEFORE, "force_stop+force_stop_reason", "start", "start_event_loop", "data+delta+request_state", "message(assistant text)", "result"]


def test_a_throttled_model_is_told_of() -> None:
    retry = ModelRetry("s", 1, 1, 0.0, "t", {}, 2, 4.0, "ModelThrottled", None)

    assert list(CallbackAdapter().feed(retry)) == [{"event_loop_throttled_delay": 4.0}]


def test_the_adapter_is_pure_and_starts_afresh_with_each_turn() -> None:
    adapter = CallbackAdapter()
    place = ("s", 1, 1, 0.0, "t", {"n": 1})
    prompt = MessageAdded(*place, "e1", {"role": "user", "content": [{"text": "Hi"}]}, None)

    for _ in range(2):
        assert list(adapter.feed(TurnStarted(*place, ("p",)))) == [{"init_event_loop": True}]
        assert list(adapter.feed(prompt)) == []
        assert adapter.unfinished
    assert list(adapter.feed(TextDelta(*place, "x", 0))) == [{"data": "x", "delta": {"text": "x"}, "request_state": {"n": 1}}]
    assert [list(made) for made in adapter.feed(ReductionStarted(*place, "overflow", 9, 4))] == [["force_stop", "force_stop_reason"]]
    assert list(adapter.feed(ReductionEnded(*place, None, 9, 9, ()))) == []
    assert list(adapter.feed(ReductionEnded(*place, "window", 9, 4, ()))) == START


def test_what_a_handler_does_to_a_message_stays_with_it() -> None:
    def spoil(**event: Any) -> None:
        if "message" in event:
            event["message"]["content"].clear()

    agent = Agent(model=calculating(), tools=[calculator], callback_handler=spoil)
    agent("What is 123 * 456?")

    assert all(message["content"] for message in agent.messages)


def test_an_async_handler_is_awaited_in_order() -> None:
    heard: list[str] = []

    class Handler:
        async def __call__(self, **event: Any) -> None:
            await asyncio.sleep(0)
            heard.append(gist(event))

    Agent(model=ScriptedModel(["a b"]), callback_handler=Handler())("Hi")

    assert heard[:3] == BEFORE
    assert heard[-2:] == ["message(assistant text)", "result"]
    assert heard.count("data+delta+request_state") == 2


def test_a_handler_that_raises_costs_the_turn_nothing() -> None:
    calls: list[int] = []

    def fail(**event: Any) -> None:
        calls.append(1)
        raise RuntimeError("no")

    result = Agent(model=ScriptedModel(["Hi"]), callback_handler=fail)("Hi")

    assert str(result) == "Hi"
    assert len(calls) > 5


def test_a_composite_calls_all_of_its_handlers_in_order_whatever_the_first_does() -> None:
    heard: list[str] = []

    def first(**event: Any) -> None:
        heard.append("first")
        raise RuntimeError("no")

    async def second(**event: Any) -> None:
        await asyncio.sleep(0)
        heard.append("second")

    def third(**event: Any) -> None:
        heard.append("third")

    composite = CompositeCallbackHandler(first, second, third, second)
    result = Agent(model=ScriptedModel(["Hi"]), callback_handler=composite)("Hi")

    assert str(result) == "Hi"
    assert heard[:8] == ["first", "second", "third", "second"] * 2
    assert len(heard) % 4 == 0


def test_a_composite_takes_only_what_can_be_called() -> None:
    with pytest.raises(InvalidHandler, match="not callable"):
        CompositeCallbackHandler(print, "print")  # type: ignore[arg-type]
    assert CompositeCallbackHandler()(data="x") is None


def test_the_printing_handler_prints_reasoning_and_may_leave_tools_out(capsys: pytest.CaptureFixture[str]) -> None:
    quiet, loud = PrintingCallbackHandler(verbose_tool_use=False), PrintingCallbackHandler()
    started = {"contentBlockStart": {"start": {"toolUse": {"name": "calculator", "toolUseId": "t"}}}}

    for handler in (quiet, loud):
        handler(reasoningText="Hm. ", reasoning=True)
        handler(data="Yes.")
        handler(event=started)
        handler(event=started)
        handler(start=True)

    assert capsys.readouterr().out == "Hm. Yes." + "Hm. Yes.\nTool #1: calculator\n\nTool #2: calculator\n"
    assert (quiet.tool_count, loud.tool_count) == (2, 2)


@pytest.mark.parametrize(("answer", "shown"), [("Hi", "Hi\n"), ("Hi\n", "Hi\n"), ("", "")])
def test_the_printing_handler_ends_the_last_line_of_a_turn_on_a_terminal(
    answer: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    agent = Agent(model=ScriptedModel([answer, answer]))
    agent("a")
    agent("b")

    assert capsys.readouterr().out == shown * 2


def test_the_printing_handler_ends_the_last_line_of_a_turn_that_failed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    handler = PrintingCallbackHandler()
    handler(data="I was about to")
    handler(force_stop=True, force_stop_reason="no more")

    assert capsys.readouterr().out == "I was about to\n"


def test_an_agent_without_a_handler_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent(ScriptedModel(["Hi"]))("Hi")

    assert capsys.readouterr().out == ""


def test_metrics_start_from_nothing() -> None:
    assert repr(EventLoopMetrics()) == (
        "EventLoopMetrics(cycle_count=0, tool_metrics={}, cycle_durations=[], traces=[], "
        "accumulated_usage={'inputTokens': 0, 'outputTokens': 0, 'totalTokens': 0}, accumulated_metrics={'latencyMs': 0})"
    )

"""The provider of OpenAI's chat completions, against a scripted server on loopback."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from openai_server import OpenAIServer, Played, called, ended, openai_server, refused, said, texts
from ropewalk import (
    Agent,
    AgentSpec,
    ContextWindowOverflow,
    InvalidOption,
    ModelError,
    ModelRetry,
    ModelThrottled,
    NoModel,
    NullConversationManager,
    OpenAIModel,
    Runtime,
    TextDelta,
    tool,
)
from ropewalk.actors.models import resolve
from ropewalk.actors.models.openai_client import Connection
from ropewalk.actors.testing.loop import cancelled_at_step
from ropewalk.actors.validity import is_open, is_valid
from test_openai_format import message_of, nearly_valid

HELLO: list[dict[str, Any]] = [{"role": "user", "content": [{"text": "Hello"}]}]


def model_of(server: OpenAIServer, **options: Any) -> OpenAIModel:
    return OpenAIModel("test-model", base_url=server.url, **{"api_key": "sk-secret", **options})


async def answer_of(model: OpenAIModel, **options: Any) -> list[dict[str, Any]]:
    return [chunk async for chunk in model.stream(HELLO, **options)]


def text_in(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["contentBlockDelta"]["delta"].get("text", "") for chunk in chunks if "contentBlockDelta" in chunk)


async def all_closed(server: OpenAIServer) -> None:
    """Wait until no connection is left: the server hears of a closed one a moment later."""
    with anyio.fail_after(5):
        while server.open:
            await anyio.lowlevel.checkpoint()


@tool
async def price(item: str) -> str:
    """What an item costs.

    Args:
        item: its name
    """
    return f"{item}: 12 EUR"


# A session's way --------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_session_streams_text_and_counts_its_tokens() -> None:
    async with openai_server(texts("Hel", "lo."), texts("Bye.")) as server, Runtime() as runtime:
        spec = AgentSpec(model=model_of(server), system_prompt="Be brief.")
        session = await runtime.open("user-1", spec)
        heard: list[str] = []
        async with session.stream("Hi") as events:
            heard += [event.text async for event in events if isinstance(event, TextDelta)]
        result = await session.ask("Bye")

    assert heard == ["Hel", "lo."]
    assert str(result) == "Bye."
    assert result.metrics.accumulated_usage == {"inputTokens": 10, "outputTokens": 4, "totalTokens": 14}
    assert server.requests[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    assert "authorization: bearer sk-secret" in server.heads[0].lower()


@pytest.mark.anyio
async def test_the_sessions_of_a_runtime_share_its_connections() -> None:
    async with openai_server(*[texts("Yes.")] * 4) as server:
        async with Runtime() as runtime:
            for name in ("user-1", "user-2", "user-1", "user-2"):
                # Each session has a spec and a model of its own, for the same server.
                session = await runtime.open(name, AgentSpec(name=name, model=model_of(server)))
                assert str(await session.ask("Hi")) == "Yes."
        await all_closed(server)

    assert server.connections == 1


@pytest.mark.anyio
async def test_parallel_tool_calls_that_come_interleaved_are_run_and_answered() -> None:
    calls = Played(
        [
            said(content="Let me look."),
            called(0, "", "price", "call_a"),
            called(1, "", "price", "call_b"),
            called(0, '{"item": '),
            called(1, '{"item": '),
            called(0, '"rope"}'),
            called(1, '"knot"}'),
            *ended("tool_calls"),
        ]
    )
    async with openai_server(calls, texts("Done.")) as server, Runtime() as runtime:
        session = await runtime.open("user-1", AgentSpec(model=model_of(server), tools=[price]))
        result = await session.ask("What do they cost?")
        messages = await session.messages()

    assert str(result) == "Done."
    uses = [block["toolUse"] for block in messages[1]["content"] if "toolUse" in block]
    assert [(use["toolUseId"], use["input"]) for use in uses] == [("call_a", {"item": "rope"}), ("call_b", {"item": "knot"})]
    assert server.requests[0]["tools"][0]["function"]["name"] == "price"
    assert server.requests[1]["messages"][1:] == [
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"id": "call_a", "type": "function", "function": {"name": "price", "arguments": '{"item": "rope"}'}},
                {"id": "call_b", "type": "function", "function": {"name": "price", "arguments": '{"item": "knot"}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_a", "content": "rope: 12 EUR"},
        {"role": "tool", "tool_call_id": "call_b", "content": "knot: 12 EUR"},
    ]


async def test_a_throttled_turn_is_tried_again_and_answered(mock_clock: MockClock) -> None:
    mock_clock.rate = 20  # the wait before the second try, at twenty times the speed
    async with openai_server(refused(429, {"retry-after": "1"}, message="Slow down.", type="requests"), texts("Here.")) as server, Runtime() as runtime:
        session = await runtime.open("user-1", AgentSpec(model=model_of(server)))
        retries: list[Any] = []
        session.add_handler(retries.append, kinds={ModelRetry})
        result = await session.ask("Hi")

    assert str(result) == "Here."
    assert len(retries) == 1
    assert len(server.requests) == 2


@pytest.mark.anyio
async def test_an_overflow_makes_the_view_smaller_and_the_turn_goes_on() -> None:
    too_long = refused(400, code=400, message="request (900 tokens) exceeds", type="exceed_context_size_error", n_prompt_tokens=900, n_ctx=500)
    async with openai_server(*(texts("x" * 500) for _ in range(4)), too_long, texts("Fits.")) as server, Runtime() as runtime:
        session = await runtime.open("user-1", AgentSpec(model=model_of(server)))
        for _ in range(4):
            await session.ask("y" * 300)
        result = await session.ask("And now?")

    assert str(result) == "Fits."
    assert len(str(server.requests[-1]["messages"])) < len(str(server.requests[-2]["messages"]))


@pytest.mark.anyio
async def test_an_overflow_that_cannot_be_reduced_ends_the_turn_by_name() -> None:
    too_long = refused(400, code="context_length_exceeded", message="Too long.", type="invalid_request_error")
    async with openai_server(too_long) as server, Runtime() as runtime:
        session = await runtime.open("user-1", AgentSpec(model=model_of(server), conversation_manager=NullConversationManager()))
        result = await session.ask("Hi")

    assert result.stop_reason == "context_overflow"


@pytest.mark.anyio
async def test_a_cancelled_turn_closes_its_connection_at_once() -> None:
    async with openai_server(Played([said(content="Once upon")], then="hang"), texts("Yes.")) as server, Runtime() as runtime:
        session = await runtime.open("user-1", AgentSpec(model=model_of(server)))
        turn = await session.submit("Tell me a story")
        await server.hanging.wait()
        await turn.cancel()
        result = await turn.result()
        with anyio.fail_after(5):
            await server.gone.wait()
        assert str(await session.ask("Still there?")) == "Yes."

    assert result.stop_reason == "cancelled"


@pytest.mark.anyio
async def test_a_stream_that_dies_fails_the_turn_and_leaves_the_history_usable() -> None:
    async with openai_server(Played([said(content="Half an ans")], then="die"), texts("Whole.")) as server, Runtime() as runtime:
        session = await runtime.open("user-1", AgentSpec(model=model_of(server)))
        with pytest.raises(ModelError, match="connection to"):
            await session.ask("Hi")
        result = await session.ask("Again")

    assert str(result) == "Whole."


def test_an_agent_in_sync_code_takes_it_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(openai_server(texts("Hello!"))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
        agent = Agent(model="openai:test-model", callback_handler=None)

        assert str(agent("Hi")) == "Hello!"
        agent.close()


# A call by itself -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_outside_a_runtime_a_call_opens_its_client_and_closes_it() -> None:
    async with openai_server(texts("One."), texts("Two.")) as server:
        model = model_of(server)
        assert text_in(await answer_of(model)) == "One."
        assert text_in(await answer_of(model)) == "Two."
        await all_closed(server)

    assert server.connections == 2


@pytest.mark.anyio
async def test_models_that_are_served_share_their_connections_until_the_last_leaves() -> None:
    async with openai_server(*(texts("Yes.") for _ in range(4))) as server:
        first, second, stranger = model_of(server), model_of(server), model_of(server, api_key="sk-another")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(first.serving())
            await stack.enter_async_context(second.serving())
            for model in (first, second, first):
                assert text_in(await answer_of(model)) == "Yes."
            assert server.connections == 1
            await answer_of(stranger)
            assert server.connections == 2
        await all_closed(server)


@pytest.mark.anyio
async def test_leaving_an_answer_early_closes_its_connection() -> None:
    async with openai_server(Played([said(content="Once")], then="hang")) as server:
        model = model_of(server)
        async with model.serving():
            stream = model.stream(HELLO)
            async for chunk in stream:
                if "contentBlockDelta" in chunk:
                    break
            await stream.aclose()  # type: ignore[attr-defined]
            with anyio.fail_after(5):
                await server.gone.wait()


@pytest.mark.anyio
@pytest.mark.parametrize("events", [[], [said(content="Once")]], ids=["before its first chunk", "in the middle"])
async def test_a_cancelled_call_closes_its_connection(events: list[Any]) -> None:
    async with openai_server(Played(events, then="hang")) as server:
        model = model_of(server)
        async with model.serving():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(answer_of, model)
                await server.hanging.wait()
                tasks.cancel_scope.cancel()
            with anyio.fail_after(5):
                await server.gone.wait()


async def test_a_call_cancelled_at_any_step_leaves_no_connection_and_the_next_one_works() -> None:
    for number in range(1, 200):
        async with openai_server(*[texts("a", "b", "c")] * 2) as server:
            model = model_of(server)
            with cancelled_at_step(number, of_anyone=True) as scope:
                await answer_of(model)
            assert text_in(await answer_of(model)) == "abc"
            await all_closed(server)
        if not scope.cancelled_caught:
            break
    assert 10 < number < 199


@pytest.mark.anyio
async def test_many_answers_are_streamed_at_once() -> None:
    async with openai_server(*(texts("a", "b", "c") for _ in range(50))) as server:
        model = model_of(server)
        heard: list[str] = []

        async def ask() -> None:
            heard.append(text_in(await answer_of(model)))

        async with model.serving(), anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ask)

    assert heard == ["abc"] * 50


LINES = st.sampled_from(
    [
        "data: {}\n\n",
        "data: null\n\n",
        "data:\n\n",
        ": ping\n\n",
        "retry: 3\n\n",
        "event: ping\n\n",
        "event: thread.x\ndata: {}\n\n",
        "data: [DONE]\n\n",
        "\n",
        "data: ",
    ]
)
EVENTS = LINES | st.text(max_size=10) | nearly_valid() | st.sampled_from([*ended(), *ended("tool_calls"), {"error": {"code": 429}}, {"error": "no"}])


@given(st.lists(EVENTS, max_size=6), st.sampled_from(["done", "end", "die"]), st.random_module())
async def test_whatever_is_streamed_is_a_valid_message_or_a_model_error(events: list[Any], then: Any, schedule: object) -> None:
    async with openai_server(Played(events, then)) as server:
        try:
            made = await answer_of(model_of(server))
        except ModelError:
            return

    message, _, _ = message_of(made)
    assert is_valid([*HELLO, message]) or is_open([*HELLO, message])


PLAYED = {
    "it dies in mid-stream": (Played([said(content="Hi")], then="die"), "connection to"),
    "a chunk is no JSON": (Played([said(content="Hi"), "data: {oops\n\n"]), "malformed"),
    "a chunk is no text": (Played([said(content="Hi"), 'data: "\udcff"\n\n']), "malformed"),
    "a chunk is nested beyond measure": (Played(["data: " + "[" * 100_000 + "\n\n"]), "malformed"),
    "a chunk is no object": (Played(["data: [1, 2]\n\n", *ended()]), "malformed"),
    "choices are no list": (Played([{"choices": {"0": {}}}]), "choices"),
    "no finish reason": (Played([said(content="Hi")]), "without a finish reason"),
    "the end comes too soon": (Played([said(content="Hi")], then="end"), "without a finish reason"),
    "an error with status 200": (Played(body={"error": {"message": "The engine is on fire.", "code": 502}}), "on fire"),
    "an answer that is neither a stream nor JSON": (Played(body="<html>"), "malformed"),
    "an error in the stream": (Played([said(content="Hi"), {"error": {"message": "The engine is on fire."}}]), "on fire"),
    "an error in the stream, as text": (Played([{"error": "The engine is on fire."}]), "on fire"),
    "an error in the stream, as an object of its own": (Played([{"object": "error", "message": "The engine is on fire.", "code": 400}]), "on fire"),
    "an error page": (Played(status=502, body="<html>Bad gateway</html>"), "Bad gateway"),
    "the wrong key": (refused(401, message="Incorrect API key provided: sk-secret.", code="invalid_api_key"), "check the API key"),
    "no such model": (refused(404, message="No such model.", code="model_not_found"), "check the model's name"),
    "no money": (refused(429, message="You exceeded your current quota.", code="insufficient_quota"), "billing"),
}


@pytest.mark.anyio
@pytest.mark.parametrize(("played", "words"), PLAYED.values(), ids=list(PLAYED))
async def test_what_goes_wrong_is_a_model_error_that_says_so(played: Played, words: str) -> None:
    async with openai_server(played) as server:
        with pytest.raises(ModelError, match=words) as caught:
            await answer_of(model_of(server))

    assert type(caught.value) is ModelError
    assert "test-model" in str(caught.value) or words in ("malformed", "choices")
    assert "sk-secret" not in str(caught.value)
    assert len(server.requests) == 1  # nothing is tried again behind the session's back


@pytest.mark.anyio
async def test_an_answer_that_comes_in_one_is_taken_as_it_is() -> None:
    call = {"id": "call_a", "type": "function", "function": {"name": "price", "arguments": '{"item": "rope"}'}}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Let me look.", "tool_calls": [call]}, "finish_reason": "tool_calls"}
    async with openai_server(Played(body={"object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 3}})) as server:
        message, stop_reason, _ = message_of(await answer_of(model_of(server)))

    assert message["content"] == [{"text": "Let me look."}, {"toolUse": {"toolUseId": "call_a", "name": "price", "input": {"item": "rope"}}}]
    assert stop_reason == "tool_use"


@pytest.mark.anyio
async def test_a_throttled_call_says_how_long_to_wait() -> None:
    async with openai_server(refused(429, {"retry-after-ms": "1500"}), refused(503, {"Retry-After": "7"}), refused(529)) as server:
        waits = []
        for _ in range(3):
            with pytest.raises(ModelThrottled) as caught:
                await answer_of(model_of(server))
            waits.append(caught.value.retry_after)

    assert waits == [1.5, 7.0, None]


@pytest.mark.anyio
async def test_an_overflow_says_what_fits() -> None:
    message = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages, 1000 in the completion)."
    async with openai_server(refused(400, message=message, type="BadRequestError", code=400)) as server:
        with pytest.raises(ContextWindowOverflow) as caught:
            await answer_of(model_of(server))

    assert (caught.value.tokens, caught.value.limit) == (4000, 3096)


@pytest.mark.anyio
async def test_a_server_that_is_not_there_is_a_model_error() -> None:
    async with openai_server() as server:
        model = model_of(server)
    with pytest.raises(ModelError, match="check base_url"):
        await answer_of(model)


async def test_a_server_that_says_nothing_is_given_up_after_the_timeout(mock_clock: MockClock) -> None:
    mock_clock.rate = 20
    async with openai_server(Played([said(content="Hi")], then="hang")) as server:
        with pytest.raises(ModelError, match="did not answer in time"):
            await answer_of(model_of(server, timeout=2))


@pytest.mark.anyio
async def test_params_headers_and_choice_go_into_the_request() -> None:
    async with openai_server(texts("Yes.")) as server:
        model = model_of(server, params={"temperature": 0, "stream_options": None}, headers={"X-Team": "ropes"}, organization="org", project="proj")
        await answer_of(model, tool_specs=[price.spec], tool_choice={"any": {}})

    [request], head = server.requests, server.heads[0].lower()
    assert request["temperature"] == 0
    assert "stream_options" not in request
    assert request["tool_choice"] == "required"
    assert "x-team: ropes" in head
    assert "openai-organization: org" in head
    assert "openai-project: proj" in head


# At the door ------------------------------------------------------------------------------------------------------------


def test_a_name_resolves_to_a_model_with_key_and_server_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    model = resolve("openai:llama-3:8b")

    assert isinstance(model, OpenAIModel)
    assert repr(model) == "OpenAIModel('llama-3:8b', base_url='http://127.0.0.1:9/v1')"


def test_without_a_key_there_is_no_model() -> None:
    with pytest.raises(NoModel, match="OPENAI_API_KEY"):
        resolve("openai:gpt-5")


def test_without_the_extra_there_is_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoModel, match=r"run `pip install 'ropewalk\[openai\]'` first, for openai and httpx2 are not installed"):
        OpenAIModel("gpt-5", api_key="sk-secret")
    with pytest.raises(NoModel, match=r"run `pip install 'ropewalk\[openai\]'` first"):
        resolve("gpt-5")


def test_what_is_there_already_is_not_advised_to_be_installed() -> None:
    with pytest.raises(NoModel, match="'openai:NAME'") as refused:
        resolve("gpt-5")
    assert "pip install" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"model_id": ""},
        {"model_id": None},
        {"base_url": "localhost:8080"},
        {"context_window": 0},
        {"timeout": -1},
        {"timeout": "1"},
        {"params": [1]},
        {"headers": "x"},
        {"headers": {"X-Team": "r\no"}},
        {"params": {"stop": {1, 2}, "at": object()}},
        {"base_url": "http://x:port/v1"},
        {"base_url": "http://"},
        {"api_key": "sk-\u00e9"},
    ],
    ids=lambda options: str(options).partition(" at 0x")[0],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(InvalidOption, match=name):
        OpenAIModel(**{"model_id": "gpt-5", "api_key": "sk-secret", **options})


@pytest.mark.parametrize(
    ("base_url", "is_here"),
    [
        ("http://127.0.0.1:8080/v1", True),
        ("http://127.8.9.1/v1", True),
        ("https://localhost/v1", True),
        ("http://[::1]:8080/v1", True),
        ("http://192.168.0.2:8080/v1", False),
        ("https://localhost.example.com/v1", False),
    ],
)
def test_no_proxy_stands_between_here_and_here(base_url: str, is_here: bool) -> None:
    assert Connection(base_url=base_url, api_key="key").is_loopback == is_here

"""What does not belong: each gets an error of its own, at the door, that names what was wrong and what would be right; nothing changes."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import attrs
import pytest
import structlog

from ropewalk import (
    Agent,
    AgentSpec,
    ConversationManager,
    DuplicateKind,
    DuplicateTool,
    InvalidConversation,
    InvalidHandler,
    InvalidOption,
    InvalidPrompt,
    InvalidRequestState,
    InvalidSessionId,
    InvalidTool,
    Limits,
    MemoryJournal,
    NoModel,
    NullConversationManager,
    RopewalkError,
    Runtime,
    RuntimeClosed,
    Session,
    SlidingWindowConversationManager,
    TextDelta,
    Tool,
    UnknownSession,
    WouldDeadlock,
    tool,
)
from ropewalk.testing import Reply, ScriptedModel, ToolUse
from talk import agent, assert_sound, calls, echo, journal_of, said, told

pytestmark = pytest.mark.anyio

HISTORY = [told("before"), said("then")]


class unchanged:  # noqa: N801  # reads as a statement of what holds
    """``async with unchanged(session)``: whatever is refused inside, the session is as it was, and works."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def __aenter__(self) -> None:
        self._before = await self._session.messages(), journal_of(self._session).statistics(), self._work()

    async def __aexit__(self, *error: object) -> None:
        messages, journal, work = self._before
        session = self._session
        assert await session.messages() == messages
        assert (journal_of(session).statistics(), self._work()) == (journal, work)
        await assert_sound(session)
        assert str(await session.ask("next")) == "fine"
        await assert_sound(session)

    def _work(self) -> Any:
        """What the session has done, without the messages it was sent and refused."""
        return attrs.evolve(self._session.statistics(), mailbox=None)


@pytest.fixture
async def session(anyio_backend_name: str) -> Any:
    async with Runtime() as runtime:
        yield await runtime.open("me", agent(lambda messages: "fine"), messages=HISTORY)


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(levels):
        inner = {"x": inner}
    return inner


def circle() -> dict[str, Any]:
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    return ring


async def send(session: Session, way: str, prompt: Any, **options: Any) -> None:
    """Send a prompt one way or the other; a stream refuses what is wrong before it is entered."""
    sent = getattr(session, way)(prompt, **options)
    if way != "stream":
        await sent


# --- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["", ".hidden", "a/b", "a b", "ü", "a\n", "x" * 201, 5, None, b"me"], ids=repr)
async def test_a_wrong_id(wrong: Any) -> None:
    async with Runtime() as runtime:
        with pytest.raises(InvalidSessionId, match="1 to 200 characters of A-Z a-z 0-9"):
            await runtime.open(wrong, agent())
        assert runtime.statistics().known == 0
    with pytest.raises(InvalidSessionId):
        Agent(model=ScriptedModel([]), session_id="." if wrong is None else wrong)


@pytest.mark.parametrize("right", ["a", "x" * 200, "User-42_b.c:d@e", "-", "0"])
async def test_a_right_id(right: str) -> None:
    async with Runtime() as runtime:
        assert (await runtime.open(right, agent())).id == right


async def test_a_session_there_is_not() -> None:
    async with Runtime() as runtime:
        with pytest.raises(UnknownSession, match="'nobody'"):
            await runtime.open("nobody", agent(), create=False)
        assert runtime.statistics().known == 0
        assert runtime.find("nobody") is None


# --- prompts ----------------------------------------------------------------------------------------------------------

PROMPTS: dict[str, tuple[Any, str]] = {
    "none": (None, "not None"),
    "a number": (5, "not 5"),
    "bytes": (b"x", "not b'x'"),
    "no text": ("", "empty"),
    "no blocks": ([], r"not \[\]"),
    "one block": ({"text": "x"}, "a list of content blocks"),
    "numbers": ([5], r"not \[5\]"),
    "texts": (["a"], "a list of content blocks"),
    "a generator": (iter([{"text": "x"}]), "a list of content blocks"),
    "a block without a kind": ([{}], "one key, which names its type"),
    "a block of two kinds": ([{"text": "x", "image": {}}], "one key, which names its type"),
    "a text that is none": ([{"text": 5}], "a text block holds a string"),
    "a live object": ([{"image": {"format": "png", "source": {"bytes": object()}}}], "object is not a JSON value"),
    "too deep": ([{"document": nested(200)}], "nested deeper than 100"),
    "circular": ([{"document": circle()}], "nested deeper than 100"),
    "a result nobody asked for": ([{"toolResult": {"toolUseId": "x", "content": []}}], "does not begin with toolResult"),
    "a call": ([{"toolUse": {"toolUseId": "x", "name": "echo", "input": {}}}], "toolUse blocks belong to the other role|only the model calls tools"),
    "an answer": ([said("x")], "starts with a user message"),
    "a role there is not": ([{"role": "system", "content": [{"text": "x"}]}], "the role is 'user' or 'assistant'"),
    "no content": ([{"role": "user"}], "the content is missing"),
    "empty content": ([{"role": "user", "content": []}], "the last message of a prompt is the user's"),
    "an answer last": ([told("x"), said("y")], "the last message of a prompt is the user's"),
    "messages and blocks": ([told("x"), {"text": "y"}], "message 1: the role"),
}


@pytest.mark.parametrize("which", PROMPTS)
@pytest.mark.parametrize("way", ["ask", "submit", "stream"])
async def test_a_prompt_that_is_none(session: Session, way: str, which: str) -> None:
    prompt, text = PROMPTS[which]
    async with unchanged(session):
        with pytest.raises(InvalidPrompt, match=text) as caught:
            await send(session, way, prompt)
        said_so = str(caught.value)
        assert "a list of content blocks such as [{'text': '...'}]" in said_so or "this session" in said_so or "only the model" in said_so


class Word(enum.StrEnum):
    HELLO = "hello"


async def test_text_of_any_kind_is_a_prompt(session: Session) -> None:
    await session.ask(Word.HELLO)
    message = (await session.messages())[2]
    assert message == told("hello")
    assert type(message["content"][0]["text"]) is str


# --- options of a prompt ----------------------------------------------------------------------------------------------

STATES: dict[str, tuple[Any, str]] = {
    "a number": (5, "a dict of JSON values, not 5"),
    "a list": ([], r"a dict of JSON values, not \[\]"),
    "a key that is no text": ({1: 2}, "has the key 1; keys of JSON objects are text"),
    "a set": ({"a": {1}}, r"request_state\['a'\] is a set"),
    "bytes": ({"a": b"x"}, r"request_state\['a'\] is a bytes"),
    "a live object": ({"a": [{"db": object()}]}, r"request_state\['a'\]\[0\]\['db'\] is a object.*context="),
    "a date": ({"a": datetime.date(2026, 1, 1)}, r"request_state\['a'\] is a date"),
    "not a number": ({"a": float("nan")}, r"request_state\['a'\] is nan"),
    "infinity": ({"a": float("inf")}, r"request_state\['a'\] is inf"),
    "too deep": (nested(200), "nested deeper than 100"),
    "circular": (circle(), "nested deeper than 100"),
}


@pytest.mark.parametrize("which", STATES)
@pytest.mark.parametrize("way", ["ask", "submit", "stream"])
async def test_a_request_state_that_is_not_json(session: Session, way: str, which: str) -> None:
    state, text = STATES[which]
    async with unchanged(session):
        with pytest.raises(InvalidRequestState, match=text):
            await send(session, way, "hi", request_state=state)


@pytest.mark.parametrize("wrong", ["latest", "", "QUEUE", 5, ["queue"]], ids=repr)
async def test_an_unknown_when_busy(session: Session, wrong: Any) -> None:
    async with unchanged(session):
        for send in (session.ask, session.submit):
            with pytest.raises(InvalidOption, match="when_busy is one of 'queue', 'reject', not"):
                await send("hi", when_busy=wrong)
        with pytest.raises(InvalidOption, match="when_busy"):
            session.stream("hi", when_busy=wrong)
        with pytest.raises(InvalidOption, match="when_busy"):
            agent(when_busy=wrong)


async def test_streams_and_subscriptions_of_what_is_no_event(session: Session) -> None:
    turn = await session.submit("hi")
    await turn.result()
    wrong: Any
    async with unchanged(session):
        for wrong in ([int], TextDelta, 5, ["TextDelta"]):
            for subscribe in (
                lambda wrong: session.stream("hi", kinds=wrong),
                lambda wrong: turn.events(wrong),
                lambda wrong: session.add_handler(print, wrong),
                lambda wrong: session.runtime.events.subscribe(kinds=wrong),
            ):
                with pytest.raises(InvalidOption, match=r"kinds is a list of event types, such as \[TextDelta, TurnEnded\], not"):
                    subscribe(wrong)
        with pytest.raises(InvalidOption, match="on_leave is 'continue' or 'cancel', not 'wait'"):
            session.stream("hi", on_leave="wait")


async def test_a_stream_that_is_not_entered_or_entered_twice(session: Session) -> None:
    async with unchanged(session):
        with pytest.raises(InvalidOption, match=r"async with session.stream\(...\) as events"):
            await anext(aiter(session.stream("hi")))
    async with session.stream("hi") as events:
        with pytest.raises(InvalidOption, match="a new one for each prompt"):
            await events.__aenter__()
        assert [event async for event in events]
    with pytest.raises(InvalidOption, match="a new one for each prompt"):
        await events.__aenter__()
    assert session.statistics().turns == 2


# --- handlers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, 5, "print"], ids=repr)
async def test_a_handler_that_is_not_callable(session: Session, wrong: Any) -> None:
    async with unchanged(session):
        for add in (session.add_handler, session.runtime.add_handler):
            with pytest.raises(InvalidHandler, match="not callable, give a function"):
                add(wrong)
        with pytest.raises(InvalidHandler, match="not callable, give a function"):
            agent(handlers=[wrong])
        with pytest.raises(InvalidHandler):
            agent(handlers=wrong)
        with pytest.raises(InvalidHandler, match="not callable"):
            Agent(model=ScriptedModel([]), callback_handler=wrong or "none")
        assert session.runtime.statistics().events.handlers == 0


@pytest.mark.parametrize(
    "options",
    [{"on_error": "ignore"}, {"timeout": -1}, {"timeout": 0}, {"timeout": "5"}, {"timeout": float("nan")}, {"timeout": 10**400}],
    ids=lambda options: f"{options!r:.30}",
)
async def test_options_of_a_handler(session: Session, options: dict[str, Any]) -> None:
    async with unchanged(session):
        with pytest.raises(InvalidOption, match=next(iter(options))):
            session.add_handler(print, **options)
        assert session.runtime.statistics().events.handlers == 0


# --- specs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cycles", "output_tokens", "total_tokens"])
@pytest.mark.parametrize("wrong", [-1, 0, 1.5, True, "5"], ids=repr)
def test_limits_that_are_no_counts(name: str, wrong: Any) -> None:
    with pytest.raises(InvalidOption, match=rf"Limits\.{name} is a whole number of at least 1, or None for no limit, not {wrong!r}"):
        Limits(**{name: wrong})


@pytest.mark.parametrize("name", ["seconds", "stream_idle_seconds", "reduction_seconds"])
@pytest.mark.parametrize("wrong", [-1, 0, -0.5, True, "5", float("nan"), 10**400], ids=lambda wrong: f"{wrong!r:.20}")
def test_limits_that_are_no_seconds(name: str, wrong: Any) -> None:
    with pytest.raises(InvalidOption, match=rf"Limits\.{name} is a number of seconds above 0, or None for no limit, not {wrong!r:.100}$"):
        Limits(**{name: wrong})


SPECS: dict[str, tuple[type[RopewalkError], dict[str, Any], str]] = {
    "limits": (InvalidOption, {"limits": {"cycles": 5}}, r"limits is a Limits, such as Limits\(cycles=10\), not"),
    "no name": (InvalidOption, {"name": ""}, "name is text"),
    "a name that is none": (InvalidOption, {"name": None}, "name is text"),
    "system prompt": (InvalidOption, {"system_prompt": 5}, "system_prompt is text, not 5"),
    "mailbox": (InvalidOption, {"mailbox": 0}, "mailbox is a whole number of at least 1, not 0"),
    "model concurrency": (InvalidOption, {"model_concurrency": -3}, "model_concurrency is a whole number of at least 1, not -3"),
    "manager": (InvalidOption, {"conversation_manager": object()}, "apply_management and reduce_context"),
    "ladder": (InvalidOption, {"ladder": "clip"}, "ladder is a sequence of rungs"),
    "no ladder": (InvalidOption, {"ladder": 5}, "ladder is a sequence of rungs"),
    "a rung there is not": (InvalidOption, {"ladder": ["clip", "chop"]}, "one of 'clip', .* not 'chop'"),
    "model": (InvalidOption, {"model": object()}, r"is not a model: it has no stream\(\) method"),
    "a model there is not": (NoModel, {"model": "nobody:x"}, r"no provider for 'nobody:x'\. A model is 'local' .*, 'openai:NAME' "),
    "a model without its provider": (NoModel, {"model": "gpt-5"}, "no provider for 'gpt-5': did you mean 'openai:gpt-5'"),
    "a provider in capitals": (NoModel, {"model": "OpenAI:gpt-5"}, "did you mean 'openai:gpt-5'"),
    "a local model of some name": (NoModel, {"model": "local:small"}, "did you mean 'local'"),
    "no model": (NoModel, {"model": None}, r"no model was named: give model=, or set \$ROPEWALK_MODEL"),
    "tools": (InvalidTool, {"tools": [5]}, "5 is not a tool; give functions decorated with @tool"),
    "a plain function": (InvalidTool, {"tools": [len]}, "decorate it with @tool"),
}


@pytest.mark.parametrize(
    ("name", "said"),
    [("system", "did you mean 'system_prompt'"), ("callback", "did you mean 'callback_handler'"), ("x", "it takes model, messages, .*, limits, ")],
)
def test_an_argument_that_an_agent_does_not_take(name: str, said: str) -> None:
    options: Any = {name: "Be brief."}
    with pytest.raises(TypeError, match=f"^Agent takes no argument '{name}'; {said}"):
        Agent(model=ScriptedModel([]), **options)


@pytest.mark.parametrize("which", SPECS)
def test_a_spec_that_cannot_be(which: str) -> None:
    error, options, text = SPECS[which]
    with pytest.raises(error, match=text):
        AgentSpec(**{"model": ScriptedModel([]), **options})
    with pytest.raises(error, match=text):
        Agent(**{"model": ScriptedModel([]), **options})


def twins() -> list[tuple[Any, Any]]:
    other = Tool("echo", "Another.", {"type": "object"}, lambda tool_input, context: "")
    dashed = Tool("to-day", "Dashed.", {"type": "object"}, lambda tool_input, context: "")
    underscored = Tool("to_day", "Underscored.", {"type": "object"}, lambda tool_input, context: "")
    return [(echo, echo), (echo, other), (dashed, underscored)]


@pytest.mark.parametrize("pair", twins(), ids=["twice", "one name", "almost one name"])
def test_two_tools_with_one_name(pair: tuple[Any, Any]) -> None:
    with pytest.raises(DuplicateTool, match=rf"two tools are named '{pair[0].name}'"):
        agent(tools=pair)


def test_two_specs_with_one_name() -> None:
    with pytest.raises(DuplicateKind, match="two specs are named 'agent'"):
        Runtime(specs=[agent(), agent()])


def unannotated(x):  # type: ignore[no-untyped-def]  # that is what it is about
    """Have no annotation."""


def starred(*words: str) -> str:
    """Take any number."""
    return ""


def right(x: int) -> str:
    """Be right."""
    return str(x)


TOOLS: dict[str, tuple[Callable[[], Any], str]] = {
    "no annotation": (lambda: tool(unannotated), "tool 'unannotated': parameter 'x' has no annotation; write `x: str`"),
    "starred": (lambda: tool(starred), r"'\*words' cannot be described to a model; take one list"),
    "no function": (lambda: tool(5), "5 is not a function; write @tool above a function"),
    "a class": (lambda: tool(int), "is not a function"),
    "a name": (lambda: tool(name="two words")(right), "a name is 1 to 64 characters"),
    "a timeout": (lambda: tool(timeout=-1)(right), "timeout is -1; it may be a number of seconds above 0, or None"),
    "a concurrency": (lambda: tool(concurrency=0)(right), "concurrency is 0; it may be a whole number above 0, or None"),
    "a replay": (lambda: tool(replay="maybe")(right), "replay is 'maybe'; it may be"),
    "errors": (lambda: tool(errors="none")(right), "errors is 'none'; it may be"),
    "no description": (lambda: Tool("a", " ", {"type": "object"}, right), "say in words what the tool does"),
    "a schema": (lambda: Tool("a", "A.", {"type": "string"}, right), 'a tool takes an "object"'),
    "no schema": (lambda: Tool("a", "A.", 5, right), "the input schema is a int"),
    "no call": (lambda: Tool("a", "A.", {"type": "object"}, 5), "give a function of"),
}


@pytest.mark.parametrize("which", TOOLS)
def test_a_tool_that_cannot_be_described(which: str) -> None:
    make, text = TOOLS[which]
    with pytest.raises(InvalidTool, match=text):
        make()


# --- what a model gets wrong ------------------------------------------------------------------------------------------


def nested_input(depth: int) -> str:
    return '{"text": "", "more": ' + "[" * depth + "]" * depth + "}"


WRONG_CALLS: dict[str, tuple[ToolUse, str]] = {
    "a tool there is not": (ToolUse("nobody", id="x"), "Unknown tool: nobody"),
    "a name that is none": (ToolUse("no body!", id="x"), "Error: tool_name=<no body!> | invalid tool name pattern"),
    "no JSON": (ToolUse("echo", '{"text": "hi', id="x"), "the tool's input is not a JSON object"),
    "no object": (ToolUse("echo", "[1]", id="x"), "the tool's input is not a JSON object"),
    "nesting too deep to be kept": (ToolUse("echo", nested_input(95), id="x"), "nested deeper than 90 levels"),
    "nesting too deep to be read": (ToolUse("echo", nested_input(100_000), id="x"), "nested deeper than 90 levels"),
    "a wrong type": (ToolUse("echo", {"text": {"a": 1}}, id="x"), "Validation failed for input parameters"),
}


@pytest.mark.parametrize("which", WRONG_CALLS)
async def test_what_a_model_gets_wrong_it_is_told(which: str) -> None:
    use, text = WRONG_CALLS[which]
    called: list[str] = []

    @tool(name="echo")
    async def noticing(text: str = "") -> str:
        """Notice being called."""
        called.append(text)
        return text

    async with Runtime() as runtime:
        session = await runtime.open("me", agent([Reply(tool_uses=[use]), "sorry"], tools=[noticing]))
        assert str(await session.ask("go")) == "sorry"
        asking, answering = (await session.messages())[1:3]
        [result] = answering["content"]
        assert (result["toolResult"]["toolUseId"], result["toolResult"]["status"]) == ("x", "error")
        assert text in result["toolResult"]["content"][0]["text"]
        assert isinstance(asking["content"][0]["toolUse"]["input"], dict)
        assert called == []
        await assert_sound(session)


# --- managers ---------------------------------------------------------------------------------------------------------


class Raising(ConversationManager):
    def apply_management(self, messages: Any) -> None:
        raise RuntimeError("no")


class Emptying(ConversationManager):
    def apply_management(self, messages: Any) -> None:
        del messages[0]


class Nonsense(ConversationManager):
    def apply_management(self, messages: Any) -> None:
        messages[:] = [5, "x"]


class Orphaning(ConversationManager):
    def apply_management(self, messages: Any) -> None:
        messages.append(said(calls("echo", "orphan")))


@pytest.mark.parametrize("manager", [Raising, Emptying, Nonsense, Orphaning])
async def test_a_manager_that_raises_or_returns_nonsense_changes_nothing(manager: type[ConversationManager]) -> None:
    with structlog.testing.capture_logs() as logs:
        await ask_five_times(manager)
    assert [(entry["event"], entry["manager"], entry["failures"], entry["replaced"]) for entry in logs] == [
        ("conversation_manager_failed", manager.__name__, number, number == 3) for number in (1, 2, 3)
    ]
    if manager is Raising:
        assert logs[0]["error"] == "RuntimeError: no"
    assert ("stack" in logs[0]) == (manager is Raising), "a traceback where it leads to the manager"


async def ask_five_times(manager: type[ConversationManager]) -> None:
    async with Runtime(sync_calls="inline") as runtime:
        session = await runtime.open("me", agent(lambda messages: "fine", conversation_manager=manager()), messages=HISTORY)
        for number in range(5):
            assert str(await session.ask("hi")) == "fine"
            assert len(await session.messages()) == 4 + 2 * number
        await assert_sound(session)


async def test_a_manager_that_has_forgotten_its_methods_is_refused_and_one_that_is_meant_to_have_none_is_not() -> None:
    class Forgetful(ConversationManager):
        def manage(self, messages: Any) -> None:
            del messages[0]

    class Quiet(NullConversationManager):
        pass

    class Narrow(SlidingWindowConversationManager):
        window_size = 3

    with pytest.raises(InvalidOption, match=r"Forgetful overrides no method .* write apply_management\(self, messages\), .* or reduce_context\("):
        agent(conversation_manager=Forgetful())
    for manager in (Quiet(), Narrow(), ConversationManager()):
        assert agent(conversation_manager=manager).conversation_manager is manager


# --- history and direct calls -----------------------------------------------------------------------------------------

LISTS: dict[str, tuple[Any, str]] = {
    "a text": ("abc", "a conversation is a list of messages, not str"),
    "a number": (5, "a conversation is a list of messages, not int"),
    "nothing": (None, "a conversation is a list of messages, not NoneType"),
    "a message": (told("x"), "a conversation is a list of messages, not dict"),
    "numbers": ([5], "a message is a dict, not int"),
    "a role": ([{"role": "tool", "content": []}], "the role is 'user' or 'assistant', not 'tool'"),
    "a system message": ([{"role": "system", "content": "Be brief."}], "not 'system'; what the model is told beforehand is the agent's system_prompt"),
    "a live object": ([told({"document": {"source": object()}})], "object is not a JSON value"),
    "too deep": ([told({"document": nested(200)})], "nested deeper than 100"),
}


@pytest.mark.parametrize("which", LISTS)
async def test_messages_that_are_none(session: Session, which: str) -> None:
    messages, text = LISTS[which]
    async with unchanged(session):
        for change in (session.add_messages, session.set_messages):
            with pytest.raises(InvalidConversation, match=text):
                await change(messages)
        if messages is not None:
            with pytest.raises(InvalidConversation, match=text):
                await session.runtime.open("new", agent(), messages=messages)
            with pytest.raises(InvalidConversation, match=text):
                Agent(model=ScriptedModel([]), messages=messages)
        assert session.runtime.statistics().known == 1


async def test_a_history_that_begins_with_an_answer(session: Session) -> None:
    async with unchanged(session):
        with pytest.raises(InvalidConversation, match="message 0: a conversation starts with a user message"):
            await session.set_messages([said("hello")])


@pytest.mark.parametrize("wrong", ["abc", 5, [], circle()], ids=["a text", "a number", "a list", "circular"])
@pytest.mark.parametrize("record", [True, False])
async def test_a_direct_call_with_what_is_no_input(session: Session, record: bool, wrong: Any) -> None:
    async with unchanged(session):
        with pytest.raises(InvalidTool, match="the input of 'echo' is"):
            await session.call_tool("echo", wrong, record=record)


@pytest.mark.parametrize("wrong", ["nobody", None, 5], ids=repr)
async def test_a_direct_call_of_a_tool_there_is_not(session: Session, wrong: Any) -> None:
    async with unchanged(session):
        with pytest.raises(InvalidTool, match=rf"there is no tool {wrong!r}; this agent has echo, fail, wait, note"):
            await session.call_tool(wrong)


# --- runtimes ---------------------------------------------------------------------------------------------------------


async def test_a_closed_runtime() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(["fine"]))
        await session.ask("hi")
        turn = session.stream("later")
    ways: list[Callable[[], Any]] = [
        lambda: session.ask("hi"),
        lambda: session.submit("hi"),
        turn.__aenter__,
        lambda: session.add_messages([told("x")]),
        lambda: session.set_messages([]),
        lambda: session.call_tool("echo"),
        lambda: session.call_tool("echo", record=False),
        lambda: runtime.open("you", agent()),
        runtime.__aenter__,
    ]
    for way in ways:
        with pytest.raises(RuntimeClosed):
            await way()
    with pytest.raises(RuntimeClosed, match="it takes no more work"):
        await session.ask("hi")
    assert await session.messages() == [told("hi"), said("fine")]
    assert session.statistics().turns == 1


async def test_a_session_in_the_event_loop_of_another_thread(session: Session) -> None:
    def elsewhere() -> None:
        for use in (
            lambda: session.ask("hi"),
            lambda: session.submit("hi"),
            lambda: session.stream("hi").__aenter__(),
            lambda: session.add_messages([]),
            lambda: session.call_tool("echo", {"text": "hi"}),
            lambda: session.runtime.open("another", session.spec),
        ):
            with pytest.raises(RuntimeClosed, match="another thread's event loop"):
                anyio.run(use, backend="asyncio")

    async with unchanged(session):
        await anyio.to_thread.run_sync(elsewhere)
    assert str(await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(session.ask, "hi")))


async def test_a_runtime_that_was_not_entered() -> None:
    with pytest.raises(RuntimeClosed, match=r"enter it with `async with Runtime\(...\) as runtime:` first"):
        await Runtime().open("me", agent())


async def test_what_is_no_agent() -> None:
    async with Runtime() as runtime:
        with pytest.raises(InvalidOption, match="an AgentSpec, an Agent, or an object with"):
            await runtime.open("me", object())
        with pytest.raises(InvalidOption, match=r"messages=\[...\] when it is opened, not message"):
            await runtime.open("me", agent(), message=[])
        assert runtime.statistics().known == 0


@pytest.mark.parametrize("kind", ["assistant", AgentSpec, None], ids=repr)
async def test_what_a_session_cannot_be_opened_as(kind: Any) -> None:
    async with Runtime() as runtime:
        with pytest.raises(InvalidOption, match=r"as in runtime.open\('user-42', AgentSpec"):
            await runtime.open("me", kind)
        assert runtime.statistics().known == 0


async def test_ids_that_are_echoed_are_cut() -> None:
    long = "x" * 100_000
    async with Runtime() as runtime:
        with pytest.raises(InvalidSessionId) as refused:
            await runtime.open(long, agent())
        with pytest.raises(UnknownSession) as unknown:
            runtime.revive(long)
        with pytest.raises(InvalidOption) as not_open:
            await runtime.events.subscribe(sessions=long, after="0:0").__aenter__()
    assert all(len(str(raised.value)) < 500 for raised in (refused, unknown, not_open))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"journal": ""}, "the name of a file"),
        ({"journal": 5}, r"the path of a file, such as 'sessions.db', or a Journal, .* not 5"),
        ({"journal": MemoryJournal}, r"or a Journal, such as SQLiteJournal\('sessions.db'\), not <class"),
        ({"specs": "assistant"}, "an AgentSpec, an Agent"),
        ({"grace": 10**400}, "0 or more seconds, not 1000"),
        ({"specs": [5]}, "an AgentSpec, an Agent"),
        ({"replay": -1}, "0 or more, not -1"),
        ({"sync_calls": "fork"}, "sync_calls is 'thread' or 'inline', not 'fork'"),
        ({"workers": -1}, "0 or more, not -1"),
        ({"grace": -1}, "0 or more seconds, not -1"),
    ],
)
def test_options_of_a_runtime(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidOption, match=text):
        Runtime(**options)


# --- a session that awaits itself -------------------------------------------------------------------------------------


async def test_a_session_that_awaits_itself() -> None:
    seen: list[str] = []

    class Selfish(ConversationManager):
        async def apply_management(self, messages: Any) -> None:
            with pytest.raises(WouldDeadlock):
                await session.ask("again")
            seen.append("manager")

    @tool
    async def selfish() -> str:
        """Ask the own session."""
        with pytest.raises(WouldDeadlock, match="use submit"):
            await session.ask("again")
        seen.append("tool")
        return "refused"

    async def handler(event: Any) -> None:
        with pytest.raises(WouldDeadlock):
            await session.ask("again")
        seen.append("handler")

    async with Runtime() as runtime:
        model = ScriptedModel([Reply(text="so", tool_uses=[ToolUse("selfish")]), Reply(tool_uses=[])])
        session: Session = await runtime.open("me", agent(model, tools=[selfish], conversation_manager=Selfish()))
        session.add_handler(handler, [TextDelta], on_error="fail_turn")
        assert (await session.ask("go")).stop_reason == "end_turn"
        assert seen == ["handler", "tool", "manager"]
        assert session.statistics().mailbox.accepted == 1
        await assert_sound(session)


async def test_a_tool_that_is_refused_for_awaiting_its_own_session_is_logged_for_its_model_can_do_nothing_about_it() -> None:
    @tool
    async def selfish() -> str:
        """Ask the own session."""
        return str(await session.ask("again"))

    async with Runtime() as runtime:
        model = ScriptedModel([Reply(text="so", tool_uses=[ToolUse("selfish")]), Reply(text="well")])
        session: Session = await runtime.open("me", agent(model, tools=[selfish]))
        with structlog.testing.capture_logs() as logs:
            assert str(await session.ask("go")) == "well"

    [entry] = logs
    assert (entry["event"], entry["tool"], entry["session_id"]) == ("tool_would_deadlock", "selfish", "me")
    assert "use submit()" in entry["error"]

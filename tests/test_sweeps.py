"""Every moment of a turn: cancelled at each step of the scheduler, failed at each write of the journal.

Whatever the moment, afterwards the view is a conversation, memory and journal agree, the prompt has one outcome, the turn
one end, no task is left, and the next prompt works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from ropewalk import (
    AgentSpec,
    ContextWindowOverflow,
    JournalUnavailable,
    MemoryJournal,
    ModelThrottled,
    PromptSettled,
    RopewalkError,
    Runtime,
    Session,
    TurnEnded,
    TurnStarted,
    tool,
)
from ropewalk.actors.session.actor import SessionActor
from ropewalk.actors.session.state import SessionState
from ropewalk.actors.validity import is_valid
from ropewalk.runtime.journal import Fault
from ropewalk.testing import Reply, ScriptedModel, ToolUse, VirtualClock, cancelled_at_step


@tool
async def look(seconds: float = 1.0) -> str:
    """Look for a while."""
    await trio.sleep(seconds)
    return "seen"


@tool
def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


BOTH = Reply(text="two ", tool_uses=[ToolUse("look"), ToolUse("add", {"first": 1, "second": 2})])
LONG = "many words of an old answer " * 40

TURNS: dict[str, Callable[[], list[Any]]] = {
    "text": lambda: [Reply(text="one two three", pace=0.5)],
    "tool": lambda: [Reply(text="look ", tool_uses=[ToolUse("look")]), "done"],
    "two tools": lambda: [BOTH, "done"],
    "overflow": lambda: [ContextWindowOverflow(), "done"],
    "overflow after a tool": lambda: [BOTH, ContextWindowOverflow(tokens=100, limit=50), "done"],
    "throttled": lambda: [ModelThrottled(retry_after=3.0), "done"],
}


async def a_slow_handler(event: object) -> None:
    await trio.sleep(0.1)


class Stage:
    """A runtime with one session that has some history, and a reader of all its events."""

    def __init__(self, script: list[Any], *, slow_handler: bool = False, fault: Callable[[int], Fault] | None = None, lag: float = 0.0) -> None:
        self.script = [LONG, LONG, *script]
        self.journal = MemoryJournal(fault=fault, lag=lag)
        self.runtime = Runtime(self.journal, clock=VirtualClock(1), sync_calls="inline")
        self.slow_handler = slow_handler
        self.events: list[Any] = []
        self.session: Session

    async def __aenter__(self) -> Stage:
        await self.runtime.__aenter__()
        model = ScriptedModel(lambda messages: self.script.pop(0) if self.script else "ok")
        self.session = await self.runtime.open("s", AgentSpec(model=model, tools=[look, add]))
        self.reader = self.runtime.events.subscribe(buffer=10_000, overflow="disconnect")
        await self.reader.__aenter__()
        await self.session.ask("first")
        await self.session.ask("second")
        if self.slow_handler:
            self.session.add_handler(a_slow_handler)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.runtime.__aexit__(None, None, None)
        while (event := self.reader.take()) is not None:
            self.events.append(event)

    async def check(self, before: list[Any]) -> None:
        """The laws, once nothing is under way."""
        await trio.testing.wait_all_tasks_blocked()
        after = await self.session.messages()
        assert is_valid(after)
        assert after[: len(before)] == before or len(after) < len(before) + 6  # a reduction may have changed what was there
        actor = self.runtime.known("s").actor  # type: ignore[union-attr]
        assert isinstance(actor, SessionActor)
        replayed = SessionState()
        for record in await self.journal.read("s"):
            replayed.apply(record.body)
        assert replayed.view.entries == actor.state.view.entries
        result = await self.session.ask("and now?")
        assert result.stop_reason == "end_turn"
        assert is_valid(await self.session.messages())

    def check_events(self) -> None:
        started = [event.turn_id for event in self.events if isinstance(event, TurnStarted)]
        ended = [event.turn_id for event in self.events if isinstance(event, TurnEnded)]
        assert len(ended) == len(set(ended)), "a turn ended twice"
        assert set(started) <= set(ended), "a turn has no end"
        settled = [event.prompt_id for event in self.events if isinstance(event, PromptSettled)]
        assert len(settled) == len(set(settled)), "a prompt was settled twice"


def sweep(test: Callable[[int], Any]) -> int:
    """Run a scenario for step 1, 2, ... until it comes through untouched; returns how many steps it took."""
    for step in range(1, 2000):
        if not trio.run(test, step, clock=trio.testing.MockClock(autojump_threshold=0), strict_exception_groups=True):
            return step
    raise AssertionError("the scenario never came through")


@pytest.mark.parametrize("slow_handler", [False, True])
@pytest.mark.parametrize("kind", TURNS)
def test_the_asker_leaves_at_every_step(kind: str, slow_handler: bool) -> None:
    async def scenario(step: int) -> bool:
        stage = Stage(TURNS[kind](), slow_handler=slow_handler)
        async with stage:
            before = await stage.session.messages()
            with cancelled_at_step(step, of_anyone=True) as scope:
                await stage.session.ask("the question")
            await stage.check(before)
        stage.check_events()
        return scope.cancelled_caught

    assert sweep(scenario) > 1


@pytest.mark.parametrize("slow_handler", [False, True])
@pytest.mark.parametrize("kind", TURNS)
def test_the_turn_is_cancelled_at_every_step(kind: str, slow_handler: bool) -> None:
    """The turn's own task is the one that steps; each of its steps is the moment somebody cancels."""

    async def scenario(step: int) -> bool:
        stage = Stage(TURNS[kind](), slow_handler=slow_handler)
        async with stage:
            before = await stage.session.messages()
            cancelling = CancelAtStep(stage.session, step)
            trio.lowlevel.add_instrument(cancelling)
            result = await stage.session.ask("the question")
            trio.lowlevel.remove_instrument(cancelling)
            assert result.stop_reason in ("end_turn", "cancelled")
            await stage.check(before)
        stage.check_events()
        return cancelling.done

    assert sweep(scenario) > 1


class CancelAtStep(trio.abc.Instrument):
    """Cancels a session's running turn after any task's `step`-th step."""

    def __init__(self, session: Session, step: int) -> None:
        self.left = step
        self.done = False
        self.session = session

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left <= 0 and not self.done:
            actor = self.session._actor
            if actor is not None and actor.driver is not None:
                self.done = True
                actor.driver.cancel()


@pytest.mark.parametrize("lag", [0.0, 1.0])
@pytest.mark.parametrize("fault", ["refuse", "lose"])
@pytest.mark.parametrize("kind", TURNS)
def test_the_journal_fails_at_every_write(kind: str, fault: Fault, lag: float) -> None:
    async def scenario(write: int) -> bool:
        armed: list[int] = []

        def fails(number: int) -> Fault:
            if armed:
                armed[0] -= 1
                if armed[0] == 0:
                    return fault
            return None

        stage = Stage(TURNS[kind](), fault=fails, lag=lag)
        async with stage:
            before = await stage.session.messages()
            armed.append(write)
            failed = False
            try:
                await stage.session.ask("the question")
            except JournalUnavailable:
                failed = True
            stage.script.clear()
            armed.clear()
            await stage.check(before)
        stage.check_events()
        return failed

    assert sweep(scenario) > 1


async def test_the_runtime_is_cancelled_in_the_middle_of_a_turn() -> None:
    for seconds in (0.1, 0.6, 1.1, 1.6, 2.5):
        stage = Stage(TURNS["two tools"]())
        outcomes: list[object] = []

        async def ask(stage: Stage = stage, outcomes: list[object] = outcomes) -> None:
            try:
                outcomes.append(await stage.session.ask("the question"))
            except RopewalkError as error:
                outcomes.append(error)

        with trio.move_on_after(seconds):
            async with stage.runtime, anyio.create_task_group() as tasks:
                model = ScriptedModel([BOTH, Reply(text="done and done", pace=1.0)])
                stage.session = await stage.runtime.open("s", AgentSpec(model=model, tools=[look, add]))
                tasks.start_soon(ask)
                await trio.sleep_forever()

        replayed = SessionState()
        for record in await stage.journal.read("s"):
            replayed.apply(record.body)
        assert replayed.turn is None
        assert not replayed.view.messages or is_valid(replayed.view.messages)

"""Whole turns of a session under arbitrary scripts of its model: one end each, a sound session after it, and nothing lost that was said."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ropewalk import AgentResult, Event, Limits, ModelError, TurnEnded, TurnFailed, TurnStarted, tool
from ropewalk.actors.messages import tool_results, tool_uses
from ropewalk.actors.testing.loop import in_trio
from ropewalk.actors.testing.scripts import model_scripts
from ropewalk.actors.testing.strategies import texts
from ropewalk.runtime.supervision import Failure, attempt
from ropewalk.testing import Script, ScriptedModel
from talk import agent, assert_sound, transcript, virtual_runtime

STOP_REASONS = {"end_turn", "max_tokens", "stop_sequence", "content_filtered", "guardrail_intervened", "limit_cycles", "context_overflow"}


@tool
async def calculator(expression: str = "1 + 1") -> str:
    """Say what an expression comes to."""
    return expression


@tool
async def search(query: str = "rope") -> str:
    """Find nothing."""
    raise LookupError(query)


class Turns:
    """One agent whose model plays one script a turn."""

    def __init__(self, scripts: list[list[Script]], **options: Any) -> None:
        self.scripts = [iter(script) for script in scripts]
        self.spec = agent(ScriptedModel(lambda messages: next(self.scripts[0])), tools=[calculator, search], **options)
        self.outcomes: list[AgentResult | Failure] = []
        self.events: list[Event] = []

    async def ask(self, session: Any, prompt: str) -> None:
        self.outcomes.append(await attempt(session.ask(prompt)))
        del self.scripts[0]


@given(st.lists(model_scripts(), min_size=1, max_size=3), st.none() | st.integers(1, 3), st.random_module())
@in_trio
async def test_every_turn_ends_once_and_leaves_a_sound_session(scripts: list[list[Script]], cycles: int | None, schedule: object) -> None:
    turns = Turns(scripts, limits=Limits(cycles=cycles))
    async with virtual_runtime() as runtime:
        session = await runtime.open("scripted", turns.spec)
        session.add_handler(turns.events.append)
        for number in range(len(scripts)):
            await turns.ask(session, f"prompt {number}")
            await assert_sound(session)
        told = await transcript(session)

    begun = [event.turn_id for event in turns.events if isinstance(event, TurnStarted)]
    ended = [event for event in turns.events if isinstance(event, TurnEnded)]
    assert [event.turn_id for event in ended] == begun
    assert len(begun) == len(scripts)
    for outcome, event in zip(turns.outcomes, ended, strict=True):
        if isinstance(outcome, Failure):
            assert isinstance(outcome.error, ModelError | TurnFailed)
            assert event.stop_reason is None
        else:
            assert outcome.stop_reason == event.stop_reason
            assert outcome.stop_reason in STOP_REASONS
    assert [message for message, _ in told if message["content"][-1] in [{"text": f"prompt {number}"} for number in range(len(scripts))]]


@given(model_scripts(faults=False, inputs=st.fixed_dictionaries({"expression": texts(8)})), st.random_module())
@in_trio
async def test_a_script_without_faults_is_played_to_its_end(script: list[Script], schedule: object) -> None:
    turns = Turns([script])
    model = turns.spec.model
    assert isinstance(model, ScriptedModel)
    async with virtual_runtime() as runtime:
        session = await runtime.open("scripted", turns.spec)
        await turns.ask(session, "go on")
        await assert_sound(session)
        view = await session.messages()

    [outcome] = turns.outcomes
    assert isinstance(outcome, AgentResult)
    assert outcome.stop_reason == "end_turn"
    assert model.calls == outcome.metrics.cycle_count <= len(script)
    for said, answered in zip(view[1:-1:2], view[2::2], strict=True):
        assert [use["toolUseId"] for use in tool_uses(said)] == [result["toolUseId"] for result in tool_results(answered)]

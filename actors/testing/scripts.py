"""Hypothesis strategies for what happens in a turn: scripts for a model to play, and inputs of the turn machine.

They shrink towards the plain case: one text, no tools, no faults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from hypothesis import strategies as st

from ropewalk.actors.errors import ContextWindowOverflow, ModelError, ModelThrottled
from ropewalk.actors.limits import Limits
from ropewalk.actors.messages import Block, Message
from ropewalk.actors.testing.chunks import BAD_INPUTS, TOOL_NAMES
from ropewalk.actors.testing.scripted import Reply, Script, ToolUse
from ropewalk.actors.testing.strategies import texts, tool_inputs
from ropewalk.actors.turn import (
    Answers,
    BackingOff,
    Begin,
    CallingModel,
    Cancel,
    Deadline,
    DelayOver,
    Fault,
    Input,
    ModelDone,
    ModelFailed,
    Overflow,
    Paused,
    Progress,
    Ready,
    Reduced,
    Reducing,
    ReductionFailed,
    RunningTools,
    State,
    Throttled,
    ToolsAsked,
    ToolsDone,
)

__all__ = ["answers", "model_scripts", "replies", "tool_results_of", "turn_beginnings", "turn_inputs"]

STOP_REASONS = ("max_tokens", "stop_sequence", "content_filtered", "guardrail_intervened", "something_new")


# Scripts --------------------------------------------------------------------------------------------------------------


@st.composite
def replies(draw: st.DrawFn, tool_names: Sequence[str] = TOOL_NAMES, *, inputs: st.SearchStrategy[dict[str, Any]] | None = None, faults: bool = True) -> Script:
    """One step of a script for `ScriptedModel`: a text, calls of these tools, reasoning; with `faults` also whatever a model can do wrong.

    :param inputs: what the calls are made with; any JSON objects otherwise.
    """
    if faults and draw(_ONE_IN_FOUR):
        return draw(_faults())
    called = draw(st.lists(st.sampled_from(tool_names), max_size=3)) if tool_names else []
    given = tool_inputs() if inputs is None else inputs
    bad = st.sampled_from(BAD_INPUTS)
    uses = [ToolUse(draw(_sometimes(faults, st.just("no_such_tool"), st.just(name))), draw(_sometimes(faults, bad, given))) for name in called]
    if uses and draw(_sometimes(faults, st.just(True), st.just(False))):
        uses = [attrs.evolve(use, id="same") for use in uses]
    return Reply(
        text=draw(st.just("") | texts() | st.lists(texts(8), max_size=4)) if uses or faults else draw(texts()),
        reasoning=draw(st.just("") | texts()),
        tool_uses=tuple(uses),
        usage=draw(st.none() | st.just({"inputTokens": 10, "outputTokens": 5})),
        stop_reason=draw(_sometimes(faults, st.sampled_from(STOP_REASONS), st.none())),
        error=draw(_sometimes(faults, _errors(), st.none())),
    )


def model_scripts(
    tool_names: Sequence[str] = TOOL_NAMES,
    *,
    inputs: st.SearchStrategy[dict[str, Any]] | None = None,
    faults: bool = True,
    max_size: int = 8,
) -> st.SearchStrategy[list[Script]]:
    """Scripts for `ScriptedModel` that end in a plain text. See `replies`.

    A turn that comes to the end of its script fails, so a session that is asked more often than once gets one script a turn.
    """
    steps = st.lists(replies(tool_names, inputs=inputs, faults=faults), max_size=max_size)
    return st.builds(lambda steps, last: [*steps, last], steps, texts())


_ONE_IN_FOUR = st.sampled_from([False, False, False, True])


def _sometimes(may: bool, odd: st.SearchStrategy[Any], plain: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return _ONE_IN_FOUR.flatmap(lambda it_is: odd if it_is else plain) if may else plain


def _errors() -> st.SearchStrategy[Exception]:
    """What ends a model call; made anew each time, since an exception keeps what it went through."""
    makers: list[Callable[[], Exception]] = [
        lambda: ModelError("the connection was lost"),
        lambda: ContextWindowOverflow(),
        lambda: ContextWindowOverflow(tokens=3000, limit=1000),
        lambda: ModelThrottled(),
        lambda: ModelThrottled(retry_after=2.0),
        lambda: ValueError("a bug of the provider"),
    ]
    return st.sampled_from(makers).map(lambda make: make())


def _faults() -> st.SearchStrategy[Script]:
    dying = st.builds(lambda text, error: Reply(text=text, error=error), texts(), _errors())
    use = st.builds(ToolUse, st.sampled_from(TOOL_NAMES), st.just('{"a": '))
    cut_off = st.builds(lambda text, use: Reply(text=text, tool_uses=[use], stop_reason="max_tokens"), texts(), use)
    return _errors() | dying | cut_off | st.just(Reply())


# Inputs of the turn machine -------------------------------------------------------------------------------------------


@st.composite
def answers(draw: st.DrawFn, max_calls: int = 3) -> Message:
    """Complete answers of a model: text, reasoning, calls under different ids."""
    calls = draw(st.lists(st.sampled_from(["call_0", "call_1", "call_2", "call_3"]), max_size=max_calls, unique=True)) if max_calls else []
    said = draw(st.lists(st.builds(lambda text: {"text": text}, texts()) | st.just(_SIGNED), min_size=0 if calls else 1, max_size=2))
    uses = [{"toolUse": {"toolUseId": call, "name": draw(st.sampled_from(TOOL_NAMES)), "input": draw(tool_inputs())}} for call in calls]
    return {"role": "assistant", "content": [*said, *uses]}


def tool_results_of(calls: Sequence[Block]) -> st.SearchStrategy[tuple[Block, ...]]:
    """A result for each of these calls, in their order."""
    return st.tuples(*(_result_of(call) for call in calls))


def turn_beginnings(prompt: st.SearchStrategy[Message] | None = None) -> st.SearchStrategy[Begin]:
    """How turns begin: with a prompt under all kinds of limits, and going on where another incarnation left them."""
    asked = texts().map(lambda text: {"role": "user", "content": [{"text": text}]}) if prompt is None else prompt
    fresh = st.builds(Progress, st.just("turn"), st.just(("prompt",)), _limits())
    resumed = st.builds(
        Progress, st.just("turn"), st.just(("prompt",)), _limits(), cycle=st.integers(1, 4), output_tokens=st.integers(0, 60), total_tokens=st.integers(60, 200)
    )
    calls = answers().map(lambda message: tuple(block["toolUse"] for block in message["content"] if "toolUse" in block))
    return st.builds(Begin, fresh, asked) | st.builds(Begin, fresh, asked) | _goings_on(resumed, calls)


def _goings_on(progress: st.SearchStrategy[Progress], calls: st.SearchStrategy[tuple[Block, ...]]) -> st.SearchStrategy[Begin]:
    """With open calls, some of them malformed or in doubt; at the top of a cycle; or with an answer that ended it."""

    @st.composite
    def open_turns(draw: st.DrawFn) -> Begin:
        open_calls = draw(calls)
        ids = [call["toolUseId"] for call in open_calls]
        malformed = dict.fromkeys(draw(st.sets(st.sampled_from(ids)) if ids else st.just(set[str]())), "{")
        doubtful = draw(st.lists(st.sampled_from(ids), unique=True) if ids else st.just(list[str]()))
        stop_reason = None if open_calls else draw(st.none() | st.sampled_from(["end_turn", "max_tokens"]))
        return Begin(draw(progress), None, open_calls, malformed, stop_reason, tuple(doubtful))

    return open_turns()


def turn_inputs(state: State) -> st.SearchStrategy[Input]:
    """What may come next in this state of the turn machine; nothing can be drawn once it has ended."""
    match state:
        case Ready():
            return turn_beginnings()
        case CallingModel():
            return _model_outcomes() | _model_outcomes() | _model_outcomes() | _stops()
        case RunningTools(calls=calls):
            done = tool_results_of(calls).map(ToolsDone)
            return done | done | done | _asked(calls) | _stops()
        case Reducing():
            return st.builds(Reduced) | st.builds(Reduced) | st.builds(ReductionFailed) | _stops()
        case BackingOff():
            return st.builds(DelayOver) | st.builds(DelayOver) | st.builds(DelayOver) | _stops()
        case Paused():
            return st.builds(Answers) | st.builds(Answers) | st.builds(Cancel)
        case _:
            return st.nothing()


_SIGNED: Block = {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}}


def _limits() -> st.SearchStrategy[Limits]:
    few = st.none() | st.integers(1, 5)
    tokens = st.none() | st.integers(1, 120)
    return st.builds(Limits, cycles=few, output_tokens=tokens, total_tokens=tokens)


def _result_of(call: Block) -> st.SearchStrategy[Block]:
    def result(status: str, text: str) -> Block:
        return {"toolUseId": call["toolUseId"], "status": status, "content": [{"text": text}]}

    return st.builds(result, st.sampled_from(["success", "error"]), texts())


def _model_outcomes() -> st.SearchStrategy[Input]:
    @st.composite
    def done(draw: st.DrawFn) -> ModelDone:
        message = draw(answers())
        ids = [block["toolUse"]["toolUseId"] for block in message["content"] if "toolUse" in block]
        malformed = dict.fromkeys(draw(st.lists(st.sampled_from(ids), unique=True)) if ids else [], "{")
        read, written = draw(st.integers(0, 60)), draw(st.integers(0, 60))
        stop_reason = draw(st.sampled_from(["end_turn", "tool_use", "tool_use", "tool_use", *STOP_REASONS]))
        return ModelDone(message, stop_reason, written, read + written, malformed)

    overflow = st.builds(Overflow) | st.builds(Overflow, st.integers(1000, 9000), st.integers(100, 999))
    throttled = st.builds(Throttled, st.builds(ModelThrottled), st.floats(0, 60))
    return done() | done() | done() | overflow | throttled | st.builds(ModelFailed, st.builds(ModelError))


def _asked(calls: Sequence[Block]) -> st.SearchStrategy[Input]:
    """Some calls, at least one, ask a person; the others have their results."""

    @st.composite
    def asked(draw: st.DrawFn) -> ToolsAsked:
        asking = draw(st.lists(st.sampled_from([call["toolUseId"] for call in calls]), min_size=1, unique=True))
        results = draw(tool_results_of([call for call in calls if call["toolUseId"] not in asking]))
        return ToolsAsked(results, tuple({"id": tool_use_id, "name": "approval", "reason": None} for tool_use_id in asking))

    return asked()


def _stops() -> st.SearchStrategy[Input]:
    return st.builds(Cancel) | st.builds(Deadline) | st.builds(Fault, st.builds(RuntimeError))

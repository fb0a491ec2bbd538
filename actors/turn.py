"""The turn machine: all that can happen between a prompt and its end, as one pure function.

`step(state, input)` gives the next state and the effects to carry out. It never awaits, reads no clock and keeps nothing,
so every sequence of inputs can be tried. Three rules:

1. Every transition is in `TRANSITIONS`; an input that is not legal in a state is a bug of the caller (`IllegalInput`).
2. The effects of one step are carried out in order, and at most the last of them (`CallModel`, `RunTools`, `Reduce`,
   `Wait`) takes time; how it ends is the next input.
3. Every turn that began reaches `Ended` by exactly one `Finish`, after which no input is legal.

Chunks of a model's answer don't pass through here: whoever carries out `CallModel` assembles them and feeds `ModelDone`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import msgspec

from ropewalk.actors.events import CycleStarted, Event, ModelRetry, TurnPaused, TurnResumed, TurnStarted
from ropewalk.actors.limits import Limits
from ropewalk.actors.messages import Block, Message, calls_tools, tool_uses
from ropewalk.runtime.errors import RopewalkError

__all__ = [
    "TRANSITIONS",
    "Answers",
    "BackingOff",
    "Begin",
    "CallModel",
    "CallingModel",
    "Cancel",
    "Deadline",
    "DelayOver",
    "Effect",
    "Ended",
    "Fault",
    "Finish",
    "How",
    "IllegalInput",
    "Input",
    "ModelDone",
    "ModelFailed",
    "Overflow",
    "Paused",
    "Progress",
    "Publish",
    "Ready",
    "Record",
    "Reduce",
    "Reduced",
    "Reducing",
    "ReductionFailed",
    "RunTools",
    "RunningTools",
    "State",
    "Throttled",
    "ToolsAsked",
    "ToolsDone",
    "Wait",
    "step",
]

How: TypeAlias = Literal["finished", "stopped", "cancelled", "failed"]
"""How a turn ended, which decides what it leaves in the view: `stopped` is by a limit in the middle of something."""

MODEL_RETRIES = 5
MODEL_PATIENCE = 3600.0
"""The longest wait, in seconds, that a provider may ask for: a turn whose provider wants more fails with what it said."""
OVERFLOW_SHARES = (1 / 2, 1 / 8, 0.0)
"""How much of what did not fit may stay, at the first, second and third overflow of a cycle; a fourth ends the turn."""


class Progress(msgspec.Struct, frozen=True):
    """What a turn has come to, and all that outlives the state it is in.

    `cycle` counts model calls from 1; `overflows` and `attempts` (throttled calls) count within the cycle; `acted` says that
    a tool of this turn has begun, so the turn can no longer be undone; tokens are the turn's own, as the model reports them.
    """

    turn_id: str
    prompt_ids: tuple[str, ...]
    limits: Limits
    cycle: int = 0
    overflows: int = 0
    attempts: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    acted: bool = False


# States.


class Ready(msgspec.Struct, frozen=True):
    """No turn has begun."""


class CallingModel(msgspec.Struct, frozen=True):
    """The model is answering."""

    turn: Progress


class RunningTools(msgspec.Struct, frozen=True):
    """The calls of the last assistant message are being worked on; `settled` are results there already (after a pause)."""

    turn: Progress
    calls: tuple[Block, ...]
    settled: tuple[Block, ...] = ()


class Reducing(msgspec.Struct, frozen=True):
    """The view is being made smaller because the model refused its size."""

    turn: Progress


class BackingOff(msgspec.Struct, frozen=True):
    """The provider asked for patience."""

    turn: Progress


class Paused(msgspec.Struct, frozen=True):
    """Some of the calls asked a person; `settled` are the results of the others."""

    turn: Progress
    calls: tuple[Block, ...]
    settled: tuple[Block, ...]


class Ended(msgspec.Struct, frozen=True):
    """Nothing more happens."""

    turn: Progress
    how: How
    stop_reason: str | None


State: TypeAlias = Ready | CallingModel | RunningTools | Reducing | BackingOff | Paused | Ended


# Inputs.


class Begin(msgspec.Struct, frozen=True):
    """A turn begins with this prompt, or goes on without one after its process died.

    It goes on where the recovered view ends: with `open_calls` (of which `malformed` is as in `ModelDone`), with its end where the
    last answer was recorded with this `stop_reason`, else at the top of a cycle. `in_doubt` are calls nobody knows the outcome of.
    """

    turn: Progress
    prompt: Message | None
    open_calls: tuple[Block, ...] = ()
    malformed: dict[str, str] = {}
    stop_reason: str | None = None
    in_doubt: tuple[str, ...] = ()


class ModelDone(msgspec.Struct, frozen=True):
    """The model's answer is complete and valid. `malformed` holds the raw input of calls whose input is no JSON object, by id."""

    message: Message
    stop_reason: str
    output_tokens: int = 0
    total_tokens: int = 0
    malformed: dict[str, str] = {}


class Overflow(msgspec.Struct, frozen=True):
    """The model refused the size of what it was shown; `tokens` and `limit` as far as it says."""

    tokens: int | None = None
    limit: int | None = None


class Throttled(msgspec.Struct, frozen=True):
    """The provider asked for patience before anything was streamed; `delay` is in seconds."""

    error: Exception
    delay: float


class ModelFailed(msgspec.Struct, frozen=True):
    """The model call failed for good."""

    error: Exception


class ToolsDone(msgspec.Struct, frozen=True):
    """Every call of the message has its result, in the order of the calls."""

    results: tuple[Block, ...]


class ToolsAsked(msgspec.Struct, frozen=True):
    """Some calls asked a person; `results` are those of the others."""

    results: tuple[Block, ...]
    interrupts: tuple[dict[str, Any], ...]


class Reduced(msgspec.Struct, frozen=True):
    """The view is smaller now."""


class ReductionFailed(msgspec.Struct, frozen=True):
    """The view cannot be made smaller."""


class DelayOver(msgspec.Struct, frozen=True):
    """The wait is over."""


class Answers(msgspec.Struct, frozen=True):
    """The person answered."""


class Cancel(msgspec.Struct, frozen=True):
    """Somebody who may end the turn did."""


class Deadline(msgspec.Struct, frozen=True):
    """The turn's `Limits.seconds` are used up."""


class Fault(msgspec.Struct, frozen=True):
    """Something that is no model's and no tool's failed: a handler that may fail turns, or a bug."""

    error: Exception


Input: TypeAlias = (
    Begin
    | ModelDone
    | Overflow
    | Throttled
    | ModelFailed
    | ToolsDone
    | ToolsAsked
    | Reduced
    | ReductionFailed
    | DelayOver
    | Answers
    | Cancel
    | Deadline
    | Fault
)


# Effects.


class CallModel(msgspec.Struct, frozen=True):
    """Call the model with the view."""


class RunTools(msgspec.Struct, frozen=True):
    """Run these calls. Those `malformed` (raw input by id) get an error result that says so; `settled` have theirs."""

    calls: tuple[Block, ...]
    malformed: dict[str, str] = {}
    settled: tuple[Block, ...] = ()


class Reduce(msgspec.Struct, frozen=True):
    """Make the view smaller: to `limit` where the model named one (it counted `tokens`), else to `share` of what it is."""

    share: float
    tokens: int | None
    limit: int | None


class Wait(msgspec.Struct, frozen=True):
    """Let so many seconds pass."""

    seconds: float


class Record(msgspec.Struct, frozen=True):
    """Add a message to the view and the journal."""

    message: Message


class Publish(msgspec.Struct, frozen=True):
    """Publish an event of this kind with these payload fields."""

    kind: type[Event]
    fields: tuple[Any, ...] = ()


class Finish(msgspec.Struct, frozen=True):
    """Settle the turn."""

    how: How
    stop_reason: str | None
    error: Exception | None = None


Effect: TypeAlias = CallModel | RunTools | Reduce | Wait | Record | Publish | Finish
Step: TypeAlias = tuple[State, tuple[Effect, ...]]


TRANSITIONS: dict[type[State], dict[type[Input], tuple[type[State], ...]]] = {
    Ready: {Begin: (CallingModel, RunningTools, Ended)},
    CallingModel: {
        ModelDone: (RunningTools, Ended),
        Overflow: (Reducing, Ended),
        Throttled: (BackingOff, Ended),
        ModelFailed: (Ended,),
        Cancel: (Ended,),
        Deadline: (Ended,),
        Fault: (Ended,),
    },
    RunningTools: {ToolsDone: (CallingModel, Ended), ToolsAsked: (Paused,), Cancel: (Ended,), Deadline: (Ended,), Fault: (Ended,)},
    Reducing: {Reduced: (CallingModel,), ReductionFailed: (Ended,), Cancel: (Ended,), Deadline: (Ended,), Fault: (Ended,)},
    BackingOff: {DelayOver: (CallingModel,), Cancel: (Ended,), Deadline: (Ended,), Fault: (Ended,)},
    Paused: {Answers: (RunningTools,), Cancel: (Ended,)},
    Ended: {},
}


class IllegalInput(RopewalkError):
    """An input came that has no meaning in the state, or would leave it by no transition there is; a bug in Ropewalk."""


def step(state: State, given: Input) -> Step:
    """The state after an input, and the effects to carry out in order. Raises `IllegalInput`."""
    legal = TRANSITIONS[type(state)].get(type(given))
    if legal is None:
        raise IllegalInput(f"{type(given).__name__} means nothing in {type(state).__name__}")
    following, effects = _RULES[type(given)](state, given)
    if type(following) not in legal:
        raise IllegalInput(f"{type(state).__name__} may not become {type(following).__name__} on {type(given).__name__}")
    return following, effects


def _begin(state: Ready, given: Begin) -> Step:
    if given.prompt is not None:
        return _start_cycle(given.turn, Publish(TurnStarted, (given.turn.prompt_ids,)), Record(given.prompt))
    resumed = Publish(TurnResumed, (given.in_doubt,))
    if given.open_calls:
        return _run_tools(given.turn, given.open_calls, (), resumed, malformed=given.malformed)
    if given.stop_reason is not None:
        return _end(given.turn, "finished", given.stop_reason, None, resumed)
    return _start_cycle(given.turn, resumed)


def _start_cycle(turn: Progress, *before: Effect) -> Step:
    reached = _limit_reached(turn)
    if reached is not None:
        return _end(turn, "finished", reached, None, *before)
    turn = _counted(turn, cycle=turn.cycle + 1)
    return CallingModel(turn), (*before, Publish(CycleStarted, (turn.cycle,)), CallModel())


def _limit_reached(turn: Progress) -> str | None:
    limits = turn.limits
    if limits.cycles is not None and turn.cycle >= limits.cycles:
        return "limit_cycles"
    if limits.total_tokens is not None and turn.total_tokens >= limits.total_tokens:
        return "limit_total_tokens"
    if limits.output_tokens is not None and turn.output_tokens >= limits.output_tokens:
        return "limit_output_tokens"
    return None


def _counted(turn: Progress, *, cycle: int, output: int = 0, total: int = 0, acted: bool = False) -> Progress:
    """The turn with a new cycle's counters; written out because `structs.replace` costs ten times as much on every cycle."""
    same = cycle == turn.cycle
    return Progress(
        turn.turn_id,
        turn.prompt_ids,
        turn.limits,
        cycle,
        turn.overflows if same else 0,
        turn.attempts if same else 0,
        turn.output_tokens + output,
        turn.total_tokens + total,
        turn.acted or acted,
    )


def _model_done(state: CallingModel, given: ModelDone) -> Step:
    turn = _counted(state.turn, cycle=state.turn.cycle, output=given.output_tokens, total=given.total_tokens)
    record = Record(given.message)
    calls = tuple(tool_uses(given.message)) if calls_tools(given.message) else ()
    if given.stop_reason in ("tool_use", "end_turn"):
        # What the answer holds decides, not what the provider calls it: some say end_turn beside a tool call.
        if calls:
            return _run_tools(turn, calls, (), record, malformed=given.malformed)
        return _end(turn, "finished", "end_turn", None, record)
    return _end(turn, "finished", given.stop_reason, None, record)


def _run_tools(turn: Progress, calls: tuple[Block, ...], settled: tuple[Block, ...], *before: Effect, malformed: dict[str, str] | None = None) -> Step:
    turn = _counted(turn, cycle=turn.cycle, acted=True)
    return RunningTools(turn, calls, settled), (*before, RunTools(calls, malformed or {}, settled))


def _overflow(state: CallingModel, given: Overflow) -> Step:
    turn = state.turn
    if turn.overflows >= len(OVERFLOW_SHARES):
        return _end(turn, "failed", "context_overflow", None)
    share = OVERFLOW_SHARES[turn.overflows]
    return Reducing(msgspec.structs.replace(turn, overflows=turn.overflows + 1)), (Reduce(share, given.tokens, given.limit),)


def _throttled(state: CallingModel, given: Throttled) -> Step:
    turn = state.turn
    if turn.attempts >= MODEL_RETRIES or given.delay > MODEL_PATIENCE:
        return _end(turn, "failed", None, given.error)
    turn = msgspec.structs.replace(turn, attempts=turn.attempts + 1)
    retry = Publish(ModelRetry, (turn.attempts + 1, given.delay, type(given.error).__name__, None))
    return BackingOff(turn), (retry, Wait(given.delay))


def _tools_done(state: RunningTools, given: ToolsDone) -> Step:
    if [result["toolUseId"] for result in given.results] != [call["toolUseId"] for call in state.calls]:
        raise IllegalInput("ToolsDone has one result for each call, in their order")
    return _start_cycle(state.turn, Record({"role": "user", "content": [{"toolResult": result} for result in given.results]}))


def _tools_asked(state: RunningTools, given: ToolsAsked) -> Step:
    return Paused(state.turn, state.calls, given.results), (Publish(TurnPaused, (given.interrupts,)),)


def _answers(state: Paused, given: Answers) -> Step:
    return _run_tools(state.turn, state.calls, state.settled, Publish(TurnResumed))


def _call_again(state: Reducing | BackingOff, given: Reduced | DelayOver) -> Step:
    return CallingModel(state.turn), (CallModel(),)


def _reduction_failed(state: Reducing, given: ReductionFailed) -> Step:
    return _end(state.turn, "failed", "context_overflow", None)


def _failed(state: CallingModel, given: ModelFailed | Fault) -> Step:
    return _end(state.turn, "failed", None, given.error)


def _cancel(state: CallingModel, given: Cancel) -> Step:
    return _end(state.turn, "cancelled", "cancelled", None)


def _deadline(state: CallingModel, given: Deadline) -> Step:
    return _end(state.turn, "stopped", "limit_seconds", None)


def _end(turn: Progress, how: How, stop_reason: str | None, error: Exception | None, *before: Effect) -> Step:
    return Ended(turn, how, stop_reason), (*before, Finish(how, stop_reason, error))


_RULES: dict[type[Input], Callable[[Any, Any], Step]] = {
    Begin: _begin,
    ModelDone: _model_done,
    Overflow: _overflow,
    Throttled: _throttled,
    ModelFailed: _failed,
    ToolsDone: _tools_done,
    ToolsAsked: _tools_asked,
    Reduced: _call_again,
    ReductionFailed: _reduction_failed,
    DelayOver: _call_again,
    Answers: _answers,
    Cancel: _cancel,
    Deadline: _deadline,
    Fault: _failed,
}

"""The turn machine under arbitrary inputs: what it may become, what it has done, and that it always ends once."""

from __future__ import annotations

import itertools
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.actors.errors import ModelError, ModelThrottled
from ropewalk.actors.events import CycleStarted, ModelRetry, TurnPaused, TurnResumed, TurnStarted
from ropewalk.actors.limits import Limits
from ropewalk.actors.messages import Message, assistant, tool_results, tool_uses, user
from ropewalk.actors.testing.scripts import turn_beginnings, turn_inputs
from ropewalk.actors.turn import (
    MODEL_RETRIES,
    OVERFLOW_SHARES,
    TRANSITIONS,
    Answers,
    BackingOff,
    Begin,
    CallingModel,
    CallModel,
    Cancel,
    Deadline,
    DelayOver,
    Effect,
    Ended,
    Fault,
    Finish,
    IllegalInput,
    Input,
    ModelDone,
    ModelFailed,
    Overflow,
    Paused,
    Progress,
    Publish,
    Ready,
    Record,
    Reduce,
    Reduced,
    Reducing,
    ReductionFailed,
    RunningTools,
    RunTools,
    State,
    Step,
    Throttled,
    ToolsAsked,
    ToolsDone,
    Wait,
    step,
)
from ropewalk.actors.validity import is_open, is_valid
from ropewalk.runtime.errors import InvalidOption

DOCS = Path(__file__).resolve().parent.parent / "docs"

STATES: tuple[type[State], ...] = get_args(State)
INPUTS: tuple[type[Input], ...] = get_args(Input)
TIMED = (CallModel, RunTools, Reduce, Wait)
LEAVES = [(state, given, following) for state, inputs in TRANSITIONS.items() for given, followings in inputs.items() for following in followings]

THROTTLED = Throttled(ModelThrottled(), 1.0)


def beginning(limits: Limits | None = None, prompt: Message | None = None, **counts: Any) -> Begin:
    return Begin(Progress("turn", ("prompt",), limits or Limits(), **counts), prompt or user("hi"))


def use(tool_use_id: str = "a") -> dict[str, Any]:
    return {"toolUseId": tool_use_id, "name": "search", "input": {}}


def calling(*ids: str, output_tokens: int = 0, total_tokens: int = 0) -> ModelDone:
    return ModelDone(assistant(*({"toolUse": use(tool_use_id)} for tool_use_id in ids)), "tool_use", output_tokens, total_tokens)


def result(tool_use_id: str = "a", text: str = "found") -> dict[str, Any]:
    return {"toolUseId": tool_use_id, "status": "success", "content": [{"text": text}]}


def done(*ids: str) -> ToolsDone:
    return ToolsDone(tuple(map(result, ids)))


def times(number: int, *inputs: Input) -> tuple[Input, ...]:
    return inputs * number


def played(*inputs: Input) -> Step:
    """The state after these inputs, and the effects of the last."""
    state: State = Ready()
    effects: tuple[Effect, ...] = ()
    for given_input in inputs:
        state, effects = step(state, given_input)
    return state, effects


ANSWER = ModelDone(assistant("done"), "end_turn")
BEGUN = beginning()
CALLING, RUNNING = (BEGUN,), (BEGUN, calling("a", "b"))
PAUSED = (*RUNNING, ToolsAsked((result("a"),), ({"id": "i"},)))
BACKING_OFF, REDUCING = (BEGUN, THROTTLED), (BEGUN, Overflow())
ONE_CYCLE = beginning(Limits(cycles=1))
RESUMED = Begin(Progress("turn", ("prompt",), Limits(cycles=1), cycle=1), None, (use(),))

PATHS: dict[tuple[type[State], type[Input], type[State]], tuple[Input, ...]] = {
    (Ready, Begin, CallingModel): (BEGUN,),
    (Ready, Begin, RunningTools): (RESUMED,),
    (Ready, Begin, Ended): (msgspec.structs.replace(RESUMED, open_calls=()),),
    (CallingModel, ModelDone, RunningTools): RUNNING,
    (CallingModel, ModelDone, Ended): (BEGUN, ANSWER),
    (CallingModel, Overflow, Reducing): REDUCING,
    (CallingModel, Overflow, Ended): (BEGUN, *times(3, Overflow(), Reduced()), Overflow()),
    (CallingModel, Throttled, BackingOff): BACKING_OFF,
    (CallingModel, Throttled, Ended): (BEGUN, *times(MODEL_RETRIES, THROTTLED, DelayOver()), THROTTLED),
    (CallingModel, ModelFailed, Ended): (BEGUN, ModelFailed(ModelError())),
    (RunningTools, ToolsDone, CallingModel): (*RUNNING, done("a", "b")),
    (RunningTools, ToolsDone, Ended): (ONE_CYCLE, calling("a"), done("a")),
    (RunningTools, ToolsAsked, Paused): PAUSED,
    (Reducing, Reduced, CallingModel): (*REDUCING, Reduced()),
    (Reducing, ReductionFailed, Ended): (*REDUCING, ReductionFailed()),
    (BackingOff, DelayOver, CallingModel): (*BACKING_OFF, DelayOver()),
    (Paused, Answers, RunningTools): (*PAUSED, Answers()),
    (Paused, Cancel, Ended): (*PAUSED, Cancel()),
    **{
        (state, type(stop), Ended): (*path, stop)
        for state, path in ((CallingModel, CALLING), (RunningTools, RUNNING), (Reducing, REDUCING), (BackingOff, BACKING_OFF))
        for stop in (Cancel(), Deadline(), Fault(RuntimeError()))
    },
}
"""A way to each transition of the table."""


def short_name(leaves: tuple[type[Any], ...]) -> str:
    return "-".join(part.__name__ for part in leaves)


class TestTable:
    def test_names_every_state_and_every_input(self) -> None:
        assert set(TRANSITIONS) == set(STATES)
        assert {given_input for inputs in TRANSITIONS.values() for given_input in inputs} == set(INPUTS)

    def test_has_a_way_to_each_of_its_transitions(self) -> None:
        assert set(PATHS) == set(LEAVES)

    @pytest.mark.parametrize("leaves", LEAVES, ids=short_name)
    def test_is_what_the_machine_does(self, leaves: tuple[type[State], type[Input], type[State]]) -> None:
        before, _ = played(*PATHS[leaves][:-1])
        after, _ = step(before, PATHS[leaves][-1])

        assert (type(before), type(PATHS[leaves][-1]), type(after)) == leaves

    @pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
    def test_lets_nothing_else_happen(self, state: type[State]) -> None:
        [reached] = {type(reached): reached for path in PATHS.values() if type(reached := played(*path)[0]) is state}.values() or [Ready()]
        samples = {type(given_input): given_input for path in PATHS.values() for given_input in path}
        for kind, sample in samples.items():
            if kind not in TRANSITIONS[state]:
                before = repr(reached)
                with pytest.raises(IllegalInput, match=f"{kind.__name__} means nothing in {state.__name__}"):
                    step(reached, sample)
                assert repr(reached) == before

    def test_of_results_that_are_not_those_of_the_calls_lets_none_pass(self) -> None:
        state, _ = played(*RUNNING)
        for ids in (("a",), ("b", "a"), ("a", "b", "c"), ()):
            with pytest.raises(IllegalInput, match="one result for each call"):
                step(state, done(*ids))


class Conversation:
    """What a turn's records come to, and whether its effects were carried out as the machine's rules say."""

    def __init__(self) -> None:
        self.state: State = Ready()
        self.messages: list[Message] = []
        self.effects: list[Effect] = []

    def take(self, given_input: Input) -> None:
        before, (self.state, effects) = self.state, step(self.state, given_input)
        assert type(self.state) in TRANSITIONS[type(before)][type(given_input)]
        assert effects, "every step has an effect"
        assert not any(isinstance(effect, TIMED) for effect in effects[:-1]), "what takes time comes last"
        assert not any(isinstance(effect, Finish) for effect in effects[:-1]), "nothing comes after the end"
        assert isinstance(effects[-1], Finish) == isinstance(self.state, Ended)
        if isinstance(given_input, Begin) and given_input.prompt is None:  # the records of another incarnation
            self.messages = [user("hi"), *([assistant(*({"toolUse": call} for call in given_input.open_calls))] if given_input.open_calls else [])]
        self.messages += [effect.message for effect in effects if isinstance(effect, Record)]
        self.effects += effects


@st.composite
def turns(draw: st.DrawFn) -> Conversation:
    """A turn worked on by legal inputs, to its end or to somewhere in it."""
    turn = Conversation()
    for _ in range(draw(st.integers(1, 30))):
        if isinstance(turn.state, Ended):
            break
        turn.take(draw(turn_inputs(turn.state)))
    return turn


class TestEveryTurn:
    @given(st.data())
    def test_is_a_conversation_at_every_step(self, data: st.DataObject) -> None:
        turn = Conversation()
        for _ in range(data.draw(st.integers(1, 30), label="steps")):
            turn.take(data.draw(turn_inputs(turn.state)))
            match turn.state:
                case RunningTools(calls=calls) | Paused(calls=calls):
                    assert is_open(turn.messages)
                    assert list(calls) == tool_uses(turn.messages[-1])
                case Ended():
                    assert is_valid(turn.messages) or is_open(turn.messages)
                    break
                case _:
                    assert is_valid(turn.messages)

    @given(turns())
    def test_ends_once(self, turn: Conversation) -> None:
        finishes = [effect for effect in turn.effects if isinstance(effect, Finish)]

        assert len(finishes) == isinstance(turn.state, Ended)
        if isinstance(turn.state, Ended):
            assert turn.effects[-1] == finishes[0] == Finish(turn.state.how, turn.state.stop_reason, finishes[0].error)
            assert (finishes[0].error is None) or turn.state.how == "failed"
            assert (finishes[0].stop_reason is None) == (finishes[0].error is not None)

    @given(turns())
    def test_that_ended_takes_nothing_more(self, turn: Conversation) -> None:
        if isinstance(turn.state, Ended):
            for given_input in {type(path[-1]): path[-1] for path in PATHS.values()}.values():
                with pytest.raises(IllegalInput):
                    step(turn.state, given_input)

    @given(turns(), st.sampled_from([Cancel(), Deadline(), Fault(RuntimeError())]))
    def test_can_be_ended_wherever_it_is(self, turn: Conversation, stop: Input) -> None:
        if type(stop) in TRANSITIONS[type(turn.state)]:
            state, effects = step(turn.state, stop)

            assert isinstance(state, Ended)
            assert [type(effect) for effect in effects] == [Finish]
        else:
            assert isinstance(turn.state, Ended | Paused)

    @given(turns())
    def test_counts_its_cycles_and_tells_of_each(self, turn: Conversation) -> None:
        told = [effect.fields[0] for effect in turn.effects if isinstance(effect, Publish) and effect.kind is CycleStarted]

        assert told == list(range(told[0], told[0] + len(told))) if told else True
        assert not isinstance(turn.state, Ready)
        assert not told or turn.state.turn.cycle == told[-1]
        assert sum(isinstance(effect, CallModel) for effect in turn.effects) >= len(told)

    @given(turns())
    def test_keeps_within_its_bounds(self, turn: Conversation) -> None:
        cycles = [list(cycle) for cycle in _cycles(turn.effects)]
        for cycle in cycles:
            shares = [effect.share for effect in cycle if isinstance(effect, Reduce)]
            assert shares == list(OVERFLOW_SHARES[: len(shares)])
            assert sum(isinstance(effect, Wait) for effect in cycle) <= MODEL_RETRIES
        assert not isinstance(turn.state, Ready)
        limit = turn.state.turn.limits.cycles
        assert limit is None or turn.state.turn.cycle <= max(limit, 4)

    @given(turns())
    def test_records_before_it_goes_on(self, turn: Conversation) -> None:
        """The prompt before the first model call, answers before their tools, results before the next model call, everything before the end."""
        names = [effect.kind if isinstance(effect, Publish) else type(effect) for effect in turn.effects]

        assert names[0] in (TurnStarted, TurnResumed)
        assert names.count(TurnStarted) == (names[0] is TurnStarted)
        later = names[1:]
        for before, after in itertools.pairwise(names):
            assert after not in (RunTools, TurnPaused) or before in (Record, TurnStarted, TurnResumed, RunTools)
            assert after is not CycleStarted or before in (Record, TurnResumed)
            assert before is not CycleStarted or after is CallModel
            assert before is not ModelRetry or after is Wait
            assert before is not Wait or after in (CallModel, Finish)
            assert before is not TurnResumed or after in (RunTools, CycleStarted, Finish)
        assert later.count(TurnPaused) - later.count(TurnResumed) in (0, 1)

    @given(turns())
    def test_has_acted_once_tools_were_to_run(self, turn: Conversation) -> None:
        assert not isinstance(turn.state, Ready)
        assert turn.state.turn.acted == any(isinstance(effect, RunTools) for effect in turn.effects)


def _cycles(effects: list[Effect]) -> Iterator[Iterator[Effect]]:
    numbers = itertools.accumulate(isinstance(effect, Publish) and effect.kind is CycleStarted for effect in effects)
    for _, cycle in itertools.groupby(zip(numbers, effects, strict=True), key=lambda pair: pair[0]):
        yield (effect for _, effect in cycle)


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "stop_reason"),
        [
            (Limits(cycles=1), "limit_cycles"),
            (Limits(total_tokens=12), "limit_total_tokens"),
            (Limits(output_tokens=5), "limit_output_tokens"),
            (Limits(total_tokens=12, output_tokens=5), "limit_total_tokens"),
            (Limits(cycles=1, total_tokens=12, output_tokens=5), "limit_cycles"),
        ],
    )
    def test_end_the_turn_at_the_top_of_a_cycle(self, limits: Limits, stop_reason: str) -> None:
        state, effects = played(beginning(limits), calling("a", output_tokens=5, total_tokens=12))
        assert isinstance(state, RunningTools)  # the tools of the cycle that reached it still run

        state, effects = step(state, done("a"))
        assert isinstance(state, Ended)
        assert [type(effect) for effect in effects] == [Record, Finish]
        assert effects[-1] == Finish("finished", stop_reason)

    @given(st.integers(1, 20), st.integers(0, 9), st.integers(0, 9))
    def test_let_as_many_cycles_run_as_they_say(self, cycles: int, output: int, read: int) -> None:
        limits = Limits(cycles=cycles, output_tokens=30, total_tokens=60)
        state, _ = step(Ready(), beginning(limits))
        calls = 0
        while not isinstance(state, Ended):
            calls += 1
            state, _ = step(state, calling("a", output_tokens=output, total_tokens=output + read))
            assert isinstance(state, RunningTools)
            assert (state.turn.output_tokens, state.turn.total_tokens) == (calls * output, calls * (output + read))
            state, _ = step(state, done("a"))

        by_total, by_output = (-(-60 // (output + read)) if output + read else 99), (-(-30 // output) if output else 99)
        assert calls == min(cycles, by_total, by_output)
        assert state.stop_reason == {cycles: "limit_cycles"}.get(calls, {by_total: "limit_total_tokens"}.get(calls, "limit_output_tokens"))

    def test_of_none_end_nothing(self) -> None:
        state, _ = played(beginning(Limits(cycles=None)), *times(500, calling("a", output_tokens=10**9, total_tokens=10**9), done("a")))

        assert isinstance(state, CallingModel)
        assert state.turn.cycle == 501

    @pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "3", float("nan"), float("inf")])
    def test_are_whole_numbers_from_one_on(self, wrong: Any) -> None:
        for name in ("cycles", "output_tokens", "total_tokens"):
            with pytest.raises(InvalidOption, match=f"Limits.{name} is a whole number of at least 1, or None for no limit, not"):
                Limits(**{name: wrong})

    @pytest.mark.parametrize("wrong", [0, -1, -0.5, True, "3", float("nan")])
    def test_of_time_are_seconds_above_zero(self, wrong: Any) -> None:
        for name in ("seconds", "stream_idle_seconds", "reduction_seconds"):
            with pytest.raises(InvalidOption, match=f"Limits.{name} is a number of seconds above 0, or None for no limit, not"):
                Limits(**{name: wrong})

    def test_hold_for_a_turn_that_goes_on_elsewhere(self) -> None:
        state, effects = step(Ready(), msgspec.structs.replace(RESUMED, open_calls=()))

        assert isinstance(state, Ended)
        assert effects == (Publish(TurnResumed, ((),)), Finish("finished", "limit_cycles"))

    def test_a_turn_whose_last_answer_was_recorded_is_only_ended(self) -> None:
        state, effects = step(Ready(), msgspec.structs.replace(RESUMED, open_calls=(), stop_reason="max_tokens"))

        assert isinstance(state, Ended)
        assert effects == (Publish(TurnResumed, ((),)), Finish("finished", "max_tokens"))


class TestModelCalls:
    def test_that_overflow_get_less_each_time_and_then_no_more(self) -> None:
        state, _ = played(BEGUN)
        for share in OVERFLOW_SHARES:
            state, effects = step(state, Overflow(3000, 1000))
            assert effects == (Reduce(share, 3000, 1000),)
            state, effects = step(state, Reduced())
            assert effects == (CallModel(),)
        state, effects = step(state, Overflow())

        assert effects == (Finish("failed", "context_overflow"),)

    def test_that_overflow_start_again_in_the_next_cycle(self) -> None:
        state, _ = played(BEGUN, *times(3, Overflow(), Reduced()), *times(MODEL_RETRIES, THROTTLED, DelayOver()), calling("a"), done("a"))
        assert isinstance(state, CallingModel)
        assert (state.turn.overflows, state.turn.attempts) == (0, 0)

        state, effects = step(state, Overflow())
        assert effects == (Reduce(OVERFLOW_SHARES[0], None, None),)

    def test_that_are_throttled_are_made_again_so_often_and_then_fail_with_the_providers_error(self) -> None:
        state, _ = played(BEGUN)
        for attempt in range(MODEL_RETRIES):
            state, effects = step(state, THROTTLED)
            assert effects == (Publish(ModelRetry, (attempt + 2, 1.0, "ModelThrottled", None)), Wait(1.0))
            state, effects = step(state, DelayOver())
            assert effects == (CallModel(),)
        _, effects = step(state, THROTTLED)

        assert effects == (Finish("failed", None, THROTTLED.error),)

    @given(st.floats(min_value=0) | st.integers(min_value=0))
    def test_that_are_to_wait_for_longer_than_anybody_would_fail_at_once(self, delay: float) -> None:
        throttled = Throttled(ModelThrottled(retry_after=delay), delay)
        state, effects = step(played(BEGUN)[0], throttled)

        assert (type(state) is Ended) == (delay > 3600)
        assert type(state) is BackingOff or effects == (Finish("failed", None, throttled.error),)

    @given(st.lists(st.sampled_from([Overflow(), THROTTLED]), min_size=40, max_size=40))
    def test_that_get_nowhere_come_to_an_end(self, refusals: list[Input]) -> None:
        state, _ = played(BEGUN)
        calls = 0
        for refusal in refusals:
            state, _ = step(state, refusal)
            calls += 1
            if isinstance(state, Ended):
                break
            state, _ = step(state, Reduced() if isinstance(state, Reducing) else DelayOver())

        assert isinstance(state, Ended)
        assert calls <= len(OVERFLOW_SHARES) + MODEL_RETRIES + 1

    @pytest.mark.parametrize("said", ["end_turn", "tool_use"])
    def test_are_taken_at_what_they_hold(self, said: str) -> None:
        assert isinstance(played(BEGUN, msgspec.structs.replace(calling("a"), stop_reason=said))[0], RunningTools)
        assert played(BEGUN, msgspec.structs.replace(ANSWER, stop_reason=said))[1] == (Record(ANSWER.message), Finish("finished", "end_turn"))

    @pytest.mark.parametrize("said", ["max_tokens", "stop_sequence", "content_filtered", "guardrail_intervened"])
    def test_that_were_stopped_run_no_tools(self, said: str) -> None:
        given_input = msgspec.structs.replace(calling("a"), stop_reason=said)

        assert played(BEGUN, given_input)[1] == (Record(given_input.message), Finish("finished", said))

    def test_hand_on_what_could_not_be_read(self) -> None:
        _, effects = played(BEGUN, msgspec.structs.replace(calling("a", "b"), malformed={"b": "{"}))

        assert effects[-1] == RunTools((use("a"), use("b")), {"b": "{"})


class TestTools:
    def test_that_ask_a_person_run_again_with_what_the_others_gave(self) -> None:
        state, effects = played(*PAUSED)
        assert effects == (Publish(TurnPaused, (({"id": "i"},),)),)

        state, effects = step(state, Answers())
        assert effects == (Publish(TurnResumed), RunTools((use("a"), use("b")), {}, (result("a"),)))
        assert isinstance(state, RunningTools)
        assert state.settled == (result("a"),)

        _, effects = step(state, done("a", "b"))
        assert [type(effect) for effect in effects] == [Record, Publish, CallModel]

    @given(turn_beginnings())
    def test_of_an_open_view_run_before_the_model_is_called(self, begin: Begin) -> None:
        state, effects = step(Ready(), begin)

        assert isinstance(state, RunningTools) == bool(begin.open_calls)
        assert not begin.open_calls or effects[-1] == RunTools(begin.open_calls, begin.malformed)

    def test_give_their_results_in_one_message(self) -> None:
        _, effects = played(*RUNNING, done("a", "b"))
        [record] = [effect for effect in effects if isinstance(effect, Record)]

        assert record.message["role"] == "user"
        assert tool_results(record.message) == [result("a"), result("b")]


class DepthProbe(list[Any]):
    """A message's content that notes how deep the stack is whenever it is looked at."""

    deepest: int = 0

    def __iter__(self) -> Iterator[Any]:
        self.deepest = max(self.deepest, depth())
        return super().__iter__()


def depth() -> int:
    frame, frames = sys._getframe(), 0
    while frame.f_back is not None:
        frame, frames = frame.f_back, frames + 1
    return frames


class TestDepth:
    def test_of_the_machine_is_the_same_in_cycle_ten_thousand(self) -> None:
        state, _ = step(Ready(), beginning(Limits(cycles=None)))
        depths: list[int] = []
        for _ in range(10_000):
            content = DepthProbe([{"toolUse": use()}])
            state, _ = step(state, ModelDone({"role": "assistant", "content": content}, "tool_use"))
            depths.append(content.deepest)
            state, _ = step(state, done("a"))

        assert isinstance(state, CallingModel)
        assert state.turn.cycle == 10_001
        assert depths[0] > 1
        assert len(set(depths)) == 1

    async def test_of_a_session_is_the_same_in_cycle_ten_thousand(self) -> None:
        from ropewalk import AgentSpec, Runtime, tool
        from ropewalk.actors.testing import Reply, ScriptedModel, ToolUse

        depths: list[int] = []

        @tool
        async def probe() -> str:
            """Note how deep the stack is."""
            depths.append(depth())
            return "noted"

        call = Reply(tool_uses=[ToolUse("probe")])
        spec = AgentSpec(model=ScriptedModel(lambda messages: call, remember=0), tools=[probe], limits=Limits(cycles=10_000))
        async with Runtime() as runtime:
            session = await runtime.open("deep", spec)
            outcome = await session.ask("dig")

        assert outcome.stop_reason == "limit_cycles"
        assert outcome.metrics.cycle_count == 10_000
        assert len(depths) == 10_000
        assert depths[-1] == depths[0]


class TestDocument:
    def test_is_what_the_table_says(self) -> None:
        drawn = runpy.run_path(str(DOCS / "draw_turn_machine.py"))["document"]()

        assert (DOCS / "turn-machine.md").read_text(encoding="utf-8") == drawn, "the table was changed: run `python docs/draw_turn_machine.py`"

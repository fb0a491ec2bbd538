"""How turns leave the view, over whole conversations: turns in every phase, ended in every way, folded once more from their records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from ropewalk.actors.conversation import ConversationManager, Reduction, climb
from ropewalk.actors.conversation.rungs import RUNGS
from ropewalk.actors.conversation.tokens import estimate_all
from ropewalk.actors.limits import Limits
from ropewalk.actors.messages import Block, Message, assistant, error_result, tool_results, tool_uses, user
from ropewalk.actors.session.assembly import Assembly
from ropewalk.actors.session.driver import joined
from ropewalk.actors.session.prompt import prompt_messages
from ropewalk.actors.session.records import Begun, Body, Edited, Opened, Said, Settled
from ropewalk.actors.session.settling import IN_DOUBT, INTERRUPTED, TURN_FAILED, Ending, settle
from ropewalk.actors.session.state import SessionState
from ropewalk.actors.testing.chunks import streamed_answers
from ropewalk.actors.testing.scripts import tool_results_of, turn_inputs
from ropewalk.actors.testing.strategies import prompts, valid_conversations
from ropewalk.actors.tools import call_keys
from ropewalk.actors.tools.inputs import unreadable_result
from ropewalk.actors.tools.results import unknown_tool_result
from ropewalk.actors.turn import (
    Begin,
    CallingModel,
    CallModel,
    Cancel,
    Deadline,
    Ended,
    Fault,
    How,
    Input,
    ModelDone,
    Paused,
    Progress,
    Ready,
    Record,
    Reducing,
    RunningTools,
    State,
    Throttled,
    ToolsAsked,
    step,
)
from ropewalk.actors.validity import check, is_open, is_valid
from ropewalk.actors.view import Entry, View, difference
from talk import transcribed

HOWS: tuple[How, ...] = ("finished", "stopped", "cancelled", "failed")


@attrs.frozen
class EndedTurn:
    """A turn that was settled: the view before it and at its end, how it ended, what that left, and the session's records up to it."""

    before: list[Entry]
    at_end: list[Entry]
    ending: Ending
    after: list[Entry]
    spoke: bool
    acted: bool
    malformed: dict[str, str]
    strays: tuple[str, ...]
    in_doubt: tuple[str, ...]


class Session:
    """A session without a runtime: its records, the state they give, and the turn machine, driven by hand."""

    def __init__(self, history: list[Message]) -> None:
        self.state = SessionState()
        self.records: list[Body] = []
        self.ended: list[EndedTurn] = []
        self.turns = 0
        self.machine: State = Ready()
        self.partial: Message | None = None
        self.raw: Message | None = None
        self.results: dict[str, Block] = {}
        self.malformed: dict[str, str] = {}
        self.strays: tuple[str, ...] = ()
        self.write(Opened("agent", tuple(history)))

    def write(self, body: Body) -> None:
        self.state.apply(body)
        self.records.append(body)

    def take(self, given_input: Input, prompt: list[Message]) -> None:
        """A step of the machine, with its records."""
        self.machine, effects = step(self.machine, given_input)
        for effect in effects:
            if isinstance(effect, Record):
                self.record(effect.message, prompt)
            elif isinstance(effect, CallModel):
                self.partial = self.raw = None

    def record(self, message: Message, prompt: list[Message]) -> None:
        if self.state.turn is None:
            last = self.state.view.last
            joins = last.number if last is not None and last.message["role"] == "user" else 0
            messages = [*prompt[:-1], message]
            if joins and last is not None and len(prompt) > 1:
                messages[0] = joined(last.message, messages[0])
            entries = tuple(Entry(number, said, self.turn_id) for number, said in enumerate(messages, self.state.next_entry))
            self.write(Begun(self.turn_id, ("prompt",), entries, joins))
        else:
            self.write(Said(Entry(self.state.next_entry, message, self.turn_id), malformed=self.malformed, strays=self.strays))
            self.malformed, self.strays = {}, ()
            self.partial = self.raw = None
            self.results = {}

    @property
    def turn_id(self) -> str:
        return f"turn{self.turns}"

    def opening(self, prompt: list[Message]) -> Message:
        last = self.state.view.last
        return joined(last.message, prompt[0]) if len(prompt) == 1 and last is not None and last.message["role"] == "user" else prompt[-1]

    def stream(self, chunks: Any) -> None:
        """A part of an answer, and no end to it."""
        assembly = Assembly(lambda: "new")
        for chunk in chunks:
            assembly.feed(chunk)
        self.partial, self.raw = assembly.partial(), assembly.raw()

    def reduce(self, rungs: list[str], share: float) -> None:
        """As the session's own reduction does it, with the first of these rungs that helps."""
        view, turn = self.state.view, self.state.turn
        assert turn is not None
        protected = {place for place, entry in enumerate(view.entries) if entry.number == turn.prompt_number}
        if len(view) > 1 and tool_results(view.messages[-1]):
            protected |= {len(view) - 2, len(view) - 1}
        reduction = next(filter(None, (reduced(view.messages, rung, frozenset(protected), share) for rung in rungs)), None)
        if reduction is not None:
            edit = difference(view.entries, reduction.messages, reduction.rung, self.state.next_entry, self.turn_id)
            after = View(view.entries)
            after.apply(edit)
            self.write(Edited(edit, after.entries[min(reduction.protected)].number))

    def end(self, before: list[Entry], how: How, stop_reason: str | None) -> None:
        turn = self.state.turn
        assert turn is not None
        at_end = list(self.state.view.entries)
        said = [body.entry.message for body in self.records if isinstance(body, Said) and body.entry.turn_id == self.turn_id]
        ending = Ending(how, stop_reason, None, 2, (10, 5, 15), self.partial, self.raw, self.results)
        body = settle(self.state, turn, ending)
        self.write(body)
        spoke = any(message["role"] == "assistant" for message in said)
        acted = any(tool_uses(message) for message in said)
        after = list(self.state.view.entries)
        self.ended.append(EndedTurn(before, at_end, ending, after, spoke, acted, turn.malformed or {}, turn.strays, body.in_doubt))
        self.machine, self.partial, self.raw, self.results = Ready(), None, None, {}


def reduced(messages: list[Message], rung: str, protected: frozenset[int], share: float) -> Reduction | None:
    climbing = climb(
        messages,
        manager=ConversationManager(),
        ladder=(rung,),
        protected=protected,
        target=int(estimate_all(messages) * share),
        system_prompt=None,
        error=None,
        skip_manager=True,
        run_sync=_never,
        failed=lambda name, error: None,
    )
    try:
        climbing.send(None)
    except StopIteration as done:
        reduction: Reduction | None = done.value
        return reduction
    raise AssertionError("a shipped rung awaits nothing")


async def _never(call: Any) -> Any:
    raise AssertionError("nothing runs in a thread")


def fold(records: list[Body]) -> SessionState:
    state = SessionState()
    for body in records:
        state.apply(body)
    return state


def work(draw: st.DrawFn, session: Session, steps: int) -> None:
    """Work on the session's turn for so many steps, or to its end."""
    prompt = prompt_messages(draw(prompts()))
    session.turns += 1
    limits = draw(st.builds(Limits, cycles=st.none() | st.integers(1, 3)))
    session.take(Begin(Progress(session.turn_id, ("prompt",), limits), session.opening(prompt)), prompt)
    for _ in range(steps):
        if isinstance(session.machine, Ended):
            return
        if isinstance(session.machine, CallingModel | Reducing) and draw(st.sampled_from([False, False, True])):
            session.reduce(draw(st.permutations(sorted(RUNGS))), draw(st.sampled_from([0.5, 0.125, 0.0])))
        move(draw, session, draw(turn_inputs(session.machine)), prompt)


def move(draw: st.DrawFn, session: Session, given_input: Input, prompt: list[Message]) -> None:
    """One input, with what was under way when it came."""
    match session.machine:
        case CallingModel() if not isinstance(given_input, ModelDone | Throttled):
            answer = draw(streamed_answers())
            session.stream(answer.chunks[: draw(st.integers(0, len(answer.chunks)))])
        case RunningTools(calls=calls) if isinstance(given_input, Cancel | Deadline | Fault):
            done = draw(tool_results_of([call for call in calls if draw(st.booleans())]))
            session.results.update({result["toolUseId"]: result for result in done})
        case _:
            pass
    if isinstance(given_input, ModelDone):
        asked = [call["toolUseId"] for call in tool_uses(given_input.message)]
        session.malformed, session.strays = given_input.malformed, tuple(call_id for call_id in asked if draw(st.booleans()))
    if isinstance(given_input, ToolsAsked):
        session.results.update({result["toolUseId"]: result for result in given_input.results})
    session.take(given_input, prompt)


def settle_now(draw: st.DrawFn, session: Session, before: list[Entry]) -> None:
    """End the turn, by a stop if nothing else has ended it."""
    if not isinstance(session.machine, Ended):
        stops: list[Input] = [Cancel()] if isinstance(session.machine, Paused) else [Cancel(), Deadline(), Fault(RuntimeError())]
        move(draw, session, draw(st.sampled_from(stops)), [])
    assert isinstance(session.machine, Ended)
    session.end(before, session.machine.how, session.machine.stop_reason)


@st.composite
def sessions(draw: st.DrawFn, turns: int = 2) -> Session:
    """A session with a history and a few turns, all settled."""
    session = Session(draw(valid_conversations(max_size=6) | valid_conversations(4, 8)))
    for _ in range(draw(st.integers(1, turns))):
        before = list(session.state.view.entries)
        work(draw, session, draw(st.integers(0, 10)))
        settle_now(draw, session, before)
    return session


@st.composite
def interrupted_sessions(draw: st.DrawFn) -> Session:
    """A session in the middle of a turn."""
    session = draw(sessions(turns=1))
    work(draw, session, draw(st.integers(0, 8)))
    return session


def same(entries: list[Entry], others: list[Entry]) -> bool:
    """Whether these are the same entries: the same numbers, each with the same object for its message."""
    pairs = zip(entries, others, strict=True)
    return len(entries) == len(others) and all(entry.number == other.number and entry.message is other.message for entry, other in pairs)


def says_doubt(result: Block) -> bool:
    return bool(result["content"] == [{"text": IN_DOUBT}])


def results(calls: list[Block], known: Any, otherwise: str) -> Message:
    return user(*({"toolResult": known.get(call["toolUseId"], error_result(call["toolUseId"], otherwise))} for call in calls))


def refusals(turn: EndedTurn, calls: list[Block]) -> dict[str, Block]:
    """By id what is known of calls although nobody ran them."""
    known: dict[str, Block] = {}
    for key, call in zip(call_keys(calls), calls, strict=True):
        call_id = call["toolUseId"]
        if call_id in turn.strays:
            known[key] = unknown_tool_result(call_id, call["name"])
        elif (refused := unreadable_result(call_id, turn.malformed.get(call_id, ""))) is not None:
            known[key] = refused
    return known


def left(turn: EndedTurn, otherwise: str) -> Iterator[Message]:
    """What a turn adds to what it had in the view at its end, when that is kept."""
    calls = tool_uses(turn.at_end[-1].message)
    if calls:
        yield results(calls, {**(refusals(turn, calls) if turn.ending.how == "failed" else {}), **turn.ending.results}, otherwise)
    elif turn.ending.how == "failed":
        pass
    elif turn.ending.partial is not None:
        yield turn.ending.partial
        if uses := tool_uses(turn.ending.partial):
            yield results(uses, {}, otherwise)
    if turn.ending.how == "failed":
        yield assistant(TURN_FAILED)


class TestEveryTurn:
    @given(sessions())
    def test_leaves_a_valid_view(self, session: Session) -> None:
        for turn in session.ended:
            check([entry.message for entry in turn.after])

    @given(sessions())
    def test_keeps_what_it_did_or_leaves_no_trace(self, session: Session) -> None:
        """The table of the design, in words: finished and stopped keep all; cancelled and failed leave no trace if there was nothing to keep."""
        for turn in session.ended:
            match turn.ending.how:
                case "finished" | "stopped":
                    kept = True
                case "cancelled":
                    kept = turn.spoke or turn.ending.partial is not None
                case "failed":
                    kept = turn.acted
            if not kept:
                assert same(turn.after, turn.before)
            else:
                length = len(turn.at_end)
                assert same(turn.after[:length], turn.at_end)
                otherwise = IN_DOUBT if turn.ending.how == "failed" else INTERRUPTED
                assert [entry.message for entry in turn.after[length:]] == list(left(turn, otherwise))

    @given(sessions())
    def test_doubts_only_what_can_have_had_an_effect(self, session: Session) -> None:
        """A call that named no tool, or whose input nothing could read, did not; nor is in doubt what came back."""
        for turn in session.ended:
            calls = tool_uses(turn.at_end[-1].message)
            doubtful = [
                call["toolUseId"] for key, call in zip(call_keys(calls), calls, strict=True) if key not in {**refusals(turn, calls), **turn.ending.results}
            ]
            assert list(turn.in_doubt) == (doubtful if turn.ending.how == "failed" else [])
            told = [result["toolUseId"] for entry in turn.after[len(turn.at_end) :] for result in tool_results(entry.message) if says_doubt(result)]
            assert told == list(turn.in_doubt)

    @given(sessions())
    def test_keeps_everything_in_the_transcript(self, session: Session) -> None:
        told = transcribed(session.records)

        numbers = [int(entry.id[1:]) for entry in told]
        assert numbers == list(range(1, session.state.next_entry))
        assert {entry.id for entry in told if entry.in_view} == {entry.id for entry in session.state.view.entries}
        messages = [entry.message for entry in told]
        for turn in session.ended:
            assert turn.ending.raw is None or turn.ending.raw in messages
            for entry in (*turn.before, *turn.at_end, *turn.after):
                assert told[entry.number - 1].message == entry.message
        for body in session.records:
            if isinstance(body, Settled):
                assert all(told[entry.number - 1].left_because == (body.stop_reason if body.how == "finished" else body.how) for entry in body.aside)

    @given(sessions())
    def test_says_nothing_twice(self, session: Session) -> None:
        """What was streamed stands beside the view only if it does not stand in it."""
        for body, turn in zip((body for body in session.records if isinstance(body, Settled)), session.ended, strict=True):
            assert len(body.aside) <= 1
            shown = [entry.message for entry in turn.after[len(turn.before) :]]
            assert not body.aside or body.aside[0].message not in shown

    @given(sessions())
    def test_folded_from_its_records_is_the_same(self, session: Session) -> None:
        state, other = session.state, fold(session.records)

        assert other.view.entries == state.view.entries
        assert other.view.messages == state.view.messages
        assert (other.next_entry, other.turns, other.cycles, other.usage) == (state.next_entry, state.turns, state.cycles, state.usage)
        assert other.turn is state.turn is None
        assert (state.turns, state.cycles, state.usage) == (len(session.ended), 2 * len(session.ended), tuple(len(session.ended) * n for n in (10, 5, 15)))


class TestEveryMoment:
    @given(interrupted_sessions(), st.data())
    def test_is_recalled_as_it_was_lived(self, session: Session, data: st.DataObject) -> None:
        """A journal's records taken in together, of which any number may have been lost, give what they gave one by one."""
        records = session.records[: data.draw(st.integers(0, len(session.records)))]
        lived, recalled = fold(records), SessionState()
        recalled.recall(records)

        assert recalled.view.entries == lived.view.entries
        assert (recalled.spec, recalled.next_entry, recalled.waiting) == (lived.spec, lived.next_entry, lived.waiting)
        assert (recalled.turns, recalled.cycles, recalled.usage) == (lived.turns, lived.cycles, lived.usage)
        assert (recalled.turn is None) == (lived.turn is None)
        if recalled.turn is not None and lived.turn is not None:
            assert asdict(recalled.turn) | {"before": None} == asdict(lived.turn) | {"before": None}
            assert recalled.turn.entries_before(recalled.view) == lived.turn.entries_before(lived.view)

    @given(interrupted_sessions())
    def test_of_a_turn_is_valid_or_open_and_holds_its_prompt(self, session: Session) -> None:
        state = SessionState()
        for body in session.records:
            state.apply(body)
            messages = state.view.messages
            assert is_valid(messages) or is_open(messages)
            if state.turn is not None:
                assert any(entry.number == state.turn.prompt_number for entry in state.view.entries)

    @given(interrupted_sessions(), st.sampled_from(HOWS))
    def test_can_be_settled_in_every_way(self, session: Session, how: How) -> None:
        """As it stands, with what was under way, or by the next incarnation, which knows the records only."""
        turn = session.state.turn
        assert turn is not None
        for ending in (Ending(how, None, None, 0, (0, 0, 0), session.partial, session.raw, session.results), Ending(how, None, None, 0, (0, 0, 0))):
            state = fold(session.records)
            assert state.turn is not None
            body = settle(state, state.turn, ending)
            assert body == settle(session.state, turn, ending)
            state.apply(body)

            check(state.view.messages)
            assert state.turn is None

    @given(interrupted_sessions())
    def test_of_a_lost_incarnation_can_be_settled(self, session: Session) -> None:
        for length in range(1, len(session.records) + 1):
            for how in HOWS:
                state = fold(session.records[:length])
                if state.turn is not None:
                    before = state.turn.entries_before(state.view)
                    state.apply(settle(state, state.turn, Ending(how, None, None, 0, (0, 0, 0))))

                    check(state.view.messages)
                    check([entry.message for entry in before])

    @given(interrupted_sessions())
    def test_leaves_the_state_alone(self, session: Session) -> None:
        turn = session.state.turn
        assert turn is not None
        entries, number = list(session.state.view.entries), session.state.next_entry
        for how in HOWS:
            settle(session.state, turn, Ending(how, None, None, 0, (0, 0, 0), session.partial, session.raw, session.results))

        assert same(session.state.view.entries, entries)
        assert session.state.next_entry == number
        assert session.state.turn is turn


def use(tool_use_id: str = "a") -> Block:
    return {"toolUse": {"toolUseId": tool_use_id, "name": "search", "input": {}}}


def found(tool_use_id: str = "a") -> Block:
    return {"toolResult": {"toolUseId": tool_use_id, "status": "success", "content": [{"text": "found"}]}}


HISTORY = [user("one"), assistant("two")]


def in_turn(*said: Message, history: list[Message] = HISTORY, prompt: Message | None = None) -> Session:
    """A session whose turn has said this much."""
    session = Session(history)
    session.turns = 1
    prompt = prompt or user("now")
    session.record(session.opening([prompt]), [prompt])
    for message in said:
        session.record(message, [])
    return session


def settled(session: Session, how: How, **under_way: Any) -> list[Message]:
    turn = session.state.turn
    assert turn is not None
    session.write(settle(session.state, turn, Ending(how, None, None, 1, (0, 0, 0), **under_way)))
    check(session.state.view.messages)
    return session.state.view.messages


class TestSettle:
    @pytest.mark.parametrize("how", ["finished", "stopped"])
    def test_by_a_limit_keeps_the_prompt(self, how: How) -> None:
        assert settled(in_turn(), how) == [*HISTORY, user("now")]

    @pytest.mark.parametrize("how", ["cancelled", "failed"])
    def test_of_nothing_said_leaves_the_view_as_it_was(self, how: How) -> None:
        session = in_turn()
        entries = session.state.view.entries[:2]

        assert settled(session, how) == HISTORY
        assert same(session.state.view.entries, entries)

    @pytest.mark.parametrize("how", ["cancelled", "failed"])
    def test_gives_back_the_message_the_prompt_joined(self, how: How) -> None:
        history = [user("one"), assistant(use()), user(found())]
        session = in_turn(history=history)
        assert session.state.view.messages[2] == user(found(), "now")

        assert settled(session, how) == history
        assert [entry.number for entry in session.state.view.entries] == [1, 2, 3]
        assert [(entry.in_view, entry.left_because) for entry in transcribed(session.records)] == [(True, None)] * 3 + [(False, how)]

    def test_cancelled_keeps_what_was_streamed(self) -> None:
        partial = assistant("so far", use())

        assert settled(in_turn(), "cancelled", partial=partial, raw=partial)[2:] == [
            user("now"),
            partial,
            user({"toolResult": error_result("a", INTERRUPTED)}),
        ]

    def test_cancelled_in_a_later_cycle_keeps_the_earlier_ones(self) -> None:
        said = [assistant(use()), user(found())]

        assert settled(in_turn(*said), "cancelled")[2:] == [user("now"), *said]

    @pytest.mark.parametrize(
        ("how", "otherwise"), [("cancelled", INTERRUPTED), ("stopped", INTERRUPTED), ("failed", IN_DOUBT)], ids=["cancelled", "stopped", "failed"]
    )
    def test_with_tools_at_work_keeps_the_results_that_are_in(self, how: How, otherwise: str) -> None:
        call = assistant(use("a"), use("b"))
        answered = user(found("a"), {"toolResult": error_result("b", otherwise)})
        closing = [assistant(TURN_FAILED)] if how == "failed" else []

        assert settled(in_turn(call), how, results={"a": found("a")["toolResult"]})[2:] == [user("now"), call, answered, *closing]

    def test_failed_with_an_answer_half_said_keeps_it_beside_the_view(self) -> None:
        session = in_turn()
        body = settle(session.state, session.state.turn, Ending("failed", None, "ModelError", 1, (0, 0, 0), assistant("so"), assistant("so")))  # type: ignore[arg-type]

        assert body.entries == ()
        assert [entry.message for entry in body.aside] == [assistant("so")]

    def test_failed_after_a_tool_never_forgets_it(self) -> None:
        """Not even when a reduction has taken the call and its result out of the view, or made the view shorter than it was."""
        session = in_turn(assistant(use()), user(found()), history=[user("a long story"), assistant("indeed"), user("go on"), assistant("more")])
        prompt = session.state.view.entries[4]
        edit = difference(session.state.view.entries, [prompt.message, *session.state.view.messages[5:]], "window", session.state.next_entry)
        session.write(Edited(edit))

        assert settled(session, "failed") == [user("now"), assistant(use()), user(found()), assistant(TURN_FAILED)]

    @pytest.mark.parametrize("how", ["cancelled", "failed"])
    def test_takes_what_a_prompt_brought_along_for_nothing_done(self, how: How) -> None:
        """A prompt may be a whole conversation with calls in it; they are not the turn's."""
        prompt = [user("before"), assistant(use()), user(found()), assistant("found"), user("now")]
        session = Session(HISTORY)
        session.turns = 1
        session.record(session.opening(prompt), prompt)
        assert len(session.state.view) == 7

        assert settled(session, how) == HISTORY

    @pytest.mark.parametrize("how", ["cancelled", "failed"])
    def test_gives_back_what_a_reduction_took(self, how: How) -> None:
        session = in_turn()
        entries = [*session.state.view.entries[:2]]
        session.write(Edited(difference(session.state.view.entries, [user("now, in short")], "digest", session.state.next_entry, "turn1")))

        assert settled(session, how) == HISTORY
        assert same(session.state.view.entries, entries)

    @pytest.mark.parametrize("how", HOWS)
    def test_of_a_turn_that_was_all_said_changes_nothing(self, how: How) -> None:
        """As when the process dies between the answer and the end of the turn, after a tool."""
        said = [assistant(use()), user(found()), assistant("done")]

        session = in_turn(*said)
        assert settled(session, how, partial=assistant("done"), raw=assistant("done"))[2:] == [user("now"), *said]
        assert isinstance(session.records[-1], Settled)
        assert session.records[-1].aside == ()

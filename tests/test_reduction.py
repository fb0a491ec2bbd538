"""Overflow and its reduction through a real session: supervised, applied whole or not at all, bounded in time, and nobody waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from ropewalk import (
    ContextWindowOverflow,
    ConversationManager,
    Event,
    Limits,
    MessageAdded,
    NullConversationManager,
    ReductionEnded,
    ReductionStarted,
    Runtime,
    Session,
    SlidingWindowConversationManager,
    StepRestarted,
    TextDelta,
    TurnEnded,
    ViewChanged,
    tool,
)
from ropewalk.actors.conversation import estimate_all
from ropewalk.actors.messages import Message
from ropewalk.actors.session.records import Edited
from ropewalk.testing import Reply, ScriptedModel, ToolUse, in_trio, strategies
from talk import Witness, agent, assert_sound, calls, kinds, result_block, results, said, told, transcript, virtual_runtime

pytestmark = pytest.mark.anyio


def talks(count: int, words: int = 50) -> list[Message]:
    """So many exchanges of about as many words."""
    return [message for number in range(count) for message in (told(f"question {number}. " + "word " * words), said(f"answer {number}. " + "word " * words))]


def tool_talks(count: int, length: int) -> list[Message]:
    """So many exchanges with a tool result of this length each."""
    return [
        message
        for number in range(count)
        for message in (told(f"look {number}"), said(calls("echo", f"id{number}")), results((f"id{number}", f"{number} " + "x" * length)), said("seen"))
    ]


class Window:
    """A model whose window is so many tokens, as we estimate them; it says what fits, if asked to, in tokens of its own."""

    def __init__(self, size: int, *, naming: bool = False, factor: int = 1, replies: Sequence[Any] = ()) -> None:
        self.context_window = size
        self.refused: list[int] = []
        self.accepted: list[list[Message]] = []
        self._naming = naming
        self._factor = factor
        self._replies = list(replies)
        self._script = ScriptedModel(self._next)

    def stream(self, messages: Sequence[Message], **options: Any) -> Any:
        return self._script.stream(messages, **options)

    def _next(self, messages: Sequence[Message]) -> Any:
        tokens = estimate_all(messages)
        if tokens > self.context_window:
            self.refused.append(tokens)
            return ContextWindowOverflow(tokens=tokens * self._factor, limit=self.context_window * self._factor) if self._naming else ContextWindowOverflow()
        self.accepted.append(list(messages))
        return self._replies.pop(0) if self._replies else "fine"


async def edits(session: Session) -> list[Any]:
    return [record.body.edit for record in await session.runtime.journal.read(session.id) if isinstance(record.body, Edited)]


async def ask_reduced(session: Session, prompt: str = "go on") -> tuple[str, Witness]:
    """Ask; the turn ends well, and its story is whole."""
    witness = Witness()
    handle = session.add_handler(witness)
    result = await session.ask(prompt)
    handle.remove()
    await assert_sound(session)
    return result.stop_reason, witness


# --- the ladder -------------------------------------------------------------------------------------------------------


async def test_an_overflow_is_reduced_and_the_call_made_again() -> None:
    model = Window(600)
    before = talks(10)
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model), messages=before)
        reason, witness = await ask_reduced(session)
        assert reason == "end_turn"
        shown = kinds(witness.events)
        assert shown == [
            "PromptAccepted",
            "TurnStarted",
            "MessageAdded",
            "CycleStarted",
            *["ReductionStarted", "ViewChanged", "ReductionEnded"] * len(model.refused),
            "TextDelta",
            "MessageAdded",
            "TurnEnded",
            "PromptSettled",
        ]
        for started, ended in zip(witness.of(ReductionStarted), witness.of(ReductionEnded), strict=True):
            assert (started.reason, started.tokens_before) == ("overflow", ended.tokens_before)
            assert ended.tokens_after < ended.tokens_before
            assert (ended.rung, ended.failures) == ("manager", ())
        assert [message for message in model.accepted[0] if message not in before] == [told("go on")]
        view = await session.messages()
        assert view == [*model.accepted[0], said("fine")]
        left = [(message, because) for message, because in await transcript(session) if because is not None]
        assert left
        assert {because for _, because in left} == {"manager"}
        assert [message for message, _ in left] == before[: len(left)]


RUNGS: dict[str, tuple[list[Message], int]] = {
    "clip": (tool_talks(4, 4000), 1500),
    "drop_bodies": (tool_talks(30, 300), 1200),
    "window": (talks(10), 700),
    "digest": (talks(10), 700),
}


@pytest.mark.parametrize("rung", RUNGS)
async def test_each_rung_alone_brings_a_view_to_what_fits(rung: str) -> None:
    before, size = RUNGS[rung]
    model = Window(size, naming=True, factor=3)
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, conversation_manager=ConversationManager(), ladder=(rung,)), messages=before)
        reason, witness = await ask_reduced(session)
        assert reason == "end_turn"
        assert len(model.refused) == 1
        [ended] = witness.of(ReductionEnded)
        assert (ended.rung, ended.tokens_before) == (rung, model.refused[0])
        assert ended.tokens_after == estimate_all(model.accepted[0]) <= size
        [edit] = await edits(session)
        assert edit.reason == rung
        assert told("go on")["content"][0] in model.accepted[0][-1]["content"]
        everything = [message for message, _ in await transcript(session)]
        assert everything[: len(before)] == before


async def test_a_rung_that_is_not_enough_leads_to_the_next_and_all_is_one_entry() -> None:
    before = [*tool_talks(4, 3000), *talks(10)]
    model = Window(400, naming=True)
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, conversation_manager=ConversationManager()), messages=before)
        reason, witness = await ask_reduced(session)
        assert reason == "end_turn"
        assert len(await edits(session)) == len(model.refused) == len(witness.of(ViewChanged))
        assert witness.of(ReductionEnded)[0].rung == "window"
        assert estimate_all(await session.messages()) <= 420


async def test_where_no_limit_is_named_half_is_tried_then_an_eighth_then_the_least() -> None:
    model = Window(60)
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model), messages=talks(20))
        reason, witness = await ask_reduced(session)
        assert reason == "end_turn"
        started = witness.of(ReductionStarted)
        assert [event.target for event in started] == [int(event.tokens_before * share) for event, share in zip(started, (1 / 2, 1 / 8, 0), strict=False)]
        assert 2 <= len(model.refused) <= 3


@tool
async def read(pages: int) -> str:
    """Read so many pages."""
    return "page " * 100 * pages or "nothing"


async def test_the_prompt_and_the_open_calls_stay() -> None:
    uses = [ToolUse("read", {"pages": 10}, id="a"), ToolUse("read", {"pages": 0}, id="b")]
    model = Window(900, naming=True, replies=[Reply(text="let me see", tool_uses=uses)])
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, tools=[read]), messages=talks(2, 30))
        reason, _ = await ask_reduced(session, "a prompt of its own")
        assert reason == "end_turn"
        assert model.refused
        seen = model.accepted[-1]
        assert told("a prompt of its own") in seen
        asking, answering = seen[-2:]
        assert [block["toolUse"]["toolUseId"] for block in asking["content"] if "toolUse" in block] == ["a", "b"]
        assert [block["toolResult"]["toolUseId"] for block in answering["content"]] == ["a", "b"]
        assert answering["content"][1] == result_block("b", "nothing")
        assert "truncated" in answering["content"][0]["toolResult"]["content"][0]["text"]


async def test_what_was_streamed_before_an_overflow_does_not_count() -> None:
    first = [Reply(text="this does not", error=ContextWindowOverflow())]
    model = ScriptedModel(lambda messages: first.pop() if first else "this counts")
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model), messages=talks(3))
        witness = Witness()
        session.add_handler(witness)
        result = await session.ask("go on")
        assert str(result) == "this counts"
        assert result.metrics.cycle_count == 1
        assert [event.text for event in witness.of(TextDelta)] == ["this ", "does ", "not", "this ", "counts"]
        assert (await session.messages())[-1] == said("this counts")
        await assert_sound(session)


# --- when it does not help --------------------------------------------------------------------------------------------


class Never:
    """A model that nothing is small enough for."""

    context_window = 1

    def __init__(self, *replies: Any) -> None:
        self.calls = 0
        self._script = ScriptedModel(self._next)
        self._replies = list(replies)

    def stream(self, messages: Sequence[Message], **options: Any) -> Any:
        return self._script.stream(messages, **options)

    def _next(self, messages: Sequence[Message]) -> Any:
        self.calls += 1
        return self._replies.pop(0) if self._replies else ContextWindowOverflow()


async def test_after_three_reductions_the_turn_ends_and_the_view_is_as_before() -> None:
    model = Never()
    before = talks(20)
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model), messages=before)
        reason, witness = await ask_reduced(session)
        assert (reason, model.calls) == ("context_overflow", 4)
        assert await session.messages() == before
        assert [event.stop_reason for event in witness.of(TurnEnded)] == ["context_overflow"]
        assert len(witness.of(ReductionStarted)) == len(witness.of(ReductionEnded)) == 3
        everything = await transcript(session)
        assert [message for message, because in everything if because is None] == before
        assert (told("go on"), "failed") in everything


async def test_what_cannot_be_made_smaller_ends_the_turn() -> None:
    model = Never()
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        reason, witness = await ask_reduced(session)
        assert (reason, model.calls) == ("context_overflow", 1)
        assert await session.messages() == []
        assert [event.rung for event in witness.of(ReductionEnded)] == [None]
        assert await edits(session) == []


async def test_an_overflow_after_a_tool_acted_leaves_what_was_done() -> None:
    model = Never(Reply(tool_uses=[ToolUse("echo", {"text": "hi"}, id="x")]))
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model))
        reason, _ = await ask_reduced(session, "go")
        assert reason == "context_overflow"
        assert await session.messages() == [told("go"), said(calls("echo", "x", text="hi")), results(("x", "hi")), said("[turn failed]")]


async def test_a_null_manager_has_no_ladder() -> None:
    model = Window(100)
    before = talks(10)
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, conversation_manager=NullConversationManager()), messages=before)
        reason, witness = await ask_reduced(session)
        assert (reason, len(model.refused)) == ("context_overflow", 1)
        assert await session.messages() == before
        assert [event.rung for event in witness.of(ReductionEnded)] == [None]


async def test_an_empty_ladder_leaves_it_to_the_manager() -> None:
    model = Window(100)
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, ladder=(), conversation_manager=ConversationManager()), messages=talks(10))
        reason, _ = await ask_reduced(session)
        assert (reason, len(model.refused)) == ("context_overflow", 1)


# --- managers of one's own --------------------------------------------------------------------------------------------


class Halving(ConversationManager):
    """Drops the older half, and notes what it was called with."""

    def __init__(self) -> None:
        self.errors: list[Any] = []

    def reduce_context(self, messages: Any, e: Exception | None = None) -> None:
        self.errors.append(e)
        del messages[: len(messages) // 4 * 2 + 2]


class AsyncHalving(ConversationManager):
    def __init__(self) -> None:
        self.errors: list[Any] = []

    async def reduce_context(self, messages: Any, e: Exception | None = None) -> None:
        self.errors.append(e)
        del messages[: len(messages) // 4 * 2 + 2]


class AgentHalving:
    """Written for an agent, as later versions of the guide have it."""

    def __init__(self) -> None:
        self.errors: list[Any] = []

    def apply_management(self, agent: Any, **kwargs: Any) -> None:
        assert agent.system_prompt == "Be brief."

    def reduce_context(self, agent: Any, e: Exception | None = None, **kwargs: Any) -> None:
        assert agent.system_prompt == "Be brief."
        self.errors.append(e)
        agent.messages = agent.messages[len(agent.messages) // 4 * 2 + 2 :]


class OldHalving:
    """Written for a list of messages, and nothing else."""

    def __init__(self) -> None:
        self.errors: list[Any] = []

    def apply_management(self, messages: Any) -> None:
        pass

    def reduce_context(self, messages: Any) -> None:
        self.errors.append(ContextWindowOverflow())
        del messages[: len(messages) // 4 * 2 + 2]


@pytest.mark.parametrize("make", [Halving, AsyncHalving, AgentHalving, OldHalving])
async def test_a_manager_of_ones_own_is_asked_first_in_either_signature(make: Callable[[], Any]) -> None:
    manager = make()
    model = Window(900)
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, conversation_manager=manager, system_prompt="Be brief."), messages=talks(10))
        reason, witness = await ask_reduced(session)
        assert reason == "end_turn"
        assert [event.rung for event in witness.of(ReductionEnded)] == ["manager"]
        assert [type(error) for error in manager.errors] == [ContextWindowOverflow]
        assert await session.messages() == [*talks(10)[12:], told("go on"), said("fine")]
        assert witness.of(StepRestarted) == []


class Changing(ConversationManager):
    """Does something to the messages, and counts how often."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.asked = 0
        self._change = change

    async def reduce_context(self, messages: Any, e: Exception | None = None) -> None:
        self.asked += 1
        self._change(messages)


def fail_to(messages: Any) -> None:
    raise ZeroDivisionError("no")


BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "raises": (fail_to, "ZeroDivisionError"),
    "leaves it unchanged": (lambda messages: None, "RungRefused"),
    "makes it longer": (lambda messages: messages.insert(0, told("x" * 10_000)) or messages.insert(1, said("y")), "RungRefused"),
    "takes the prompt": (lambda messages: messages.pop(), "RungRefused"),
    "rewrites the prompt": (lambda messages: messages[-1]["content"].__setitem__(slice(None), [{"text": "hi"}]), "RungRefused"),
    "leaves nothing": (lambda messages: messages.clear(), "RungRefused"),
    "starts with an answer": (lambda messages: messages.pop(0), "InvalidConversation"),
    "leaves nonsense": (lambda messages: messages.__setitem__(slice(None), [5]), "InvalidConversation"),
    "orphans a result": (lambda messages: messages.__setitem__(slice(0, 2), [told(result_block("nobody", "x"))]), "InvalidConversation"),
}


@pytest.mark.parametrize("how", BAD)
async def test_a_manager_that_fails_costs_its_own_rung_only(how: str) -> None:
    change, error = BAD[how]
    manager = Changing(change)
    model = Window(100)
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(model, conversation_manager=manager), messages=talks(10))
        reason, witness = await ask_reduced(session)
        assert reason == "end_turn"
        assert len(model.refused) > 1
        assert manager.asked == 1, "it failed, so it is not asked again in this turn"
        first = witness.of(ReductionEnded)[0]
        assert first.rung in ("clip", "drop_bodies", "window", "digest")
        assert [failure.split(":")[0] for failure in first.failures] == ["manager"]
        assert error in first.failures[0]
        assert [(event.step, event.attempt, event.error) for event in witness.of(StepRestarted)] == [("conversation_manager", 2, error)]
        assert told("go on") in await session.messages()


async def test_what_a_manager_keeps_hold_of_changes_no_history() -> None:
    kept: list[Any] = []

    class Hoarding(ConversationManager):
        async def reduce_context(self, messages: Any, e: Exception | None = None) -> None:
            del messages[:10]
            messages[0]["content"][0]["text"] = "rewritten"
            kept.append(messages)
            kept.extend(messages)

    async with Runtime() as runtime:
        session = await runtime.open("me", agent(Window(900), conversation_manager=Hoarding()), messages=talks(10))
        await ask_reduced(session)
        view = await session.messages()
        assert view[0] == told("rewritten")
        for thing in kept:
            thing.clear()
        assert await session.messages() == view
        await assert_sound(session)


# --- time -------------------------------------------------------------------------------------------------------------


class Hanging(ConversationManager):
    def __init__(self, seconds: float = 1e9, drops: int = 2) -> None:
        self.asked = 0
        self._seconds = seconds
        self._drops = drops

    async def reduce_context(self, messages: Any, e: Exception | None = None) -> None:
        self.asked += 1
        await trio.sleep(self._seconds)
        del messages[: self._drops]


@in_trio
async def test_a_manager_that_hangs_is_cut_off_by_the_deadline() -> None:
    manager = Hanging()
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(Window(300), conversation_manager=manager, limits=Limits(reduction_seconds=10)), messages=talks(10))
        began = trio.current_time()
        reason, witness = await ask_reduced(session)
        assert (reason, trio.current_time() - began, manager.asked) == ("end_turn", 10, 1)
        first = witness.of(ReductionEnded)[0]
        assert first.rung in ("clip", "window")
        assert "StepTimeout" in first.failures[0]


@in_trio
async def test_the_reductions_of_a_turn_share_one_deadline() -> None:
    manager = Hanging(seconds=4)
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(Never(), conversation_manager=manager, ladder=(), limits=Limits(reduction_seconds=10)), messages=talks(10))
        began = trio.current_time()
        reason, witness = await ask_reduced(session)
        assert (reason, trio.current_time() - began, manager.asked) == ("context_overflow", 10, 3)
        assert [event.rung for event in witness.of(ReductionEnded)] == ["manager", "manager", None]


@in_trio
async def test_a_manager_that_fails_in_three_turns_is_set_aside() -> None:
    manager = Changing(fail_to)
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(Window(300), conversation_manager=manager), messages=talks(10))
        attempts: list[int] = []
        session.add_handler(lambda event: attempts.append(event.attempt), [StepRestarted])
        for turn in range(1, 6):
            await session.add_messages(talks(10))
            assert (await session.ask("go on")).stop_reason == "end_turn"
            assert manager.asked == min(turn, 3)
        assert attempts == [2, 3, 4]
        await session.add_messages(talks(30, 1))
        witness = Witness()
        session.add_handler(witness)
        await session.ask("go on")
        assert witness.of(ReductionEnded) == []
        assert session.statistics().messages <= 40, "the shipped window has taken its place"
        await assert_sound(session)


@in_trio
async def test_the_session_answers_while_it_is_reduced() -> None:
    before = talks(10)
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(Window(900), conversation_manager=Hanging(seconds=30, drops=10)), messages=before)
        turn = await session.submit("go on")
        await trio.sleep(5)
        began = trio.current_time()
        assert session.status == "reducing"
        assert session.statistics().messages == 21
        assert await session.messages() == [*before, told("go on")]
        waiting = await session.submit("and then?")
        assert session.statistics().mailbox.waiting == 1
        assert (await session.call_tool("echo", record=False))["status"] == "success"
        assert trio.current_time() == began
        assert str(await turn.result()) == "fine"
        assert trio.current_time() == 30
        assert str(await waiting.result()) == "fine"
        await assert_sound(session)


@in_trio
async def test_a_reduction_is_cancelled_at_once_and_changes_nothing() -> None:
    before = talks(10)
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(Window(900), conversation_manager=Hanging()), messages=before)
        turn = await session.submit("go on")
        await trio.sleep(5)
        began = trio.current_time()
        assert await session.cancel()
        assert trio.current_time() == began
        assert (await turn.result()).stop_reason == "cancelled"
        assert await session.messages() == before
        assert await edits(session) == []
        await assert_sound(session)


@in_trio
async def test_seconds_end_a_reduction_too() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(Window(900), conversation_manager=Hanging(), limits=Limits(seconds=7)), messages=talks(10))
        began = trio.current_time()
        assert (await session.ask("go on")).stop_reason == "limit_seconds"
        assert trio.current_time() - began == 7
        assert await session.messages() == [*talks(10), told("go on")]
        await assert_sound(session)


async def test_a_managers_plain_function_does_not_stop_the_loop() -> None:
    async with Runtime() as runtime:
        going_on = threading.Event()

        class Blocking(ConversationManager):
            def reduce_context(self, messages: Any, e: Exception | None = None) -> None:
                assert going_on.wait(10)
                del messages[:12]

        session = await runtime.open("me", agent(Window(900), conversation_manager=Blocking()), messages=talks(10))
        other = await runtime.open("you", agent(["meanwhile"], name="other"))
        turn = await session.submit("go on")
        assert str(await other.ask("hi")) == "meanwhile"
        going_on.set()
        assert str(await turn.result()) == "fine"
        assert len(await session.messages()) == 10
        await assert_sound(session)


# --- after the turn ---------------------------------------------------------------------------------------------------


async def test_the_window_slides_after_each_turn_before_it_ends() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(lambda messages: "fine", conversation_manager=SlidingWindowConversationManager(window_size=4)))
        witness = Witness()
        session.add_handler(witness)
        for number in range(5):
            await session.ask(f"{number}?")
        assert await session.messages() == [told("3?"), said("fine"), told("4?"), said("fine")]
        assert kinds(witness.events)[-4:] == ["MessageAdded", "ViewChanged", "TurnEnded", "PromptSettled"]
        assert [(event.reason, event.removed) for event in witness.of(ViewChanged)] == [
            ("managed", ("e1", "e2")),
            ("managed", ("e3", "e4")),
            ("managed", ("e5", "e6")),
        ]
        assert [because for _, because in await transcript(session)] == ["managed"] * 6 + [None] * 4
        await assert_sound(session)


class Slow(ConversationManager):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def apply_management(self, messages: Any) -> None:
        await trio.sleep(self._seconds)
        del messages[:-2]


@in_trio
async def test_a_policy_may_take_its_time_and_what_was_said_is_told_before() -> None:
    heard: list[tuple[str, float]] = []
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(["fine"], conversation_manager=Slow(20)), messages=talks(2))
        session.add_handler(lambda event: heard.append((type(event).__name__, trio.current_time())), [MessageAdded, ViewChanged, TurnEnded])
        result = await session.ask("go on")
        assert str(result) == "fine"
        assert heard == [("MessageAdded", 0), ("MessageAdded", 0), ("ViewChanged", 20), ("TurnEnded", 20)]
        assert await session.messages() == [told("go on"), said("fine")]
        await assert_sound(session)


@in_trio
async def test_a_policy_that_hangs_ends_with_its_deadline_and_the_turn_is_as_it_was() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(["fine"], conversation_manager=Slow(1e9), limits=Limits(reduction_seconds=15)))
        began = trio.current_time()
        restarted: list[str] = []
        session.add_handler(lambda event: restarted.append(event.error), [StepRestarted])
        result = await session.ask("go on")
        assert (result.stop_reason, trio.current_time() - began, restarted) == ("end_turn", 15, ["TimeoutError"])
        assert await session.messages() == [told("go on"), said("fine")]
        await assert_sound(session)


@in_trio
async def test_cancelling_during_the_policy_leaves_a_finished_turn() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(["fine", "fine"], conversation_manager=Slow(1e9), limits=Limits(reduction_seconds=None)))
        turn = await session.submit("go on")
        await trio.sleep(5)
        began = trio.current_time()
        await session.cancel()
        assert trio.current_time() == began
        assert (await turn.result()).stop_reason == "end_turn"
        assert await session.messages() == [told("go on"), said("fine")]
        await assert_sound(session)


# --- whatever the history ---------------------------------------------------------------------------------------------


@given(
    before=strategies.valid_conversations(max_size=14),
    size=st.integers(1, 400),
    naming=st.booleans(),
    manager=st.sampled_from([None, ConversationManager(), SlidingWindowConversationManager(window_size=6), Halving()]),
    use_tool=st.booleans(),
)
@in_trio
async def test_whatever_the_history_the_turn_ends_and_nothing_is_lost(before: list[Message], size: int, naming: bool, manager: Any, use_tool: bool) -> None:
    model = Window(size, naming=naming, replies=[Reply(tool_uses=[ToolUse("echo", {"text": "z" * 500})])] if use_tool else [])
    witness = Witness()
    async with virtual_runtime() as runtime:
        runtime.add_handler(witness)
        session = await runtime.open("me", agent(model, conversation_manager=manager), messages=before)
        opened = await session.messages()
        result = await session.ask("the prompt")
        await assert_sound(session)
        view = await session.messages()
        witness.check(view)
        assert all(estimate_all(messages) <= size for messages in model.accepted)
        if result.stop_reason == "context_overflow" and not model.accepted:
            assert view == opened
        elif result.stop_reason == "end_turn":
            assert any({"text": "the prompt"} in message["content"] for message in model.accepted[-1])
        said_ever = [message for message, _ in await transcript(session)]
        assert all(message in said_ever for message in opened)


def test_the_events_of_a_reduction_are_json() -> None:
    started = ReductionStarted("me", 1, 1, 0.0, None, None, "overflow", 10, 5)
    ended: Event = ReductionEnded("me", 1, 2, 0.0, None, None, None, 10, 10, ("manager: no",))
    assert started.to_dict()["target"] == 5
    assert ended.to_dict()["failures"] == ("manager: no",)

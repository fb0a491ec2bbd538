"""What was said, looked at and changed afterwards: the transcript in pages, rewinding, pinning."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk import (
    ContextWindowOverflow,
    ConversationManager,
    InvalidConversation,
    InvalidOption,
    MemoryJournal,
    MessageAdded,
    ModelError,
    Runtime,
    Session,
    SessionExists,
    SlidingWindowConversationManager,
    StepRestarted,
    TextDelta,
    TranscriptEntry,
    TurnFailed,
)
from ropewalk.actors.messages import Block, Message
from ropewalk.actors.session import history
from ropewalk.actors.validity import is_valid
from ropewalk.runtime.journal import Record
from ropewalk.testing import EventFold, Reply, ToolUse, in_trio
from talk import agent, assert_sound, calls, results, said, told, transcribed, virtual_runtime


class Pages(MemoryJournal):
    """Knows how much of it was asked for at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def read(self, actor_id: str, after: int = 0, limit: int | None = None, *, codec: Any = None) -> Any:
        records = await super().read(actor_id, after, limit, codec=codec)
        self.sizes.append(len(records))
        return records


@pytest.fixture(params=["memory", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Where a runtime keeps its sessions."""
    return None if request.param == "memory" else str(tmp_path / "sessions.db")


@asynccontextmanager
async def session_of(replies: Any, journal: Any = None, **options: Any) -> AsyncGenerator[Session]:
    async with Runtime(journal, sync_calls="inline") as runtime:
        yield await runtime.open("me", agent(replies, **options))


async def ids(session: Session, *, in_view: bool = True) -> list[str]:
    return [entry.id async for entry in session.transcript() if entry.in_view or not in_view]


# --- the transcript -------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_ten_thousand_messages_are_read_in_pages(place: str | None) -> None:
    messages = [told(f"question {number}") if number % 2 == 0 else said(f"answer {number}") for number in range(10_000)]
    async with session_of(["fine"], place) as session:
        for start in range(0, len(messages), 1000):
            await session.add_messages(messages[start : start + 1000])
        await session.ask("and now?")
        number = 0
        async for entry in session.transcript():
            number += 1
            assert entry.id == f"e{number}"
            assert entry.in_view == (number > 10_002 - 40)
            assert entry.left_because == (None if entry.in_view else "managed")
            if number <= 10_000:
                assert entry.message == messages[number - 1]
        assert number == 10_002


@pytest.mark.anyio
async def test_no_page_is_larger_than_another_however_long_the_log_is() -> None:
    journal = Pages()
    async with session_of(lambda messages: "ok", journal) as session:
        for _ in range(150):
            await session.ask("hi")
        journal.sizes.clear()
        assert len(await ids(session, in_view=False)) == 300
        assert max(journal.sizes) <= history.PAGE < sum(journal.sizes) / 3


@pytest.mark.anyio
async def test_what_is_said_while_it_is_read_shows_in_none_of_it(place: str | None) -> None:
    async with session_of(lambda messages: "ok", place, conversation_manager=SlidingWindowConversationManager(2)) as session:
        await session.ask("one")
        read: list[tuple[str, bool]] = []
        async for entry in session.transcript():
            if not read:
                await session.ask("two")  # the window takes the first two away
            read.append((entry.id, entry.in_view))
        assert read == [("e1", True), ("e2", True)]
        assert await ids(session) == ["e3", "e4"]


# --- rewinding ------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_rewinding_brings_back_what_was_shown_then(place: str | None) -> None:
    async with session_of(lambda messages: f"answer {len(messages)}", place, conversation_manager=SlidingWindowConversationManager(2)) as session:
        for prompt in ("one", "two", "three"):
            await session.ask(prompt)
        assert await ids(session) == ["e5", "e6"]
        await session.rewind(to="e2")
        assert await session.messages() == [told("one"), said("answer 1")]
        assert [entry.left_because async for entry in session.transcript()] == [None, None, "managed", "managed", "rewind", "rewind"]
        await session.rewind(to="e4")
        assert await session.messages() == [told("one"), said("answer 1"), told("two"), said("answer 3")]
        assert str(await session.ask("go on")) == "answer 5"
        await session.rewind(to="e3")
        assert await session.messages() == [told("one"), said("answer 1"), told("two")]
        assert str(await session.ask("or this?")) == "answer 3"  # the prompt joined the one that had lost its answer


@pytest.mark.anyio
async def test_rewinding_into_a_turn_says_where_it_could_go() -> None:
    async with session_of([Reply(tool_uses=[ToolUse("echo", {"text": "a"})]), "done", ModelError("broken")]) as session:
        await session.ask("call")
        with pytest.raises(InvalidOption, match=r"entry 'e2': it is in the middle of a turn.*; e1 or e3 would do"):
            await session.rewind(to="e2")
        with pytest.raises(ModelError):
            await session.ask("fail")
        for unknown in ("e99", "x", "", "e0", "e", "e01", 3, None):
            with pytest.raises(InvalidOption, match=r"has no entry .*; its entries are e1 to e5"):
                await session.rewind(to=unknown)  # type: ignore[arg-type]
        assert await ids(session) == ["e1", "e2", "e3", "e4"]
        assert session.statistics().restarts == 0
        await session.rewind(to="e5")  # the prompt of the turn that failed
        assert await ids(session) == ["e1", "e2", "e3", "e4", "e5"]


def give_up(event: TextDelta) -> None:
    raise RuntimeError("no more of this")


@pytest.mark.anyio
async def test_what_never_came_into_the_view_cannot_be_gone_back_to() -> None:
    async with session_of(["first", "so far"]) as session:
        await session.ask("one")
        handler = session.add_handler(give_up, [TextDelta], on_error="fail_turn")
        with pytest.raises(TurnFailed):
            await session.ask("go")
        handler.remove()
        assert [entry.left_because async for entry in session.transcript()] == [None, None, "failed", "failed"]
        with pytest.raises(InvalidOption, match="'e4': it was said, but never came into the view; e3 would do"):
            await session.rewind(to="e4")


@pytest.mark.anyio
async def test_rewinding_waits_its_turn(place: str | None) -> None:
    async with session_of(["first", Reply(text="second", delay=0.05)], place) as session:
        await session.ask("one")
        turn = await session.submit("two")
        await session.rewind(to="e2")
        assert (await turn.result()).stop_reason == "end_turn"
        assert await session.messages() == [told("one"), said("first")]


# --- pinning --------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_pinned_entry_outlives_the_window(place: str | None) -> None:
    async with session_of(lambda messages: "ok", place, conversation_manager=SlidingWindowConversationManager(4)) as session:
        await session.ask("remember this")
        await session.pin("e1")
        for number in range(8):
            await session.ask(f"question {number}")
        shown = await session.messages()
        assert shown[0] == told("remember this")
        assert is_valid(shown)
        assert len(shown) <= 6
        assert [entry.id async for entry in session.transcript() if entry.pinned] == ["e1"]
        await session.pin("e1", pinned=False)
        await session.ask("last")
        assert (await session.messages())[0] == told("question 7")
    if place is not None:
        async with session_of(lambda messages: "ok", place) as session:
            assert [entry.pinned async for entry in session.transcript()] == [False] * 20


@pytest.mark.anyio
async def test_a_pinned_call_keeps_its_results() -> None:
    replies = [Reply(tool_uses=[ToolUse("echo", {"text": "kept"}, "t1")]), "ok", *["ok"] * 6]
    async with session_of(replies, conversation_manager=SlidingWindowConversationManager(2)) as session:
        await session.ask("call")
        await session.rewind(to="e4")
        await session.pin("e2")
        for number in range(5):
            await session.ask(f"question {number}")
        shown = await session.messages()
        assert shown[1:3] == [said(calls("echo", "t1", text="kept")), results(("t1", "kept"))]
        assert is_valid(shown)


@pytest.mark.anyio
async def test_only_what_is_in_the_view_can_be_pinned() -> None:
    async with session_of(["one", "two"], conversation_manager=SlidingWindowConversationManager(2)) as session:
        await session.ask("1")
        await session.ask("2")
        with pytest.raises(InvalidOption, match="'e1' is not in the view"):
            await session.pin("e1")
        with pytest.raises(InvalidOption, match="has no entry 'e9'"):
            await session.pin("e9")
        await session.pin("e1", pinned=False)
        await session.pin("e3")
        await session.pin("e3")
        assert session.statistics().restarts == 0


class Forgetful(ConversationManager):
    """Keeps the last two messages, whatever is pinned."""

    def apply_management(self, messages: Any, /) -> None:
        del messages[:-2]


@pytest.mark.anyio
async def test_a_manager_of_ones_own_that_takes_a_pinned_entry_away_is_not_believed() -> None:
    async with session_of(["one", "two"], conversation_manager=Forgetful()) as session:
        told_of: list[StepRestarted] = []
        session.add_handler(told_of.append, [StepRestarted])
        await session.ask("1")
        await session.pin("e1")
        await session.ask("2")
        assert [event.error for event in told_of] == ["RungRefused"]
        assert await session.messages() == [told("1"), said("one"), told("2"), said("two")]


@pytest.mark.anyio
async def test_a_pin_goes_along_when_the_next_prompt_joins_the_message() -> None:
    async with session_of(lambda messages: "ok", conversation_manager=SlidingWindowConversationManager(2)) as session:
        await session.add_messages([told("keep me")])
        await session.pin("e1")
        await session.ask("go")
        for _ in range(3):
            await session.ask("more")
        assert (await session.messages())[0] == told("keep me", "go")
        assert [entry.id async for entry in session.transcript() if entry.pinned] == ["e1", "e2"]


# --- forking --------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_fork_has_the_past_and_goes_on_apart(place: str | None) -> None:
    async with session_of(lambda messages: f"answer {len(messages)}", place) as session:
        for prompt in ("one", "two"):
            await session.ask(prompt)
        await session.pin("e1")
        fork = await session.fork("you")
        early = await session.fork("early", at="e2")
        assert (fork.id, fork.spec) == ("you", session.spec)
        assert await fork.messages() == await session.messages()
        assert [entry.pinned async for entry in fork.transcript()] == [True, False, False, False]
        assert await early.messages() == [told("one"), said("answer 1")]
        await fork.ask("three, here only")
        await session.ask("three")
        assert [entry.id async for entry in fork.transcript()] == [entry.id async for entry in session.transcript()]
        assert (await session.messages())[4] == told("three")
        await session.runtime.delete("me")
        assert [entry.message async for entry in early.transcript()] == [told("one"), said("answer 1")]
        assert str(await early.ask("still?")) == "answer 3"
        with pytest.raises(SessionExists):
            await early.fork("you")
        await assert_sound(fork)
        await assert_sound(early)


@pytest.mark.anyio
async def test_a_fork_during_a_turn_is_of_what_is_settled(place: str | None) -> None:
    async with session_of(["first", Reply(text="never", delay=600), "go on"], place) as session:
        await session.ask("one")
        turn = await session.submit("two")
        fork = await session.fork("you")
        assert await fork.messages() == [told("one"), said("first")]
        assert fork.statistics().turns == 1
        await turn.cancel()
        assert str(await fork.ask("hi")) == "go on"


@pytest.mark.anyio
async def test_a_fork_does_not_do_what_waits_in_its_source(place: str | None) -> None:
    async with session_of(lambda messages: f"answer {len(messages)}", place) as session:
        turns = [await session.submit(prompt, key=prompt) for prompt in ("one", "two", "three")]
        for turn in turns:
            await turn.result()
        fork = await session.fork("you", at="e2")
        assert await fork.messages() == [told("one"), said("answer 1")]
        await fork.wait_idle()
        assert str(await fork.ask("two", key="two")) == "answer 3"  # a key of the source's says nothing here
        assert await fork.messages() == [told("one"), said("answer 1"), told("two"), said("answer 3")]
        await assert_sound(fork)
        assert await session.runtime.passivate("you")
        assert len(await fork.messages()) == 4
        await assert_sound(fork)


@pytest.mark.anyio
async def test_a_fork_is_of_a_place_where_a_turn_ended() -> None:
    async with session_of([Reply(tool_uses=[ToolUse("echo", {"text": "a"})]), "done", "two"]) as session:
        empty = await session.fork("empty")
        assert await empty.messages() == []
        await session.ask("call")
        await session.ask("next")
        for entry_id in ("e1", "e2", "e3"):
            with pytest.raises(InvalidOption, match=f"no turn ended with entry '{entry_id}'.*; e4 would do"):
                await session.fork("you", at=entry_id)
        with pytest.raises(InvalidOption, match="has no entry 'e9'; its entries are e1 to e6"):
            await session.fork("you", at="e9")
        assert await session.runtime.journal.find("you") is None


# --- laws -----------------------------------------------------------------------------------------------------------


def blocks_of(messages: list[Message]) -> list[Block]:
    return [block for message in messages for block in message["content"]]


class Moments:
    """Folds events, and keeps the view as it was right after each message was told of."""

    def __init__(self) -> None:
        self.fold = EventFold()
        self.views: dict[str, list[tuple[str, Message]]] = {}

    def __call__(self, event: Any) -> None:
        self.fold.take(event)
        if isinstance(event, MessageAdded):
            self.views[event.entry_id] = list(self.fold.view.items())


def talking(messages: list[Message]) -> Reply | Exception:
    """Does what the last prompt asks for; refuses what is long, until it is shorter."""
    last = messages[-1]["content"][-1]
    if "toolResult" in last:
        return Reply(text="the tool said so")
    word = last["text"].split()[0]
    if word == "overflow" and len(blocks_of(messages)) > 5:
        raise ContextWindowOverflow
    if word == "tool":
        return Reply(tool_uses=[ToolUse("echo", {"text": "long " * 120}), ToolUse("echo", {"text": "b"})])
    if word == "fail":
        raise ModelError("as it was asked to")
    return Reply(text=f"answer to {len(messages)}")


STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(["say", "tool", "fail", "overflow"])),
    st.tuples(st.sampled_from(["rewind", "pin", "unpin", "add", "fork"]), st.integers(0, 40)),
    st.tuples(st.just("drop"), st.integers(0, 5)),
)


class Life:
    """One session through any mix of turns and changes of its history, held against what its events told."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.moments = Moments()
        session.add_handler(self.moments)
        self.count = 0

    async def take(self, step: tuple[str, Any]) -> None:
        self.count += 1
        session, (what, which) = self.session, step
        everything = [entry async for entry in session.transcript()]
        before = await session.messages()
        name = f"e{which % len(everything) + 1}" if everything and isinstance(which, int) else "e1"
        match what:
            case "ask":
                pinned = blocks_of([entry.message for entry in everything if entry.pinned and entry.in_view])
                with contextlib.suppress(ModelError):
                    await session.ask(f"{which} {self.count}")
                left = blocks_of(await session.messages())
                assert [block for block in pinned if block not in left] == []
            case "rewind":
                await self.rewind(name, before)
            case "pin" | "unpin":
                with contextlib.suppress(InvalidOption):
                    await session.pin(name, pinned=what == "pin")
            case "fork":
                await self.fork(name, everything)
            case "add":
                await session.add_messages([told(f"added {self.count}")] if not which % 2 else [told(f"added {self.count}"), said("indeed")])
            case _:
                with contextlib.suppress(InvalidConversation):  # it would begin with an answer
                    await session.set_messages(before[which - which % 2 :])
        await self.check()

    async def rewind(self, name: str, before: list[Message]) -> None:
        at = self.moments.views.get(name)
        try:
            await self.session.rewind(to=name)
        except InvalidOption:
            assert await self.session.messages() == before
            assert at is None or not is_valid([message for _, message in at])
        else:
            after = await self.session.messages()
            assert is_valid(after)
            assert at is None or after == [message for _, message in at]

    async def fork(self, name: str, everything: list[TranscriptEntry]) -> None:
        """Forked where it can be, the other has the past up to there, and is sound; as far as it is settled, it is the same."""
        whole = await self.session.fork(f"whole-{self.count}")
        assert [entry async for entry in whole.transcript()] == everything
        assert await whole.messages() == await self.session.messages()
        await assert_sound(whole)
        with contextlib.suppress(InvalidOption):
            part = await self.session.fork(f"part-{self.count}", at=name)
            assert (await part.messages())[-1] == next(entry.message for entry in everything if entry.id == name)
            past = [(entry.id, entry.message) async for entry in part.transcript()]
            assert past == [(entry.id, entry.message) for entry in everything][: len(past)]
            await assert_sound(part)

    async def check(self) -> None:
        session = self.session
        await assert_sound(session)
        records: list[Record] = list(await session.runtime.journal.read(session.id))
        paged = [entry async for entry in session.transcript()]
        assert paged == transcribed([record.body for record in records])
        assert [entry.id for entry in paged if entry.in_view] == sorted((e for e in self.moments.fold.view), key=lambda e: int(e[1:]))
        state = session._actor.state  # type: ignore[union-attr]
        assert {entry.id for entry in paged if entry.pinned} == {f"e{number}" for number in state.pins}


@given(st.lists(STEPS, max_size=12), st.sampled_from([2, 4, 40]), st.random_module())
def test_any_mix_of_turns_and_changes_of_the_history(steps: list[tuple[str, Any]], window: int, random: object) -> None:
    @in_trio
    async def live() -> None:
        async with virtual_runtime() as runtime:
            session = await runtime.open("me", agent(talking, conversation_manager=SlidingWindowConversationManager(window)))
            life = Life(session)
            for step in steps:
                await life.take(step)

    live()

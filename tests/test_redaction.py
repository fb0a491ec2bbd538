"""Redacting: the words are in no file and no memory any more, and all else is as it was."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from journal_harnesses import MEMORY
from ropewalk import ConversationManager, InvalidOption, ModelError, Runtime, Session, SessionElsewhere, SlidingWindowConversationManager, TranscriptEntry
from ropewalk.actors.messages import Message, text_of
from ropewalk.testing import Reply, ScriptedModel, ToolUse, in_trio
from talk import agent, assert_sound, calls, results, said, told, virtual_runtime
from test_history import STEPS, Life, talking

SECRET = 'the \u00e9 "secret" word'
REST = "[redacted]"
REDUCERS: Any = [(SlidingWindowConversationManager(4), ()), (ConversationManager(), ("clip", "digest")), (ConversationManager(), ("digest",))]


def contents(folder: str | Path) -> bytes:
    """All bytes of all files there."""
    return b"".join(path.read_bytes() for path in sorted(Path(folder).iterdir()))


def holds(data: bytes, text: str) -> bool:
    """Whether bytes hold a text, as it is or as it is within JSON, of which a digest may show a part."""
    return any(form in data for form in (text.encode(), text.replace('"', '\\"').encode(), text.encode("unicode_escape"), b"secret"))


@pytest.fixture(params=["memory", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Where a runtime keeps its sessions."""
    return None if request.param == "memory" else str(tmp_path / "sessions.db")


async def all_that_is_kept(session: Session) -> bytes:
    """What the journal and the session tell, and a late reader hears."""
    runtime = session.runtime
    parts: list[Any] = [record.body for record in await runtime.journal.read(session.id)]
    parts += [await session.messages(), [entry async for entry in session.transcript()]]
    async with runtime.events.subscribe(sessions=session.id, after="1:0") as late:
        while (event := late.take()) is not None:
            parts.append(event)
    return repr(parts).encode()


@pytest.mark.anyio
async def test_a_prompt_is_gone_and_its_entry_stays(place: str | None, tmp_path: Path) -> None:
    async with Runtime(place, replay=100) as runtime:
        session = await runtime.open("me", agent(["first", Reply(text="never", delay=0.05), "third"]))
        turn = await session.submit("busy")
        waits = await session.submit(SECRET)  # accepted by a record of its own
        await turn.result()
        await waits.result()
        await session.redact("e3")
        assert await session.messages() == [told("busy"), said("first"), told(REST), said("never")]
        assert [entry.id async for entry in session.transcript()] == ["e1", "e2", "e3", "e4"]
        assert not holds(await all_that_is_kept(session), SECRET)
        assert str(await session.ask("go on")) == "third"
        await assert_sound(session)
        if place is not None:
            assert not holds(contents(tmp_path), SECRET)
    if place is not None:
        assert not holds(contents(tmp_path), SECRET)


@pytest.mark.anyio
async def test_calls_and_results_keep_their_ids(place: str | None, tmp_path: Path) -> None:
    async with Runtime(place) as runtime:
        session = await runtime.open("me", agent([Reply(text="look", tool_uses=[ToolUse("echo", {"text": SECRET}, "t1")]), "done"]))
        await session.ask("call")
        await session.redact("e3")
        assert (await session.messages())[2] == results(("t1", REST))
        await session.redact("e2")
        assert (await session.messages())[1] == said(REST, calls("echo", "t1"))
        assert not holds(await all_that_is_kept(session), SECRET)
        await assert_sound(session)


@pytest.mark.anyio
async def test_what_joined_it_and_what_a_reduction_made_of_it(place: str | None, tmp_path: Path) -> None:
    async with Runtime(place) as runtime:
        session = await runtime.open("me", agent(talking, conversation_manager=ConversationManager(), ladder=("digest",)))
        await session.add_messages([told(SECRET)])
        await session.ask("say something")  # joins it
        for _ in range(3):
            await session.ask("say " + "and so on " * 60)
        await session.ask("overflow now")
        transcript = [entry async for entry in session.transcript()]
        assert any("digest" in str(entry.message) and "secret" in str(entry.message) for entry in transcript)
        await session.redact("e1")
        assert not holds(await all_that_is_kept(session), SECRET)
        after = [entry async for entry in session.transcript()]
        assert after[1].message == told(REST, "say something")
        assert [entry.id for entry in after] == [entry.id for entry in transcript]
        await assert_sound(session)
        if place is not None:
            assert not holds(contents(tmp_path), SECRET)


@pytest.mark.anyio
async def test_forks_say_it_no_more_whether_they_are_in_memory_or_not(place: str | None, tmp_path: Path) -> None:
    async with Runtime(place) as runtime:
        session = await runtime.open("me", agent(talking))
        await session.add_messages([told("say before"), said("yes")])
        await session.ask(f"say {SECRET}")
        fork = await session.fork("fork")
        early = await session.fork("early", at="e2")
        await early.ask("say apart")
        await fork.set_messages([*(await fork.messages())[:3], said("changed")])
        await fork.ask("say more")
        await fork.ask("say more")
        await fork.ask("overflow now")
        second = await fork.fork("second")
        await second.ask("say so")
        await runtime.journal.fork("me", 4, "asleep")
        before = await early.messages()
        await session.redact("e3")
        for one in (session, fork, second, await runtime.open("asleep", session.spec, create=False)):
            assert not holds(await all_that_is_kept(one), SECRET)
            await one.ask("say on")
            await assert_sound(one)
        assert await early.messages() == before
        if place is not None:
            assert not holds(contents(tmp_path), SECRET)


@pytest.mark.anyio
async def test_what_cannot_be_redacted(tmp_path: Path) -> None:
    path = str(tmp_path / "sessions.db")
    async with Runtime(path, open_timeout=0) as runtime, Runtime(path, open_timeout=0) as other:
        session = await runtime.open("me", agent(talking))
        await session.ask(f"say {SECRET}")
        for unknown in ("e9", "x", ""):
            with pytest.raises(InvalidOption, match="has no entry"):
                await session.redact(unknown)
        await runtime.journal.fork("me", 4, "theirs")
        theirs = await other.open("theirs", session.spec, create=False)
        with pytest.raises(SessionElsewhere):
            await session.redact("e1")
        assert (await theirs.messages()) == (await session.messages()) == [told(f"say {SECRET}"), said("answer to 1")]
        await session.ask("say on")


@given(st.lists(STEPS, max_size=4), st.lists(STEPS, max_size=4), st.booleans(), st.booleans(), st.sampled_from(REDUCERS), st.random_module())
def test_whatever_happened_to_it(before: list[Any], after: list[Any], as_answer: bool, forked: bool, reducers: Any, random: object) -> None:
    """In no file, searched as bytes; whatever else was said is there still, and what is live is what is replayed."""

    def reply(messages: list[Message]) -> Any:
        last = messages[-1]["content"][-1]
        return Reply(text=SECRET) if last.get("text") == "tell me" else talking(messages)

    async def live() -> None:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            spec = agent(reply, conversation_manager=reducers[0], ladder=reducers[1])
            async with Runtime(f"{folder}/sessions.db", replay=50, sync_calls="inline") as runtime:
                session = await runtime.open("me", spec)
                life = Life(session)
                for step in before:
                    await life.take(step)
                await session.ask("tell me" if as_answer else SECRET)
                everything = [entry async for entry in session.transcript()]
                [number] = [entry.id for entry in everything if entry.message["content"] == [{"text": SECRET}]] or [await newest(session)]
                others = [await session.fork("forked")] if forked else []
                for step in after:
                    await life.take(step)
                    if others and step[0] == "ask":
                        with contextlib.suppress(ModelError):
                            await others[0].ask(f"{step[1]} it again")
                everything = [entry async for entry in session.transcript()]
                view = [entry.id for entry in everything if entry.in_view]
                await session.redact(number)
                assert not holds(contents(folder), SECRET)
                for one in (session, *others):
                    assert not holds(await all_that_is_kept(one), SECRET)
                    await assert_sound(one)
                left = [entry async for entry in session.transcript()]
                assert [entry.id for entry in left if entry.in_view] == view
                words = [*next(words_of(entry) for entry in everything if entry.id == number), "[digest of"]
                assert [about(entry) for entry in left] == [about(entry) for entry in everything]
                for now, then in zip(left, everything, strict=True):
                    assert now.message == then.message or any(word in said for word in words for said in words_of(then)), "it was spoilt"
            assert not holds(contents(folder), SECRET)

    anyio.run(live)


async def newest(session: Session) -> str:
    """The entry that the prompt joined."""
    return [entry.id async for entry in session.transcript() if {"text": SECRET} in entry.message["content"]].pop()


def about(entry: TranscriptEntry) -> Any:
    """What redacting changes of no entry."""
    return entry.id, entry.turn_id, entry.in_view, entry.left_because, entry.pinned, entry.message["role"], len(entry.message["content"])


def words_of(entry: TranscriptEntry) -> list[str]:
    """The texts of an entry."""
    return [str(block.get("text", block)) for block in entry.message["content"]]


@in_trio
async def test_a_fork_that_is_at_work_meanwhile_keeps_no_snapshot_of_the_words() -> None:
    window = SlidingWindowConversationManager(window_size=4)
    spec = agent(patient(), conversation_manager=window)
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", spec)
        await session.ask("SECRET")
        await session.pin("e1")
        fork = await session.fork("fork")
        await fork.pin("e1")
        for _ in range(14):
            await fork.ask("more")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.ask, "slow")
            await trio.testing.wait_all_tasks_blocked()
            tasks.start_soon(session.redact, "e1")  # the fork is looked after, and this session has to wait
            await trio.sleep(1)
            tasks.start_soon(fork.ask, "slower")
            await trio.sleep(1)
            tasks.start_soon(fork.ask, "which makes a snapshot due")
        for one in (session, fork):
            assert "SECRET" not in str(await one.messages())
            await assert_sound(one)
        assert "SECRET" not in str(await runtime.journal.snapshot("fork"))


def patient() -> ScriptedModel:
    """A model that takes its time when it is told to."""
    return ScriptedModel(lambda messages: Reply(text="done", delay={"slow": 10, "slower": 20}.get(text_of(messages[-1]), 0)))

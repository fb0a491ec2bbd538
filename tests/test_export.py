"""Sessions as JSON lines: out of one journal, into another, and what is refused on the way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk import (
    InvalidOption,
    InvalidSessionId,
    Runtime,
    Session,
    SessionExists,
    SlidingWindowConversationManager,
    UnknownRecord,
    UnknownSession,
    export_session,
    import_session,
)
from ropewalk.actors.testing.strategies import valid_conversations
from ropewalk.testing import Reply, ToolUse, in_trio
from talk import agent, assert_sound, replayed, virtual_runtime
from test_history import STEPS, Life, talking


@pytest.fixture(params=["memory", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Where the sessions are brought to."""
    return None if request.param == "memory" else str(tmp_path / "other.db")


async def exported(session: Session) -> list[str]:
    return [line async for line in export_session(session.runtime.journal, session.id)]


async def a_few_lines() -> list[str]:
    replies = [Reply(tool_uses=[ToolUse("echo", {"text": "caf\u00e9 \ud800 \u2028"})]), "done"]
    async with Runtime() as runtime:
        session = await runtime.open("me", agent(replies, name="helper"))
        await session.ask([{"text": "look"}, {"image": {"format": "png", "source": {"bytes": b"\x00\xff"}}}])
        return await exported(session)


def sealed(lines: list[str]) -> list[str]:
    """The lines with a last one that fits them."""
    digest = hashlib.sha256("".join(lines[:-1]).encode())
    return [*lines[:-1], json.dumps({"records": len(lines) - 2, "sha256": digest.hexdigest()}) + "\n"]


@pytest.mark.anyio
async def test_what_is_brought_back_is_what_was_taken_out(place: str | None) -> None:
    lines = await a_few_lines()
    header, first = map(json.loads, lines[:2])
    assert header == {"format": "ropewalk session", "version": 1, "session": "me", "spec": "helper"}
    assert (first["id"], first["number"], first["kind"], first["body"]["spec"]) == ("me/1", 1, "Opened", "helper")
    assert json.loads(lines[-1])["records"] == len(lines) - 2
    async with Runtime(place) as runtime:
        assert await import_session(runtime.journal, lines) == "me"
        assert await import_session(runtime.journal, iter(lines), "copy") == "copy"
        session, copy = [await runtime.open(name, agent(["fine"], name="helper")) for name in ("me", "copy")]
        assert await session.messages() == await copy.messages()
        assert (await copy.messages())[0]["content"][1]["image"]["source"]["bytes"] == b"\x00\xff"
        assert str(await copy.ask("go on")) == "fine"
        await assert_sound(copy)
        with pytest.raises(SessionExists, match="'me' already"):
            await import_session(runtime.journal, lines)
        with pytest.raises(UnknownSession):
            await anext(export_session(runtime.journal, "nobody"))
        with pytest.raises(InvalidSessionId):
            await import_session(runtime.journal, lines, "../x")


def changed(line: str, **fields: Any) -> str:
    return json.dumps({**json.loads(line), **fields}) + "\n"


@pytest.mark.anyio
async def test_what_is_not_whole_is_refused_and_nothing_of_it_is_kept() -> None:
    lines = await a_few_lines()
    spoilt: list[tuple[list[str], type[Exception], str]] = [
        ([], InvalidOption, "it is empty"),
        (["{}\n"], InvalidOption, "no export of a session"),
        (["hello\n", "world\n"], InvalidOption, "no export of a session"),
        ([changed(lines[0], version=2, more=1), *lines[1:]], UnknownRecord, "version 2, and this Ropewalk reads version 1"),
        (sealed([lines[0], changed(lines[1], form=99), *lines[2:]]), UnknownRecord, "version 99"),
        (sealed([lines[0], changed(lines[1], kind="Sung"), *lines[2:]]), UnknownRecord, "'Sung'|not the form"),
        (sealed([lines[0], *lines[2:]]), InvalidOption, "not its record 1"),
        (sealed([lines[0], lines[-1]]), InvalidOption, "not a conversation from its beginning"),
        *[(lines[:end], InvalidOption, "torn|changed or lost") for end in range(1, len(lines))],
        *[([*lines[:gone], *lines[gone + 1 :]], InvalidOption, "checksum|torn") for gone in range(1, len(lines))],
        *[([*lines[:-1], lines[-1][:end]], InvalidOption, "torn|changed") for end in range(1, len(lines[-1]) - 1, 7)],
        ([line.replace("look", "took") for line in lines], InvalidOption, "checksum does not match"),
    ]
    async with Runtime() as runtime:
        for bad, error, words in spoilt:
            with pytest.raises(error, match=words):
                await import_session(runtime.journal, bad)
        assert [info.id async for info in runtime.list_sessions()] == []


@given(st.lists(STEPS, max_size=8), valid_conversations(), st.sampled_from([2, 40]), st.random_module())
def test_any_session_is_the_same_afterwards(steps: list[tuple[str, Any]], opening: list[Any], window: int, random: object) -> None:
    @in_trio
    async def live() -> None:
        spec = agent(talking, conversation_manager=SlidingWindowConversationManager(window))
        async with virtual_runtime() as runtime, virtual_runtime() as other:
            session = await runtime.open("me", spec)
            life = Life(session)
            await session.set_messages(opening)
            for step in steps:
                await life.take(step)
            lines = await exported(session)
            await import_session(other.journal, lines)
            copy = await other.open("me", spec)
            assert await copy.messages() == await session.messages()
            assert [entry async for entry in copy.transcript()] == [entry async for entry in session.transcript()]
            assert (await replayed(copy)).pins == (await replayed(session)).pins
            assert await exported(copy) == lines

    live()

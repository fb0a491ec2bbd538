"""A machine that stops in the middle of a write: every state that the file of a turn can be left in, brought back."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from ropewalk import ContextWindowOverflow, Event, MessageAdded, SlidingWindowConversationManager, SQLiteJournal, ToolStarted, TurnEnded
from ropewalk.actors.messages import tool_results
from ropewalk.actors.session.codec import RECORDS
from ropewalk.actors.session.records import Settled
from ropewalk.actors.session.state import entries_in
from ropewalk.actors.validity import is_valid
from ropewalk.testing import Reply, ScriptedModel, ToolUse, in_trio
from talk import agent, said, told, virtual_runtime

WAL_HEADER, FRAME_HEADER = 32, 24
"""What a write-ahead log begins with, and each of its pages; the size of a page stands at byte 8."""

KINDS = ("text", "tools", "cancel", "window")


def plays(messages: Sequence[dict[str, Any]]) -> Any:
    """A model that can be asked again wherever the log was cut."""
    if len(messages) > 6:
        return ContextWindowOverflow()
    words = [block["text"] for block in messages[-1]["content"] if "text" in block]
    if words[-1:] == ["tools"] and not tool_results(messages[-1]):
        return Reply(tool_uses=[ToolUse("echo", {"text": "a"}, "a"), ToolUse("echo", {"text": "b"}, "b")])
    if words[-1:] == ["cancel"] and not tool_results(messages[-1]):
        return Reply(text="let me wait", tool_uses=[ToolUse("wait", {"seconds": 5.0}, "w")])
    return "well"


def spec_of(kind: str) -> Any:
    return agent(ScriptedModel(plays), conversation_manager=SlidingWindowConversationManager(window_size=4 if kind == "window" else 40))


def cuts(log: bytes) -> Iterator[int]:
    """Where the log may end: after each page, and in the middle of each."""
    frame = FRAME_HEADER + struct.unpack(">I", log[8:12])[0]
    for end in range(WAL_HEADER, len(log) + 1, frame):
        yield end
        if end < len(log):
            yield end + frame // 2


def size_of(path: Path) -> int:
    """How long the log of a file is now."""
    return Path(f"{path}-wal").stat().st_size


def laid_down(folder: Path, database: bytes, log: bytes) -> Path:
    """A file and its log in a folder of their own."""
    path = folder / "sessions.db"
    path.parent.mkdir()
    path.write_bytes(database)
    Path(f"{path}-wal").write_bytes(log)
    return path


async def bodies(path: Path) -> list[Any]:
    """What the log of the session has, without anybody claiming it."""
    journal = SQLiteJournal(path)
    await journal.open()
    try:
        return [record.body for record in await journal.read("me", codec=RECORDS)]
    finally:
        await journal.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_that_was_torn_anywhere_is_a_prefix_that_holds_all_that_was_acknowledged(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "whole" / "sessions.db"
    path.parent.mkdir()
    acknowledged: list[tuple[int, str]] = []

    @in_trio
    async def whole() -> None:
        journal = SQLiteJournal(path)
        async with virtual_runtime(journal=journal) as runtime:
            before = [message for _ in range(3) for message in (told("before"), said("indeed"))] if kind == "window" else []
            session = await runtime.open("me", spec_of(kind), messages=before)

            async def hear(event: Event) -> None:
                # What is published is durable by now: a log as long as it is here holds it.
                acknowledged.append((size_of(path), event.entry_id if isinstance(event, MessageAdded) else type(event).__name__))
                if kind == "cancel" and isinstance(event, ToolStarted):
                    await session.cancel()

            runtime.add_handler(hear, {MessageAdded, ToolStarted, TurnEnded})
            result = await session.ask(kind)
            assert result.stop_reason == ("cancelled" if kind == "cancel" else "end_turn")
            for name in ("", "-wal"):
                shutil.copy(f"{path}{name}", tmp_path / f"left.db{name}")

    whole()
    assert len(acknowledged) > 2
    database, log = (tmp_path / "left.db").read_bytes(), (tmp_path / "left.db-wal").read_bytes()
    lengths: list[int] = []

    @in_trio
    async def bring_back(end: int) -> None:
        left = laid_down(tmp_path / str(end), database, log[:end])
        found = await bodies(left)
        assert found == everything[: len(found)]
        holds = {entry.id for body in found for entry in entries_in(body)} | {TurnEnded.__name__ for body in found if isinstance(body, Settled)}
        assert holds.issuperset(name for there, name in acknowledged if there <= end and name != ToolStarted.__name__)
        lengths.append(len(found))
        async with virtual_runtime(journal=SQLiteJournal(left), specs=[spec_of(kind)]) as runtime:
            await runtime.recover()
            session = await runtime.open("me", spec_of(kind))
            await session.wait_idle()
            shown = await session.messages()
            assert not shown or is_valid(shown)
            assert (await session.ask("next")).stop_reason == "end_turn"

    everything = trio.run(bodies, laid_down(tmp_path / "all", database, log))
    for end in cuts(log):
        bring_back(end)
    assert lengths == sorted(lengths)
    assert lengths[-1] == len(everything)
    assert len(set(lengths)) > 2, "the turn was one write"

"""Deleting sessions: what runs is ended, what waits is told, nothing of it is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from ropewalk import MemoryJournal, Quarantined, Runtime, Session, SessionElsewhere, TurnEnded, UnknownSession, WouldDeadlock, tool
from ropewalk.runtime.journal import Claim, Codec
from ropewalk.testing import Reply, ToolUse, cancelled_at_step, in_trio
from talk import agent, assert_sound, said, told, virtual_runtime


@pytest.fixture(params=["memory", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Where a runtime keeps its sessions."""
    return None if request.param == "memory" else str(tmp_path / "sessions.db")


def contents(folder: Path) -> bytes:
    """All bytes of all files there."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def error_of(asking: Any) -> str:
    try:
        return str(await asking)
    except UnknownSession as error:
        return type(error).__name__ + ": " + str(error)


@pytest.mark.anyio
async def test_what_runs_is_cancelled_what_waits_is_told_and_the_log_is_gone(place: str | None, tmp_path: Path) -> None:
    outcomes: dict[str, str] = {}

    async def ask(session: Session, text: str) -> None:
        outcomes[text] = await error_of(session.ask(text))

    async with Runtime(place) as runtime:
        spec = agent([Reply(text="begun and more", pace=60), *["later"] * 9])
        session = await runtime.open("me", spec)
        ended: list[TurnEnded] = []
        session.add_handler(ended.append, [TurnEnded])
        turn = await session.submit("a secret wish")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, session, "waits")
            tasks.start_soon(ask, session, "waits too")
            await anyio.wait_all_tasks_blocked()
            await runtime.delete("me")
        assert (await turn.result()).stop_reason == "cancelled"
        assert [event.stop_reason for event in ended] == ["cancelled"]
        assert set(outcomes.values()) == {"UnknownSession: the session 'me' was deleted before the message was handled"}
        assert session.status == "deleted"
        for using in (session.ask("hello"), session.messages(), session.rewind(to="e1"), anext(session.transcript())):
            with pytest.raises(UnknownSession, match=r"was deleted; Runtime.open begins a new one"):
                await using
        with pytest.raises(UnknownSession):
            await runtime.open("me", spec, create=False)
        with pytest.raises(UnknownSession):
            await runtime.delete("me")
        assert [info.id async for info in runtime.list_sessions()] == []
        fresh = await runtime.open("me", spec)
        assert str(await fresh.ask("anew")) == "later"
        assert await fresh.messages() == [told("anew"), said("later")]
    if place is not None:
        assert contents(tmp_path).count(b"anew") == 1
        assert b"secret" not in contents(tmp_path)


@pytest.mark.anyio
async def test_a_session_that_is_in_the_journal_only(place: str | None) -> None:
    spec = agent(lambda messages: "ok")
    async with Runtime(place) as runtime:
        with pytest.raises(UnknownSession, match="no session 'you' to delete"):
            await runtime.delete("you")
        await (await runtime.open("me", spec)).ask("hi")
        journal = runtime.journal
    async with Runtime(journal if place is None else place) as runtime:
        await runtime.delete("me")
        assert await runtime.journal.find("me") is None


@pytest.mark.anyio
async def test_a_session_of_another_living_runtime_stays(tmp_path: Path) -> None:
    path = str(tmp_path / "sessions.db")
    async with Runtime(path) as one, Runtime(path) as two:
        session = await one.open("me", agent(lambda messages: "ok"))
        await session.ask("hi")
        with pytest.raises(SessionElsewhere):
            await two.delete("me")
        assert str(await session.ask("still there?")) == "ok"


@in_trio
async def test_a_tool_that_is_called_directly_is_ended() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent([]))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.call_tool, "wait", {})
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(60):
                await runtime.delete("me")


@in_trio
async def test_a_session_cannot_delete_itself() -> None:
    raised: list[str] = []

    @tool
    async def leave() -> str:
        """Delete the session."""
        try:
            await runtime.delete("me")
        except WouldDeadlock as error:
            raised.append(type(error).__name__)
        return "tried"

    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent([Reply(tool_uses=[ToolUse("leave", {})]), "stays"], tools=[leave]))
        assert str(await session.ask("go")) == "stays"
        assert raised == ["WouldDeadlock"]
        assert session.status == "idle"


def test_deleting_that_is_cancelled_anywhere_leaves_a_session_or_none() -> None:
    @in_trio
    async def cancelled_at(step: int) -> None:
        async with virtual_runtime() as runtime:
            session = await runtime.open("me", agent([Reply(text="begun and more", pace=1), *["later"] * 9]))
            turn = await session.submit("first")
            await anyio.sleep(1.5)
            waiting = await session.submit("second")
            with cancelled_at_step(step, of_anyone=True) as scope:
                await runtime.delete("me")
            reached.append(scope.cancel_called)
            assert (await turn.result()).stop_reason in ("cancelled", "end_turn")
            outcome = await error_of(waiting.result())
            if session.status == "deleted":
                assert not scope.cancelled_caught or await runtime.journal.find("me") is None
                assert outcome.startswith("UnknownSession")
            else:
                await session.ask("go on")
                await assert_sound(session)

    reached: list[bool] = []
    step = 1
    while not reached or reached[-1]:
        cancelled_at(step)
        step += 1
        assert step < 100
    assert step > 3


@in_trio
async def test_a_quarantined_session_can_be_deleted() -> None:
    async with virtual_runtime() as runtime:
        session = await runtime.open("me", agent(lambda messages: "ok"))
        session._cell.reason = "too many failures"
        with pytest.raises(Quarantined):
            await session.ask("hi")
        await runtime.delete("me")
        with pytest.raises(UnknownSession):
            await session.ask("hi")


class Slow(MemoryJournal):
    """A journal whose answers take their time to come, and a second to be heard."""

    async def delete(self, actor_id: str) -> bool:
        await anyio.sleep(1.75)
        found = await super().delete(actor_id)
        await anyio.sleep(1)
        return found

    async def claim(self, actor_id: str, kind: str = "", codec: Codec | None = None) -> Claim:
        await anyio.sleep(1)
        claim = await super().claim(actor_id, kind, codec)
        await anyio.sleep(1)
        return claim


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("deleted_after", [0.0, 0.5, 1.5, 2.5])
@pytest.mark.parametrize("opened_after", [0.0, 0.5, 1.5, 2.5])
def test_opening_beside_deleting_has_a_plain_outcome(create: bool, resident: bool, deleted_after: float, opened_after: float) -> None:
    """Who opens a session that is being deleted gets a new one, or hears that there is none; who opened it before has one that is deleted."""

    @in_trio
    async def run() -> None:
        spec = agent(lambda messages: "ok")
        async with virtual_runtime(journal=(journal := Slow())) as runtime:
            await (await runtime.open("me", spec)).ask("a secret wish")
            opened: list[Session | None] = []

            async def open_it(after: float) -> None:
                await anyio.sleep(after)
                try:
                    opened.append(await runtime.open("me", spec, create=create))
                except UnknownSession:
                    opened.append(None)

            async def delete_it() -> None:
                await anyio.sleep(deleted_after)
                await runtime.delete("me")

            if not resident:
                await runtime.passivate("me")
            async with anyio.create_task_group() as tasks:
                for later in (0.0, 0.25, 0.25):
                    tasks.start_soon(open_it, opened_after + later)
                tasks.start_soon(delete_it)
            there = [session for session in opened if session is not None and session.status != "deleted"]
            assert len(opened) == 3
            assert create or not there
            assert bool(there) == (await journal.find("me") is not None)
            session = there[0] if there else await runtime.open("me", spec)
            assert str(await session.ask("anew")) == "ok"
            assert await session.messages() == [told("anew"), said("ok")]
            await assert_sound(session)

    run()


@pytest.mark.anyio
async def test_many_open_a_session_while_it_is_deleted(place: str | None) -> None:
    spec = agent(lambda messages: "ok")
    async with Runtime(place) as runtime:
        await (await runtime.open("me", spec)).ask("a secret wish")
        await runtime.passivate("me")
        opened: list[Session] = []

        async def open_it() -> None:
            opened.append(await runtime.open("me", spec))

        async with anyio.create_task_group() as tasks:
            for work in (lambda: runtime.delete("me"), *[open_it] * 9):
                tasks.start_soon(work)
        assert len(opened) == 9
        for session in opened:
            assert session.status == "deleted" or await session.messages() == []

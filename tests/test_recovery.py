"""What the death of a process leaves: every accepted prompt answered once, no effect twice, every doubt told, from whatever record it died after."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mortal import DOUBT, HARMLESS, LONG, PLANS, Bank, Mortal, banking, check_bank, live, to_the_end
from ropewalk import (
    AgentSpec,
    InvalidOption,
    KeyReused,
    ModelError,
    RecoveryReport,
    Runtime,
    RuntimeClosed,
    SessionElsewhere,
    SQLiteJournal,
    ToolEnded,
    TurnEnded,
    TurnResumed,
    TurnStarted,
)
from ropewalk.actors.messages import Message, text_of, tool_results, tool_uses
from ropewalk.runtime.supervision import Failure, attempt
from ropewalk.testing import Reply, ScriptedModel, in_trio
from talk import Gate, Witness, agent, assert_sound, replayed, told, virtual_runtime


@pytest.mark.parametrize("way", ["submit", "key"])
@pytest.mark.parametrize("name", PLANS)
def test_a_process_that_dies_before_any_write_of_a_turn(name: str, way: str) -> None:
    """Whatever it died before, the next one answers the prompt once, if it was accepted, and no effect is had twice."""

    async def uncrashed() -> tuple[list[Message], int]:
        bank = Bank()
        journal, spec = Mortal(), banking(bank)
        seen: list[Any] = []

        async def go(runtime: Runtime) -> None:
            session = await runtime.open("me", spec)
            await (await session.submit(f"{name}: go")).result()
            seen.extend(await session.messages())

        await live(journal, spec, go)
        return seen, journal.statistics().appends

    whole: list[tuple[list[Message], int]] = []

    @in_trio
    async def count() -> None:
        whole.append(await uncrashed())

    count()
    [(expected, writes)] = whole

    @in_trio
    async def die_before(write: int) -> None:
        bank = Bank()
        journal, spec = Mortal(write), banking(bank)
        accepted: list[str] = []

        async def go(runtime: Runtime) -> None:
            session = await runtime.open("me", spec)
            turn = await session.submit(f"{name}: go", key="k" if way == "key" else None)
            accepted.append(turn.prompt_id)
            await turn.result()

        assert await live(journal, spec, go)
        witness = Witness()
        later, report = await to_the_end(journal, spec, witness)
        assert not accepted or report.recovered == ("me",) or len(witness.of(TurnEnded)) == 0

        async def look(runtime: Runtime) -> None:
            session = await runtime.open("me", spec)
            messages = await session.messages()
            prompts = [message for message in messages if message["role"] == "user" and not tool_results(message)]
            assert len(prompts) <= 1
            if accepted:
                assert prompts == [told(f"{name}: go")], "an accepted prompt is gone"
            if prompts:
                assert text_of(messages[-1]) == text_of(expected[-1]), "the prompt has not the answer it would have had"
                assert without_doubts(messages) == without_doubts(expected, messages)
            check_bank(bank, messages)
            if way == "key":
                result = await session.ask(f"{name}: go", key="k")
                assert str(result) == text_of(expected[-1])
                assert [message for message in await session.messages() if message == told(f"{name}: go")] == [told(f"{name}: go")]
            await assert_sound(session)

        assert not await live(Mortal(beside=later), spec, look)

    for write in range(writes):
        die_before(write)


def without_doubts(messages: Sequence[Message], beside: Sequence[Message] | None = None) -> list[Any]:
    """The messages without the results that are in doubt, here or in others like them."""
    doubtful = [
        (place, number)
        for place, message in enumerate(messages if beside is None else beside)
        for number, result in enumerate(tool_results(message))
        if result["content"] == [{"text": DOUBT}]
    ]
    return [
        (message["role"], [block for number, block in enumerate(message["content"]) if (place, number) not in doubtful])
        for place, message in enumerate(messages)
    ]


def test_a_process_that_dies_in_a_turn_with_a_reduction() -> None:
    """The view is what it was before the reduction or after it, and the prompt is answered once."""

    @in_trio
    async def die_before(write: int) -> None:
        bank = Bank()
        journal, spec = Mortal(write), banking(bank)

        async def go(runtime: Runtime) -> None:
            session = await runtime.open("me", spec, messages=LONG)
            await (await session.submit("tool: go")).result()

        died = await live(journal, spec, go)
        later, _ = await to_the_end(journal, spec)

        async def look(runtime: Runtime) -> None:
            session = await runtime.open("me", spec)
            messages = await session.messages()
            assert len([message for message in messages if message == told("tool: go")]) == (write > 1)
            assert write <= 1 or (len(messages) <= len(LONG) and text_of(messages[-1]) == "done")
            said_ever = [text_of(entry.message) async for entry in session.transcript()]
            assert all(text_of(message) in said_ever for message in (LONG if write else []))
            check_bank(bank, messages)
            await assert_sound(session)

        assert not await live(Mortal(beside=later), spec, look)
        died_before.append(died)

    died_before: list[bool] = []
    write = 0
    while not died_before or died_before[-1]:
        die_before(write)
        write += 1
    assert write > 5


@pytest.mark.parametrize("name", ["slow text", "tool", "three tools"])
def test_a_process_that_dies_while_a_turn_is_cancelled(name: str) -> None:
    """What is told to be cancelled stays so; what is not may go on. Either way the prompt has one outcome and the history is sound."""

    @in_trio
    async def die_before(write: int) -> None:
        bank = Bank()
        journal, spec = Mortal(write), banking(bank)
        told_cancelled: list[bool] = []

        async def go(runtime: Runtime) -> None:
            session = await runtime.open("me", spec)
            turn = await session.submit(f"{name}: go", key="k")
            await trio.sleep(0.5)
            await turn.cancel()
            told_cancelled.append(turn.done)

        died_before.append(await live(journal, spec, go))
        witness = Witness()
        later, _ = await to_the_end(journal, spec, witness)

        async def look(runtime: Runtime) -> None:
            session = await runtime.open("me", spec)
            if told_cancelled:
                assert witness.of(TurnResumed) == []
            result = await session.ask(f"{name}: go", key="k")
            assert result.stop_reason == "cancelled" or not told_cancelled
            check_bank(bank, await session.messages())
            await assert_sound(session)

        assert not await live(Mortal(beside=later), spec, look)

    died_before: list[bool] = []
    write = 0
    while not died_before or died_before[-1]:
        die_before(write)
        write += 1


@in_trio
async def test_a_call_in_doubt_is_told_to_the_model_in_events_and_in_the_status() -> None:
    bank = Bank()
    journal, spec = Mortal(3), banking(bank)  # opened, begun, called; then it dies before the result

    async def go(runtime: Runtime) -> None:
        await (await (await runtime.open("me", spec)).submit("tool: go")).result()

    assert await live(journal, spec, go)
    assert len(bank.books) == 1
    witness = Witness()
    later, report = await to_the_end(journal, spec, witness)
    assert report == RecoveryReport(recovered=("me",))
    [resumed] = witness.of(TurnResumed)
    [doubt] = witness.of(ToolEnded)
    assert resumed.in_doubt == (doubt.tool_use["toolUseId"],)
    assert doubt.result["content"] == [{"text": DOUBT}]
    [ended] = witness.of(TurnEnded)
    assert ended.stop_reason == "end_turn"

    async def look(runtime: Runtime) -> None:
        session = await runtime.open("me", spec)
        assert session.status == "in doubt"
        assert (await session.messages())[2]["content"][0]["toolResult"] == doubt.result
        await session.ask("text: next")
        assert session.status == "idle"

    assert not await live(Mortal(beside=later), spec, look)
    assert len(bank.books) == 1


@pytest.mark.parametrize("resume", ["continue", "fail"])
@pytest.mark.parametrize("name", [name for name in PLANS if "tool" in name])
def test_a_turn_that_is_given_up_says_of_each_call_what_is_known(name: str, resume: Any) -> None:
    """In its third death, or its first, wherever that strikes: what the books have is told or in doubt, and what cannot have begun is not."""

    @in_trio
    async def die_before(write: int) -> None:
        bank = Bank()
        journal, spec = Mortal(write), banking(bank, resume=resume)

        async def go(runtime: Runtime) -> None:
            session = await runtime.open("me", spec)
            await attempt((await session.submit(f"{name}: go", key="k")).result())

        async def recover(runtime: Runtime) -> None:
            await runtime.recover()

        died_before.append(await live(journal, spec, go))
        for _ in range(2):
            journal = Mortal(1, journal)
            await live(journal, spec, recover)
        later, _ = await to_the_end(journal, spec)

        async def look(runtime: Runtime) -> None:
            session = await runtime.open("me", spec)
            messages = await session.messages()
            check_bank(bank, messages)
            state = await replayed(session)
            assert set(state.in_doubt) <= {call["toolUseId"] for message in messages for call in tool_uses(message)} - set(HARMLESS)
            given_up.append(bool(messages) and text_of(messages[-1]) == "[turn failed]")
            await assert_sound(session)

        assert not await live(Mortal(beside=later), spec, look)

    died_before: list[bool] = []
    given_up: list[bool] = []
    while not died_before or died_before[-1]:
        die_before(len(died_before))
    assert any(given_up)


@in_trio
async def test_a_turn_in_which_its_process_died_three_times_fails() -> None:
    bank = Bank()
    spec = banking(bank)
    journal = Mortal(3)

    async def go(runtime: Runtime) -> None:
        await (await (await runtime.open("me", spec)).submit("keyed tool: go", key="k")).result()

    async def recover(runtime: Runtime) -> None:
        await runtime.recover()

    assert await live(journal, spec, go)
    for _ in range(2):
        journal = Mortal(1, journal)  # goes on, and dies before it has the result
        assert await live(journal, spec, recover)
    assert len(set(bank.asked)) == 1
    assert len(bank.asked) == 3

    witness = Witness()
    later, _ = await to_the_end(journal, spec, witness)
    assert [(event.stop_reason, event.error) for event in witness.of(TurnEnded)] == [(None, "ProcessDied")]

    async def look(runtime: Runtime) -> None:
        session = await runtime.open("me", spec)
        with pytest.raises(Exception, match="died 3 times"):
            await session.ask("keyed tool: go", key="k")
        assert [text_of(message) for message in await session.messages()][-1] == "[turn failed]"
        await assert_sound(session)

    assert not await live(Mortal(beside=later), spec, look)
    assert len(bank.asked) == 3


@in_trio
async def test_what_its_asker_owned_ends_with_the_process() -> None:
    bank = Bank()
    journal, spec = Mortal(3), banking(bank)

    async def go(runtime: Runtime) -> None:
        session = await runtime.open("me", spec)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.ask, "tool: go")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(session.ask, "text: waits")

    assert await live(Mortal(4) if journal is None else journal, spec, go)
    witness = Witness()
    later, report = await to_the_end(journal, spec, witness)
    assert report.recovered == ("me",)
    assert [event.stop_reason for event in witness.of(TurnEnded)] == ["cancelled"]
    state = None

    async def look(runtime: Runtime) -> None:
        nonlocal state
        session = await runtime.open("me", spec)
        state = await replayed(session)
        await assert_sound(session)

    assert not await live(Mortal(beside=later), spec, look)
    assert state is not None
    assert state.turns == 1


@in_trio
async def test_a_spec_may_have_what_was_left_fail() -> None:
    bank = Bank()
    journal, spec = Mortal(3), banking(bank, resume="fail")

    async def go(runtime: Runtime) -> None:
        await (await (await runtime.open("me", spec)).submit("tool: go")).result()

    assert await live(journal, spec, go)
    witness = Witness()
    await to_the_end(journal, spec, witness)
    assert [event.error for event in witness.of(TurnEnded)] == ["ProcessDied"]
    with pytest.raises(InvalidOption, match="resume is 'continue' or 'fail'"):
        banking(bank, resume="perhaps")


class TestKeys:
    @in_trio
    async def test_who_sends_a_waiting_prompt_again_has_its_handle_at_once(self) -> None:
        spec = agent(ScriptedModel(lambda messages: Reply(text="well", delay=10)))
        async with virtual_runtime() as runtime:
            session = await runtime.open("me", spec)
            await session.submit("first")
            waiting = await session.submit("second", key="k")
            again = await session.submit("second", key="k")
            assert trio.current_time() == 0
            assert again.prompt_id == waiting.prompt_id
            await again.cancel()
            assert (await waiting.result()).stop_reason == "cancelled"
            assert trio.current_time() == 0
            assert session.statistics().mailbox.withdrawn == 1

    @in_trio
    async def test_a_key_stands_for_one_prompt_and_its_first_outcome(self) -> None:
        spec = agent(ScriptedModel([Reply(text="slowly", delay=5), ModelError("no more")]))
        async with virtual_runtime(specs=[spec]) as runtime:
            session = await runtime.open("me", spec)
            results: list[str] = []

            async def ask() -> None:
                results.append(str(await session.ask("hi", key="one")))

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask)
                with trio.move_on_after(1):
                    await session.ask("hi", key="one")  # leaving cancels nothing
            assert results == ["slowly"] * 3
            with pytest.raises(KeyReused, match="'one' was sent to 'me' with another prompt"):
                await session.ask("ho", key="one")
            for _ in range(2):
                with pytest.raises(ModelError, match="no more"):
                    await session.ask("fails", key="two")
            turn = await session.submit("hi", key="one")
            assert turn.done
            assert str(await turn.result()) == "slowly"
            assert [text_of(message) for message in await session.messages()] == ["hi", "slowly"]
            for wrong in ("", "x" * 501, 3):
                with pytest.raises(InvalidOption, match="a key is text of 1 to 500 characters"):
                    await session.ask("hi", key=wrong)

    @in_trio
    async def test_the_state_of_a_turn_comes_back_with_its_outcome(self) -> None:
        bank = Bank()
        spec = banking(bank)
        async with virtual_runtime(specs=[spec]) as runtime:
            session = await runtime.open("me", spec)
            for plan, paid in {"tool": 1, "two tools": 1, "three tools": 8}.items():
                first = await session.ask(f"{plan}: go", request_state={"user": 7}, key=plan)
                payments = len(bank.books)
                again = await session.ask(f"{plan}: go", key=plan)
                assert first.state == again.state == {"user": 7, "paid": paid}
                assert first.message == again.message
                assert len(bank.books) == payments

    @pytest.mark.anyio
    async def test_keys_are_answered_while_their_session_leaves_memory(self, tmp_path: Path) -> None:
        spec, keys = agent(ScriptedModel(lambda messages: text_of(messages[-1]))), [f"k{number}" for number in range(20)]
        async with Runtime(SQLiteJournal(tmp_path / "sessions.db", durability="os"), [spec]) as runtime:
            session = await runtime.open("me", spec)

            async def ask(key: str) -> None:
                assert str(await session.ask(f"hi {key}", key=key)) == f"hi {key}"

            for _ in range(5):
                async with anyio.create_task_group() as tasks:
                    for key in keys:
                        tasks.start_soon(ask, key)
                    tasks.start_soon(runtime.passivate, "me")
            assert len(await session.messages()) == 2 * len(keys)


class TestTakenForDead:
    """Somebody takes away the file that says an owner is alive, so that another runtime gets its session. What both were told holds."""

    @staticmethod
    def rob(path: Path) -> None:
        for lock in path.parent.glob(f"{path.name}-owner-*"):
            lock.unlink()

    @pytest.mark.anyio
    async def test_what_another_owner_answered_is_not_worked_on_again(self, tmp_path: Path) -> None:
        path, gate = tmp_path / "sessions.db", Gate()
        quick = AgentSpec(name="a", model=ScriptedModel(lambda messages: "quick"))
        slow = AgentSpec(name="a", model=ScriptedModel(lambda messages: "slow"), handlers=[lambda event: gate() if isinstance(event, TurnStarted) else None])
        async with Runtime(path, [slow], open_timeout=0) as first:
            session = await first.open("me", slow)
            turns = [await session.submit(text) for text in ("one", "two")]
            await gate.reached()
            self.rob(path)
            async with Runtime(path, [quick], open_timeout=0) as second:
                taken = await second.open("me", quick)
                await taken.wait_idle()
                assert [text_of(message) for message in await taken.messages()] == ["one", "quick", "two", "quick"]
            gate.open()
            for turn in turns:
                await attempt(turn.result())
            assert [text_of(message) for message in await (await first.open("me", slow)).messages()] == ["one", "quick", "two", "quick"]

    @pytest.mark.anyio
    async def test_what_another_owner_accepted_is_gone_on_with(self, tmp_path: Path) -> None:
        path, gate, never = tmp_path / "sessions.db", Gate(), Gate()
        slow = AgentSpec(name="a", model=ScriptedModel(lambda messages: "slow"), handlers=[lambda event: gate() if isinstance(event, TurnStarted) else None])
        stuck = AgentSpec(name="a", model=ScriptedModel(lambda messages: "stuck"), handlers=[lambda event: never() if isinstance(event, TurnStarted) else None])
        async with Runtime(path, [slow], open_timeout=0) as first:
            session = await first.open("me", slow)
            turn = await session.submit("one")
            await gate.reached()
            self.rob(path)
            async with Runtime(path, [stuck], open_timeout=0, grace=0) as second:
                taken = await second.open("me", stuck)
                await taken.submit("two")
                await never.reached()
            gate.open()
            await attempt(turn.result())
            session = await first.open("me", slow)
            await session.wait_idle()
            assert [text_of(message) for message in await session.messages()] == ["one", "stuck", "two", "slow"]


# --- any story of deaths ----------------------------------------------------------------------------------------------


@st.composite
def stories(draw: st.DrawFn) -> tuple[list[tuple[str, str, int]], list[int]]:
    """Prompts, each with a way to send it and a pause before; and how many writes each process lives to see."""
    prompts = draw(st.lists(st.tuples(st.sampled_from(sorted(PLANS)), st.sampled_from(["submit", "key", "again"]), st.integers(0, 3)), min_size=1, max_size=5))
    return prompts, draw(st.lists(st.integers(0, 9), max_size=5))


@given(story=stories(), schedule=st.random_module())
def test_any_story_of_deaths(story: tuple[list[tuple[str, str, int]], list[int]], schedule: Any) -> None:
    """Prompts sent again under their keys until they have an outcome, by processes that die: each has one turn, one outcome, and stands in order."""
    prompts, deaths = story

    @in_trio
    async def run() -> None:
        bank = Bank()
        spec = banking(bank)
        journal: Mortal | None = None
        outcomes: dict[int, set[str]] = {}
        accepted: set[int] = set()

        async def go(runtime: Runtime) -> None:
            session = await runtime.open("me", spec)

            async def send(number: int, name: str, key: str | None) -> None:
                turn = await session.submit(f"{name}: {number}", key=key)
                accepted.add(number)
                outcome = await attempt(turn.result())
                if not isinstance(outcome, Failure) or not isinstance(outcome.error, RuntimeClosed):  # else nobody knows it yet
                    outcomes.setdefault(number, set()).add(str(outcome.error if isinstance(outcome, Failure) else outcome))

            async with trio.open_nursery() as nursery:
                for number, (name, way, pause) in enumerate(prompts):
                    if way == "submit" and number in accepted:
                        continue
                    await trio.sleep(pause)
                    nursery.start_soon(send, number, name, None if way == "submit" else f"k{number}")
                    if way == "again":
                        nursery.start_soon(send, number, name, f"k{number}")
            await session.wait_idle()

        for life in [*deaths, -1]:
            journal = Mortal(life, journal)
            if not await live(journal, spec, go) and life == -1:
                break

        assert journal is not None

        async def look(runtime: Runtime) -> None:
            session = await runtime.open("me", spec)
            await assert_sound(session)
            messages = await session.messages()
            shown = [text_of(message) for message in messages if message["role"] == "user" and not tool_results(message)]
            assert len(shown) == len(set(shown)), "a prompt had two turns"
            state = await replayed(session)
            assert state.waiting is None
            keys = [key for key, _ in bank.books]
            assert len(keys) == len(set(keys)), "an effect was had twice"
            for number, (_, way, _) in enumerate(prompts):
                if way != "submit":
                    assert len(outcomes[number]) == 1, "a key had two outcomes"

        assert not await live(Mortal(beside=journal), spec, look)

    run()


class TestOwners:
    @in_trio
    async def test_whoever_opens_a_session_that_lives_elsewhere_waits_for_it_a_while(self) -> None:
        spec, here = agent(["one", "two"]), Mortal()
        there = Mortal(beside=here)
        async with virtual_runtime(journal=there, open_timeout=3) as other:
            async with virtual_runtime(journal=here) as runtime:
                await (await runtime.open("me", spec)).ask("hi")
                before = trio.current_time()
                with pytest.raises(SessionElsewhere):
                    await other.open("me", spec)
                assert trio.current_time() - before == pytest.approx(3)
                async with trio.open_nursery() as nursery:

                    async def let_go() -> None:
                        await trio.sleep(2)
                        await runtime.passivate("me")

                    nursery.start_soon(let_go)
                    session = await other.open("me", spec)
                assert 2 <= trio.current_time() - before - 3 <= 2.2
            assert str(await session.ask("ho")) == "two"
        with pytest.raises(InvalidOption, match="open_timeout is 0 or more seconds"):
            Runtime(open_timeout=-1)

    @in_trio
    async def test_what_nobody_claims_is_listed_and_waits(self) -> None:
        spec, journal = agent(["one", "two"], name="forgotten"), Mortal(2)

        async def go(runtime: Runtime) -> None:
            await (await (await runtime.open("me", spec)).submit("hi")).result()

        assert await live(journal, spec, go)
        later, other = Mortal(beside=journal), agent([], name="other")
        async with virtual_runtime(journal=later, specs=[other]) as runtime:
            assert await runtime.recover() == RecoveryReport(unclaimed=("me",))
            assert [(info.id, info.kind, info.status) async for info in runtime.list_sessions()] == [("me", "forgotten", "unclaimed")]
        async with virtual_runtime(journal=Mortal(beside=later), specs=[spec]) as runtime:
            assert [info.status async for info in runtime.list_sessions()] == ["unfinished"]
            assert await runtime.recover() == RecoveryReport(recovered=("me",))
            assert [info.status async for info in runtime.list_sessions()] == ["passivated"]
            assert await runtime.recover() == RecoveryReport()

    @pytest.mark.parametrize("sessions", [200, pytest.param(10_000, marks=pytest.mark.long)])
    @in_trio
    async def test_so_many_are_recovered_at_once_and_no_more(self, sessions: int) -> None:
        at_once, most = 0, 0

        class Slow(ScriptedModel):
            async def stream(self, *call: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
                nonlocal at_once, most
                at_once += 1
                most = max(most, at_once)
                await trio.sleep(1)
                async for chunk in super().stream(*call, **options):
                    yield chunk
                at_once -= 1

        spec, journal = agent(Slow(lambda messages: "done")), Mortal(2 * sessions)

        async def go(runtime: Runtime) -> None:
            for number in range(sessions):
                await (await runtime.open(f"s{number}", spec)).submit("hi")
            await trio.sleep(0.5)
            await (await runtime.open("last", spec)).submit("hi")

        assert await live(journal, spec, go)
        at_once = most = 0
        _, report = await to_the_end(journal, spec)
        assert len(report.recovered) == sessions
        assert most == 50

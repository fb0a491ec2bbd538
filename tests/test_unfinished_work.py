"""Work that another process left, and what is asked of it before, while and after it is gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from mortal import Bank, Mortal, banking, check_bank, live, to_the_end
from ropewalk import AgentSpec, JournalUnavailable, MemoryJournal, Runtime, RuntimeClosed, Session, UnknownRecord
from ropewalk.actors.messages import text_of, tool_results
from ropewalk.actors.session.records import Withdrawn
from ropewalk.actors.session.recovery import DEATHS
from ropewalk.runtime.recovery import AT_ONCE
from ropewalk.testing import Reply, ScriptedModel, ToolUse, VirtualClock, in_trio
from talk import Gate, agent, assert_sound, virtual_runtime

LEFT = [("slow text", 2), ("tool", 3), ("keyed tool", 3)]
"""Plans, and the write before which the process dies with the turn open."""


async def left_open(plan: str, write: int, **options: Any) -> tuple[Bank, Mortal, AgentSpec]:
    """What a process leaves that died in a turn under the key ``k``."""
    bank = Bank()
    journal, spec = Mortal(write), banking(bank, **options)

    async def go(runtime: Runtime) -> None:
        await (await (await runtime.open("me", spec)).submit(f"{plan}: go", key="k")).result()

    assert await live(journal, spec, go)
    return bank, journal, spec


@pytest.mark.parametrize("way", ["session", "turn"])
@pytest.mark.parametrize(("plan", "write"), LEFT)
def test_a_turn_that_is_cancelled_before_it_is_gone_on_with(plan: str, write: int, way: str) -> None:
    """It has its end in the history, and no other outcome later."""

    @in_trio
    async def run() -> None:
        _, journal, spec = await left_open(plan, write)
        later = Mortal(beside=journal)
        async with virtual_runtime(journal=later, specs=[spec]) as runtime:
            session = await runtime.open("me", spec)
            turn = await session.submit(f"{plan}: go", key="k")
            assert await session.cancel() if way == "session" else await turn.cancel() is None
            result = await turn.result()
            assert result.stop_reason == "cancelled"
            await session.wait_idle()
            await assert_sound(session)
            again = await session.ask(f"{plan}: go", key="k")
            assert (again.stop_reason, again.message) == ("cancelled", result.message)
            await session.ask("text: next")
            await assert_sound(session)

    run()


@in_trio
async def test_a_session_that_cannot_be_deleted_keeps_a_history_that_is_whole() -> None:
    class Stubborn(Mortal):
        async def delete(self, actor_id: str) -> bool:
            raise OSError("not now")

    _, journal, spec = await left_open("tool", 3)
    async with virtual_runtime(journal=Stubborn(beside=journal), specs=[spec]) as runtime:
        session = await runtime.open("me", spec)
        with pytest.raises(OSError, match="not now"):
            await runtime.delete("me")
        await session.ask("text: next")
        await assert_sound(session)


@in_trio
async def test_a_runtime_that_closes_is_no_death_however_often() -> None:
    bank, journal = Bank(), MemoryJournal()
    spec = banking(bank)
    for life in range(2 * DEATHS):
        async with virtual_runtime(journal=journal, specs=[spec], grace=0, clock=VirtualClock(life)) as runtime:
            await (await runtime.open("me", spec)).submit("slow text: go", key="k")
            await trio.sleep(0.5)
    async with virtual_runtime(journal=journal, specs=[spec], clock=VirtualClock(99)) as runtime:
        session = await runtime.open("me", spec)
        assert str(await session.ask("slow text: go", key="k")) == "one two three"
        await assert_sound(session)


@in_trio
async def test_a_call_whose_tool_is_gone_since_is_in_doubt() -> None:
    """It may have had its effect in the process that died, which still had the tool."""
    bank, journal, spec = await left_open("tool", 3)
    assert len(bank.books) == 1
    renamed = agent(spec.model, tools=[])
    later, report = await to_the_end(journal, renamed)
    assert report.recovered == ("me",)

    async def look(runtime: Runtime) -> None:
        session = await runtime.open("me", renamed)
        check_bank(bank, await session.messages())
        assert session.status == "in doubt"

    assert not await live(Mortal(beside=later), renamed, look)


@in_trio
async def test_a_process_that_dies_between_a_redaction_and_the_prompt_that_waited_for_it() -> None:
    class Redacts(Mortal):
        """Dies when it has redacted."""

        async def redact(self, *redaction: Any, **options: Any) -> None:
            await super().redact(*redaction, **options)
            self._left = 0

    journal, spec = Redacts(), agent(ScriptedModel(lambda messages: Reply(text="done", delay=1)))

    async def go(runtime: Runtime) -> None:
        session = await runtime.open("me", spec)
        await session.ask("secret")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.ask, "busy")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(session.redact, "e1")
            await trio.testing.wait_all_tasks_blocked()
            await (await session.submit("waits")).result()

    assert await live(journal, spec, go)
    _, report = await to_the_end(journal, spec)
    assert report.recovered == ("me",)


@pytest.mark.parametrize("how", ["fails", "left"])
def test_a_session_that_cannot_be_read_here_can_be_opened_elsewhere(how: str) -> None:
    """As when an older program meets the records of a newer one, or its opener has no more time."""

    class Unreadable(MemoryJournal):
        async def read(self, *place: Any, **options: Any) -> Any:
            if how == "fails":
                raise UnknownRecord("written by a newer Ropewalk")
            await trio.sleep_forever()

    @in_trio
    async def run() -> None:
        _, journal, spec = await left_open("text", 2)
        here, there = Unreadable(beside=journal), Mortal(beside=journal)
        async with virtual_runtime(journal=here, specs=[spec]) as runtime, virtual_runtime(journal=there, specs=[spec]) as other:
            if how == "fails":
                assert (await runtime.recover()).failed == (("me", "UnknownRecord: written by a newer Ropewalk"),)
            else:
                with trio.move_on_after(1):
                    await runtime.open("me", spec)
            session = await other.open("me", spec)
            assert str(await session.ask("text: go", key="k")) == "one two three"

    run()


class Held(Mortal):
    """Holds its first answer about a label until the gate is opened."""

    gate: Gate | None = None

    async def labelled(self, actor_id: str, label: str) -> int | None:
        found = await super().labelled(actor_id, label)
        if (gate := self.gate) is not None:
            self.gate = None
            await gate()
        return found


@in_trio
async def test_who_joined_a_key_that_is_looked_up_again_goes_on_when_its_sender_leaves() -> None:
    """The sender leaves while it waits for the session, which left memory in between: whoever joined sends the prompt then."""
    here = Held()
    spec = agent(ScriptedModel(lambda messages: "answer"))
    outcomes: list[str] = []
    done = trio.Event()

    async def ask(session: Session) -> None:
        outcomes.append(str(await session.ask("hi", key="k")))
        done.set()

    async with virtual_runtime(journal=here, specs=[spec], open_timeout=60) as runtime:
        session = await runtime.open("me", spec)
        async with virtual_runtime(journal=Mortal(beside=here), specs=[spec]) as other, trio.open_nursery() as nursery:
            gate = here.gate = Gate()
            sender = trio.CancelScope()

            async def send() -> None:
                with sender:
                    await ask(session)

            nursery.start_soon(send)
            await gate.reached()
            nursery.start_soon(ask, session)
            await trio.testing.wait_all_tasks_blocked()
            assert await runtime.passivate("me")
            await other.open("me", spec)
            gate.open()
            await trio.sleep(1)
            sender.cancel()
            await trio.sleep(1)
            await other.passivate("me")
            with trio.fail_after(60):
                await done.wait()
        assert outcomes == ["answer"]


@pytest.mark.parametrize("then", ["answers", "is at it", "dies"])
def test_a_key_is_heard_of_elsewhere_while_it_is_looked_up_here(then: str) -> None:
    """The session left memory in between: whatever became of the prompt in the other runtime, it has one turn and one outcome."""

    @in_trio
    async def run() -> None:
        here = Held()
        there = Mortal(1 if then == "dies" else -1, here)
        spec = agent(ScriptedModel(lambda messages: Reply(text=f"answer to {len(messages)}", delay=1)))
        outcomes: list[str] = []

        async def ask(session: Session) -> None:
            outcomes.append(str(await session.ask("hi", key="k")))

        async def elsewhere(other: Runtime) -> None:
            session = await other.open("me", spec)
            if then == "is at it":
                await session.submit("hi", key="k")
                gate.open()
                await trio.sleep(0.5)
            await ask(session)
            await other.passivate("me")

        async with virtual_runtime(journal=here, specs=[spec]) as runtime, trio.open_nursery() as nursery:
            session = await runtime.open("me", spec)
            gate = here.gate = Gate()
            for _ in range(2):
                nursery.start_soon(ask, session)
            await gate.reached()
            await trio.testing.wait_all_tasks_blocked()  # else the second may come when the session is gone, and bring it back
            assert await runtime.passivate("me")
            assert await live(there, spec, elsewhere) == (then == "dies")
            gate.open()
        async with virtual_runtime(journal=Mortal(beside=here), specs=[spec]) as runtime:
            session = await runtime.open("me", spec)
            assert [text_of(message) for message in await session.messages() if message["role"] == "user"].count("hi") == 1
            assert set(outcomes) == {"answer to 1"}
            await assert_sound(session)

    run()


@in_trio
async def test_a_prompt_that_waits_is_cancelled_for_good_when_that_is_told() -> None:
    """A process that dies right then does not make the next one run it."""

    class Slow(Mortal):
        """Takes its time to make durable that a prompt is withdrawn."""

        def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any], durability: Any = None, **more: Any) -> Any:
            commit = super().append(actor_id, epoch, first, bodies, durability, **more)
            return Later() if any(isinstance(body, Withdrawn) for body in bodies) else commit

    class Later:
        async def wait(self) -> None:
            await trio.sleep(3)

    spec = agent(ScriptedModel(lambda messages: Reply(text="done", delay=10)))
    async with virtual_runtime(journal=Slow(), grace=100) as runtime:
        session = await runtime.open("me", spec)
        await session.submit("runs")
        turn = await session.submit("waits")
        before = trio.current_time()
        await turn.cancel()
        assert trio.current_time() - before == 3
        await session.wait_idle()
        await assert_sound(session)


@pytest.mark.parametrize("grace", [0, 100])
@pytest.mark.parametrize("when", [0, 0.5, 1, 1.5])
def test_a_runtime_closes_while_it_recovers(when: float, grace: float) -> None:
    """Its recovery says so, instead of naming what it did not come to the end of, and the next runtime goes on with that."""

    @in_trio
    async def run() -> None:
        spec, many = agent(ScriptedModel(lambda messages: Reply(text="done", delay=1))), AT_ONCE + 10
        journal = Mortal(2 * many)
        raised: list[RuntimeClosed] = []

        async def go(runtime: Runtime) -> None:
            for number in range(many + 1):
                await (await runtime.open(f"s{number}", spec)).submit("hi", key="k")

        async def recover(runtime: Runtime) -> None:
            with pytest.raises(RuntimeClosed) as closed:
                await runtime.recover()
            raised.append(closed.value)

        assert await live(journal, spec, go)
        later = Mortal(beside=journal)
        async with trio.open_nursery() as nursery, virtual_runtime(journal=later, specs=[spec], grace=grace) as runtime:
            nursery.start_soon(recover, runtime)
            await trio.sleep(when)
        assert len(raised) == 1
        async with virtual_runtime(journal=Mortal(beside=later), specs=[spec]) as runtime:
            await runtime.recover()
            for number in range(many):
                session = await runtime.open(f"s{number}", spec)
                assert str(await session.ask("hi", key="k")) == "done"
                await assert_sound(session)

    run()


@in_trio
async def test_a_runtime_may_have_the_seed_of_the_one_that_died() -> None:
    """Its ids are those of prompts that still wait, and none of these is lost for that."""
    spec = agent(ScriptedModel(lambda messages: Reply(text="done", delay=1)))
    journal, accepted = Mortal(), []
    for life, writes in enumerate((4, 5, -1)):
        journal = Mortal(writes, journal)
        async with trio.open_nursery() as nursery:

            async def die(death: trio.Event, scope: trio.CancelScope) -> None:
                await death.wait()
                scope.cancel()

            nursery.start_soon(die, journal.death, nursery.cancel_scope)
            async with virtual_runtime(journal=journal, grace=1000, clock=VirtualClock(1)) as runtime:
                session = await runtime.open("me", spec)
                for number in range(4):
                    await session.submit(f"{life}.{number}")
                    accepted.append(f"{life}.{number}")
                await session.wait_idle()
            nursery.cancel_scope.cancel()
    async with virtual_runtime(journal=Mortal(beside=journal)) as runtime:
        session = await runtime.open("me", spec)
        answered = [text_of(message) for message in await session.messages() if message["role"] == "user"]
        assert answered == accepted
        await assert_sound(session)


@in_trio
async def test_a_call_of_a_tool_that_never_was_is_not_in_doubt() -> None:
    plan = Reply(tool_uses=[ToolUse("no_such_tool"), ToolUse("wait")])
    spec = agent(ScriptedModel(lambda messages: "done" if tool_results(messages[-1]) else plan))
    journal = Mortal(3)

    async def go(runtime: Runtime) -> None:
        await (await (await runtime.open("me", spec)).submit("go")).result()

    async def look(runtime: Runtime) -> None:
        session = await runtime.open("me", spec)
        stray, doubtful = tool_results((await session.messages())[2])
        assert "may or may not" not in str(stray)
        assert "may or may not" in str(doubtful)

    assert await live(journal, spec, go)
    later, _ = await to_the_end(journal, spec)
    assert not await live(Mortal(beside=later), spec, look)


@in_trio
async def test_a_turn_that_is_given_up_doubts_only_calls_that_can_have_reached_a_tool() -> None:
    plan = Reply(tool_uses=[ToolUse("no_such_tool", {}, "a"), ToolUse("pay", "{", "b"), ToolUse("pay", {"amount": 1}, "c")])
    journal, spec = Mortal(3), agent(ScriptedModel(lambda messages: plan), tools=Bank().tools(), resume="fail")

    async def go(runtime: Runtime) -> None:
        await (await (await runtime.open("me", spec)).submit("go")).result()

    async def look(runtime: Runtime) -> None:
        session = await runtime.open("me", spec)
        messages = await session.messages()
        stray, unreadable, doubtful = (result["content"][0]["text"] for result in tool_results(messages[2]))
        assert stray == "Unknown tool: no_such_tool"
        assert "so the tool was not called" in unreadable
        assert "may or may not" in doubtful
        assert session.status == "in doubt"

    assert await live(journal, spec, go)
    later, _ = await to_the_end(journal, spec)
    assert not await live(Mortal(beside=later), spec, look)


class ReadableAgain(MemoryJournal):
    """A journal that cannot be read once."""

    fails = False

    async def read(self, *which: Any, **more: Any) -> Any:
        if self.fails:
            self.fails = False
            raise JournalUnavailable("not now")
        return await super().read(*which, **more)


@in_trio
async def test_what_another_process_left_is_gone_on_with_though_the_journal_failed_when_it_was_brought_in() -> None:
    """Nobody here was told anything of that work, so nothing of it has failed."""
    spec = agent(ScriptedModel(lambda messages: Reply(text=f"{text_of(messages[-1])}!", delay=5)))
    journal = ReadableAgain()
    async with virtual_runtime(journal=journal, specs=[spec]) as runtime:
        session = await runtime.open("me", spec)
        await session.ask("one")
        await runtime.passivate("me")
        other = Mortal(1, journal)

        async def go(elsewhere: Runtime) -> None:
            await (await (await elsewhere.open("me", spec)).submit("two")).result()

        assert await live(other, spec, go)
        journal.fails = True
        with pytest.raises(JournalUnavailable):
            await session.ask("three")
        await session.ask("four")
        assert [text_of(message) for message in await session.messages()] == ["one", "one!", "two", "two!", "four", "four!"]

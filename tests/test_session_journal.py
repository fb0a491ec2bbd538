"""The in-memory journal failing at every write of every kind of turn: view and journal agree, nobody is left waiting, the next prompt works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import pytest
import trio

from ropewalk import (
    AgentSpec,
    Fenced,
    JournalUnavailable,
    MemoryJournal,
    MessageAdded,
    PromptAccepted,
    PromptSettled,
    Runtime,
    Session,
    SessionActivated,
    TextDelta,
    TurnEnded,
    TurnStarted,
    ViewChanged,
)
from ropewalk.actors.session.records import Accepted, Added, Begun, Edited, Opened, Said, Settled, Withdrawn
from ropewalk.testing import Reply, in_trio
from talk import Witness, agent, assert_sound, replayed, said, told, transcript, virtual_runtime
from turns import KINDS, Kind, slow

FAULTS: Any = ["refuse", "lose"]


class WatchedJournal(MemoryJournal):
    """Fails one write, and knows from when on each of its records was durable."""

    def __init__(self, fail: int, fault: Any, lag: float) -> None:
        super().__init__(fault=lambda number: fault if number == fail else None, lag=lag)
        self._delay = lag
        self.durable: list[tuple[float, Any]] = []

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any], durability: Any = None, **more: Any) -> Any:
        before = self.statistics().records
        commit = super().append(actor_id, epoch, first, bodies, durability, **more)
        if self.statistics().records > before:
            self.durable.extend((trio.current_time() + self._delay, body) for body in bodies)
        return commit

    @property
    def failed(self) -> bool:
        return self.statistics().failures > 0

    def holds(self, wanted: Callable[[Any], bool]) -> bool:
        """Whether a record that this is true of is durable now."""
        return any(since <= trio.current_time() and wanted(body) for since, body in self.durable)

    def hear(self, event: Any) -> None:
        """A handler: what an event tells of is durable when it is told."""
        match event:
            case PromptAccepted():
                assert self.holds(lambda body: event.prompt_id in prompts_of(body))
            case TurnStarted():
                assert self.holds(lambda body: isinstance(body, Begun) and body.turn_id == event.turn_id)
            case MessageAdded():
                assert self.holds(lambda body: any(entry.id == event.entry_id and entry.message == event.message for entry in entries_of(body)))
            case ViewChanged():
                assert self.holds(
                    lambda body: any(edit.reason == event.reason for edit in edits_of(body)) or (isinstance(body, Opened) and event.reason == "opened")
                )
            case TurnEnded():
                assert self.holds(lambda body: isinstance(body, Settled) and (body.turn_id, body.stop_reason) == (event.turn_id, event.stop_reason))
            case PromptSettled():
                assert self.holds(lambda body: isinstance(body, Settled | Withdrawn))
            case _:
                pass


def prompts_of(body: Any) -> Sequence[str]:
    """The prompts a record says to have been accepted."""
    if isinstance(body, Accepted):
        return (body.prompt_id,)
    return body.prompt_ids if isinstance(body, Begun) else ()


def entries_of(body: Any) -> Sequence[Any]:
    if isinstance(body, Said):
        return (body.entry,)
    return body.entries if isinstance(body, Opened | Begun | Added | Settled) else ()


def edits_of(body: Any) -> Sequence[Any]:
    edit = body.edit if isinstance(body, Edited | Settled) else None
    return () if edit is None else (edit,)


async def ask(session: Session) -> None:
    await session.ask("go")


async def stream(session: Session) -> None:
    async with session.stream("go") as events:
        async for _ in events:
            pass


async def submit(session: Session) -> None:
    await (await session.submit("go")).result()


async def cancelled(session: Session) -> None:
    turn = await session.submit("go")
    await trio.sleep(0.5)
    await turn.cancel()
    assert (await turn.result()).stop_reason in ("cancelled", "end_turn")


async def crowd(session: Session) -> None:
    """Several at once, in every way there is; each is told what became of theirs."""
    failed: list[Exception] = []

    async def one(way: Callable[[Session], Awaitable[None]], wait: float) -> None:
        await trio.sleep(wait)
        try:
            await way(session)
        except JournalUnavailable as error:
            failed.append(error)

    async def withdrawn(session: Session) -> None:
        with trio.move_on_after(0.2):
            await session.ask("never")

    async with trio.open_nursery() as nursery:
        for number, way in enumerate((submit, ask, withdrawn, stream)):
            nursery.start_soon(one, way, number / 10)
    if failed:
        raise failed[0]


WAYS = {"ask": ask, "stream": stream, "submit": submit, "cancelled": cancelled, "crowd": crowd}
RUNS = (
    [("ask", name) for name in KINDS if "journal" not in name]
    + [(way, "slow text") for way in ("stream", "submit", "cancelled")]
    + [("cancelled", "two tools"), ("crowd", "endless")]
)


def kind_of(name: str) -> Kind:
    return Kind(tuple(Reply(text=f"answer {number}", delay=0.3) for number in range(20))) if name == "endless" else KINDS[name]


@pytest.mark.parametrize("lag", [0.0, 1.0], ids=["at once", "lagging"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("way", "name"), RUNS)
def test_a_journal_that_fails_at_any_write_of_a_turn(way: str, name: str, fault: Any, lag: float) -> None:
    kind = kind_of(name)

    @in_trio
    async def fail_at(write: int) -> None:
        journal = WatchedJournal(write, fault, lag)
        witness = Witness()
        async with virtual_runtime(journal=journal) as runtime:
            runtime.add_handler(witness)
            runtime.add_handler(journal.hear, on_error="fail_turn")
            if kind.slow_handler:
                runtime.add_handler(slow)
            session = await opened(runtime, kind)
            unavailable = journal.failed
            if kind.waiting:
                unavailable |= await lost(session.submit("first"))
            unavailable |= await lost(WAYS[way](session))
            await session.runtime.workers.wait_idle()
            if journal.failed:
                assert unavailable or kind.waiting or way in ("crowd", "cancelled"), "the journal failed, and nobody was told"
            await agree(session, witness)
            failed_before = journal.failed
            while await lost(session.ask("next")):
                assert not failed_before, "the next prompt did not work"
                failed_before = True
                await agree(session, witness)
            prompt, answer = (await session.messages())[-2:]
            assert (prompt["content"][-1], answer) == ({"text": "next"}, said("fine"))
            await agree(session, witness)
            hit.append(journal.failed)
            assert session.statistics().restarts == 0
        assert runtime.report is not None
        assert runtime.report.cancelled == ()

    hit: list[bool] = []
    write = 0
    while not hit or hit[-1]:
        fail_at(write)
        write += 1
        assert write < 100
    assert write >= 3


async def opened(runtime: Runtime, kind: Kind, spec: AgentSpec | None = None) -> Session:
    """The session, opened again where the journal failed the first time."""
    spec = spec or kind.spec()
    messages = {} if await runtime.journal.find("me") is not None else {"messages": kind.messages}
    try:
        return await runtime.open("me", spec, **messages)  # type: ignore[no-any-return]
    except JournalUnavailable:
        return await runtime.open("me", spec, **messages)  # type: ignore[no-any-return]


async def lost(asking: Awaitable[Any]) -> bool:
    """Wait for an outcome; whether it was that the journal is unavailable."""
    try:
        await asking
    except JournalUnavailable:
        return True
    return False


async def agree(session: Session, witness: Witness) -> None:
    """Memory (where there is one), journal and what was told say the same, and all of it may be shown to a model."""
    view = await session.messages()
    state = await replayed(session)
    assert view == state.view.messages
    assert [message for message, because in await transcript(session) if because is None and message not in view] == []
    await assert_sound(session)
    witness.check(view)


# --- single claims ----------------------------------------------------------------------------------------------------


@in_trio
async def test_the_asker_is_told_and_the_turn_is_undone() -> None:
    journal = WatchedJournal(2, "refuse", 0.0)
    async with virtual_runtime(journal=journal) as runtime:
        session = await runtime.open("me", agent(["lost", "fine"]))
        with pytest.raises(JournalUnavailable, match="refused"):
            await session.ask("go")
        assert await session.messages() == []
        assert (await transcript(session))[0] == (told("go"), "failed")
        assert str(await session.ask("again")) == "fine"
        assert await session.messages() == [told("again"), said("fine")]


@in_trio
async def test_a_prompt_that_was_refused_is_not_run() -> None:
    journal = WatchedJournal(2, "refuse", 0.0)
    async with virtual_runtime(journal=journal) as runtime:
        session = await runtime.open("me", agent([Reply(text="ok", delay=5)] * 3))
        running = await session.submit("1?")
        with pytest.raises(JournalUnavailable):
            await session.ask("2?")
        with pytest.raises(JournalUnavailable):
            await running.result()
        await session.ask("3?")
        assert await session.messages() == [told("3?"), said("ok")]


@pytest.mark.parametrize("way", ["ask", "submit"])
def test_what_an_asker_is_told_is_what_is_so(way: str) -> None:
    """A prompt that waits while the journal fails is either refused and not run, or answered and in the history."""

    @in_trio
    async def try_at(write: int) -> None:
        journal = WatchedJournal(write, "lose", 1.0)
        async with virtual_runtime(journal=journal) as runtime:
            session = await runtime.open("me", agent(lambda messages: Reply(text="ok", delay=2)))
            outcomes: dict[str, bool] = {}

            async def send(text: str, after: float) -> None:
                await trio.sleep(after)
                try:
                    if way == "ask":
                        await session.ask(text)
                    else:
                        await (await session.submit(text)).result()
                except JournalUnavailable:
                    outcomes[text] = False
                else:
                    outcomes[text] = True

            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(send, f"{number}?", number * 0.7)
            await session.runtime.workers.wait_idle()
            shown = [message["content"][0]["text"] for message in (await session.messages())[::2]]
            assert sorted(shown) == sorted(text for text, answered in outcomes.items() if answered)
            assert len(outcomes) == 4

    for write in range(1, 12):
        try_at(write)


async def told_of(asking: Awaitable[Any]) -> Any:
    """What an asker is told, as far as it is the same whenever they ask: the metrics of a result are the session's as they stand."""
    try:
        result = await asking
    except JournalUnavailable:
        return JournalUnavailable
    return result.stop_reason, result.message, result.state


@pytest.mark.parametrize("between", ["nothing", "passivated", "idle", "forgotten", "recovered"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["text", "tool", "two tools", "overflow", "slow journal", "behind another", "slow journal behind another"])
def test_a_key_gives_again_what_its_sender_was_told_when_the_journal_failed(name: str, fault: Any, between: str) -> None:
    """What was accepted has one outcome, a failure of the journal too; what was not can be sent again. Leaving memory in between changes nothing."""
    kind = KINDS[name]

    @in_trio
    async def fail_at(write: int) -> None:
        journal, witness, spec = WatchedJournal(write, fault, kind.lag), Witness(), kind.spec()
        async with virtual_runtime(journal=journal, specs=[spec], idle_seconds=50 if between == "idle" else None) as runtime:
            runtime.add_handler(witness)
            session = await opened(runtime, kind, spec)
            if kind.waiting:
                await lost(session.submit("first"))
            turn = None
            try:
                turn = await session.submit("go", key="k")
            except JournalUnavailable:
                assert journal.failed
            first = None if turn is None else await told_of(turn.result())
            await runtime.workers.wait_idle()
            if between == "idle":
                await trio.sleep(200)
            elif between == "recovered":
                await runtime.recover()
            elif between != "nothing":
                while await lost(runtime.passivate("me")):
                    pass
            if between == "forgotten":
                del session, turn
            if between in ("passivated", "idle", "forgotten"):
                assert runtime.find("me") is None
            session = await opened(runtime, kind, spec)
            again = await told_of(session.ask("go", key="k"))
            if first is None:
                assert again[0] == "end_turn"
            else:
                assert again == first
                told.append(first)
            await agree(session, witness)
            failed_before = journal.failed
            while await lost(session.ask("next")):
                assert not failed_before
                failed_before = True
            await agree(session, witness)
            hit.append(journal.failed)

    told: list[Any] = []
    hit: list[bool] = []
    while not hit or hit[-1]:
        fail_at(len(hit))
    assert JournalUnavailable in told


@in_trio
async def test_direct_changes_are_durable_or_did_not_happen() -> None:
    for fault in FAULTS:
        for change in (
            lambda session: session.add_messages([told("a"), said("b")]),
            lambda session: session.call_tool("echo"),
            lambda session: session.set_messages([]),
        ):
            journal = WatchedJournal(1, fault, 1.0)
            witness = Witness()
            async with virtual_runtime(journal=journal) as runtime:
                runtime.add_handler(witness)
                runtime.add_handler(journal.hear)
                session = await runtime.open("me", agent(["fine"]), messages=[told("x"), said("y")])
                with pytest.raises(JournalUnavailable):
                    await change(session)
                assert await session.messages() == [told("x"), said("y")]
                await agree(session, witness)
                await change(session)
                await agree(session, witness)
                assert str(await session.ask("next")) == "fine"


class Odd(MemoryJournal):
    """A journal with a bug: it raises what no journal may raise, where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.where = ""

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any], durability: Any = None, **more: Any) -> Any:
        if self.where == "append":
            raise KeyError("bug")
        super().append(actor_id, epoch, first, bodies, **more)
        return self if self.where == "wait" else None

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("bug")


@pytest.mark.parametrize("where", ["append", "wait"])
def test_a_bug_of_a_journal_is_a_journal_that_fails(where: str) -> None:
    @in_trio
    async def run() -> None:
        journal = Odd()
        async with virtual_runtime(journal=journal) as runtime:
            session = await runtime.open("me", agent([Reply(text="lost", delay=1)] * 9 + ["fine"]))
            for _ in range(9):
                journal.where = where
                with pytest.raises(JournalUnavailable) as caught:
                    await (await session.submit("go")).result()
                assert isinstance(caught.value.__cause__, KeyError)
                journal.where = ""
            assert (session.statistics().restarts, session.status) == (0, "idle")

    run()


@in_trio
async def test_an_asker_who_leaves_while_the_session_is_brought_back() -> None:
    for wait in (0.0, 0.5, 1.0):
        journal = WatchedJournal(2, "refuse", 1.0)
        witness = Witness()
        async with virtual_runtime(journal=journal) as runtime:
            runtime.add_handler(witness)
            session = await runtime.open("me", agent(["lost", "fine"]))
            with pytest.raises(JournalUnavailable):
                await session.ask("lost")
            with trio.move_on_after(wait) as scope:
                await session.ask("go")
            assert scope.cancelled_caught
            await runtime.workers.wait_idle()
            assert await session.messages() == []
            await agree(session, witness)
            await session.ask("next")
            await agree(session, witness)


@in_trio
async def test_a_prompt_is_cancelled_while_the_session_is_brought_back() -> None:
    journal = WatchedJournal(2, "refuse", 1.0)
    async with virtual_runtime(journal=journal) as runtime:
        session = await runtime.open("me", agent(["lost", "fine"]))
        with pytest.raises(JournalUnavailable):
            await session.ask("lost")
        async with session.stream("go") as events:
            await trio.sleep(0.5)
            assert await session.cancel()
            assert (await events.turn.result()).stop_reason == "cancelled"
        assert await session.messages() == []
        assert str(await session.ask("next")) == "fine"
        await assert_sound(session)


@in_trio
@pytest.mark.parametrize("way", ["reads", "asks", "left waiting"])
@pytest.mark.parametrize("patience", [0.0, 0.5, 1.0, 1.5, 3.0])
async def test_what_bringing_a_session_back_has_recorded_is_told_whoever_leaves_meanwhile(way: str, patience: float) -> None:
    """A turn is cut off by the journal while another prompt waits; then somebody has the session brought back, or waits for that, and leaves."""
    faults: list[Any] = []
    events: list[Any] = []
    outcomes: list[Any] = []

    def answer(messages: Any) -> str:
        if len(outcomes) == 0 and len(messages) == 1:
            faults.append("refuse")
        return "fine"

    async def dawdle(event: Any) -> None:
        if event.epoch > 1:
            await trio.sleep(1.0)

    async def ask(text: str, scope: trio.CancelScope) -> None:
        try:
            with scope:
                outcomes.append(await session.ask(text))
        except JournalUnavailable as error:
            outcomes.append(error)

    async with (
        virtual_runtime(journal=MemoryJournal(fault=lambda number: faults.pop() if faults else None, lag=0.1)) as runtime,
        trio.open_nursery() as nursery,
    ):
        session = await runtime.open("me", agent(answer))
        session.add_handler(dawdle, [SessionActivated], timeout=None)
        session.add_handler(events.append)
        waits = trio.CancelScope()
        nursery.start_soon(ask, "cut off", trio.CancelScope())
        await trio.sleep(0.05)
        if way == "left waiting":  # behind one that has the session brought back
            for text, scope in (("go", trio.CancelScope()), ("waits", waits)):
                nursery.start_soon(ask, text, scope)
                await trio.sleep(0.01)
        await trio.sleep(0.5)
        with trio.move_on_after(patience):
            if way == "reads":
                await session.messages()
            elif way == "asks":
                await session.ask("go")
            else:
                await trio.sleep(patience)
        waits.cancel()
        await runtime.workers.wait_idle()
        assert str(await session.ask("next")) == "fine"
        assert (await replayed(session)).waiting is None
        await assert_sound(session)

    assert type(outcomes[0]) is JournalUnavailable
    for opened, closed, name in ((TurnStarted, TurnEnded, "turn_id"), (PromptAccepted, PromptSettled, "prompt_id")):
        begun = [getattr(event, name) for event in events if type(event) is opened]
        ended = [getattr(event, name) for event in events if type(event) is closed]
        assert sorted(begun) == sorted(ended)
        assert len(set(ended)) == len(ended)


@in_trio
async def test_deltas_do_not_wait_for_the_journal_and_messages_do() -> None:
    heard: list[tuple[str, float]] = []
    async with virtual_runtime(journal=MemoryJournal(lag=10)) as runtime:
        session = await runtime.open("me", agent([Reply(text="one two", pace=1)]))
        began = trio.current_time()
        session.add_handler(lambda event: heard.append((type(event).__name__, round(trio.current_time() - began, 3))), [TextDelta, MessageAdded, TurnEnded])
        await session.ask("go")
        assert heard == [("MessageAdded", 10), ("TextDelta", 12), ("TextDelta", 13), ("MessageAdded", 26), ("TurnEnded", 26)]
        assert trio.current_time() - began == 26


@in_trio
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_session_between_two_incarnations_still_tells_what_it_has_done(fault: Any) -> None:
    faults: list[Any] = []
    async with Runtime(MemoryJournal(fault=lambda number: faults.pop() if faults else None)) as runtime:
        session: Session = await runtime.open("me", agent([Reply(text=text, usage={"inputTokens": 10, "outputTokens": 5}) for text in "abc"]))
        await session.ask("one")
        await session.ask("two")
        before = session.statistics()
        assert (before.turns, before.cycles, before.messages, before.total_tokens) == (2, 2, 4, 15 * 2)

        faults.append(fault)
        with pytest.raises(JournalUnavailable):
            await session.ask("three")
        between = session.statistics()
        assert (between.turns, between.cycles, between.input_tokens, between.output_tokens, between.total_tokens) == (2, 2, 20, 10, 30)
        assert between.messages >= 4
        assert session.metrics.cycle_count == 2
        assert session.metrics.accumulated_usage["totalTokens"] == 30

        await session.messages()
        assert attrs.evolve(session.statistics(), mailbox=before.mailbox) == before
        await session.ask("four")
        assert session.statistics().turns == 3


async def test_an_older_writer_is_fenced_and_writes_nothing() -> None:
    journal = MemoryJournal()
    async with virtual_runtime(journal=journal) as one, virtual_runtime(journal=journal) as two:
        spec = agent(lambda messages: "ok")
        first = await one.open("me", spec)
        await first.ask("1?")
        second = await two.open("me", spec)
        await second.ask("2?")
        with pytest.raises(Fenced):
            await first.ask("lost?")
        assert await second.messages() == [told("1?"), said("ok"), told("2?"), said("ok")]
        assert await first.messages() == await second.messages()
        assert first.statistics().restarts == 0


@in_trio
async def test_a_session_that_cannot_be_read_waits_for_better_times() -> None:
    journal = WatchedJournal(0, "refuse", 0.0)
    activated: list[Any] = []
    async with virtual_runtime(journal=journal) as runtime:
        runtime.add_handler(activated.append, [SessionActivated])
        with pytest.raises(JournalUnavailable):
            await runtime.open("me", agent(["fine"]))
        assert runtime.statistics().known == 0
        assert activated == []
        session = await runtime.open("me", agent(["fine"]))
        assert str(await session.ask("hi")) == "fine"
        assert [event.seq for event in activated] == [1]

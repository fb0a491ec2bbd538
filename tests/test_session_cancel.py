"""Cancelled at every scheduler step, by an asker who leaves and by somebody who ends the turn: nothing is left in between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from ropewalk import MemoryJournal, PromptSettled, Session, TextDelta, TurnEnded
from ropewalk.testing import in_trio
from talk import Witness, assert_sound, said, told, virtual_runtime
from turns import KINDS, Kind, slow, start


async def settle(session: Session, witness: Witness) -> None:
    """Whatever was under way has come to its end: the session is sound, its story is whole, the next prompt works."""
    await session.runtime.workers.wait_idle()
    await assert_sound(session)
    witness.check(await session.messages())
    assert str(await session.ask("next")) == "fine"
    assert (await session.messages())[-1] == said("fine")
    await assert_sound(session)
    witness.check(await session.messages())
    assert session.statistics().restarts == 0


class Steps(trio.abc.Instrument):
    """Counts the scheduler's steps, without those of the test's own tasks, and does something before one of them."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.own: set[trio.lowlevel.Task] = set()
        self.reached = False
        self._left = step
        self._act = act

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task not in self.own:
            self._left -= 1
            if self._left == 0:
                self.reached = True
                self._act()


@contextlib.contextmanager
def cancelled_at_any_step(step: int) -> Iterator[trio.CancelScope]:
    """Cancel the body at the scheduler's `step`-th step, whichever task that is given to."""
    scope = trio.CancelScope()
    steps = Steps(step, scope.cancel)
    trio.lowlevel.add_instrument(steps)
    try:
        with scope:
            yield scope
    finally:
        trio.lowlevel.remove_instrument(steps)


def sweep(run: Callable[[int], bool], least: int) -> None:
    """Run with a cancellation at step 1, 2, ... until one comes too late to be noticed."""
    step = 1
    while run(step):
        step += 1
        assert step < 2000
    assert step >= least


def check_kept(kind: Kind, view: list[Any], witness: Witness) -> None:
    """A text turn that was cancelled keeps its prompt and what was told of its answer, or nothing at all."""
    told_of = "".join(event.text for event in witness.of(TextDelta))
    assert view == ([*kind.messages, told("go"), said(told_of)] if told_of else kind.messages)


@pytest.mark.parametrize("name", KINDS)
def test_an_asker_who_leaves_at_any_step(name: str) -> None:
    kind = KINDS[name]

    @in_trio
    async def leave_at(step: int) -> None:
        async with virtual_runtime(journal=MemoryJournal(lag=kind.lag)) as runtime:
            session, witness = await start(runtime, kind)
            with cancelled_at_any_step(step) as scope:
                assert (await session.ask("go")).stop_reason == "end_turn"
            left.append(scope.cancelled_caught)
            await settle(session, witness)
        assert runtime.report is not None
        assert runtime.report.cancelled == ()

    left: list[bool] = []
    sweep(lambda step: (leave_at(step), left[-1])[1], 2)


@pytest.mark.parametrize("on_leave", ["continue", "cancel"])
@pytest.mark.parametrize("name", KINDS)
def test_a_reader_who_leaves_a_stream_at_any_step(name: str, on_leave: Any) -> None:
    kind = KINDS[name]

    @in_trio
    async def leave_at(step: int) -> None:
        async with virtual_runtime(journal=MemoryJournal(lag=kind.lag)) as runtime:
            session, witness = await start(runtime, kind)
            with cancelled_at_any_step(step) as scope:
                async with session.stream("go", on_leave=on_leave) as events:
                    async for _ in events:
                        pass
            left.append(scope.cancelled_caught)
            await session.runtime.workers.wait_idle()
            if on_leave == "continue" and witness.of(PromptSettled):
                assert [event.outcome for event in witness.of(PromptSettled)] == ["end_turn"] * (2 if kind.waiting else 1)
            await settle(session, witness)

    left: list[bool] = []
    sweep(lambda step: (leave_at(step), left[-1])[1], 2)


@pytest.mark.parametrize("way", ["session", "turn"])
@pytest.mark.parametrize("name", KINDS)
def test_a_turn_that_is_cancelled_at_any_step(name: str, way: str) -> None:
    kind = KINDS[name]

    @in_trio
    async def cancel_at(step: int) -> None:
        async with virtual_runtime(journal=MemoryJournal(lag=kind.lag)) as runtime:
            session, witness = await start(runtime, kind)
            due = trio.Event()
            steps = Steps(step, due.set)
            steps.own.add(trio.lowlevel.current_task())
            trio.lowlevel.add_instrument(steps)
            reasons: list[str] = []

            async def cancel() -> None:
                steps.own.add(trio.lowlevel.current_task())
                await due.wait()
                if way == "turn":
                    await turn.cancel()
                    assert turn.done
                elif await session.cancel():
                    assert session.status == "idle" or kind.waiting

            turn = await session.submit("go")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel)
                reasons.append((await turn.result()).stop_reason)
                reached.append(steps.reached)
                nursery.cancel_scope.cancel()
            trio.lowlevel.remove_instrument(steps)
            ended = witness.of(TurnEnded)
            assert reasons in (["end_turn"], ["cancelled"])
            if way == "turn" and ended and not kind.waiting:
                assert [event.stop_reason for event in ended] == reasons
            await session.runtime.workers.wait_idle()
            if reasons == ["cancelled"] and name in ("text", "slow text"):
                check_kept(kind, await session.messages(), witness)
            await settle(session, witness)

    reached: list[bool] = []
    sweep(lambda step: (cancel_at(step), reached[-1])[1], 2)


@pytest.mark.parametrize("name", KINDS)
def test_a_runtime_that_is_cancelled_at_any_step(name: str) -> None:
    """Whoever has the runtime is cancelled: the turn is settled all the same, and the journal can be gone on with."""
    kind = KINDS[name]

    @in_trio
    async def cancel_at(step: int) -> None:
        witness = Witness()
        with trio.CancelScope() as scope:
            due = trio.Event()
            steps = Steps(step, due.set)
            steps.own.add(trio.lowlevel.current_task())
            trio.lowlevel.add_instrument(steps)
            async with virtual_runtime(journal=MemoryJournal(lag=kind.lag)) as runtime:
                runtime.add_handler(witness)
                if kind.slow_handler:
                    runtime.add_handler(slow)
                spec = kind.spec()
                session = await runtime.open("me", spec, messages=kind.messages)

                async def cancel() -> None:
                    steps.own.add(trio.lowlevel.current_task())
                    await due.wait()
                    scope.cancel()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel)
                    turn = await session.submit("first" if kind.waiting else "go")
                    waiting = await session.submit("go")
                    await turn.result()
                    await waiting._prompt.outcome.wait_settled()
                    reached.append(False)
                    nursery.cancel_scope.cancel()
        trio.lowlevel.remove_instrument(steps)
        if scope.cancelled_caught:
            reached.append(True)
        async with virtual_runtime(journal=runtime.journal) as later:
            again = await later.open("me", spec)
            await later.workers.wait_idle()
            await assert_sound(again)
            assert str(await again.ask("next")) == "fine"
            await assert_sound(again)

    reached: list[bool] = []
    sweep(lambda step: (cancel_at(step), reached[-1])[1], 2)

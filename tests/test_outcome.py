"""One result for several, given exactly once."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.actors.testing.loop import in_trio
from ropewalk.runtime.backend import ANY_BACKEND, Bell
from ropewalk.runtime.outcome import Outcome

givings = st.lists(st.one_of(st.integers(), st.builds(LookupError, st.text(max_size=3))), min_size=1, max_size=4)


@given(givings, st.lists(st.tuples(st.floats(0, 5), st.one_of(st.none(), st.floats(0, 5))), max_size=6), st.random_module())
@in_trio
async def test_the_first_to_give_it_wins_and_everybody_who_stays_gets_that(given: list[Any], waiters: list[tuple[float, float | None]], schedule: Any) -> None:
    outcome, told, got = Outcome[int](), list[str](), list[Any]()
    outcome.then = lambda: told.append("given")

    async def wait(comes: float, stays: float | None) -> None:
        await trio.sleep(comes)
        with trio.move_on_after(1000 if stays is None else stays):
            try:
                got.append(await outcome.wait())
            except LookupError as error:
                got.append(error)

    async with trio.open_nursery() as nursery:
        for comes, stays in waiters:
            nursery.start_soon(wait, comes, stays)
        await trio.sleep(2)
        for number, what in enumerate(given):
            won = outcome.fail(what) if isinstance(what, LookupError) else outcome.settle(what)
            assert won == (number == 0)

    assert told == ["given"]
    assert outcome.settled
    assert all(what is given[0] for what in got)
    assert len(got) >= sum(stays is None or comes > 2 for comes, stays in waiters)


@pytest.mark.anyio
async def test_an_error_that_is_raised_again_and_again_does_not_grow() -> None:
    outcome = Outcome[None]()
    try:
        raise LookupError("no")
    except LookupError as error:
        outcome.fail(error)
    lengths = set[int]()
    for _ in range(5):
        with pytest.raises(LookupError) as caught:
            await outcome.wait()
        lengths.add(len(traceback.extract_tb(caught.value.__traceback__)))

    assert len(lengths) == 1


@pytest.mark.anyio
async def test_whoever_waits_may_ask_only_whether_there_is_one() -> None:
    outcome, done = Outcome[None](), list[str]()

    async def wait() -> None:
        await outcome.wait_settled()
        done.append("there")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert done == []
        outcome.fail(LookupError())
    await wait()

    assert done == ["there", "there"]


def test_one_that_is_cancelled_as_it_is_woken_harms_nobody_who_comes_after() -> None:
    async def main() -> None:
        bell = Bell(asyncio.get_running_loop().create_future)
        early = asyncio.create_task(bell.rung())
        await asyncio.sleep(0)
        bell.ring()
        early.cancel()  # it has its wake-up and has not run yet
        late = bell.rung()
        late.send(None)  # and somebody else waits already
        with pytest.raises(asyncio.CancelledError):
            await early
        late.close()
        assert not bell.waiting

    asyncio.run(main())


async def test_those_who_come_and_leave_do_not_pile_up(autojump_clock: trio.testing.MockClock) -> None:
    bell = Bell(ANY_BACKEND.wakeup)
    for _ in range(3):
        with trio.move_on_after(1):
            await bell.rung()
    assert not bell.waiting

"""The keeper that groups writes: what is asked for while a group is written is the next one, and no cancellation loses an answer."""

from __future__ import annotations

import asyncio
import threading

import anyio
import anyio.to_thread
import pytest

from ropewalk import JournalUnavailable
from ropewalk.runtime.journal.grouping import Group, GroupKeeper, Operation


class Store:
    """Writes groups, one at a time, each when `may_write` is set."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.may_write = threading.Event()
        self.begun = threading.Event()
        self._one = threading.Lock()

    def write(self, group: Group) -> None:
        self.begun.set()
        with self._one:
            if not group.is_written:
                self.may_write.wait(10)
                self.groups.append(len(group.operations))
                group.is_written = True


def keeper_of(store: Store) -> GroupKeeper:
    return GroupKeeper(store.write, lambda ended: None)


def added(keeper: GroupKeeper, count: int) -> list[Operation]:
    operations = [Operation() for _ in range(count)]
    for operation in operations:
        keeper.add(operation)
    return operations


@pytest.mark.anyio
async def test_what_gathers_while_a_group_is_written_is_the_next_group() -> None:
    store = Store()
    keeper = keeper_of(store)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        first = added(keeper, 2)
        await anyio.to_thread.run_sync(store.begun.wait)
        later = added(keeper, 3)
        store.may_write.set()
        for operation in (*first, *later):
            await operation.wait()
        keeper.stop()
    assert store.groups == [2, 3]
    with pytest.raises(JournalUnavailable, match="has ended"):
        keeper.add(Operation())


@pytest.mark.anyio
async def test_one_that_is_cancelled_takes_last_words_until_it_is_stopped() -> None:
    store = Store()
    store.may_write.set()
    keeper = keeper_of(store)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            [last] = added(keeper, 1)
            await last.wait()
            keeper.stop()
    assert store.groups == [1]
    assert keeper.has_ended


def test_one_whose_task_is_cancelled_while_a_thread_writes_learns_how_it_went_and_writes_nothing_twice() -> None:
    """As the end of an asyncio loop does it, past every scope."""

    async def main() -> None:
        store = Store()
        keeper = keeper_of(store)
        task = asyncio.ensure_future(keeper.run())
        await asyncio.sleep(0)
        first = added(keeper, 2)
        await asyncio.to_thread(store.begun.wait)
        task.cancel()
        await asyncio.sleep(0)
        last = added(keeper, 1)
        store.may_write.set()
        for operation in (*first, *last):
            await operation.wait()
        keeper.stop()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert store.groups == [2, 1]

    asyncio.run(main())

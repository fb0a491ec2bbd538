"""What the tests of death share: a journal whose process dies before a write, a bank whose books are the judge, and an agent that uses it."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import trio

from ropewalk import AgentSpec, ContextWindowOverflow, MemoryJournal, RecoveryReport, Runtime, ToolContext, tool
from ropewalk.actors.messages import Message, text_of, tool_results, tool_uses
from ropewalk.actors.session.settling import IN_DOUBT
from ropewalk.runtime.journal import KnownActor, Snapshot
from ropewalk.testing import Reply, ScriptedModel, ToolUse, VirtualClock
from talk import Witness, agent, said, told, virtual_runtime

__all__ = ["DOUBT", "LONG", "PLANS", "Bank", "Mortal", "banking", "check_bank", "live", "to_the_end"]

HARMLESS = ("e", "f")
"""The calls in the plans below that cannot reach a tool."""

DOUBT = "The process ended before this tool's result was known; it may or may not have had its effect."


class Never:
    """A write of a dead process: nobody hears that it is durable."""

    async def wait(self) -> None:
        await trio.sleep_forever()


class Mortal(MemoryJournal):
    """The journal of a process that dies before a write, counted from 0: nothing it does then reaches the logs."""

    def __init__(self, dies_before: int = -1, beside: MemoryJournal | None = None) -> None:
        super().__init__(beside=beside)
        self._left = dies_before
        self.death = trio.Event()

    @property
    def is_dead(self) -> bool:
        return self.death.is_set()

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any], durability: Any = None, **more: Any) -> Any:
        if self._left == 0:
            self.death.set()
            return Never()
        self._left -= 1
        return super().append(actor_id, epoch, first, bodies, durability, **more)

    async def save_snapshot(self, actor_id: str, epoch: int, snapshot: Snapshot) -> None:
        if self.is_dead:
            await trio.sleep_forever()
        await super().save_snapshot(actor_id, epoch, snapshot)

    async def release(self, actor_id: str, epoch: int) -> None:
        if not self.is_dead:
            await super().release(actor_id, epoch)

    async def redact(self, *change: Any, **more: Any) -> None:
        await self._die_if_due()
        await super().redact(*change, **more)

    async def fork(self, source_id: str, number: int, new_id: str, kind: str = "") -> KnownActor:
        await self._die_if_due()
        return await super().fork(source_id, number, new_id, kind)

    async def delete(self, actor_id: str) -> bool:
        await self._die_if_due()
        return await super().delete(actor_id)

    async def _die_if_due(self) -> None:
        if self._left == 0:
            self.death.set()
            await trio.sleep_forever()
        self._left -= 1


seeds = itertools.count()
"""A process has ids of its own."""


async def live(journal: Mortal, spec: AgentSpec, do: Callable[[Runtime], Awaitable[None]]) -> bool:
    """One process, until it has done this or dies; whether it died."""
    async with trio.open_nursery() as nursery:

        async def die() -> None:
            await journal.death.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(die)
        async with virtual_runtime(journal=journal, specs=[spec], grace=1000, clock=VirtualClock(next(seeds))) as runtime:
            await do(runtime)
        nursery.cancel_scope.cancel()
    return journal.is_dead


@attrs.define
class Bank:
    """Moves money and writes it down: its books are the judge. Those who come with a key it has seen are told so and nothing is moved."""

    books: list[tuple[str, int]] = attrs.Factory(list)
    asked: list[str] = attrs.Factory(list)

    def tools(self) -> list[Any]:
        bank = self

        @tool
        async def pay(amount: int, context: ToolContext) -> str:
            """Pay, with no way to ask again."""
            await trio.sleep(amount)
            bank.books.append((context.idempotency_key, amount))
            context.request_state["paid"] = context.request_state.get("paid", 0) + amount
            return f"paid {amount}"

        @tool(replay="key")
        async def pay_once(amount: int, context: ToolContext) -> str:
            """Pay under a key."""
            bank.asked.append(context.idempotency_key)
            await trio.sleep(amount)
            if all(key != context.idempotency_key for key, _ in bank.books):
                bank.books.append((context.idempotency_key, amount))
            return f"paid {amount}"

        @tool(replay="safe")
        async def balance() -> str:
            """How much was moved."""
            await trio.sleep(1)
            return "some"

        return [pay, pay_once, balance]


PLANS: dict[str, tuple[Any, ...]] = {
    "text": ("one two three",),
    "slow text": (Reply(text="one two three", pace=1),),
    "tool": (Reply(text="let me see", tool_uses=[ToolUse("pay", {"amount": 1}, "a")]), "done"),
    "safe tool": (Reply(tool_uses=[ToolUse("balance", {}, "a")]), "done"),
    "keyed tool": (Reply(tool_uses=[ToolUse("pay_once", {"amount": 2}, "a")]), "done"),
    "two tools": (Reply(tool_uses=[ToolUse("pay", {"amount": 1}, "a"), ToolUse("pay_once", {"amount": 2}, "b")]), "done"),
    "three tools": (
        Reply(tool_uses=[ToolUse("pay", {"amount": 1}, "a"), ToolUse("pay_once", {"amount": 2}, "b"), ToolUse("pay", {"amount": 3}, "c")]),
        Reply(tool_uses=[ToolUse("pay", {"amount": 4}, "d"), ToolUse("no_such_tool", {}, "e"), ToolUse("pay", "{", "f")]),
        "done",
    ),
}


LONG = [message for number in range(6) for message in (told(f"question {number} " * 50), said(f"answer {number} " * 50))]


def said_in_turn(messages: Sequence[Message]) -> int:
    """How many answers the turn that is shown at the end has: a model that plays by what it is shown does not care which process it is in."""
    count = 0
    for message in reversed(messages):
        if message["role"] == "user" and not tool_results(message):
            break
        count += message["role"] == "assistant"
    return count


def planned(plans: dict[str, tuple[Any, ...]]) -> Callable[[Sequence[Message]], Any]:
    def reply(messages: Sequence[Message]) -> Any:
        if LONG[0] in messages:
            return ContextWindowOverflow()
        prompt = next(message for message in reversed(messages) if message["role"] == "user" and not tool_results(message))
        return plans[text_of(prompt).split(":")[0]][said_in_turn(messages)]

    return reply


def banking(bank: Bank, **options: Any) -> AgentSpec:
    return agent(ScriptedModel(planned(PLANS)), tools=bank.tools(), **options)


async def to_the_end(journal: Mortal, spec: AgentSpec, witness: Witness | None = None) -> tuple[Mortal, RecoveryReport]:
    """What the next process does, which dies no more."""
    reports: list[RecoveryReport] = []
    later = Mortal(beside=journal)

    async def recover(runtime: Runtime) -> None:
        if witness is not None:
            runtime.add_handler(witness)
        reports.append(await runtime.recover())

    assert not await live(later, spec, recover)
    return later, reports[0]


def check_bank(bank: Bank, messages: Sequence[Message]) -> None:
    """No intent had its effect twice, and what the history says of each call is what the books say, or that it is in doubt."""
    keys = [key for key, _ in bank.books]
    assert len(keys) == len(set(keys)), "an effect was had twice"
    for asking, answering in itertools.pairwise(messages):
        for call, result in zip(tool_uses(asking), tool_results(answering) if tool_uses(asking) else (), strict=True):
            is_paid = any(key.endswith(f"/{call['toolUseId']}") for key in keys)
            is_in_doubt = result["content"][0]["text"] in (DOUBT, IN_DOUBT)
            assert not (is_in_doubt and call["toolUseId"] in HARMLESS), "of a call that cannot have reached a tool it is said that it may have had an effect"
            if result["status"] == "success" and call["name"] != "balance":
                assert is_paid, "a payment is said to be made that is not in the books"
            elif is_paid:
                assert is_in_doubt, "an effect nobody is told may have been had"

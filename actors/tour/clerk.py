"""The process that the tour kills: sessions that have a bank pay, under keys, and a line on standard output for all it was told.

``python -m ropewalk.actors.tour.clerk FOLDER SESSIONS BACKEND``; each line is JSON:

    ["recovered", COUNT]        so many sessions had unfinished work, and have come to an end with it
    ["accepted", KEY]           the message of this key is durable
    ["answered", KEY, TEXT]     and this is its answer
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from zlib import crc32

import anyio
import anyio.to_thread
import msgspec

from ropewalk import AgentSpec, Runtime, Session, ToolContext, tool
from ropewalk.actors.messages import Message, text_of, tool_results
from ropewalk.actors.tour.bank import Bank
from ropewalk.testing import Reply, ScriptedModel, ToolUse

__all__ = ["BOOKS", "JOURNAL", "MESSAGES", "life", "make_spec", "message", "send", "session_names"]

MESSAGES = 4
"""How many each session is sent."""
BOOKS, JOURNAL = "books.txt", "sessions.db"
PACE = 0.03
"""Seconds between two pieces of an answer."""
WORK = 0.04
"""The least seconds the bank takes before it pays, and again before it says so; at most twice as long."""

Tell: TypeAlias = Callable[..., None]


def session_names(count: int) -> list[str]:
    """The ids of so many sessions."""
    return [f"user-{number}" for number in range(count)]


def message(number: int) -> str:
    """What each session is told as its message of this number, from 0."""
    return f"Pay {number + 1}." if number % 2 == 0 else f"Pay {number + 1} once."


def make_spec(bank: Bank) -> AgentSpec:
    """An agent that pays what it is told to, and goes by what it is shown, so that any process can go on with it."""

    @tool
    async def pay(amount: int, context: ToolContext) -> str:
        """Pay. If nobody knows whether it was done, it must not be done again."""
        return await _paid(bank.pay, context.idempotency_key, amount)

    @tool(replay="key")
    async def pay_once(amount: int, context: ToolContext) -> str:
        """Pay, unless it was done under the call's key."""
        return await _paid(bank.pay_once, context.idempotency_key, amount)

    return AgentSpec(name="clerk", model=ScriptedModel(_answer, remember=0), tools=[pay, pay_once])


async def _paid(pay: Callable[[str, int], object], key: str, amount: int) -> str:
    work = WORK * (1 + crc32(key.encode()) / 2**32)  # of each call another, so that they do not all do the same at the same time
    await anyio.sleep(work)
    await anyio.to_thread.run_sync(pay, key, amount)
    await anyio.sleep(work)
    return f"Paid {amount}."


def _answer(messages: Sequence[Message]) -> Reply:
    results = tool_results(messages[-1])
    if results:
        return Reply(text=["I ", "asked, ", "and ", "was ", "told: ", results[0]["content"][0]["text"]], pace=PACE)
    words = text_of(messages[-1]).rstrip(".").split()
    return Reply(tool_uses=[ToolUse("pay_once" if "once" in words else "pay", {"amount": int(words[1])})], pace=PACE)


async def life(runtime: Runtime, spec: AgentSpec, names: Sequence[str], tell: Tell) -> None:
    """What each process does, the first and the next."""
    report = await runtime.recover()
    tell("recovered", len(report.recovered))
    async with anyio.create_task_group() as tasks:
        for name in names:
            session = await runtime.open(name, spec)
            for number in range(MESSAGES):
                tasks.start_soon(send, session, number, tell)


async def send(session: Session, number: int, tell: Tell) -> None:
    """Send a message under its key."""
    key = f"{session.id}/{number}"
    turn = await session.submit(message(number), key=key)
    tell("accepted", key)
    tell("answered", key, str(await turn.result()))


async def _run(folder: Path, sessions: int) -> None:
    spec = make_spec(Bank(folder / BOOKS))
    async with Runtime(folder / JOURNAL, [spec]) as runtime:
        await life(runtime, spec, session_names(sessions), _tell)


def _tell(*line: Any) -> None:
    os.write(1, msgspec.json.encode(line) + b"\n")


if __name__ == "__main__":
    anyio.run(_run, Path(sys.argv[1]), int(sys.argv[2]), backend=sys.argv[3])

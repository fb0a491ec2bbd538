"""A process whose sessions have a bank pay, until it is killed: says on its standard output what it was told, a line of JSON each.

python clerk.py ORDERS, where ORDERS is an `Orders` as JSON. It says

    ["began"]                           before it opens anything
    ["accepted", SESSION, KEY]          the prompt of this key is durable
    ["outcome", SESSION, KEY, WHAT]     and what came of it
    ["lost", SESSION, KEY, ERROR]       nobody can tell here what came of it, or whether it was accepted
    ["elsewhere", SESSION]              another living process has the session
    ["locked"]                          another process has been writing to the file for `timeout` seconds
    ["paid", CALL]                      the books have it, and the tool is about to return
    ["recovered", [SESSION, ...]]       `Runtime.recover` has returned
    ["view", SESSION, MESSAGES]         of each session in the end
    ["done"]                            then it waits to be killed, or ends
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec
import structlog

from ropewalk import AgentSpec, Fenced, JournalUnavailable, ModelError, Runtime, Session, SessionElsewhere, SQLiteJournal, ToolContext, tool
from ropewalk.actors.messages import Message, text_of, tool_results
from ropewalk.actors.tour.bank import Bank
from ropewalk.runtime.supervision import Failure, attempt
from ropewalk.testing import Reply, ScriptedModel, ToolUse

__all__ = ["PLANS", "Orders", "clerk", "key_of", "prompt_of", "told_of"]

PLANS: dict[str, tuple[Any, ...]] = {
    "text": (Reply(text="one two three four", pace=0.002),),
    "pay": (Reply(text="let me see", tool_uses=[ToolUse("pay", {"amount": 1}, "a")]), "done"),
    "pay once": (Reply(tool_uses=[ToolUse("pay_once", {"amount": 2}, "a")]), "done"),
    "look": (Reply(tool_uses=[ToolUse("balance", {}, "a")]), "done"),
    "all three": (
        Reply(tool_uses=[ToolUse("pay", {"amount": 1}, "a"), ToolUse("pay_once", {"amount": 2}, "b"), ToolUse("pay", {"amount": 3}, "c")]),
        Reply(tool_uses=[ToolUse("balance", {}, "d"), ToolUse("pay", {"amount": 4}, "e")]),
        Reply(text=["d", "o", "n", "e"], pace=0.002),
    ),
    "same id again": (
        Reply(tool_uses=[ToolUse("pay_once", {"amount": 1}, "a")]),
        Reply(tool_uses=[ToolUse("pay_once", {"amount": 1}, "a")]),
        "done",
    ),
    "turned down": (Reply(tool_uses=[ToolUse("pay", {"amount": 1000}, "a"), ToolUse("no_such_tool", {}, "b"), ToolUse("pay", "{", "c")]), "done"),
    "fails": (ModelError("no more"),),
    "pays and fails": (Reply(tool_uses=[ToolUse("pay", {"amount": 5}, "a")]), ModelError("no more of that")),
}


class Orders(msgspec.Struct, kw_only=True):
    """What the process is to do: send these prompts (by their numbers) in each of these sessions, under their keys, again and again.

    `recovers`: whether it calls `Runtime.recover` first, or beside its work, or leaves it. `delay` is the most seconds a tool or the
    model takes a step. `stays`: when all is done, it waits to be killed.
    """

    folder: str
    sessions: Sequence[str]
    prompts: int
    seed: int
    backend: Literal["asyncio", "trio"] = "asyncio"
    recovers: Literal["first", "beside", "not"] = "first"
    durability: Literal["disk", "os"] = "os"
    delay: float = 0.006
    open_timeout: float = 30.0
    idle_seconds: float | None = None
    timeout: float = 30.0
    stays: bool = True


def tell(*line: Any) -> None:
    os.write(1, msgspec.json.encode(line) + b"\n")


def key_of(session: str, number: int) -> str:
    """The key of a session's prompt of this number."""
    return f"{session}-{number}"


def prompt_of(key: str) -> str:
    """The prompt that is sent under a key, in whatever process."""
    return f"{random.Random(key).choice(list(PLANS))}: {key}"


def told_of(outcome: Any) -> list[Any]:
    """An outcome as far as every process can know it."""
    if isinstance(outcome, Failure):
        return [type(outcome.error).__name__, str(outcome.error)]
    return [outcome.stop_reason, outcome.message, outcome.state]


def clerk(bank: Bank, delay: float = 0.0, seed: int = 0) -> AgentSpec:
    """An agent that has the bank pay what its prompt's plan says, and goes by what it is shown, so that any process can go on with it."""
    pauses = random.Random(seed)

    @tool
    def pay(amount: int, context: ToolContext) -> str:
        """Pay, with no way to ask again; in a thread."""
        time.sleep(delay * pauses.random())
        if amount > 100:
            raise ValueError("that is too much")
        bank.pay(context.idempotency_key, amount)
        tell("paid", context.idempotency_key)
        time.sleep(delay * pauses.random())
        return f"paid {amount}"

    @tool(replay="key")
    async def pay_once(amount: int, context: ToolContext) -> str:
        """Pay under a key."""
        await anyio.sleep(delay * pauses.random())
        bank.pay_once(context.idempotency_key, amount)
        tell("paid", context.idempotency_key)
        await anyio.sleep(delay * pauses.random())
        context.request_state["paid"] = context.request_state.get("paid", 0) + amount
        return f"paid {amount}"

    @tool(replay="safe")
    async def balance() -> str:
        """Look, which does nothing."""
        await anyio.sleep(delay * pauses.random())
        return "enough"

    def reply(messages: Sequence[Message]) -> Any:
        answers = 0
        for message in reversed(messages):
            if message["role"] == "user" and not tool_results(message):
                return PLANS[text_of(message).split(":")[0]][answers]
            answers += message["role"] == "assistant"
        raise ModelError("there is no prompt")

    return AgentSpec(name="clerk", model=ScriptedModel(reply, remember=0), tools=[pay, pay_once, balance])


async def send(session: Session, key: str) -> None:
    """Send a prompt under its key, and say what is told of it."""
    try:
        turn = await session.submit(prompt_of(key), key=key)
    except (Fenced, JournalUnavailable) as error:
        tell("lost", session.id, key, f"accept {type(error).__name__}: {error}")
        return
    tell("accepted", session.id, key)
    outcome = await attempt(turn.result())
    if isinstance(outcome, Failure) and isinstance(outcome.error, Fenced | JournalUnavailable):
        tell("lost", session.id, key, f"result {type(outcome.error).__name__}: {outcome.error}")
        return
    tell("outcome", session.id, key, told_of(outcome))


async def leave(session: Session, key: str, after: float) -> None:
    """Ask under a key, and leave soon: that cancels nothing."""
    with anyio.move_on_after(after):
        await attempt(session.ask(prompt_of(key), key=key))


async def talk(runtime: Runtime, spec: AgentSpec, name: str, orders: Orders) -> None:
    """Send all prompts of a session, some twice at once, some from an asker who leaves."""
    draw = random.Random(f"{orders.seed}/{name}")
    try:
        session = await runtime.open(name, spec)
    except SessionElsewhere:
        tell("elsewhere", name)
        return
    async with anyio.create_task_group() as tasks:
        for number in range(orders.prompts):
            key = key_of(name, number)
            if draw.random() < 0.2:
                tasks.start_soon(leave, session, key, 2 * orders.delay * draw.random())
            tasks.start_soon(send, session, key)
            if draw.random() < 0.2:
                tasks.start_soon(send, session, key)
            await anyio.sleep(orders.delay * draw.random() / 4)


async def recover(runtime: Runtime) -> None:
    """Go on with what others left, and say so."""
    report = await runtime.recover()
    assert not report.failed, report
    tell("recovered", report.recovered)


async def work(orders: Orders) -> None:
    """Carry the orders out."""
    folder = Path(orders.folder)
    spec = clerk(Bank(folder / "books"), orders.delay, orders.seed)
    journal = SQLiteJournal(folder / "sessions.db", durability=orders.durability, timeout=orders.timeout)
    async with Runtime(journal, [spec], open_timeout=orders.open_timeout, idle_seconds=orders.idle_seconds) as runtime:
        if orders.recovers == "first":
            await recover(runtime)
        async with anyio.create_task_group() as tasks:
            if orders.recovers == "beside":
                tasks.start_soon(recover, runtime)
            for name in orders.sessions:
                tasks.start_soon(talk, runtime, spec, name, orders)
        for name in orders.sessions:
            session = runtime.find(name)
            if session is not None:  # else it has left memory
                await session.wait_idle()
                messages = await attempt(session.messages())
                if not isinstance(messages, Failure):
                    tell("view", name, messages)
        tell("done")
        if orders.stays:
            await anyio.sleep_forever()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    given = msgspec.json.decode(sys.argv[1], type=Orders)
    tell("began")
    try:
        anyio.run(work, given, backend=given.backend)
    except* JournalUnavailable:
        tell("locked")
        tell("done")

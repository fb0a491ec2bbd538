"""The kinds of turns that are cancelled, or whose journal fails, at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import trio

from ropewalk import AgentSpec, ContextWindowOverflow, ConversationManager, ModelThrottled, Runtime, Session
from ropewalk.testing import Reply, ScriptedModel, ToolUse
from talk import Witness, agent, said, told

__all__ = ["KINDS", "LONG", "Kind", "slow", "start"]

LONG = [message for number in range(6) for message in (told(f"question {number} " * 50), said(f"answer {number} " * 50))]
ECHO, WAIT = ToolUse("echo", {"text": "hi"}), ToolUse("wait", {"seconds": 1.0})


class SlowManager(ConversationManager):
    """Takes its time, also after every turn."""

    async def apply_management(self, messages: Any) -> None:
        await trio.sleep(1)
        del messages[:-4]

    async def reduce_context(self, messages: Any, e: Exception | None = None) -> None:
        await trio.sleep(1)
        del messages[:-5]


@attrs.frozen
class Kind:
    """A kind of turn: what the model does in it, what was said before, who is slow."""

    replies: tuple[Any, ...]
    messages: list[Any] = attrs.field(factory=list[Any])
    slow_handler: bool = False
    waiting: bool = False
    lag: float = 0.0
    manager: Callable[[], Any] = lambda: None

    def spec(self) -> AgentSpec:
        """An agent whose model plays the turn, and is fine with every other prompt."""
        script: Iterator[Any] = iter(self.replies)
        model = ScriptedModel(lambda messages: "fine" if messages[-1]["content"][-1] == {"text": "next"} else next(script))
        return agent(model, conversation_manager=self.manager())


KINDS = {
    "text": Kind(("one two three",)),
    "slow text": Kind((Reply(text="one two three", delay=1, pace=1),)),
    "tool": Kind((Reply(text="let me see", tool_uses=[ECHO]), "done")),
    "two tools": Kind((Reply(tool_uses=[WAIT, ECHO]), Reply(text="on", tool_uses=[WAIT]), "done")),
    "overflow": Kind((Reply(text="so ", pace=1, error=ContextWindowOverflow()), ContextWindowOverflow(), Reply(text="at last", delay=1)), messages=LONG),
    "slow manager": Kind((ContextWindowOverflow(), Reply(text="at last", delay=1)), messages=LONG, manager=SlowManager),
    "throttled": Kind((ModelThrottled(retry_after=3), ModelThrottled(), "done")),
    "slow handler": Kind((Reply(text="one two", tool_uses=[ECHO]), "done"), slow_handler=True),
    "slow journal": Kind((Reply(text="let me see", tool_uses=[ECHO]), Reply(text="done", pace=1)), lag=0.3),
    "slow journal behind another": Kind((Reply(text="first", delay=1), Reply(text="one two", pace=1)), waiting=True, lag=0.3),
    "behind another": Kind((Reply(text="first", delay=1), "one two three"), waiting=True),
}


async def slow(event: Any) -> None:
    await trio.sleep(0.5)


async def start(runtime: Runtime, kind: Kind) -> tuple[Session, Witness]:
    witness = Witness()
    runtime.add_handler(witness)
    if kind.slow_handler:
        runtime.add_handler(slow)
    session = await runtime.open("me", kind.spec(), messages=kind.messages)
    if kind.waiting:
        await session.submit("first")
    return session, witness

"""An overflow and its reduction: a history that does not fit the model, a manager that hangs, and a session that answers all the while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio

from ropewalk import (
    AgentSpec,
    ContextWindowOverflow,
    ConversationManager,
    Event,
    Limits,
    ReductionEnded,
    ReductionStarted,
    Runtime,
    Session,
    Turn,
    TurnEnded,
)
from ropewalk.actors.conversation import estimate_all
from ropewalk.actors.messages import Message, assistant, text_of, user
from ropewalk.actors.terminal.screen import Screen, source_of
from ropewalk.runtime.clock import Clock
from ropewalk.testing import ScriptedModel

__all__ = ["show_overflow"]

FITS = 2_500
LOGS = 12
MOST_SECONDS = 30


class Hanging(ConversationManager):
    """A manager that asks somebody who never answers."""

    async def reduce_context(self, messages: Any, e: Exception | None = None) -> None:
        """Does not return."""
        await anyio.sleep_forever()


def make_spec() -> AgentSpec:
    """An agent whose manager will not help it."""
    return AgentSpec(
        model=ScriptedModel(refusing_above(FITS)),
        conversation_manager=Hanging(),
        limits=Limits(reduction_seconds=0.5),
    )


def refusing_above(fits: int) -> Callable[[Sequence[Message]], str | Exception]:
    """A script that refuses what takes more than `fits` tokens, and otherwise says how many it read."""

    def answer(messages: Sequence[Message]) -> str | Exception:
        tokens = estimate_all(messages)
        if tokens > fits:
            return ContextWindowOverflow(f"{tokens} tokens, and {fits} fit", tokens=tokens, limit=fits)
        return f"{text_of(messages[-1])} I have read {tokens:,} tokens to tell you."

    return answer


def logbook() -> list[Message]:
    """A long history: somebody has a tool read logs."""
    messages: list[Message] = []
    for number in range(LOGS):
        tool_use_id = f"read-{number}"
        entries = "\n".join(f"watch {line}: wind west by north, {number + 3} knots, rope sound" for line in range(60))
        messages += [
            user(f"Read log {number}."),
            assistant({"toolUse": {"toolUseId": tool_use_id, "name": "read_log", "input": {"number": number}}}),
            user({"toolResult": {"toolUseId": tool_use_id, "status": "success", "content": [{"text": entries}]}}),
            assistant(f"Log {number} has nothing unusual."),
        ]
    return messages


async def show_overflow(screen: Screen) -> list[str]:
    """Show it; returns what was wrong, if anything."""
    screen.console.print()
    screen.code(_sketch())
    watch = _Watch(screen)
    with anyio.fail_after(MOST_SECONDS):
        async with Runtime() as runtime:
            session: Session = await runtime.open("captain", make_spec(), messages=logbook())
            await watch.through(session)
    return watch.problems


def _sketch() -> str:
    """The lines that make such an agent: they stand in this module, but for their docstrings."""
    manager = [line for line in source_of(Hanging, whole=True).splitlines() if line and '"""' not in line]
    spec = source_of(make_spec).replace("return AgentSpec", "spec = AgentSpec").replace("FITS", f"{FITS:_}")
    return "\n".join([*manager, "", spec])


class _Watch:
    """Tells what happens while it happens, and sends a second prompt while the view is being reduced."""

    def __init__(self, screen: Screen) -> None:
        self.problems: list[str] = []
        self._screen = screen
        self._clock = Clock()
        self._began = 0.0
        self._turns: list[Turn] = []
        self._ended = 0

    async def through(self, session: Session) -> None:
        """Ask, and tell of all that happens until both prompts are answered."""
        self._began = self._clock.time()
        async with session.runtime.events.subscribe(kinds={ReductionStarted, ReductionEnded, TurnEnded}, sessions=session.id) as events:
            self._turns.append(await session.submit("Was the rope sound?"))
            async for event in events:
                await self._see(event, session)
                if self._ended == 2:
                    break
        await self._conclude(session)

    async def _see(self, event: Event, session: Session) -> None:
        match event:
            case ReductionStarted(tokens_before=before, target=target):
                self._tell(f"the model refuses {before:,} tokens, {FITS:,} fit; ReductionStarted, aiming at {target:,}")
                await self._talk_meanwhile(session)
            case ReductionEnded(rung=rung, tokens_before=before, tokens_after=after, failures=failures):
                self._tell(f"given up: {'; '.join(failures)}")
                self._tell(f"ReductionEnded: rung {rung!r}, {before:,} → {after:,} tokens")
                self._expect(rung is not None and after < before, f"the reduction freed nothing: {before:,} tokens before, {after:,} after")
            case TurnEnded(stop_reason=reason):
                self._tell(f"TurnEnded, {reason}: {await self._turns[self._ended].result()}")
                self._ended += 1
                self._expect(reason == "end_turn", f"a turn ended {reason}")
            case _:
                pass

    async def _conclude(self, session: Session) -> None:
        entries = [entry async for entry in session.transcript()]
        kept = sum(entry.in_view for entry in entries)
        self._screen.came_out(f"the view holds {kept} messages; the transcript has every entry there ever was, {len(entries)}")
        self._expect(len(entries) >= 4 * LOGS + 4, f"the transcript has only {len(entries)} entries")

    async def _talk_meanwhile(self, session: Session) -> None:
        """What a session does while its manager hangs: say how it is, and take another prompt."""
        status = session.status
        self._turns.append(await session.submit("And the wind?"))
        waiting = session.statistics().mailbox.waiting
        self._tell(f"meanwhile: session.status is {status!r}; another prompt is taken, {waiting} waits")
        self._expect((status, waiting) == ("reducing", 1), f"while it was reduced the session was {status!r} with {waiting} prompts waiting")

    def _tell(self, text: str) -> None:
        self._screen.came_out(f"{self._clock.time() - self._began:4.2f} s  {text}")

    def _expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(f"The overflow came out wrong: {problem}.")

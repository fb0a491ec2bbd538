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
from ropewalk.actors.tour.screen import Screen, source_of
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
        model=ScriptedModel(answer_within(FITS)),
        conversation_manager=Hanging(),
        limits=Limits(reduction_seconds=0.5),
    )


def answer_within(fits: int) -> Callable[[Sequence[Message]], str | Exception]:
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
    with anyio.fail_after(MOST_SECONDS):
        async with Runtime() as runtime:
            session: Session = await runtime.open("captain", make_spec(), messages=logbook())
            watch = _Watch(screen, session)
            async with runtime.events.subscribe(kinds={ReductionStarted, ReductionEnded, TurnEnded}, sessions=session.id) as events:
                watch.turns.append(await session.submit("Was the rope sound?"))
                async for event in events:
                    await watch.see(event)
                    if watch.ended == 2:
                        break
            return await watch.conclude()


def _sketch() -> str:
    """The lines that make such a session: they stand in this module, but for their docstrings."""
    manager = source_of(Hanging, whole=True)
    return "\n".join(line for line in manager.splitlines() if '"""' not in line) + "\n\n" + source_of(make_spec).replace("return AgentSpec", "spec = AgentSpec")


class _Watch:
    """Tells what happens while it happens, and sends a second prompt while the view is being reduced."""

    def __init__(self, screen: Screen, session: Session) -> None:
        self.screen = screen
        self.session = session
        self.turns: list[Turn] = []
        self.ended = 0
        self.problems: list[str] = []
        self._began = session.runtime.clock.time()

    async def see(self, event: Event) -> None:
        """Tell of one event."""
        match event:
            case ReductionStarted(tokens_before=before, target=target):
                self._tell(f"the model refuses {before:,} tokens, {FITS:,} fit; ReductionStarted, aiming at {target:,}")
                await self._talk_meanwhile()
            case ReductionEnded(rung=rung, tokens_before=before, tokens_after=after, failures=failures):
                self._tell(f"given up: {'; '.join(failures)}")
                self._tell(f"ReductionEnded: rung {rung!r}, {before:,} → {after:,} tokens")
                self._expect(rung is not None and after < before, f"the reduction freed nothing: {before:,} tokens before, {after:,} after")
            case TurnEnded(stop_reason=reason):
                self.ended += 1
                self._tell(f"TurnEnded: {reason}")
                self._expect(reason == "end_turn", f"a turn ended {reason}")
            case _:
                pass

    async def conclude(self) -> list[str]:
        """Tell the answers and what is left of the history; returns what was wrong."""
        for turn in self.turns:
            self.screen.came_out(f"answer: {await turn.result()}")
        entries = [entry async for entry in self.session.transcript()]
        kept = sum(entry.in_view for entry in entries)
        self.screen.came_out(f"the view holds {kept} messages; the transcript has every entry there ever was, {len(entries)}")
        self._expect(len(entries) >= 4 * LOGS + 4, f"the transcript has only {len(entries)} entries")
        return self.problems

    async def _talk_meanwhile(self) -> None:
        """What a session does while its manager hangs: say how it is, and take another prompt."""
        status = self.session.status
        self.turns.append(await self.session.submit("And the wind?"))
        waiting = self.session.statistics().mailbox.waiting
        self._tell(f"meanwhile: session.status is {status!r}; another prompt is accepted, {waiting} waits in the mailbox")
        self._expect((status, waiting) == ("reducing", 1), f"while it was reduced the session was {status!r} with {waiting} prompts waiting")

    def _tell(self, text: str) -> None:
        self.screen.came_out(f"{self.session.runtime.clock.time() - self._began:4.2f} s  {text}")

    def _expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(f"The overflow came out wrong: {problem}.")

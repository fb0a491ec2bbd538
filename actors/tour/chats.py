"""Sixteen real conversations at once on the eight slots of one engine, and how the event loop fares meanwhile."""

from __future__ import annotations

import re
from collections.abc import Sequence

import anyio
import attrs

from ropewalk import AgentSpec, EmbeddedModel, Runtime, Session, TurnEnded
from ropewalk.actors.messages import Message, text_of
from ropewalk.actors.terminal.figures import Lag, percentile
from ropewalk.actors.terminal.printable import in_short
from ropewalk.actors.terminal.screen import Bar, Screen, source_of
from ropewalk.runtime.clock import Clock

__all__ = ["CAPITALS", "Chat", "show_chats", "talk", "wrong_chats"]

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Egypt": "Cairo",
    "Japan": "Tokyo",
    "Russia": "Moscow",
    "England": "London",
    "Ireland": "Dublin",
    "Portugal": "Lisbon",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Cuba": "Havana",
}
MUST_KNOW = 12
"""Of sixteen capitals: it knows them all, but another processor rounds otherwise."""
BRIEF = "You answer in one short sentence."
SHOWN = 1
SHOWN_WIDTH = 150
LOOKED_AT_EVERY = 0.25


@attrs.define
class Chat:
    """One conversation: its history in the end, and the tokens of its two requests, as the engine was paid for them and as it counts them again."""

    country: str
    messages: Sequence[Message] = ()
    taken: int = 0
    counted: int = 0

    @property
    def is_own(self) -> bool:
        """Whether the engine was shown this very conversation, each time."""
        return [message["role"] for message in self.messages] == ["user", "assistant"] * 2 and self.taken == self.counted

    @property
    def knows(self) -> bool:
        """Whether its first answer names the capital of its country, and denies nothing: “Paris, not France itself” is no answer."""
        answer = text_of(self.messages[1]) if len(self.messages) > 1 else ""
        return CAPITALS[self.country] in answer and re.search(r"\bnot\b", answer) is None


@attrs.define
class Progress:
    """How far they are: turns done, and the most slots of the engine that were in use at once."""

    turns: int = 0
    most_busy: int = 0
    lag: Lag = attrs.field(factory=Lag)

    def turn_ended(self, event: TurnEnded) -> None:
        """Another one is done."""
        self.turns += 1


async def talk(session: Session, country: str) -> None:
    """Two prompts, of which the second needs the first."""
    await session.ask(f"What is the capital of {country}?")
    await session.ask("What can I see there?")


async def show_chats(screen: Screen, runtime: Runtime, model: EmbeddedModel) -> list[str]:
    """Have them talk; returns what was wrong, if anything."""
    screen.code("async def talk(session, country):", *(f"    {line}" for line in source_of(talk).splitlines()))
    spec = AgentSpec(model=model, system_prompt=BRIEF)
    chats, progress, now = [Chat(country) for country in CAPITALS], Progress(), Clock().stopwatch
    sessions = [await runtime.open(f"chat-{chat.country}", spec) for chat in chats]
    runtime.add_handler(progress.turn_ended, kinds={TurnEnded}, sessions="chat-*")
    began = now()
    with screen.bar(2 * len(chats), f"{len(chats)} conversations begin") as bar:
        async with anyio.create_task_group() as around:
            around.start_soon(progress.lag.watch)
            around.start_soon(_watch_slots, model, progress, bar, 2 * len(chats))
            async with anyio.create_task_group() as tasks:
                for chat, session in zip(chats, sessions, strict=True):
                    tasks.start_soon(talk, session, chat.country)
            around.cancel_scope.cancel()
    seconds = now() - began
    with screen.bar(None, "the engine counts the tokens again"):
        for chat, session in zip(chats, sessions, strict=True):
            chat.taken, chat.messages = session.statistics().input_tokens, await session.messages()
            chat.counted = sum([await model.count_tokens(chat.messages[:asked], system_prompt=BRIEF) for asked in (1, 3)])
    written = sum(session.statistics().output_tokens for session in sessions)
    _tell(screen, chats, progress, written, seconds)
    return wrong_chats(chats)


async def _watch_slots(model: EmbeddedModel, progress: Progress, bar: Bar, in_all: int) -> None:
    """Look at the engine's slots a few times a second, for ever."""
    while True:
        busy = await model.engine.busy_slots()
        progress.most_busy = max(progress.most_busy, busy)
        bar.show(progress.turns, in_all, f"{busy} answers are being written, {progress.turns} of {in_all} turns are done")
        await anyio.sleep(LOOKED_AT_EVERY)


def _tell(screen: Screen, chats: Sequence[Chat], progress: Progress, written: int, seconds: float) -> None:
    for chat in chats[:SHOWN]:
        for message in chat.messages:
            screen.came_out(f"{message['role']}: {in_short(text_of(message), SHOWN_WIDTH)}")
    late, worked = progress.lag.late, progress.lag.worked
    screen.came_out(
        f"and {len(chats) - SHOWN} more; {sum(chat.knows for chat in chats)} of {len(chats)} named the right capital and denied nothing, "
        f"{sum(chat.is_own for chat in chats)} were each time asked with their own history, to the token",
        f"{written:,} tokens written in {seconds:.1f} s, {written / seconds:,.0f} a second; at most {progress.most_busy} of the engine's slots in use",
        f"lag of the event loop: {_shares(late)}; processor time it took at a stretch: {_shares(worked)}",
    )


def _shares(seconds: Sequence[float]) -> str:
    middle, most = (percentile(seconds, share) * 1000 for share in (0.5, 0.99))
    return f"{middle:.1f} ms (p50), {most:.1f} ms (p99), {max(seconds, default=0.0) * 1000:.0f} ms at most"


def wrong_chats(chats: Sequence[Chat]) -> list[str]:
    """What came of conversations that are not right; nothing when all are."""
    problems = [
        f"the conversation about {chat.country} was asked with {chat.taken} tokens and has {chat.counted}, in {len(chat.messages)} messages"
        for chat in chats
        if not chat.is_own
    ]
    known = sum(chat.knows for chat in chats)
    if known < min(MUST_KNOW, len(chats)):
        problems.append(f"only {known} of {len(chats)} capitals were named")
    return problems

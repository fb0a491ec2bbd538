"""The same turns taken three ways: by the bare loop, by `Session.ask` with a handler in line, and by `Session.stream`.

Each measuring function does one repetition and returns its figure. What is no part of the work (opening sessions, making
lists) is done before the clock starts. Every way counts the pieces of text it heard, and refuses to have heard too few.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs

import bare
from backends import Backend
from measure import Side, Stopwatch, percentile
from nullmodel import CHUNKS, NullModel
from ropewalk import AgentSpec, NullConversationManager, Runtime, Session, SlidingWindowConversationManager, TextDelta, tool

__all__ = [
    "BARE",
    "HANDLER",
    "PROMPT",
    "STREAM",
    "Ear",
    "Load",
    "Way",
    "ask",
    "at_once",
    "history_of",
    "latency",
    "one_session",
    "opened",
    "session_id",
    "sides",
    "spec_of",
    "talk",
]

BARE, HANDLER, STREAM = "bare", "handler", "stream"
PROMPT = "How much is the rope?"


@tool
async def price(item: str) -> str:
    """What an item costs."""
    return f"{item}: 12 crowns"


async def bare_price(item: str) -> str:
    """The same for the bare loop."""
    return f"{item}: 12 crowns"


class Ear:
    """Hears pieces of text and counts them."""

    def __init__(self) -> None:
        self.heard = 0

    def text(self, text: str) -> None:
        """A piece, as the bare loop calls."""
        self.heard += 1

    def event(self, event: TextDelta) -> None:
        """A piece, as a handler is called."""
        self.heard += 1

    def must_have_heard(self, turns: int) -> None:
        """Refuse a measurement of work that was not done."""
        if self.heard != turns * CHUNKS:
            raise RuntimeError(f"{self.heard} pieces of text were heard, and not {turns} x {CHUNKS}")


@attrs.frozen
class Load:
    """What is done: `sessions` of so many `turns` each, with so many messages of `history` before. `window` is how many messages stay; None keeps all."""

    backend: Backend
    model: NullModel
    sessions: int = 1
    turns: int = 1
    history: int = 0
    window: int | None = None


def history_of(messages: int) -> list[bare.Message]:
    """A conversation of so many messages, of a hundred characters each."""
    made: list[bare.Message] = []
    for number in range(messages):
        role = "assistant" if number % 2 else "user"
        made.append({"role": role, "content": [{"text": f"message {number:06d} ".ljust(100, "x")}]})
    return made


def spec_of(load: Load) -> AgentSpec:
    """The agent that does the load: its history is kept small only where the load says so, as in the bare loop."""
    manager = NullConversationManager() if load.window is None else SlidingWindowConversationManager(load.window)
    return AgentSpec(name="bench", model=load.model, tools=[price], conversation_manager=manager)


def session_id(number: int) -> str:
    """The id of the load's session of this number."""
    return f"user-{number}"


async def opened(runtime: Runtime, load: Load) -> list[Session]:
    """The load's sessions, open."""
    spec = spec_of(load)
    sessions: list[Session] = []
    for number in range(load.sessions):
        # Messages of its own for each: two sessions must not look small by sharing one text.
        seed: dict[str, Any] = {"messages": history_of(load.history)} if load.history else {}
        sessions.append(await runtime.open(session_id(number), spec, **seed))
    return sessions


async def ask(session: Session, turns: int) -> None:
    """So many turns of one session, by `Session.ask`."""
    for _ in range(turns):
        await session.ask(PROMPT)


async def listen(session: Session, ear: Ear, turns: int) -> None:
    """So many turns of one session, by `Session.stream`."""
    for _ in range(turns):
        async with session.stream(PROMPT) as events:
            async for event in events:
                if type(event) is TextDelta:
                    ear.event(event)


async def talk(load: Load, messages: list[bare.Message], ear: Ear, turns: int) -> None:
    """So many turns of one conversation, by the bare loop."""
    for _ in range(turns):
        await bare.turn(load.model, messages, PROMPT, ear.text, {"price": bare_price}, load.window)


class Way:
    """A way to do a load. Entering makes what it needs; `conversations` holds, for each session, what takes so many turns with it."""

    def __init__(self, name: str, load: Load) -> None:
        self.name = name
        self.load = load
        self.ear = Ear()
        self.conversations: list[Callable[[int], Awaitable[None]]] = []
        self._runtime: Runtime | None = None

    async def __aenter__(self) -> Way:
        load, ear = self.load, self.ear
        if self.name == BARE:
            self.conversations = [partial(talk, load, history_of(load.history), ear) for _ in range(load.sessions)]
            return self
        self._runtime = runtime = Runtime()
        await runtime.__aenter__()
        sessions = await opened(runtime, load)
        if self.name == HANDLER:
            runtime.add_handler(ear.event, kinds={TextDelta})
            self.conversations = [partial(ask, session) for session in sessions]
        else:
            self.conversations = [partial(listen, session, ear) for session in sessions]
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._runtime is not None:
            await self._runtime.__aexit__(kind, error, trace)
        if error is None:
            self.ear.must_have_heard(self.load.sessions * self.load.turns)


async def one_session(name: str, load: Load) -> float:
    """Microseconds of processor time a turn, one turn after the other."""
    async with Way(name, load) as way:
        with Stopwatch() as watch:
            for conversation in way.conversations:
                await conversation(load.turns)
    return watch.cpu * 1e6 / (load.sessions * load.turns)


async def at_once(name: str, load: Load) -> float:
    """Microseconds of processor time a turn, each session's caller in a task of its own, all at the same time."""
    async with Way(name, load) as way:
        with Stopwatch() as watch:
            await load.backend.at_once([partial(conversation, load.turns) for conversation in way.conversations])
    return watch.cpu * 1e6 / (load.sessions * load.turns)


async def latency(name: str, load: Load) -> float:
    """Milliseconds until half of the sessions that asked at the same moment have their whole answer."""
    ends: list[float] = []
    clock = Stopwatch.now

    async def timed(conversation: Callable[[int], Awaitable[None]]) -> None:
        await conversation(load.turns)
        ends.append(clock())

    async with Way(name, load) as way:
        started = clock()
        await load.backend.at_once([partial(timed, conversation) for conversation in way.conversations])
    return (percentile(ends, 0.5) - started) * 1e3


def sides(once: Callable[[str, Load], Awaitable[float]], load: Load, label: str = "") -> list[Side]:
    """The three ways of one load; a label keeps those of several loads apart."""
    return [Side(f"{name}{label}", partial(once, name, load)) for name in (BARE, HANDLER, STREAM)]

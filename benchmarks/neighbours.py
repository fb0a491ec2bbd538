"""What one session in trouble does to the thousand beside it: the others' waiting times with and without it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio

from measure import Stopwatch, percentile
from nullmodel import NullModel
from ropewalk import (
    Actor,
    AgentSpec,
    Cell,
    ConversationManager,
    Envelope,
    Event,
    Limits,
    Quarantined,
    RopewalkError,
    Runtime,
    Session,
    TextDelta,
)
from work import PROMPT, Ear, Load, opened

__all__ = ["TROUBLES", "others_p99"]

SLOWNESS = 0.05
"""Seconds the slow reader takes for each event, of which there are thousands a second."""


@asynccontextmanager
async def nothing(runtime: Runtime, load: Load) -> AsyncGenerator[None]:
    """All is well."""
    yield


@asynccontextmanager
async def slow_reader(runtime: Runtime, load: Load) -> AsyncGenerator[None]:
    """Somebody wants every session's deltas and reads twenty of them a second."""

    async def read() -> None:
        async for _ in events:
            await anyio.sleep(SLOWNESS)

    async with runtime.events.subscribe(kinds={TextDelta}, overflow="drop_oldest") as events, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        yield
        tasks.cancel_scope.cancel()


class Hanging(ConversationManager):
    """A manager that never comes back."""

    async def reduce_context(self, messages: Any, /, e: Exception | None = None, **kwargs: Any) -> None:
        """Wait for ever."""
        await anyio.sleep_forever()


@asynccontextmanager
async def hanging_reduction(runtime: Runtime, load: Load) -> AsyncGenerator[None]:
    """One session's reduction does not end."""
    spec = AgentSpec(name="hanging", model=NullModel(load.backend, overflows=0), conversation_manager=Hanging(), limits=Limits(reduction_seconds=3600))
    session: Session = await runtime.open("hanging", spec)
    turn = await session.submit(PROMPT)
    try:
        yield
        if session.status != "reducing":
            raise RuntimeError(f"the session that should be reducing is {session.status}")
    finally:
        await turn.cancel()


class Bug(Exception):
    """What the crashing actor raises."""


class Crashing:
    """A kind of actor whose every message is its end."""

    name = "crashing"
    mailbox = 8

    async def activate(self, cell: Cell, *, create: bool, **seed: Any) -> Actor:
        """A new incarnation, no better than the last."""
        return self

    def handle(self, cell: Cell) -> Cell:
        """Its cell, to post to."""
        return cell

    async def receive(self, envelope: Envelope) -> Any:
        """Fail."""
        raise Bug("it always does")

    def snapshot(self) -> Event:
        """Nobody asks for it."""
        raise Bug("nobody asks")


@asynccontextmanager
async def crashing_session(runtime: Runtime, load: Load) -> AsyncGenerator[None]:
    """One actor crashes at every message, is restarted, gets the next one, and is quarantined in the end."""
    cell: Cell = await runtime.open("crashing", Crashing())

    async def crash() -> None:
        while True:
            envelope = Envelope(None)
            try:
                cell.post(envelope)
                await envelope.outcome.wait()
            except Bug:
                pass
            except Quarantined:
                return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(crash)
        yield
        tasks.cancel_scope.cancel()
    if not cell.restarts:
        raise RopewalkError("the actor that should crash has not")


TROUBLES: dict[str, Callable[[Runtime, Load], Any]] = {
    "none": nothing,
    "one slow reader": slow_reader,
    "one hanging reduction": hanging_reduction,
    "one crashing session": crashing_session,
}


async def others_p99(trouble: str, load: Load, seconds: float) -> float:
    """Milliseconds that 99 of 100 turns do not exceed, of sessions that ask one after the other, evenly over so many seconds."""
    waits: list[float] = []
    ear, now = Ear(), Stopwatch.now

    async def caller(session: Session, at: float) -> None:
        # Waiting is counted from the moment the caller meant to ask: a stalled loop must not hide the stall.
        await load.backend.sleep(max(0.0, at - now()))
        await session.ask(PROMPT)
        waits.append(now() - at)

    async with Runtime() as runtime:
        sessions = await opened(runtime, load)
        runtime.add_handler(ear.event, kinds={TextDelta}, sessions="user-*")
        async with TROUBLES[trouble](runtime, load):
            begins = now() + 0.1
            callers: list[Callable[[], Awaitable[None]]] = [
                partial(caller, session, begins + seconds * place / len(sessions)) for place, session in enumerate(sessions)
            ]
            await load.backend.at_once(callers)
    ear.must_have_heard(load.sessions)
    return percentile(waits, 0.99) * 1e3

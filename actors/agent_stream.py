"""An agent's turn as an async iterator that opens no scope and no task of the reader's, so that it can be left anywhere."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

import anyio

from ropewalk.actors.events import Event
from ropewalk.actors.residence import Residence, Stay
from ropewalk.actors.result import AgentResult
from ropewalk.actors.session.stream import AskStream, OnLeave, Turn
from ropewalk.actors.transient import Place
from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.supervision import Failure, attempt

__all__ = ["AgentStream", "Convert"]

T = TypeVar("T")

Convert = Callable[[Event | AgentResult | Exception], Sequence[T]]
"""What a reader gets of an event, and of how the turn ended."""


class AgentStream(Generic[T]):
    """What happens in one turn: ``async for event in agent.stream("Hi"): ...``.

    The prompt is sent with the first step, or on entering ``async with agent.stream("Hi") as events:``. Iterating to the end
    raises what failed the turn, and leaves the agent at rest. A reader who leaves early lets the turn go on; with
    ``on_leave="cancel"``, leaving the ``async with`` block or calling `aclose` ends it.
    """

    def __init__(self, residence: Residence, begin: Callable[[], Awaitable[tuple[Place, Stay, AskStream]]], convert: Convert[T], on_leave: OnLeave) -> None:
        if on_leave not in ("continue", "cancel"):
            raise InvalidOption(f"on_leave is 'continue' or 'cancel', not {on_leave!r:.200}")
        self._residence = residence
        self._begin = begin
        self._convert = convert
        self._on_leave = on_leave
        self._place: Place | None = None
        self._events: AskStream | None = None
        self._ready: deque[T] = deque()
        self._error: Exception | None = None
        self._departed = anyio.Event()
        self._begun = False
        self._over = False

    @property
    def turn(self) -> Turn | None:
        """The work's handle, None before the first step."""
        return None if self._events is None else self._events.turn

    async def __aenter__(self) -> Self:
        if not self._begun:
            await self._start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if not self._begun:
            await self._start()
        while not self._ready:
            if self._over or self._events is None:
                error, self._error = self._error, None
                raise error or StopAsyncIteration
            await self._read(self._events)
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Read no more. Does nothing when the end was read already."""
        self._begun = True
        if self._events is None or self._over:
            return
        self._over = True
        self._ready.clear()
        await self._events.__aexit__(None, None, None)
        if self._on_leave == "cancel":
            await self._wait_departed()

    async def _start(self) -> None:
        self._begun = True
        self._place, stay, self._events = await self._begin()
        stay.cell.runtime.start(self._depart, self._place, stay, self._events.turn)

    async def _read(self, events: AskStream) -> None:
        """Take in the next event, or how it all ended."""
        read = await attempt(events.__anext__())
        if not isinstance(read, Failure):
            self._ready.extend(self._convert(read))
            return
        ended: AgentResult | Exception = read.error
        if isinstance(read.error, StopAsyncIteration):
            ended = await events.turn.result()
        else:
            self._error = read.error
        self._over = True
        self._ready.extend(self._convert(ended))
        if events.turn.done:  # a reader who was too slow is told so while the turn goes on
            await self._wait_departed()

    async def _depart(self, place: Place, stay: Stay, turn: Turn) -> None:
        """Leave the conversation when the turn has its outcome, whether or not anybody still reads."""
        try:
            with contextlib.suppress(SystemExit):  # its reader's
                await attempt(turn.result())
        finally:
            await self._residence.leave(stay)
            place.leave()
            self._departed.set()

    async def _wait_departed(self) -> None:
        await self._departed.wait()
        if self._place is not None:
            await self._place.wait_left()

"""A turn as its asker watches it: a subscription to one prompt and its turn, and the handle of the work itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, cast

from ropewalk.actors.events import Event, PromptAccepted, PromptSettled, TurnEnded, TurnPaused
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.channel import kinds_of
from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.subscription import Subscription
from ropewalk.runtime.surroundings import messages_around, refuse_deadlock, surroundings, waiting_for

if TYPE_CHECKING:
    from ropewalk.actors.result import AgentResult
    from ropewalk.actors.session.actor import SessionActor
    from ropewalk.actors.session.prompt import Prompt

__all__ = ["OnLeave", "Turn", "TurnStream"]

OnLeave: TypeAlias = Literal["continue", "cancel"]
"""What leaving a stream before its end does to the turn."""

BUFFER = 256
LAST = frozenset({TurnEnded, TurnPaused})
"""What a turn's events end with."""


class TurnStream(Subscription):
    """The events of one prompt and its turn. Ends after `TurnEnded` or `TurnPaused`, then raises what failed the turn."""

    def __init__(self, cell: Cell, prompt: Prompt, kinds: frozenset[type[Event]] | None) -> None:
        super().__init__(kinds, BUFFER, "coalesce", _already_there, _nothing_to_leave, cell.runtime.backend.wakeup)
        self._cell = cell
        self._prompt = prompt
        self._over = False

    def offer(self, event: Event) -> Any:
        """Take an event of this prompt or its turn; leave others."""
        if event.turn_id is None:
            if not (isinstance(event, PromptAccepted | PromptSettled) and event.prompt_id == self._prompt.prompt_id):
                return None
        elif event.turn_id != self._prompt.turn_id:
            return None  # of a turn that a lost incarnation left open, and that is settled first
        if self._last is None and not self._closed and len(self._events) < BUFFER:  # as in `Subscription.offer`, for a buffer never full
            self._events.append(event)
            if self._wake.waiting is not None:
                self._wake.ring()
            return None
        return super().offer(event)

    async def __anext__(self) -> Event:
        if surroundings() and not self._prompt.outcome.settled:
            return await self._next_within()
        # A reader is woken once for all that has gathered, and takes that without a call for each event.
        if not self._events or self._over:
            return await self._next()
        self._taken += 1
        event = self._events.popleft()
        # What is published after the end (that the prompt is settled) is for readers of the whole session.
        self._over = type(event) in LAST
        return event

    async def _next_within(self) -> Event:
        """The next event, for code of a turn, which may be this one."""
        return await self._next()

    async def _next(self) -> Event:
        """The next event, waited for if need be."""
        if not self._over:
            try:
                event = await super().__anext__()
            except StopAsyncIteration:
                self._over = True
            else:
                self._over = type(event) in LAST
                return event
        error = await self._failure()
        if error is not None:
            raise error
        raise StopAsyncIteration

    async def _failure(self) -> BaseException | None:
        """What failed the turn. The end is published a moment before the outcome is given: wait for that."""
        outcome = self._prompt.outcome
        if not outcome.settled:
            await outcome.wait_settled()
        return outcome.error


class WatchedTurn(TurnStream):
    """A turn's events for somebody who did not ask with `Session.stream`: each time they wait, they wait for the turn."""

    async def _next_within(self) -> Event:
        with waiting_for(self._cell, self._prompt):
            return await self._next()


class Turn:
    """The work on one prompt, which the session owns: it goes on whoever watches."""

    def __init__(self, cell: Cell, prompt: Prompt) -> None:
        self._cell = cell
        self._prompt = prompt

    def __repr__(self) -> str:
        return f"<Turn of prompt {self.prompt_id} in {self._cell.id}>"

    @property
    def prompt_id(self) -> str:
        """The id of the prompt that was accepted."""
        return self._prompt.prompt_id

    @property
    def turn_id(self) -> str | None:
        """The id of the turn, None until it begins."""
        return self._prompt.turn_id

    @property
    def done(self) -> bool:
        """Whether the outcome is there."""
        return self._prompt.outcome.settled

    async def result(self) -> AgentResult:
        """The turn's result; raises what failed it. May be asked for by several, any number of times. Leaving cancels nothing."""
        if self._prompt.outcome.settled:
            return await self._prompt.outcome.wait()
        with waiting_for(self._cell, self._prompt):
            return await self._prompt.outcome.wait()

    def events(self, kinds: Iterable[type[Event]] | None = None) -> TurnStream:
        """The turn's events from now on: ``async for event in turn.events(): ...``. Never holds the turn up.

        Reading raises `WouldDeadlock` in code that the turn waits for: its tools, handlers and manager.
        """
        stream = WatchedTurn(self._cell, self._prompt, kinds_of(kinds))
        if self._prompt.outcome.settled:
            stream.end()
            return stream
        self._prompt.attach(stream)
        if self._prompt is self._cell.current:
            self._cell.publisher.streams += (stream,)
        return stream

    async def cancel(self) -> None:
        """End the turn, or withdraw the prompt if it still waits; returns once it is settled. Its result has stop reason ``cancelled``.

        Code of that turn (a tool, a handler) is answered at once: the turn cannot end before it does.
        """
        from ropewalk.actors.session.acceptance import withdraw

        was_done, actor = self.done, cast("SessionActor | None", self._cell.actor)
        withdraw(self._cell, self._prompt)
        if self.done and not was_done and actor is not None:
            await actor.writer.wait_durable()  # else it would run after all in the next process
        elif not self.done and not is_part_of(self._cell, self._prompt):
            await self._prompt.outcome.wait_settled()


class AskStream(TurnStream):
    """What `Session.stream` gives: ``async with session.stream("Hi") as events: async for event in events: ...``.

    The prompt is accepted on entering, after the events are subscribed to: none is missed. `turn` is the work's handle.
    """

    def __init__(self, cell: Cell, prompt: Prompt, submit: Callable[[], None], kinds: Iterable[type[Event]] | None, on_leave: OnLeave) -> None:
        if on_leave not in ("continue", "cancel"):
            raise InvalidOption(f"on_leave is 'continue' or 'cancel', not {on_leave!r}")
        super().__init__(cell, prompt, kinds_of(kinds))
        self.turn = Turn(cell, prompt)
        self._on_leave = on_leave
        self._submit = submit
        self._entered = False
        self._waiting: AbstractContextManager[None] | None = None

    async def __aenter__(self) -> Self:
        if self._entered:
            raise InvalidOption("this stream was entered before; session.stream(...) makes a new one for each prompt")
        self._entered = True
        if messages_around():  # whoever is in the block waits for the turn, as far as others that wait for them are concerned
            self._waiting = waiting_for(self._cell, self._prompt)
            self._waiting.__enter__()
        try:
            self._prompt.attach(self)
            self._submit()
        except BaseException as error:
            self._no_longer_waiting()
            self._prompt.outcome.fail(error)  # whoever holds the turn's handle learns it too
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        from ropewalk.actors.session.acceptance import withdraw

        self._no_longer_waiting()
        if self._on_leave == "cancel":
            withdraw(self._cell, self._prompt)
        self.end()

    def _no_longer_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.__exit__(None, None, None)

    async def _next_within(self) -> Event:
        if self._entered:
            refuse_deadlock(self._cell)  # whoever reads need not be who entered: it may be a tool of the turn
        return await self._next()

    async def _next(self) -> Event:
        if not self._entered:
            raise InvalidOption("the prompt is sent when the stream is entered: `async with session.stream(...) as events: async for event in events: ...`")
        return await super()._next()


def is_part_of(cell: Cell, prompt: Prompt) -> bool:
    """Whether the calling code runs inside the turn of this very prompt, and so cannot wait for its end."""
    return (cell, prompt) in messages_around()


async def _already_there(subscription: Subscription) -> None:
    pass


def _nothing_to_leave(subscription: Subscription) -> None:
    pass

"""A turn as its asker watches it: a subscription to one prompt and its turn, and the handle of the work itself."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from ropewalk.actors.events import Event, PromptAccepted, PromptSettled, TurnEnded, TurnPaused
from ropewalk.runtime.cell import Cell, messages_around, refuse_deadlock, waiting_for
from ropewalk.runtime.channel import kinds_of
from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.subscription import Subscription

if TYPE_CHECKING:
    from ropewalk.actors.result import AgentResult
    from ropewalk.actors.session.prompt import Prompt

__all__ = ["OnLeave", "Turn", "TurnStream"]

OnLeave: TypeAlias = Literal["continue", "cancel"]
"""What leaving a stream before its end does to the turn."""

BUFFER = 256


class TurnStream(Subscription):
    """The events of one prompt and its turn. Ends after `TurnEnded` or `TurnPaused`, then raises what failed the turn."""

    def __init__(self, prompt: Prompt, kinds: frozenset[type[Event]] | None) -> None:
        super().__init__(kinds, BUFFER, "coalesce", _already_there, _nothing_to_leave)
        self._prompt = prompt
        self._over = False

    def offer(self, event: Event) -> Any:
        """Take an event of this prompt or its turn; leave others."""
        if event.turn_id is None:
            if not (isinstance(event, PromptAccepted | PromptSettled) and event.prompt_id == self._prompt.prompt_id):
                return None
        elif event.turn_id != self._prompt.turn_id:
            return None  # of a turn that a lost incarnation left open, and that is settled first
        return super().offer(event)

    async def __anext__(self) -> Event:
        if not self._over:
            try:
                event = await super().__anext__()
            except StopAsyncIteration:
                self._over = True
            else:
                # What is published after the end (that the prompt is settled) is for readers of the whole session.
                self._over = isinstance(event, TurnEnded | TurnPaused)
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

    def __init__(self, cell: Cell, prompt: Prompt, kinds: frozenset[type[Event]] | None) -> None:
        super().__init__(prompt, kinds)
        self._cell = cell

    async def __anext__(self) -> Event:
        if self._prompt.outcome.settled or not messages_around():
            return await super().__anext__()
        with waiting_for(self._cell, self._prompt):
            return await super().__anext__()


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

        withdraw(self._cell, self._prompt)
        if not self._prompt.outcome.settled and not is_part_of(self._cell, self._prompt):
            await self._prompt.outcome.wait_settled()


class AskStream:
    """What `Session.stream` gives: ``async with session.stream("Hi") as events: async for event in events: ...``.

    The prompt is accepted on entering, after the events are subscribed to: none is missed. `turn` is the work's handle.
    """

    def __init__(self, cell: Cell, prompt: Prompt, submit: Any, kinds: Iterable[type[Event]] | None, on_leave: OnLeave) -> None:
        if on_leave not in ("continue", "cancel"):
            raise InvalidOption(f"on_leave is 'continue' or 'cancel', not {on_leave!r}")
        self.turn = Turn(cell, prompt)
        self._events = TurnStream(prompt, kinds_of(kinds))
        self._on_leave = on_leave
        self._prompt = prompt
        self._cell = cell
        self._submit = submit
        self._waiting: AbstractContextManager[None] | None = None

    async def __aenter__(self) -> Self:
        if self._waiting is not None:
            raise InvalidOption("this stream was entered before; session.stream(...) makes a new one for each prompt")
        # Whoever is in the block waits for the turn, as far as others that wait for them are concerned.
        self._waiting = waiting_for(self._cell, self._prompt)
        self._waiting.__enter__()
        try:
            self._prompt.attach(self._events)
            self._submit()
        except BaseException as error:
            self._waiting.__exit__(None, None, None)
            self._prompt.outcome.fail(error)  # whoever holds the turn's handle learns it too
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        from ropewalk.actors.session.acceptance import withdraw

        if self._waiting is not None:
            self._waiting.__exit__(None, None, None)
        if self._on_leave == "cancel":
            withdraw(self._cell, self._prompt)
        self._events.end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._waiting is None:
            raise InvalidOption("the prompt is sent when the stream is entered: `async with session.stream(...) as events: async for event in events: ...`")
        if not self._prompt.outcome.settled:
            refuse_deadlock(self._cell)  # whoever reads need not be who entered: it may be a tool of the turn
        return await self._events.__anext__()

    def take(self) -> Event | None:
        """The next event if one is there already, else None."""
        return self._events.take()


def is_part_of(cell: Cell, prompt: Prompt) -> bool:
    """Whether the calling code runs inside the turn of this very prompt, and so cannot wait for its end."""
    return (cell, prompt) in messages_around()


async def _already_there(subscription: Subscription) -> None:
    pass


def _nothing_to_leave(subscription: Subscription) -> None:
    pass

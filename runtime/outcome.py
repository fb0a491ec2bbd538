"""One result that several may wait for, given exactly once."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

import anyio

__all__ = ["Outcome"]

T = TypeVar("T")


class Outcome(Generic[T]):
    """A slot for a value or an error. The first to fill it wins; whoever comes later is told so and changes nothing.

    `then`, when set, is called once, in the moment the slot is filled.
    """

    __slots__ = ("_event", "_new_event", "_raised", "error", "settled", "then", "value")

    def __init__(self, new_event: Callable[[], anyio.Event] = anyio.Event) -> None:
        self._new_event = new_event
        self.settled = False
        self.value: T | None = None
        self.error: BaseException | None = None
        self.then: Callable[[], None] | None = None
        self._event: anyio.Event | None = None
        self._raised: TracebackType | None = None

    def settle(self, value: T) -> bool:
        """Give the value; False when an outcome was there already."""
        if self.settled:
            return False
        self.value = value
        self._wake()
        return True

    def fail(self, error: BaseException) -> bool:
        """Give the error that every waiter raises; False when an outcome was there already."""
        if self.settled:
            return False
        self.error = error
        self._raised = error.__traceback__
        self._wake()
        return True

    async def wait_settled(self) -> None:
        """Return when there is an outcome, whatever it is."""
        if not self.settled:
            if self._event is None:
                self._event = self._new_event()
            await self._event.wait()

    async def wait(self) -> T:
        """The value, or the error raised. Waiting again, or by several, gives the same."""
        if not self.settled:
            await self.wait_settled()
        if self.error is not None:
            # Each raising would leave its frames on the error for the next one to carry.
            raise self.error.with_traceback(self._raised)
        return self.value  # type: ignore[return-value]

    def _wake(self) -> None:
        self.settled = True
        if self._event is not None:
            self._event.set()
            self._event = None
        then, self.then = self.then, None
        if then is not None:
            then()

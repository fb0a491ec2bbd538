"""One result that several may wait for, given exactly once."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from ropewalk.runtime.backend import ANY_BACKEND, Bell, Wakeup

__all__ = ["Outcome"]

T = TypeVar("T")


class Outcome(Bell, Generic[T]):
    """A slot for a value or an error. The first to fill it wins; whoever comes later is told so and changes nothing.

    `then`, when set, is called once, in the moment the slot is filled.
    """

    __slots__ = ("_raised", "error", "settled", "then", "value")

    def __init__(self, new_wakeup: Callable[[], Wakeup] = ANY_BACKEND.wakeup) -> None:
        self.new_wakeup = new_wakeup
        self.waiting = None
        self.settled = False
        self.value: T | None = None
        self.error: BaseException | None = None
        self.then: Callable[[], None] | None = None
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
            await self.rung()

    async def wait(self) -> T:
        """The value, or the error raised. Waiting again, or by several, gives the same."""
        if not self.settled:
            await self.rung()
        if self.error is not None:
            # Each raising would leave its frames on the error for the next one to carry.
            raise self.error.with_traceback(self._raised)
        return self.value  # type: ignore[return-value]

    def _wake(self) -> None:
        self.settled = True
        if self.waiting is not None:
            self.ring()
        then, self.then = self.then, None
        if then is not None:
            then()

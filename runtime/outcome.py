"""One result that several may wait for, given exactly once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import anyio

__all__ = ["Outcome"]

T = TypeVar("T")


class Outcome(Generic[T]):
    """A slot for a value or an error. The first to fill it wins; whoever comes later is told so and changes nothing.

    `then`, when set, is called once, in the moment the slot is filled.
    """

    __slots__ = ("_event", "error", "settled", "then", "value")

    def __init__(self) -> None:
        self.settled = False
        self.value: T | None = None
        self.error: BaseException | None = None
        self.then: Callable[[], None] | None = None
        self._event: anyio.Event | None = None

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
        self._wake()
        return True

    async def wait_settled(self) -> None:
        """Return when there is an outcome, whatever it is."""
        if not self.settled:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()

    async def wait(self) -> T:
        """The value, or the error raised. Waiting again, or by several, gives the same."""
        if not self.settled:
            await self.wait_settled()
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]

    def _wake(self) -> None:
        self.settled = True
        if self.then is not None:
            self.then()
            self.then = None
        if self._event is not None:
            self._event.set()
            self._event = None

"""A message on its way to an actor."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio

from ropewalk.runtime.backend import ANY_BACKEND, Wakeup
from ropewalk.runtime.outcome import Outcome

if TYPE_CHECKING:
    from ropewalk.runtime.cell import Cell

__all__ = ["Envelope"]


class Envelope:
    """A message on its way to an actor, with the slot for its one outcome.

    `context` is the sender's `contextvars` context the message is handled in, None for a clean one. `awaited` says whether
    the sender waits for the outcome: only then can handling it deadlock with what the sender is part of.
    """

    __slots__ = ("awaited", "body", "context", "outcome", "waited_by")

    def __init__(self, body: Any, *, awaited: bool = True, new_wakeup: Callable[[], Wakeup] = ANY_BACKEND.wakeup) -> None:
        self.body = body
        self.awaited = awaited
        self.context: contextvars.Context | None = contextvars.copy_context()
        self.outcome: Outcome[Any] = Outcome(new_wakeup)
        self.waited_by: tuple[tuple[Cell, Envelope | anyio.Event], ...] = ()

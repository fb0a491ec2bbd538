"""What the calling code is part of: which messages are being handled around it, and whether waiting for another would be for ever."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Generator
from typing import TYPE_CHECKING

import anyio

from ropewalk.runtime.envelope import Envelope
from ropewalk.runtime.errors import WouldDeadlock

if TYPE_CHECKING:
    from ropewalk.runtime.cell import Cell
    from ropewalk.runtime.runtime import Runtime

__all__ = ["is_work_of", "messages_around", "refuse_deadlock", "surroundings", "waiting_for", "working_on"]

working_on: contextvars.ContextVar[tuple[tuple[Cell, Envelope | anyio.Event], ...]] = contextvars.ContextVar("ropewalkworking_on", default=())
"""What this code is part of, outermost first: messages being handled, and activations (named by the event of their end)."""


surroundings = working_on.get
"""What the calling code is part of, as above: empty for code that no actor runs, which is what most need to know."""


def messages_around() -> tuple[tuple[Cell, Envelope], ...]:
    """The messages whose handling the calling code is part of, each with its cell, outermost first."""
    around = working_on.get()
    return tuple((cell, part) for cell, part in around if isinstance(part, Envelope)) if around else ()


def is_work_of(runtime: Runtime) -> bool:
    """Whether the calling code is part of something an actor of this runtime does now."""
    return any(cell.runtime is runtime and cell.does(part) for cell, part in working_on.get())


def refuse_deadlock(cell: Cell) -> None:
    """Raise `WouldDeadlock` when `cell` cannot get to its next message before the calling code is done.

    So it is when the code is part of what the cell does now, or when what the cell does now waits, perhaps through others,
    for a cell that the code is part of.
    """
    if not (around := working_on.get()):
        return
    held: set[Cell] = set()
    found = [working for working, part in around if working.does(part)]
    while found:
        holding = found.pop()
        if holding not in held:
            held.add(holding)
            found.extend(holding.waiting_cells())
    if cell in held:
        raise WouldDeadlock(
            f"this code is part of the turn that {cell.id!r} works on or waits for, so waiting for its next one would wait for ever; "
            "use submit(), which does not wait, or another session"
        )


@contextlib.contextmanager
def waiting_for(cell: Cell, envelope: Envelope) -> Generator[None]:
    """While it lasts, the calling code waits for a message it sent without waiting; raises `WouldDeadlock` where that would be for ever."""
    refuse_deadlock(cell)
    around, before = working_on.get(), envelope.waited_by
    envelope.waited_by = (*before, *around)
    try:
        yield
    finally:
        left = list(envelope.waited_by)
        for part in around:
            left.remove(part)
        envelope.waited_by = tuple(left)

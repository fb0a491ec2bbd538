"""Redaction where several sessions share what was said, because one was forked from another: in each of them, in its turn."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, cast

from ropewalk.actors.session.direct import Redact
from ropewalk.actors.session.history import bodies_of
from ropewalk.actors.session.redaction import introduced_in
from ropewalk.actors.view import entry_number
from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.surroundings import refuse_deadlock

if TYPE_CHECKING:
    from ropewalk.actors.session.records import Body
    from ropewalk.runtime.cell import Cell

__all__ = ["redact_everywhere"]


async def redact_everywhere(cell: Cell, entry_id: str) -> None:
    """Take what an entry said out of a session and all that share it; see `Session.redact`."""
    refuse_deadlock(cell)
    await cell.activate()
    number, past = entry_number(entry_id), await bodies_of(cell.journal, cell.id)
    shared_from = 0 if number is None else introduced_in(past, number)
    if number is None or not shared_from:
        raise InvalidOption(f"the session {cell.id!r} has no entry {entry_id!r:.200}; transcript() lists those it has")
    known = await _relatives(cell, past, past, number, shared_from, {})
    for relative, change in known.values():  # before what is shared is gone, for their own copies are known by it
        await relative.ask(change)
    await cell.ask(Redact(number))
    known |= await _relatives(cell, await bodies_of(cell.journal, cell.id), past, number, shared_from, known)
    for relative, change in known.values():  # once more: what they made of it meanwhile; and their views are made anew
        await relative.ask(change)
        await relative.activate()
    await cell.activate()


async def _relatives(
    cell: Cell, now: Sequence[Body], past: Sequence[Body], number: int, shared_from: int, known: Container[str]
) -> dict[str, tuple[Cell, Redact]]:
    """Those but the `known` that share the record an entry was said in, and what each has to do; `now` are the records here, `past` as they were."""
    found: dict[str, tuple[Cell, Redact]] = {}
    for name in await cell.journal.relatives(cell.id):
        if name in known:
            continue
        theirs = await bodies_of(cell.journal, name)
        shared = next((place for place, (one, other) in enumerate(zip(now, theirs, strict=False)) if one != other), min(len(past), len(theirs)))
        if shared >= shared_from:
            found[name] = (await _here(cell, name), Redact(number, tuple(past[:shared])))
    return found


async def _here(cell: Cell, name: str) -> Cell:
    """The cell of a relative, brought into memory if need be."""
    runtime = cell.runtime
    if runtime.find(name) is None:
        await runtime.open(name, cell.kind, create=False)
    return cast("Cell", runtime.known(name))

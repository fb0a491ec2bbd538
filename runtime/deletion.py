"""Deleting an actor: what runs is ended, what waits is told, and then its log is forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ropewalk.runtime.cell import Cell
from ropewalk.runtime.errors import UnknownSession
from ropewalk.runtime.surroundings import refuse_deadlock

if TYPE_CHECKING:
    from ropewalk.runtime.runtime import Runtime

__all__ = ["delete"]


async def delete(runtime: Runtime, actor_id: str) -> None:
    """See `Runtime.delete`."""
    cell = runtime.known(actor_id)
    if cell is None:
        found = await runtime.journal.delete(actor_id)
    else:
        refuse_deadlock(cell)
        cell.refuse_if_deleted()
        found = await _end(cell)
    if not found:
        raise UnknownSession(f"there is no session {actor_id!r} to delete")


async def _end(cell: Cell) -> bool:
    """End an actor that is here, and forget its log; whether there was one. Where that fails, the actor stays."""
    cell.deleted = True
    try:
        while cell.busy or cell.activating:
            turned_away = getattr(cell.actor, "turned_away", None)
            while (envelope := cell.mailbox.take()) is not None:
                if turned_away is not None:
                    turned_away(envelope)
                envelope.outcome.fail(UnknownSession(f"the session {cell.id!r} was deleted before the message was handled"))
            cancel = getattr(cell.actor, "cancel", None)
            if cancel is not None:
                cancel()
            await cell.wait_rest()
        found = await cell.journal.delete(cell.id)
    except BaseException:
        cell.deleted = False
        raise
    cell.drop_actor()
    cell.runtime.release(cell)
    return found

"""Deleting an actor: what runs is ended, what waits is told, and then its log is forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from ropewalk.runtime.cell import Cell
from ropewalk.runtime.errors import UnknownSession
from ropewalk.runtime.surroundings import refuse_deadlock

if TYPE_CHECKING:
    from ropewalk.runtime.runtime import Runtime

__all__ = ["delete"]


async def delete(runtime: Runtime, actor_id: str) -> None:
    """See `Runtime.delete`. Whoever opens the actor meanwhile waits for the end of that: a log that is claimed while it goes would be a lost one."""
    cell = runtime.known(actor_id)
    if cell is not None:
        refuse_deadlock(cell)
    if actor_id in runtime.deletions:
        raise UnknownSession(f"the session {actor_id!r} is being deleted already")
    over = runtime.deletions[actor_id] = anyio.Event()
    try:
        found = await (runtime.journal.delete(actor_id) if cell is None else _end(cell))
    finally:
        del runtime.deletions[actor_id]
        over.set()
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
            await anyio.lowlevel.checkpoint()  # those who waited for the incarnation have to hear that it is there before it goes
        found = await cell.journal.delete(cell.id)
    except BaseException:
        cell.deleted = False
        raise
    cell.drop_actor()
    cell.runtime.release(cell)
    return found

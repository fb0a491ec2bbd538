"""The face of an actor that has no face of its own: send, and send and wait."""

from __future__ import annotations

from typing import Any, Literal

from ropewalk.runtime.cell import Cell
from ropewalk.runtime.envelope import Envelope
from ropewalk.runtime.mailbox import MailboxStatistics

__all__ = ["ActorRef"]


class ActorRef:
    """A handle of one actor, for kinds whose messages need no methods: ``def handle(self, cell): return ActorRef(cell)``.

    Any number of them may name one actor; they outlive its incarnations.
    """

    __slots__ = ("_cell",)

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def __repr__(self) -> str:
        return f"<ActorRef {self._cell.kind.name} {self.id!r}, {self.status}>"

    @property
    def id(self) -> str:
        """The actor's id."""
        return self._cell.id

    @property
    def status(self) -> Literal["idle", "busy", "quarantined", "passivated"]:
        """What the actor does now; passivated is one that is out of memory until its next message."""
        return self._cell.status

    @property
    def restarts(self) -> int:
        """How often the actor has failed."""
        return self._cell.restarts

    def mailbox(self) -> MailboxStatistics:
        """A frozen record of what waits for the actor, and of what it was sent."""
        return self._cell.mailbox.statistics()

    async def ask(self, message: Any) -> Any:
        """Send a message and wait for the reply; raises what handling it raised.

        Whoever leaves before (a timeout, a cancellation) takes the message back if it still waits; one that is being
        handled is handled to its end. Raises `MailboxFull`, `Quarantined`, `RuntimeClosed` or `WouldDeadlock` at once; then
        the message was not accepted.
        """
        return await self._cell.ask(message)

    def tell(self, message: Any) -> None:
        """Send a message and let the actor see to it. Raises `MailboxFull`, `Quarantined` or `RuntimeClosed`; then it was not accepted."""
        self._cell.post(Envelope(message, awaited=False))

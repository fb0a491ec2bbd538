"""What a runtime needs to know to keep actors of some kind, and what an actor is to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ropewalk.runtime.cell import Cell
    from ropewalk.runtime.envelope import Envelope
    from ropewalk.runtime.event import Event

__all__ = ["Actor", "ActorKind"]


class Actor(Protocol):
    """One incarnation. Its methods are never run beside each other.

    One that has figures its handle shows may have ``summary()``: what is left of it to show while there is no incarnation.

    One that handles what may take long may have ``cancel()``: it ends that soon, as if its asker had left. One that
    keeps account of what waits for it may have ``turned_away(envelope)``: that message will not be handled. Both are called when the
    actor is to be deleted.

    One whose state runs ahead of what it has published may also have ``untold()``: it gives something to await before it is
    asked again, and None when a `snapshot` tells nothing that readers have not heard.

    One that holds back anything its journal does not have may have ``async passivate()``: it is called when the incarnation
    is to be let go, and once it has returned, all there is must be in the journal. What it raises ends the incarnation as
    `receive` does.
    """

    async def receive(self, envelope: Envelope) -> Any:
        """Handle one message to its end; what it returns is the reply, unless the envelope has been answered already.

        Raising `Refused` turns the message down. Any other exception ends this incarnation: the next message is handled by
        one made anew from the journal.
        """
        ...

    def snapshot(self) -> Event:
        """The actor's state as an event, for readers that come late."""
        ...


class ActorKind(Protocol):
    """What a runtime needs to know to keep actors of some kind.

    One whose records are more than plain JSON values has a ``codec`` too, a `Codec` that journals outside this process keep them by.
    One whose actors must not be let go of while they are idle says ``passivates = False``.
    """

    @property
    def name(self) -> str:
        """What the journal calls this kind."""
        ...

    @property
    def mailbox(self) -> int:
        """How many messages may wait for one actor."""
        ...

    async def activate(self, cell: Cell, *, create: bool, **seed: Any) -> Actor:
        """Make an incarnation from the cell's journal; raises `UnknownSession` when there is none and `create` is False.

        `seed` is what the caller of `Runtime.open` gave for a new actor; `SessionExists` when there is one already. The log is
        claimed with `Cell.claim`, and the claim's epoch begun with `Publisher.begin_epoch`: that is the one released later.
        """
        ...

    def handle(self, cell: Cell) -> Any:
        """What `Runtime.open` returns: the face of the actor."""
        ...

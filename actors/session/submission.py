"""Handing a prompt over to its session, which owns the work from the moment the prompt is durable."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ropewalk.actors.session.acceptance import accept
from ropewalk.actors.session.actor import SessionActor
from ropewalk.actors.session.keyed import abandoned_unless_sent, recorded_outcome, under_way
from ropewalk.runtime.errors import Fenced, JournalUnavailable
from ropewalk.runtime.outcome import Outcome
from ropewalk.runtime.surroundings import refuse_deadlock

if TYPE_CHECKING:
    from ropewalk.actors.session.prompt import Prompt
    from ropewalk.actors.spec import WhenBusy
    from ropewalk.runtime.cell import Cell

__all__ = ["submit"]


async def submit(cell: Cell, prompt: Prompt, when_busy: WhenBusy) -> Prompt:
    """Send a prompt; once it is durable, returns it, or the one that was sent with its key before, done or not.

    Raises as `accept` does, then it was not accepted; `KeyReused`; `WouldDeadlock` where it would wait for itself.
    """
    prompt.accepted = Outcome()
    prompt.outcome.then = prompt.note_outcome
    with abandoned_unless_sent(prompt):
        there = None if prompt.key is None else await _sent_before(cell, prompt)
        if there is None:
            await _send(cell, prompt, prompt.accepted, when_busy)
    return there or prompt


async def _sent_before(cell: Cell, prompt: Prompt) -> Prompt | None:
    """The prompt that was sent with the key before, with its outcome or at work; None when this is the first."""
    while True:
        actor = cast(SessionActor, await cell.activate())
        there = under_way(cell, prompt)
        if there is None:
            recorded = await recorded_outcome(cell, actor, prompt)
            if recorded is None and cell.actor is not actor:
                continue  # out of memory meanwhile, it may have heard of the key in another runtime
            if isinstance(recorded, Exception):
                prompt.outcome.fail(recorded)
            elif recorded is not None:
                prompt.outcome.settle(recorded)
            return None if recorded is None else prompt
        if there.accepted is not None:
            await there.accepted.wait_settled()
        if not there.abandoned:
            return there


async def _send(cell: Cell, prompt: Prompt, accepted: Outcome[None], when_busy: WhenBusy) -> None:
    waits = cell.busy
    accept(cell, prompt, when_busy)
    prompt.sent = True
    actor = cell.actor
    if waits and isinstance(actor, SessionActor):
        try:
            await actor.writer.wait_durable()
        except (JournalUnavailable, Fenced):
            if cell.mailbox.withdraw(prompt):
                prompt.sent = False
                raise  # what its sender is told was not accepted must not run
            await accepted.wait()  # the next incarnation has taken it already: then it is accepted by that one
        else:
            accepted.settle(None)  # those who sent it with the same key are told as well, long before its turn
    elif not prompt.outcome.settled:
        refuse_deadlock(cell)
        await accepted.wait()
    if prompt.outcome.error is not None and prompt.turn_id is None:
        raise prompt.outcome.error

"""Accepting prompts: what becomes of one that comes in, and of one nobody waits for any more.

Everything here is synchronous, so a prompt is either in the mailbox and recorded or not there at all.
"""

from __future__ import annotations

from ropewalk.actors.errors import SessionBusy
from ropewalk.actors.events import PromptAccepted, PromptSettled
from ropewalk.actors.messages import Message, copy_of
from ropewalk.actors.result import AgentResult, MetricsLedger
from ropewalk.actors.session.actor import SessionActor
from ropewalk.actors.session.prompt import Prompt
from ropewalk.actors.session.records import Accepted, Withdrawn
from ropewalk.actors.spec import WhenBusy
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.supervision import contain

__all__ = ["accept", "withdraw"]


def accept(cell: Cell, prompt: Prompt, when_busy: WhenBusy) -> None:
    """Take a prompt into the session's mailbox. One that must wait is recorded at once, the others with their turn.

    Raises `SessionBusy`, `MailboxFull`, `Quarantined`, `RuntimeClosed` or `JournalUnavailable`; then it was not accepted.
    """
    if when_busy == "reject" and cell.at_work:
        raise SessionBusy(f"{cell.id!r} is working on a turn; when_busy='queue' would let the prompt wait")
    waits = cell.busy
    cell.post(prompt)
    actor = cell.actor
    if waits and isinstance(actor, SessionActor):
        writer = actor.writer
        while writer.state.is_waiting(prompt.prompt_id):  # ids repeat where a runtime is given the seed that an earlier one had
            prompt.prompt_id = cell.clock.new_id()
        try:
            state = copy_of(prompt.request_state) or None
            writer.write(Accepted(prompt.prompt_id, prompt.messages, prompt.owned, prompt.key, state), prompt.key)
            prompt.recorded = True
            writer.announce_apart(prompt.streams, PromptAccepted, prompt.prompt_id)
            writer.flush()
        except BaseException:
            cell.mailbox.withdraw(prompt)
            raise


def withdraw(cell: Cell, prompt: Prompt) -> None:
    """Nobody wants the prompt any more: take it out of the mailbox, or end its turn. Its outcome is a cancelled result."""
    if prompt.outcome.settled:
        return
    actor = cell.actor
    # A turn that another process began has to be given its end where nothing comes between.
    if prompt.turn_id is None and cell.mailbox.withdraw(prompt):
        resident = actor if isinstance(actor, SessionActor) else None
        settle_unbegun(resident, prompt)
        if resident is not None:
            contain(resident.writer.flush)  # a journal that fails now is noticed by whoever writes next
        return
    prompt.left = True
    if isinstance(actor, SessionActor) and actor.driver is not None and actor.driver.prompt is prompt:
        actor.driver.cancel()


def settle_unbegun(actor: SessionActor | None, prompt: Prompt, said: Message | None = None) -> None:
    """Give a prompt that will have no turn its outcome: a result with stop reason ``cancelled``, and what another process `said` for it."""
    if actor is not None and actor.state.is_waiting(prompt.prompt_id):
        actor.writer.write(Withdrawn(prompt.prompt_id, "cancelled"))
        if not actor.writer.untell(PromptAccepted, prompt.prompt_id):  # who never heard of it need not hear that it is gone
            actor.writer.announce_apart((), PromptSettled, prompt.prompt_id, "cancelled")
    metrics = MetricsLedger().snapshot() if actor is None else actor.ledger.snapshot()
    message = {"role": "assistant", "content": []} if said is None else copy_of(said)
    prompt.outcome.settle(AgentResult("cancelled", message, metrics, prompt.request_state))

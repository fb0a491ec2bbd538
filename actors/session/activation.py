"""Bringing a session into memory: claim its log, fold it, settle what a lost incarnation left open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio

from ropewalk.actors.events import SessionActivated
from ropewalk.actors.session.actor import SessionActor
from ropewalk.actors.session.ending import end_unbegun
from ropewalk.actors.session.keyed import known_by_key
from ropewalk.actors.session.prompt import Prompt
from ropewalk.actors.session.records import Kept, Opened, Withdrawn
from ropewalk.actors.session.recovery import failed, give_up, recover
from ropewalk.actors.session.state import SessionState
from ropewalk.actors.session.writer import Writer
from ropewalk.actors.validity import copied, door
from ropewalk.actors.view import Edit, Placed
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.errors import Fenced, InvalidOption, SessionExists, UnknownSession
from ropewalk.runtime.journal import Claim
from ropewalk.runtime.supervision import attempt

if TYPE_CHECKING:
    from ropewalk.actors.spec import AgentSpec

__all__ = ["activate", "adopt"]

CLOSING_SECONDS = 5.0
"""How long bringing a session back may take to tell of what it has recorded, once nobody waits for it any more."""


async def activate(spec: AgentSpec, cell: Cell, *, create: bool, **seed: Any) -> SessionActor:
    """A session's incarnation, recovered from its journal or begun; see `ActorKind.activate`."""
    messages = seed.pop("messages", None)
    if seed:
        raise InvalidOption(f"a session takes messages=[...] when it is opened, not {', '.join(seed)}")
    opened = door(copied(messages)) if messages is not None else []
    claim = await cell.claim()
    overtaken = cell.publisher.epoch and claim.epoch != cell.publisher.epoch + 1
    cell.publisher.begin_epoch(claim.epoch)
    if claim.last and messages is not None:
        raise SessionExists(
            f"{cell.id!r} exists already, and messages= is what a new conversation begins with: leave messages= out to go on with it, "
            "or give the new one another session id"
        )
    if not claim.last and not create:
        raise UnknownSession(f"there is no session {cell.id!r}")
    state, kept, of_source = await _recalled(cell, claim) if claim.last else (SessionState(), 0, ())
    writer = Writer(cell, state, claim, kept)
    if not claim.last:
        writer.write(Opened(spec.name, tuple(opened)))
    actor = SessionActor(spec, cell, writer)
    brought = tuple(Placed(entry.number - 1, entry) for entry in state.view.entries) if not claim.last else ()
    spec_handlers(spec, cell)
    writer.announce(SessionActivated, None, None, len(state.view) - len(brought))
    actor.announce_edit(Edit("opened", (), brought), None, None)
    for prompt_id in of_source:
        writer.write(Withdrawn(prompt_id, "forked"))
    # Where an incarnation was lost in this process, whoever asked has been told so; else they are no more, and their work is gone on with.
    recovered: list[Prompt] = []
    if cell.dropped is None:
        recovered = recover(actor)
    elif overtaken:
        let_go_of_what_was_taken(actor)
        recovered = recover(actor, prompts_here(cell))
    else:
        settle_turn_left_open(actor, *cell.dropped)
        settle_prompts_not_here(actor, "failed", recovered)
    left = await tell_all(actor, recovered)
    for prompt in recovered:
        known_by_key(cell, prompt)
    cell.put_first(recovered)
    if left is not None:  # a handler's, for whoever asked for the session; that is there all the same
        cell.actor = actor
        raise left
    return actor


async def tell_all(actor: SessionActor, recovered: Sequence[Prompt]) -> SystemExit | None:
    """Commit and tell of everything that bringing the session in recorded; the exit that a handler asked for, once all are told."""
    left: SystemExit | None = None
    while True:
        try:
            await tell(actor.writer)
        except SystemExit as asked:
            left = left or asked
        if not settle_prompts_not_here(actor, "cancelled", recovered):  # whose askers left meanwhile, and found nobody who could have recorded it
            return left


async def _recalled(cell: Cell, claim: Claim) -> tuple[SessionState, int, Sequence[str]]:
    """The state, from the newest snapshot and the records after it; that snapshot's number; and the prompts that waited in the session this is a fork of."""
    state, kept = SessionState(), 0
    snapshot = await cell.journal.snapshot(cell.id)
    if snapshot is not None and snapshot.number <= claim.last and isinstance(snapshot.body, Kept):
        state.restore(snapshot.body)
        kept = snapshot.number
    records = await cell.journal.read(cell.id, kept)
    shared = max(0, claim.shared - kept)
    state.recall([record.body for record in records[:shared]])
    waited = tuple(state.waiting or ()) if shared else ()
    state.recall([record.body for record in records[shared:]])
    return state, kept, [prompt_id for prompt_id in waited if state.is_waiting(prompt_id)]


async def tell(writer: Writer) -> None:
    """Commit and tell of what was recorded, when cancelled too, within a bound: no later incarnation would tell of it."""
    try:
        await writer.commit_whole()
    except anyio.get_cancelled_exc_class():
        with anyio.move_on_after(CLOSING_SECONDS, shield=True):
            await attempt(writer.commit_whole())
        raise


def settle_turn_left_open(actor: SessionActor, error: str, words: str) -> None:
    """Give the turn that a lost incarnation left behind the end that whoever asked was told of: it failed of what the incarnation was lost to."""
    turn = actor.state.turn
    if turn is not None:
        give_up(actor, turn, failed(turn, error, words))


def prompts_here(cell: Cell) -> list[Prompt]:
    """The prompts that this process has for the session: the one that is handled now and those that wait."""
    return [envelope for envelope in (cell.current, *cell.mailbox.waiting()) if isinstance(envelope, Prompt)]


def let_go_of_what_was_taken(actor: SessionActor) -> None:
    """Another owner had the session meanwhile: what waits here and does not wait in the journal any more was its affair, and is not begun again."""
    cell = actor.cell
    for prompt in prompts_here(cell):
        if prompt.recorded and not actor.state.is_waiting(prompt.prompt_id):
            cell.mailbox.withdraw(prompt)
            prompt.left = True
            prompt.outcome.fail(Fenced(f"another runtime took {cell.id!r} over, and this prompt with it; with a key, asking again gives what came of it"))


def settle_prompts_not_here(actor: SessionActor, outcome: str, recovered: Sequence[Prompt]) -> bool:
    """Settle the prompts that are recorded as waiting and neither wait in this process nor were recovered; whether there were any."""
    here = {prompt.prompt_id for prompt in (*prompts_here(actor.cell), *recovered)}
    gone = [prompt_id for prompt_id in actor.state.waiting or () if prompt_id not in here]
    for prompt_id in gone:
        end_unbegun(actor, prompt_id, outcome)
    return bool(gone)


async def adopt(actor: SessionActor, cell: Cell) -> SessionActor | None:
    """Move an idle incarnation, as it is, to a cell of another runtime with the same journal; None when its log went on without it."""
    claim = await cell.claim()
    if not actor.writer.move_to(cell, claim):
        return None
    actor.cell = cell
    cell.publisher.begin_epoch(claim.epoch)
    spec_handlers(actor.spec, cell)
    actor.writer.announce(SessionActivated, None, None, len(actor.state.view))
    await actor.writer.commit_whole()
    return actor


def spec_handlers(spec: AgentSpec, cell: Cell) -> None:
    """See to it that the spec's handlers hear of every session of the spec in this runtime; they are added once."""
    runtime = cell.runtime
    if not spec.handlers:
        return

    def add() -> bool:
        def is_of_spec(session_id: str) -> bool:
            known = runtime.known(session_id)
            return known is not None and known.kind is spec

        for handler in spec.handlers:
            runtime.events.add_handler(handler, sessions=is_of_spec)
        return True

    runtime.resource((spec, "handlers"), add)

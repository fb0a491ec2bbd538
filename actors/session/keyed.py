"""Prompts with an idempotency key: each is accepted once, whoever sends it again gets the same outcome, from whatever process.

While one is on its way or at work, others who send it join it. Afterwards its outcome is read from the journal, which finds
the record that accepted it by its key; so keys that are done with take no memory.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from ropewalk.actors.errors import ContextWindowOverflow, KeyReused, ModelError, ModelThrottled, TurnFailed
from ropewalk.actors.messages import Message
from ropewalk.actors.result import AgentResult
from ropewalk.actors.session.codec import RECORDS
from ropewalk.actors.session.prompt import Prompt
from ropewalk.actors.session.records import Accepted, Begun, Body, Returned, Said, Settled, Withdrawn
from ropewalk.actors.session.redaction import is_redacted
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.errors import InvalidOption, JournalDamaged, JournalUnavailable

if TYPE_CHECKING:
    from ropewalk.actors.session.actor import SessionActor

__all__ = ["abandoned_unless_sent", "checked_key", "known_by_key", "recorded_outcome", "under_way"]

LONGEST_KEY = 500
PAGE = 256
_ERRORS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (ModelError, ModelThrottled, ContextWindowOverflow, TurnFailed, JournalUnavailable)}


class _UnderWay(dict[tuple[str, str], Prompt]):
    """The prompts of one runtime that have a key and no outcome yet, by session and key."""


def checked_key(key: object) -> str:
    """The key itself; raises `InvalidOption` when it is none."""
    if not isinstance(key, str) or not 1 <= len(key) <= LONGEST_KEY:
        raise InvalidOption(f"a key is text of 1 to {LONGEST_KEY} characters, by which a prompt is known if it is sent again, not {key!r:.200}")
    return key


def under_way(cell: Cell, prompt: Prompt) -> Prompt | None:
    """The prompt that was sent with this one's key before and has no outcome yet; else None, and from now on this is the one.

    Raises `KeyReused` when that was another prompt.
    """
    there = _all(cell).get((cell.id, cast(str, prompt.key)))
    if there is None or there is prompt:
        known_by_key(cell, prompt)
        return None
    if there.messages != prompt.messages and there.messages:
        raise _reused(cell, prompt)
    return there


@contextmanager
def abandoned_unless_sent(prompt: Prompt) -> Generator[None]:
    """Whatever ends the block before the prompt came into the mailbox: those who joined it are told to send theirs."""
    try:
        yield
    except BaseException:
        if not prompt.sent and prompt.forget is not None:
            prompt.forget()
            _abandon(prompt)
        raise


def _abandon(prompt: Prompt) -> None:
    prompt.abandoned, prompt.forget = True, None
    if prompt.accepted is not None:
        prompt.accepted.settle(None)


def known_by_key(cell: Cell, prompt: Prompt) -> None:
    """Have others who send the prompt again find it, as long as it has no outcome."""
    if prompt.key is not None:
        known, name = _all(cell), (cell.id, prompt.key)
        before = known.get(name)
        known[name] = prompt
        if before is not None and before is not prompt:  # it was only looked up, and another runtime that is gone had accepted it
            _abandon(before)
        prompt.forget = lambda: known.pop(name, None)
        prompt.outcome.then = prompt.note_outcome


def _all(cell: Cell) -> _UnderWay:
    return cell.runtime.resource(_UnderWay, _UnderWay)


def _reused(cell: Cell, prompt: Prompt) -> KeyReused:
    return KeyReused(f"the key {prompt.key!r} was sent to {cell.id!r} with another prompt before; a key stands for one prompt for ever")


async def recorded_outcome(cell: Cell, actor: SessionActor, prompt: Prompt) -> AgentResult | Exception | None:
    """What came of the prompt that was sent with this one's key, as the journal has it; None when there was none.

    Raises `KeyReused` when that was another prompt. The metrics of such a result are the session's as they stand now.
    Where the session left memory meanwhile, None says nothing.
    """
    number = await cell.journal.labelled(cell.id, cast(str, prompt.key))
    if number is None:
        return None
    await actor.writer.wait_durable()
    story = _Story(prompt)
    after = number - 1
    # By the codec of sessions: this one may have left memory meanwhile, and its claim with it.
    while not story.is_told and (records := await cell.journal.read(cell.id, after, PAGE, codec=RECORDS)):
        for record in records:
            story.take(record.body)
        after = records[-1].number
    if story.differs:
        raise _reused(cell, prompt)
    if not story.is_told:
        if cell.actor is not actor:
            return None
        raise JournalDamaged(f"record {number} of {cell.id!r} accepted a prompt under the key {prompt.key!r}, and no later one says what came of it")
    if story.error is not None:
        return story.error
    return AgentResult(story.stop_reason, story.message, actor.ledger.snapshot(), story.request_state)


class _Story:
    """What became of one prompt, told by the records from the one that accepted it."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._prompt_id: str | None = None
        self._turn_id: str | None = None
        self.differs = False
        self.is_told = False
        self.error: Exception | None = None
        self.stop_reason = ""
        self.message: Message = {"role": "assistant", "content": []}
        self.request_state: dict[str, Any] = {}

    def take(self, body: Body) -> None:
        """Take one record in."""
        if self._prompt_id is None:
            self._accept(body)
        if self.is_told:
            return
        match body:
            case Begun(turn_id=turn_id, prompt_ids=prompt_ids) if self._prompt_id in prompt_ids:
                self._turn_id = turn_id
            case Said(entry=entry, request_state=state) if entry.turn_id == self._turn_id:
                self._heard([entry.message], state)
            case Returned(turn_id=turn_id, request_state=state) if turn_id == self._turn_id:
                self._heard([], state)
            case Settled(turn_id=turn_id) if turn_id == self._turn_id:
                self._heard([entry.message for entry in body.entries], body.request_state)
                self.stop_reason, self.error, self.is_told = body.stop_reason or "failed", _error(body), True
            case Withdrawn(prompt_id=prompt_id, outcome=outcome) if prompt_id == self._prompt_id:
                self.stop_reason, self.is_told = outcome, True
                if outcome != "cancelled":
                    self.error = JournalUnavailable("the journal failed before the prompt had a turn")
            case _:
                pass

    def _accept(self, body: Body) -> None:
        if isinstance(body, Accepted):
            self._prompt_id, said, state = body.prompt_id, body.messages, body.request_state
        elif isinstance(body, Begun):
            said = body.messages or [entry.message for entry in body.entries]
            self._prompt_id, state = body.prompt_ids[0], body.request_state
        else:
            return
        self.request_state = state or {}
        self.differs = said != self._prompt.messages and not is_redacted(said)
        self.is_told = self.differs

    def _heard(self, messages: Sequence[Message], state: dict[str, Any] | None) -> None:
        self.message = next((message for message in reversed(messages) if message["role"] == "assistant"), self.message)
        if state is not None:
            self.request_state = state


def _error(body: Settled) -> Exception | None:
    """What failed a turn, as far as its record tells."""
    if body.error is None:
        return None
    return _ERRORS.get(body.error, TurnFailed)(body.reason or f"the turn failed: {body.error}")

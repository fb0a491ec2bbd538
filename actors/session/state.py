"""A session's state: the fold of its records, live and replayed alike.

One table of functions, one for each kind of record, is the only thing that changes it, so what a crash leaves behind and
what was there before cannot differ by anything but the records that were lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from ropewalk.actors.messages import Block, Message
from ropewalk.actors.session.records import (
    Accepted,
    Added,
    Begun,
    Body,
    Edited,
    Kept,
    Left,
    Opened,
    Pinned,
    Redacted,
    Resumed,
    Returned,
    Said,
    Settled,
    Usage,
    Withdrawn,
)
from ropewalk.actors.view import Entry, Transcript, View

__all__ = ["OpenTurn", "SessionState", "entries_in", "transcribe"]

_NONE: frozenset[int] = frozenset()


class OpenTurn(msgspec.Struct, eq=False):
    """A turn that began and has not been settled.

    `start` is how long the view was before it, `joined` the entry its first message replaced, `before` the whole view
    before the first reduction of the turn (None: there was none), so that the turn can be undone. `spoke` says that the model
    has answered in it, `acted` that an answer called tools; the view cannot be asked, since a reduction may take both away.

    The rest is what another process needs to go on with it: its prompt's `owned`, `key` and with that `messages`, the `request_state` as last
    recorded, `cycles` and `usage` so far, of the last answer its `stop_reason`, the `results` of its calls that came back and
    those that are `malformed` or `strays`; how often the process died in it, whether it was `left` when its runtime closed,
    and the calls that are `in_doubt` since.
    """

    turn_id: str
    prompt_ids: tuple[str, ...]
    start: int
    joined: Entry | None
    prompt_number: int
    before: View | None = None
    owned: bool = True
    key: str | None = None
    messages: list[Message] | None = None
    request_state: dict[str, Any] | None = None
    spoke: bool = False
    acted: bool = False
    cycles: int = 0
    usage: Usage = (0, 0, 0)
    results: dict[str, Block] | None = None
    malformed: dict[str, str] | None = None
    strays: tuple[str, ...] = ()
    stop_reason: str = "end_turn"
    deaths: int = 0
    left: bool = False
    in_doubt: tuple[str, ...] = ()

    @property
    def died(self) -> int:
        """How often its process has died in it, for somebody who finds it open."""
        return self.deaths + (not self.left)

    def hear(self, said: Said) -> None:
        """The model has answered."""
        self.spoke = True
        self.cycles += 1
        self.results = None
        self.malformed, self.strays = said.malformed or None, said.strays
        self.stop_reason = said.stop_reason
        self.usage = _sum(self.usage, said.usage)
        for block in said.entry.message["content"]:
            if "toolUse" in block:
                self.acted = True

    def entries_before(self, view: View) -> list[Entry]:
        """The view as it was before the turn."""
        kept = (view if self.before is None else self.before).entries[: self.start]
        return [*kept, self.joined] if self.joined is not None else kept


def _sum(usage: Usage, more: Usage | None) -> Usage:
    return usage if more is None else (usage[0] + more[0], usage[1] + more[1], usage[2] + more[2])


class SessionState:
    """Everything about a session that its journal knows. `usage` is input, output and total tokens of all settled turns.

    `in_doubt` are calls of the last turn whose outcome nobody knows, `pins` the numbers of the pinned entries.
    """

    __slots__ = ("cycles", "in_doubt", "next_entry", "pins", "spec", "turn", "turns", "usage", "view", "waiting")

    def __init__(self) -> None:
        self.spec = ""
        self.view = View()
        self.next_entry = 1
        self.pins = _NONE
        self.waiting: dict[str, Accepted] | None = None  # None where nothing waits: most sessions, most of the time
        self.turn: OpenTurn | None = None
        self.turns = 0
        self.cycles = 0
        self.usage: Usage = (0, 0, 0)
        self.in_doubt: tuple[str, ...] = ()

    def keep(self) -> Kept:
        """The state between two turns, as a snapshot that `restore` takes in."""
        view = self.view
        numbers = view.numbers
        first, apart = (numbers.start, None) if isinstance(numbers, range) else (1, tuple(numbers))
        waiting = () if self.waiting is None else tuple(self.waiting.values())
        return Kept(
            self.spec,
            tuple(view.messages),
            self.next_entry,
            self.turns,
            self.cycles,
            self.usage,
            first,
            apart,
            waiting,
            self.in_doubt,
            tuple(sorted(self.pins)),
        )

    def restore(self, kept: Kept) -> None:
        """Be, instead of new, what a snapshot says."""
        self.spec, self.next_entry, self.in_doubt = kept.spec, kept.next_entry, kept.in_doubt
        self.pins = frozenset(kept.pins) or _NONE
        self.turns, self.cycles, self.usage = kept.turns, kept.cycles, kept.usage
        self.view = View.of(list(kept.messages), kept.first, kept.numbers)
        self.waiting = {accepted.prompt_id: accepted for accepted in kept.waiting} or None

    def apply(self, body: Body) -> None:
        """Take one record in."""
        _FOLD[type(body)](self, body)

    def recall(self, bodies: Sequence[Body]) -> None:
        """Take many in, in order. Comes to what `apply` does, without what is worked out for an open turn and forgotten when it ends."""
        place = len(bodies)
        while place and type(bodies[place - 1]) is not Settled:
            place -= 1
        for body in bodies[:place]:
            _FOLD_ENDED[type(body)](self, body)
        for body in bodies[place:]:
            _FOLD[type(body)](self, body)

    def is_waiting(self, prompt_id: str) -> bool:
        """Whether a prompt was accepted and has no turn yet."""
        return self.waiting is not None and prompt_id in self.waiting

    def _append(self, entry: Entry) -> None:
        self.view.append(entry)
        if entry.number >= self.next_entry:
            self.next_entry = entry.number + 1

    def _opened(self, body: Opened) -> None:
        self.spec = body.spec
        for entry in body.entries:
            self._append(entry)

    def _accepted(self, body: Accepted) -> None:
        if self.waiting is None:
            self.waiting = {}
        self.waiting[body.prompt_id] = body

    def _no_longer_waiting(self, prompt_id: str) -> None:
        if self.waiting is not None:
            self.waiting.pop(prompt_id, None)
            if not self.waiting:
                self.waiting = None

    def _begun(self, body: Begun) -> None:
        accepted = self.waiting.get(body.prompt_ids[0]) if self.waiting is not None and body.prompt_ids else None
        joined = self._taken_in(body)
        self.turn = turn = OpenTurn(body.turn_id, body.prompt_ids, len(self.view) - len(body.entries), joined, body.entries[-1].number)
        first = body if accepted is None else accepted
        turn.owned, turn.key, turn.request_state = first.owned, first.key, first.request_state
        if turn.key is not None:
            turn.messages = first.messages or [entry.message for entry in body.entries]

    def _taken_in(self, body: Begun) -> Entry | None:
        """What a turn's beginning does to the view and the waiting prompts; returns the entry that was replaced."""
        if self.waiting is not None:
            for prompt_id in body.prompt_ids:
                self._no_longer_waiting(prompt_id)
        self.in_doubt = ()
        joined = self.view.pop() if body.joins else None
        if body.joins in self.pins:  # what was pinned is in the message that takes its place
            self.pins |= {body.entries[0].number}
        for entry in body.entries:
            self._append(entry)
        return joined

    def _said(self, body: Said) -> None:
        entry = body.entry
        self._append(entry)
        turn = self.turn
        if turn is not None:
            if entry.message["role"] == "assistant":
                turn.hear(body)
            if body.request_state is not None:
                turn.request_state = body.request_state

    def _returned(self, body: Returned) -> None:
        turn = self.turn
        if turn is not None:
            turn.results = {**(turn.results or {}), body.call: body.result}
            if body.request_state is not None:
                turn.request_state = body.request_state

    def _resumed(self, body: Resumed) -> None:
        turn = self.turn
        if turn is not None:
            turn.deaths, turn.left = turn.died, False
            turn.in_doubt += body.in_doubt
            self.in_doubt = turn.in_doubt

    def _left(self, body: Left) -> None:
        if self.turn is not None:
            self.turn.left = True

    def _edited(self, body: Edited) -> None:
        if self.turn is not None:
            if self.turn.before is None:
                self.turn.before = self.view.copy()
            if body.prompt:
                self.turn.prompt_number = body.prompt
        self.view.apply(body.edit)
        for placed in body.edit.inserted:
            self.next_entry = max(self.next_entry, placed.entry.number + 1)

    def _added(self, body: Added) -> None:
        for entry in body.entries:
            self._append(entry)

    def _pinned(self, body: Pinned) -> None:
        self.pins = self.pins | {body.number} if body.pinned else self.pins - {body.number}

    def _redacted(self, body: Redacted) -> None:
        """The records before it say it already; an incarnation that wrote it is made anew."""

    def _settled(self, body: Settled) -> None:
        if body.edit is not None:
            self.view.apply(body.edit)
        for entry in body.entries:
            self._append(entry)
        for entry in body.aside:
            self.next_entry = max(self.next_entry, entry.number + 1)
        self.turn = None
        self.turns += 1
        self.cycles += body.cycles
        self.usage = _sum(self.usage, body.usage)
        self.in_doubt = body.in_doubt

    def _withdrawn(self, body: Withdrawn) -> None:
        self._no_longer_waiting(body.prompt_id)


_FOLD: dict[type[Body], Callable[[SessionState, Any], object]] = {
    Opened: SessionState._opened,
    Accepted: SessionState._accepted,
    Begun: SessionState._begun,
    Said: SessionState._said,
    Returned: SessionState._returned,
    Resumed: SessionState._resumed,
    Left: SessionState._left,
    Edited: SessionState._edited,
    Added: SessionState._added,
    Pinned: SessionState._pinned,
    Redacted: SessionState._redacted,
    Settled: SessionState._settled,
    Withdrawn: SessionState._withdrawn,
    Kept: SessionState.restore,
}

_FOLD_ENDED: dict[type[Body], Callable[[SessionState, Any], object]] = {**_FOLD, Begun: SessionState._taken_in}
"""The same for turns that are known to have ended: `turn` stays None, and the rest does nothing for it then."""


def transcribe(transcript: Transcript, body: Body) -> None:
    """Take one record into the transcript."""
    match body:
        case Begun(entries=entries, joins=joins) if joins:
            transcript.join(joins, entries[0].number)
        case Edited(edit=edit):
            transcript.apply(edit)
        case Pinned(number=number, pinned=pinned):
            transcript.pin(number, pinned)
        case Settled(how=how, stop_reason=stop_reason, edit=edit, aside=aside):
            if edit is not None:
                transcript.apply(edit)
            for entry in aside:
                transcript.leave(entry.number, how if how != "finished" or stop_reason is None else stop_reason)
        case _:
            pass


def entries_in(body: Body) -> Iterator[Entry]:
    """The entries that a record holds, in order: those said in it, and those it only brings back."""
    match body:
        case Opened(entries=entries) | Added(entries=entries) | Begun(entries=entries):
            yield from entries
        case Said(entry=entry):
            yield entry
        case Edited(edit=edit):
            yield from (placed.entry for placed in edit.inserted)
        case Settled(edit=edit, entries=entries, aside=aside):
            if edit is not None:
                yield from (placed.entry for placed in edit.inserted)
            yield from entries
            yield from aside
        case Accepted() | Pinned() | Redacted() | Withdrawn() | Returned() | Resumed() | Left() | Kept():
            pass

"""The view: what the model sees now, as a fold over entries.

Every change is either a message at the end or an `Edit` that names entries by number, never by position; so a window, a
rollback and a restored conversation are all records of the same form, and replaying them gives the same view. The
transcript (everything ever said) is the other fold over the same records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import is_
from typing import Any

import msgspec

from ropewalk.actors.messages import Message, copy_of

__all__ = ["Edit", "Entry", "Placed", "Transcript", "TranscriptEntry", "View", "difference", "listed", "rearrangement"]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One element of the transcript: a message with a number of its own, counted from 1 in each session, and the turn it belongs to."""

    number: int
    message: Message
    turn_id: str | None = None

    @property
    def id(self) -> str:
        """The entry's stable name."""
        return f"e{self.number}"


class Placed(msgspec.Struct, frozen=True, gc=False):
    """An entry and the number of the entry it comes right after; 0 is the start of the view."""

    after: int
    entry: Entry


class Edit(msgspec.Struct, frozen=True, gc=False):
    """A change of the view: first the entries `removed` (by number) leave it, then those `inserted` come in, in order.

    An inserted entry whose number the transcript knows comes back; it is not said again.
    """

    reason: str
    removed: tuple[int, ...] = ()
    inserted: tuple[Placed, ...] = ()


class View:
    """The entries the model is shown, in order. `messages` is kept beside them, so that a model call copies nothing."""

    __slots__ = ("entries", "messages")

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.entries: list[Entry] = list(entries)
        self.messages: list[Message] = [entry.message for entry in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def last(self) -> Entry | None:
        """The newest entry."""
        return self.entries[-1] if self.entries else None

    def append(self, entry: Entry) -> None:
        """A message at the end; its cost does not depend on how many there are."""
        self.entries.append(entry)
        self.messages.append(entry.message)

    def apply(self, edit: Edit) -> None:
        """Carry an edit out. What changes only the tail costs only the tail, what only takes the oldest away only those."""
        count = len(edit.removed)
        if not edit.inserted and edit.removed == tuple(entry.number for entry in self.entries[:count]):
            del self.entries[:count]
            del self.messages[:count]
            return
        start = self._first_touched(edit)
        kept: dict[int, Entry] = {entry.number: entry for entry in self.entries[start:]}
        for number in edit.removed:
            kept.pop(number, None)
        tail = list(kept.values())
        for placed in edit.inserted:
            tail.insert(_place(tail, placed.after), placed.entry)
        self.entries[start:] = tail
        self.messages[start:] = [entry.message for entry in tail]

    def _first_touched(self, edit: Edit) -> int:
        """Where the shortest tail begins that holds every entry the edit names."""
        named = {*edit.removed, *({placed.after for placed in edit.inserted} - {placed.entry.number for placed in edit.inserted})}
        if 0 in named:
            return 0
        place = len(self.entries)
        while named and place:
            place -= 1
            named.discard(self.entries[place].number)
        return place


def _place(entries: Sequence[Entry], after: int) -> int:
    if after == 0:
        return 0
    for place in range(len(entries) - 1, -1, -1):
        if entries[place].number == after:
            return place + 1
    return len(entries)


def difference(entries: Sequence[Entry], wanted: Sequence[Message], reason: str, next_number: int, turn_id: str | None = None) -> Edit:
    """The edit that makes `entries` show `wanted`.

    Messages that are the same objects keep their entries, the first of several first; the others become new ones, numbered
    from `next_number`.
    """
    gone = len(entries) - len(wanted)
    if gone >= 0 and all(map(is_, wanted, [entry.message for entry in entries[gone:]])):
        return Edit(reason, tuple(entry.number for entry in entries[:gone]))  # the window's way: the oldest leave
    known: dict[int, list[Entry]] = {}
    for entry in reversed(entries):
        known.setdefault(id(entry.message), []).append(entry)
    target: list[Entry] = []
    for message in wanted:
        of_message = known.get(id(message))
        if of_message:
            target.append(of_message.pop())
        else:
            target.append(Entry(next_number, message, turn_id))
            next_number += 1
    return rearrangement(entries, target, reason)


def rearrangement(entries: Sequence[Entry], wanted: Sequence[Entry], reason: str) -> Edit:
    """The edit that makes a view of `entries` one of `wanted`: for undoing a turn, whose lost entries come back as they were."""
    places = {entry.number: place for place, entry in enumerate(entries)}
    inserted: list[Placed] = []
    stays: set[int] = set()
    reached, after = -1, 0
    for entry in wanted:
        place = places.get(entry.number, -1)
        if place > reached:
            reached = place
            stays.add(place)
        else:  # new, or out of its old order: then it leaves and comes back where it is wanted
            inserted.append(Placed(after, entry))
        after = entry.number
    return Edit(reason, tuple(entry.number for place, entry in enumerate(entries) if place not in stays), tuple(inserted))


class TranscriptEntry(msgspec.Struct, frozen=True):
    """One element of everything ever said: `left_because` says what took it out of the view, None while it is in it."""

    id: str
    message: Message
    turn_id: str | None
    in_view: bool
    left_because: str | None


class Transcript:
    """Everything ever said, in the order it was; the fold that forgets nothing."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._left: dict[int, str] = {}

    def append(self, entry: Entry) -> None:
        """A message at the end of the view."""
        self._entries[entry.number] = entry

    def aside(self, entry: Entry, reason: str) -> None:
        """Something said that never came into the view."""
        self._entries[entry.number] = entry
        self._left[entry.number] = reason

    def leave(self, number: int, reason: str) -> None:
        """An entry left the view."""
        self._left[number] = reason

    def apply(self, edit: Edit) -> None:
        """Mark what left the view, and take in what came."""
        for number in edit.removed:
            self._left[number] = edit.reason
        for placed in edit.inserted:
            self._entries.setdefault(placed.entry.number, placed.entry)
            self._left.pop(placed.entry.number, None)

    def __iter__(self) -> Iterator[TranscriptEntry]:
        for number in sorted(self._entries):
            entry = self._entries[number]
            reason = self._left.get(number)
            yield TranscriptEntry(entry.id, copy_of(entry.message), entry.turn_id, reason is None, reason)


def listed(entries: Iterable[Entry]) -> tuple[dict[str, Any], ...]:
    """Entries as a snapshot shows them."""
    return tuple({"id": entry.id, "message": copy_of(entry.message)} for entry in entries)

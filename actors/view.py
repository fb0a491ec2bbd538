"""The view: what the model sees now, as a fold over entries.

Every change is either a message at the end or an `Edit` that names entries by number, never by position; so a window, a
rollback and a restored conversation are all records of the same form, and replaying them gives the same view. The
transcript (everything ever said) is the other fold over the same records.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, MutableSequence, Sequence
from operator import is_
from sys import intern
from typing import Any

import msgspec

from ropewalk.actors.messages import Message, copy_of

__all__ = ["Edit", "Entry", "Placed", "Transcript", "TranscriptEntry", "View", "difference", "entry_number", "listed", "rearrangement"]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One element of the transcript: a message with a number of its own, counted from 1 in each session, and the turn it belongs to."""

    number: int
    message: Message
    turn_id: str | None = None

    @property
    def id(self) -> str:
        """The entry's stable name."""
        return f"e{self.number}"


def entry_number(entry_id: object) -> int | None:
    """The number in an entry's id, None for what is no id."""
    if isinstance(entry_id, str) and entry_id[:1] == "e" and entry_id[1:].isascii() and entry_id[1:].isdecimal() and entry_id[1] != "0":
        return int(entry_id[1:])
    return None


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
    """The `messages` the model is shown, in order, and beside them the `numbers` of their entries.

    Most sessions are idle most of the time, so the entries themselves are made when they are asked for: they would take as
    much room as all else that is known of a session. Numbers that follow one another, as they do until something is edited
    or undone, are known from the first. Whose turn a message belongs to is for the transcript to know.
    """

    __slots__ = ("_first", "_numbers", "messages")

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.messages: list[Message] = []
        self._first = 1
        self._numbers: MutableSequence[int] | None = None  # once they do not follow one another
        for entry in entries:
            self.append(entry)

    @classmethod
    def of(cls, messages: list[Message], first: int, numbers: Sequence[int] | None) -> View:
        """A view of these messages, whose entries have these numbers, or None: those that follow one another from `first` on."""
        view = cls()
        view.messages, view._first, view._numbers = messages, first, None if numbers is None else array("Q", numbers)
        return view

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def numbers(self) -> Sequence[int]:
        """The numbers of the entries, in the order of the messages."""
        return range(self._first, self._first + len(self.messages)) if self._numbers is None else self._numbers

    @property
    def entries(self) -> list[Entry]:
        """Number and message of each entry; takes time in how many there are."""
        return list(map(Entry, self.numbers, self.messages))

    @property
    def last(self) -> Entry | None:
        """Number and message of the newest entry."""
        return Entry(self.numbers[-1], self.messages[-1]) if self.messages else None

    def copy(self) -> View:
        """A view of the same messages, which changes of this one do not touch."""
        view = View()
        view.messages = self.messages.copy()
        view._first, view._numbers = self._first, None if self._numbers is None else self._numbers[:]
        return view

    def append(self, entry: Entry) -> None:
        """A message at the end; its cost does not depend on how many there are."""
        number, messages = entry.number, self.messages
        if self._numbers is not None:
            self._numbers.append(number)
        elif number != self._first + len(messages):
            if messages:
                self._numbers = array("Q", (*self.numbers, number))
            else:
                self._first = number
        messages.append(entry.message)

    def pop(self) -> Entry:
        """Take the newest entry off."""
        number = self.numbers[-1]
        if self._numbers is not None:
            self._numbers.pop()
        return Entry(number, self.messages.pop())

    def edit_to(self, wanted: Sequence[Message], reason: str, next_number: int, turn_id: str | None = None) -> Edit:
        """The edit that makes the view show these messages; see `difference`."""
        gone = len(self.messages) - len(wanted)
        if gone >= 0 and all(map(is_, wanted, self.messages[gone:])):
            return Edit(reason, tuple(self.numbers[:gone]))  # the window's way: the oldest leave
        return difference(self.entries, wanted, reason, next_number, turn_id)

    def apply(self, edit: Edit) -> None:
        """Carry an edit out. What changes only the tail costs only the tail, what only takes the oldest away only those."""
        count = len(edit.removed)
        if not edit.inserted and edit.removed == tuple(self.numbers[:count]):
            if self._numbers is None:
                self._first += count
            else:
                del self._numbers[:count]
            del self.messages[:count]
            return
        if self._numbers is None:
            self._numbers = array("Q", self.numbers)
        start = self._first_touched(edit)
        kept = dict(zip(self._numbers[start:], self.messages[start:], strict=True))
        for number in edit.removed:
            kept.pop(number, None)
        numbers, messages = list(kept), list(kept.values())
        for placed in edit.inserted:
            place = _place(numbers, placed.after)
            numbers.insert(place, placed.entry.number)
            messages.insert(place, placed.entry.message)
        self._numbers[start:] = array("Q", numbers)
        self.messages[start:] = messages

    def _first_touched(self, edit: Edit) -> int:
        """Where the shortest tail begins that holds every entry the edit names."""
        named = {*edit.removed, *({placed.after for placed in edit.inserted} - {placed.entry.number for placed in edit.inserted})}
        if 0 in named:
            return 0
        numbers = self.numbers
        place = len(numbers)
        while named and place:
            place -= 1
            named.discard(numbers[place])
        return place


def _place(numbers: Sequence[int], after: int) -> int:
    if after == 0:
        return 0
    for place in range(len(numbers) - 1, -1, -1):
        if numbers[place] == after:
            return place + 1
    return len(numbers)


def difference(entries: Sequence[Entry], wanted: Sequence[Message], reason: str, next_number: int, turn_id: str | None = None) -> Edit:
    """The edit that makes `entries` show `wanted`.

    Messages that are the same objects keep their entries, the first of several first; the others become new ones, numbered
    from `next_number`.
    """
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
    """One element of everything ever said: `left_because` says what took it out of the view, None while it is in it; `pinned` that no reduction may."""

    id: str
    message: Message
    turn_id: str | None
    in_view: bool
    left_because: str | None
    pinned: bool = False


class Transcript:
    """How each entry ever said stands now: what took it out of the view, and whether it is pinned.

    It holds no messages, so it stays small however long a conversation is; they are read again from the records, to be `shown`.
    """

    __slots__ = ("_left", "_pinned")

    def __init__(self) -> None:
        self._left: dict[int, str] = {}
        self._pinned: set[int] = set()

    def leave(self, number: int, reason: str) -> None:
        """An entry left the view, or never came into it."""
        self._left[number] = intern(reason)

    def join(self, number: int, to: int) -> None:
        """An entry left the view because a later one holds what it says; the later one is pinned if it was."""
        self.leave(number, "joined")
        if number in self._pinned:
            self._pinned.add(to)

    def pin(self, number: int, pinned: bool) -> None:
        """An entry was pinned, or is no more."""
        (self._pinned.add if pinned else self._pinned.discard)(number)

    def apply(self, edit: Edit) -> None:
        """Mark what left the view, and what came back."""
        for number in edit.removed:
            self.leave(number, edit.reason)
        for placed in edit.inserted:
            self._left.pop(placed.entry.number, None)

    def shown(self, entry: Entry) -> TranscriptEntry:
        """The entry as the transcript shows it; its message is a copy."""
        reason = self._left.get(entry.number)
        return TranscriptEntry(entry.id, copy_of(entry.message), entry.turn_id, reason is None, reason, entry.number in self._pinned)


def listed(entries: Iterable[Entry]) -> tuple[dict[str, Any], ...]:
    """Entries as a snapshot shows them."""
    return tuple({"id": entry.id, "message": copy_of(entry.message)} for entry in entries)

"""What was ever said, read from the log: the transcript, and the view as it was at any moment of it.

The log is read a page at a time and nothing of it is kept but what the answer needs, so a long conversation takes no more
room than a short one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

from ropewalk.actors.session.codec import RECORDS
from ropewalk.actors.session.records import Body
from ropewalk.actors.session.settling import unanswered
from ropewalk.actors.session.state import SessionState, entries_in, transcribe
from ropewalk.actors.validity import is_valid
from ropewalk.actors.view import Entry, Transcript, TranscriptEntry, entry_number
from ropewalk.runtime.errors import InvalidOption, JournalDamaged, UnknownSession
from ropewalk.runtime.journal import Journal, Record

__all__ = ["PAGE", "Pages", "TranscriptReader", "bodies_of", "entries_at", "settled_place"]

PAGE = 256
"""How many records are read at a time."""

NEAR = 32
"""How far around an entry that will not do one is looked for that would."""


class Pages:
    """The records that a session's log has when the first page is read, in order.

    :param last: the number of the last of them; None is to be found out.

    Not an async generator, here and below: whoever stops in the middle has nothing to close.
    """

    def __init__(self, journal: Journal, session_id: str, last: int | None = None) -> None:
        self._journal = journal
        self._session_id = session_id
        self._reached = 0
        self.last = last

    async def next(self) -> Sequence[Record]:
        """The next page, empty at the end. Raises `UnknownSession` when there is no log, or no more, and `JournalDamaged`."""
        last = self.last
        if last is None:
            known = await self._journal.find(self._session_id)
            if known is None:
                raise UnknownSession(f"there is no session {self._session_id!r}")
            last = self.last = known.last
        if self._reached == last:
            return ()
        page = await self._journal.read(self._session_id, self._reached, min(PAGE, last - self._reached), codec=RECORDS)
        if not page:
            if await self._journal.find(self._session_id) is None:
                raise UnknownSession(f"the session {self._session_id!r} was deleted while it was read")
            raise JournalDamaged(f"the log of {self._session_id!r} has {last} records, and number {self._reached + 1} is not there")
        self._reached = page[-1].number
        return page


async def bodies_of(journal: Journal, session_id: str) -> list[Body]:
    """All records of a log."""
    bodies: list[Body] = []
    pages = Pages(journal, session_id)
    while page := await pages.next():
        bodies += [record.body for record in page]
    return bodies


class TranscriptReader:
    """Everything said so far, in order, with how it stands now: what is written while it is read shows in neither.

    :param ready: awaited before the first entry; None where nothing has to be.
    """

    def __init__(self, journal: Journal, session_id: str, ready: Callable[[], Awaitable[object]] | None = None) -> None:
        self._transcript = Transcript()
        self._journal = journal
        self._session_id = session_id
        self._ready = ready
        self._pages: Pages | None = None
        self._waiting: deque[Entry] = deque()
        self._reached = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TranscriptEntry:
        """The next entry. Raises `UnknownSession` when the session is deleted meanwhile, and what the journal raises."""
        if self._pages is None:
            if self._ready is not None:
                await self._ready()
            self._pages = await self._look_through()
        while not self._waiting:
            page = await self._pages.next()
            if not page:
                raise StopAsyncIteration
            for record in page:
                self._take(record)
        return self._transcript.shown(self._waiting.popleft())

    async def _look_through(self) -> Pages:
        pages = Pages(self._journal, self._session_id)
        while page := await pages.next():
            for record in page:
                transcribe(self._transcript, record.body)
        return Pages(self._journal, self._session_id, pages.last)

    def _take(self, record: Record) -> None:
        for entry in entries_in(record.body):
            if entry.number > self._reached:  # else it is only brought back
                self._reached = entry.number
                self._waiting.append(entry)


async def entries_at(journal: Journal, session_id: str, entry_id: object) -> list[Entry]:
    """The view as it was right after an entry was said.

    Raises `InvalidOption` when there is no such entry, or the view was no valid conversation then, or the entry never came into it.
    """
    wanted = entry_number(entry_id)
    state = SessionState()
    found: list[Entry] | None = None
    would_do: list[int] = []
    pages = Pages(journal, session_id)
    while page := await pages.next():
        for record in page:
            said = [entry.number for entry in entries_in(record.body) if entry.number >= state.next_entry]
            state.apply(record.body)
            for number in said:
                if wanted is None or abs(number - wanted) > NEAR:
                    continue
                shown = _cut(state, number)
                if number == wanted:
                    found = shown
                if _is_complete(shown, number):
                    would_do.append(number)
                    if number == wanted:
                        return shown
    if wanted is None or found is None:
        raise InvalidOption(f"the session {session_id!r} has no entry {entry_id!r:.200}; {_there_are(state)}")
    raise InvalidOption(f"the conversation was not complete right after entry {entry_id!r}: {_why(found, wanted)}{_instead(wanted, would_do)}")


async def settled_place(journal: Journal, session_id: str, entry_id: object = None) -> int:
    """The number of the record after which the view ended in an entry for the first time with no turn open; None: the last such record there is.

    Raises `InvalidOption` when there is no such entry, or no such place.
    """
    wanted = entry_number(entry_id)
    state, place = SessionState(), 0
    would_do: list[int] = []
    pages = Pages(journal, session_id)
    while page := await pages.next():
        for record in page:
            state.apply(record.body)
            last = state.view.numbers[-1] if state.view.messages else 0
            if state.turn is not None or unanswered(state):
                continue
            if entry_id is None:
                place = record.number
            elif last == wanted:
                return record.number
            elif last and wanted is not None and abs(last - wanted) <= NEAR:
                would_do.append(last)
    if entry_id is None:
        return place
    if wanted is None or wanted >= state.next_entry:
        raise InvalidOption(f"the session {session_id!r} has no entry {entry_id!r:.200}; {_there_are(state)}")
    raise InvalidOption(f"no turn ended with entry {entry_id!r}, so nothing can be forked there{_instead(wanted, sorted(would_do))}")


def _cut(state: SessionState, number: int) -> list[Entry]:
    """The view without what was said after an entry in the same step."""
    return [entry for entry in state.view.entries if entry.number <= number]


def _is_complete(shown: Sequence[Entry], number: int) -> bool:
    return any(entry.number == number for entry in shown) and is_valid([entry.message for entry in shown])


def _there_are(state: SessionState) -> str:
    last = state.next_entry - 1
    return f"its entries are e1 to e{last}" if last > 1 else "its only entry is e1" if last else "nothing has been said in it"


def _why(shown: Sequence[Entry], number: int) -> str:
    if not any(entry.number == number for entry in shown):
        return "it was said, but never came into the view"
    return "it is in the middle of a turn, or of a change of several messages"


def _instead(wanted: int, would_do: Sequence[int]) -> str:
    before = [number for number in would_do if number < wanted][-1:]
    after = [number for number in would_do if number > wanted][:1]
    names = " or ".join(f"e{number}" for number in (*before, *after))
    return f"; {names} would do" if names else ""

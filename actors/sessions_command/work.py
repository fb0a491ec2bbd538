"""What the commands do, on a journal in a file that is there: none of them makes one."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

from ropewalk.actors.messages import Block
from ropewalk.actors.session.codec import RECORDS
from ropewalk.actors.session.export import export_session, import_session
from ropewalk.actors.session.history import PAGE, Pages, TranscriptReader, settled_place
from ropewalk.actors.session.records import Opened
from ropewalk.actors.session.state import SessionState
from ropewalk.actors.sessions_command.rows import HEADINGS, SessionRow, entry_lines, row_line
from ropewalk.runtime.errors import InvalidOption, JournalDamaged, UnknownRecord, UnknownSession
from ropewalk.runtime.journal import KnownActor, SQLiteJournal
from ropewalk.runtime.runtime import Runtime, check_session_id

__all__ = ["Say", "check_all", "delete_one", "export_one", "fork_one", "import_one", "list_all", "show_one"]

Say = Callable[[str], None]


@asynccontextmanager
async def opened(path: str) -> AsyncGenerator[tuple[Runtime, SQLiteJournal]]:
    """The journal of a path. Raises `InvalidOption` when there is no file, `JournalUnavailable` when it is no journal."""
    journal = _journal_at(path)
    async with Runtime(journal) as runtime:
        yield runtime, journal


def _journal_at(path: str) -> SQLiteJournal:
    if not os.path.exists(path):
        raise InvalidOption(f"there is no journal {path}")
    return SQLiteJournal(path)


async def list_all(path: str, say: Say) -> None:
    """A line for each session."""
    async with opened(path) as (_, journal):
        after, there_are = "", False
        while page := await journal.actors(after, PAGE):
            if not there_are:
                say(HEADINGS)
            there_are = True
            for known in page:
                say(row_line(await _row(journal, known)))
            after = page[-1].id
        if not there_are:
            say(f"There are no sessions in {path}.")


async def _row(journal: SQLiteJournal, known: KnownActor) -> SessionRow:
    state, pages = SessionState(), Pages(journal, known.id)
    try:
        while page := await pages.next():
            for record in page:
                state.apply(record.body)
    except UnknownRecord:
        return SessionRow(known.id, known.kind, None, known.at, "unreadable")
    except JournalDamaged:
        return SessionRow(known.id, known.kind, None, known.at, "damaged")
    except UnknownSession:
        return SessionRow(known.id, known.kind, None, known.at, "deleted")
    waiting = len(state.waiting or ())
    words = "unfinished" if state.turn is not None else f"{waiting} waiting" if waiting else "at rest"
    return SessionRow(known.id, known.kind, state.next_entry - 1, known.at, words)


async def show_one(path: str, session_id: str, width: int, say: Say) -> None:
    """The transcript."""
    async with opened(path) as (_, journal):
        called: dict[str, Block] = {}
        entries = TranscriptReader(journal, session_id)
        async for entry in entries:
            for line in entry_lines(entry, called, width):
                say(line)


async def export_one(path: str, session_id: str, write: Say) -> None:
    """The session's lines."""
    async with opened(path) as (_, journal):
        async for line in export_session(journal, session_id):
            write(line)


async def import_one(path: str, lines: Sequence[str], session_id: str | None) -> str:
    """A session made of lines; returns its id."""
    async with opened(path) as (_, journal):
        return await import_session(journal, lines, session_id)


async def fork_one(path: str, session_id: str, new_id: str, at: str | None) -> None:
    """A session more, that begins with another one's past."""
    async with opened(path) as (_, journal):
        await journal.fork(session_id, await settled_place(journal, session_id, at), check_session_id(new_id))


async def delete_one(path: str, session_id: str) -> None:
    """A session less."""
    async with opened(path) as (runtime, _):
        await runtime.delete(session_id)


async def check_all(path: str, say: Say) -> list[str]:
    """What is wrong with the file, its records, and what they say; says how much was looked at."""
    async with opened(path) as (_, journal):
        problems = list(await journal.check())
        sessions, records, after = 0, 0, ""
        while page := await journal.actors(after, PAGE):
            for known in page:
                read, wrong = await _check_one(journal, known)
                sessions, records = sessions + 1, records + read
                problems += [problem for problem in wrong if problem not in problems]
            after = page[-1].id
        say(f"{sessions:,} session{'s' * (sessions != 1)} with {records:,} record{'s' * (records != 1)} looked at.")
        return problems


async def _check_one(journal: SQLiteJournal, known: KnownActor) -> tuple[int, list[str]]:
    state, read = SessionState(), 0
    try:
        first = (await journal.read(known.id, 0, 1))[:1]
        if not first or first[0].tag != Opened.__name__:
            return 0, []  # an actor of another kind, whose records only its own program can read
        while page := await journal.read(known.id, read, PAGE, codec=RECORDS):
            for record in page:
                state.apply(record.body)
            read = page[-1].number
    except (JournalDamaged, UnknownRecord) as error:
        return read, [str(error)]
    return read, []

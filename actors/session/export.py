"""A session as JSON lines: to be kept elsewhere, looked at with any tool, brought into another journal.

The first line says what it is, then comes a line for each record, then one with their number and a checksum over every line
before it. So a file that was cut short, or changed, is told from a whole one before anything of it is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Self, TypeVar

import anyio
import msgspec

from ropewalk.actors.session.codec import RECORDS
from ropewalk.actors.session.history import Pages
from ropewalk.actors.session.records import Body, Opened
from ropewalk.actors.session.state import SessionState
from ropewalk.actors.validity import is_open, is_valid
from ropewalk.runtime.errors import InvalidOption, SessionExists, UnknownRecord
from ropewalk.runtime.journal import Encoded, Journal, Record
from ropewalk.runtime.runtime import check_session_id
from ropewalk.runtime.supervision import Failure, contain

__all__ = ["ExportReader", "export_session", "import_session"]

FORMAT = "ropewalk session"
VERSION = 1

RELEASE_SECONDS = 5.0
"""How long letting go of the imported session may take, once nobody waits for it any more."""

T = TypeVar("T")


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    version: int
    session: str
    spec: str


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One record: `form` is the version of the codec that `body` was written by, `at` seconds since 1970."""

    id: str
    number: int
    kind: str
    form: int
    at: float | None
    body: msgspec.Raw


class _Footer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    records: int
    sha256: str


def export_session(journal: Journal, session_id: str) -> ExportReader:
    r"""The session's records as they are now, a line at a time, each ending in ``\n``: ``async for line in export_session(...)``.

    Needs no claim, so a session may be exported while it is at work. Raises `UnknownSession`, and what the journal raises.
    """
    return ExportReader(journal, session_id)


class ExportReader:
    """The lines of an export; see `export_session`."""

    def __init__(self, journal: Journal, session_id: str) -> None:
        self._pages = Pages(journal, session_id)
        self._session_id = session_id
        self._digest = hashlib.sha256()
        self._waiting: list[Record] = []
        self._told = 0
        self._state: str = "header"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """The next line."""
        if self._state == "ended":
            raise StopAsyncIteration
        if not self._waiting:
            self._waiting = [*reversed(await self._pages.next())]
        if self._state == "header":
            self._state = "records"
            opened = self._waiting[-1].body
            return self._line(_Header(FORMAT, VERSION, self._session_id, opened.spec if isinstance(opened, Opened) else ""))
        if not self._waiting:
            self._state = "ended"
            return self._line(_Footer(self._told, self._digest.hexdigest()))
        record = self._waiting.pop()
        self._told += 1
        kept = RECORDS.encode(record.body)
        return self._line(_Line(f"{self._session_id}/{record.number}", self._told, kept.tag, kept.version, record.at, msgspec.Raw(kept.data)))

    def _line(self, content: msgspec.Struct) -> str:
        line = msgspec.json.encode(content) + b"\n"
        self._digest.update(line)
        return line.decode()


async def import_session(journal: Journal, lines: Iterable[str], session_id: str | None = None) -> str:
    """Bring an exported session into a journal, as a session that is there or not at all; returns its id.

    :param journal: one that is open, in the event loop of a runtime that uses it.
    :param lines: what `export_session` gave.
    :param session_id: the id it gets; None is the one it had.

    Raises `SessionExists`, `UnknownRecord` for an export of a newer Ropewalk, `InvalidOption` for one that is torn, was changed,
    or is none; then nothing was written. When each record was written is not kept: it is written now.
    """
    header, bodies = _checked([line for line in lines if line.strip()])
    wanted = check_session_id(header.session if session_id is None else session_id)
    if await journal.find(wanted) is not None:
        raise SessionExists(f"there is a session {wanted!r} already; give the import another id")
    claim = await journal.claim(wanted, header.spec, RECORDS)
    try:
        if claim.last:
            raise SessionExists(f"there is a session {wanted!r} already; give the import another id")
        commit = journal.append(wanted, claim.epoch, 1, bodies)
        if commit is not None:
            await commit.wait()
    finally:
        with anyio.move_on_after(RELEASE_SECONDS, shield=True):
            await journal.release(wanted, claim.epoch)
    return wanted


def _checked(lines: Sequence[str]) -> tuple[_Header, list[Body]]:
    """The header and the records of an export that is whole."""
    if not lines:
        raise InvalidOption("it is no export of a session: it is empty")
    header = _header(lines[0])
    footer = _as(lines[-1], _Footer)
    if footer is None:
        raise InvalidOption(f"the export of {header.session!r} is torn: its last line, {len(lines)}, is not the one that every export ends in")
    digest = hashlib.sha256()
    for line in lines[:-1]:
        digest.update(line.rstrip("\r\n").encode("utf-8", "surrogatepass") + b"\n")
    if (footer.records, footer.sha256) != (len(lines) - 2, digest.hexdigest()):
        raise InvalidOption(f"the export of {header.session!r} was changed or lost lines: its checksum does not match")
    bodies = [_body(line, number) for number, line in enumerate(lines[1:-1], 1)]
    if isinstance(is_conversation := contain(_is_conversation, bodies), Failure) or not is_conversation:
        raise InvalidOption(f"the export of {header.session!r} is not a conversation from its beginning")
    return header, bodies


def _is_conversation(bodies: Sequence[Body]) -> bool:
    state = SessionState()
    for body in bodies:
        state.apply(body)
    shown = state.view.messages
    return bool(bodies) and isinstance(bodies[0], Opened) and (not shown or is_valid(shown) or is_open(shown))


def _header(line: str) -> _Header:
    header = _as(line, _Header)
    said: Any = _as(line, dict[str, Any]) or {}
    if said.get("format") != FORMAT:
        raise InvalidOption(f"it is no export of a session: its first line is {line.strip()!r:.200}")
    if header is None or header.version != VERSION:
        raise UnknownRecord(f"it is an export of version {said.get('version')!r}, and this Ropewalk reads version {VERSION}; use the Ropewalk that wrote it")
    return header


def _body(line: str, number: int) -> Body:
    kept = _as(line, _Line)
    if kept is None or kept.number != number:
        raise InvalidOption(f"line {number + 1} of the export is not its record {number}")
    body: Body = RECORDS.decode(Encoded(kept.kind, kept.form, bytes(kept.body)))
    return body


def _as(line: str, kind: type[T]) -> T | None:
    """The line as one of this kind, None when it is none."""
    try:
        return msgspec.json.decode(line.encode("utf-8", "replace"), type=kind)
    except (msgspec.DecodeError, RecursionError):
        return None

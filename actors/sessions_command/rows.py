"""What is shown of sessions: a line for each in a list, a few for each entry of a transcript. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime

import attrs

from ropewalk.actors.chat.notes import call_in_short, result_in_short
from ropewalk.actors.messages import Block
from ropewalk.actors.terminal.printable import in_short, printable
from ropewalk.actors.view import TranscriptEntry

__all__ = ["HEADINGS", "SessionRow", "entry_lines", "row_line"]

KIND_WIDTH = 14
STATE_WIDTH = 10

HEADINGS = f"{'last used':<16}  {'messages':>8}  {'state':<{STATE_WIDTH}}  {'agent':<{KIND_WIDTH}}  session"


@attrs.frozen
class SessionRow:
    """One session of a list: how many messages were ever said in it, seconds since 1970 when it was last written to, and what it is doing.

    `messages` is None where the log cannot be read.
    """

    id: str
    kind: str
    messages: int | None
    at: float | None
    state: str


def row_line(row: SessionRow) -> str:
    """The line of a list; the id stands last and whole, whatever its length."""
    used = "-" if row.at is None else datetime.fromtimestamp(row.at, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    said = "?" if row.messages is None else f"{row.messages:,}"
    return f"{used:<16}  {said:>8}  {row.state:<{STATE_WIDTH}}  {in_short(row.kind, KIND_WIDTH):<{KIND_WIDTH}}  {row.id}"


def entry_lines(entry: TranscriptEntry, called: dict[str, Block], width: int) -> Iterator[str]:
    """An entry for people: its id, who said it, whether the model is still shown it; then what was said, no line wider than `width`.

    `called` keeps the calls that were met, by their id, for the results that come later.
    """
    marks = ["pinned"] if entry.pinned else []
    if entry.left_because is not None:
        marks.append(f"left the view: {in_short(entry.left_because, 40)}")
    yield f"{entry.id} {entry.message['role']}" + (f" ({', '.join(marks)})" if marks else "")
    for block in entry.message["content"]:
        for line in _said(block, called).split("\n"):
            yield from textwrap.wrap(line, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False) or [""]


def _said(block: Block, called: dict[str, Block]) -> str:
    if "text" in block:
        return printable(str(block["text"]))
    if "toolUse" in block:
        called[block["toolUse"]["toolUseId"]] = block["toolUse"]
        return f"calls {call_in_short(block['toolUse'])}"
    if "toolResult" in block:
        result = block["toolResult"]
        call = called.get(result["toolUseId"])
        name = "a tool" if call is None else in_short(call["name"], 60)
        return f"{'result' if result.get('status', 'success') == 'success' else 'error'} of {name}: {result_in_short(result)}"
    return f"[{in_short(str(next(iter(block))), 60)}]"

"""A process is killed in the middle of its work and started again, and what it had accepted is counted in its journal and in the bank's books."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import anyio
import attrs
import msgspec
from anyio.abc import ByteReceiveStream, Process
from anyio.streams.buffered import BufferedByteReceiveStream

from ropewalk import Runtime, SQLiteJournal
from ropewalk.actors.session.codec import RECORDS
from ropewalk.actors.session.records import Accepted, Begun, Resumed, Settled
from ropewalk.actors.terminal.screen import Bar, Screen, source_of
from ropewalk.actors.tour import clerk
from ropewalk.actors.tour.bank import Bank
from ropewalk.runtime.journal import Record

__all__ = ["SAYS", "SESSIONS", "TITLE", "Count", "Life", "count", "show_survival"]

TITLE = "A process is killed"
SAYS = (
    "Sessions in a process of their own pay out of a bank, and the process is killed with SIGKILL when half of its messages are answered. "
    "The next one goes on from the journal, and every message is sent again under its key. The bank's books are the judge."
)
SESSIONS = 100
"""At most."""
MOST_SECONDS = 60
LONGEST_LINE = 10_000


@attrs.define
class Life:
    """What one process said it was told, by the messages' keys: those accepted, the answers of each, and how many sessions it went on with."""

    accepted: set[str] = attrs.field(factory=set[str])
    answers: dict[str, set[str]] = attrs.field(factory=dict[str, set[str]])
    recovered: int = 0

    def take(self, line: Sequence[Any]) -> None:
        """Hear a line."""
        match line:
            case ["accepted", key]:
                self.accepted.add(key)
            case ["answered", key, text]:
                self.answers.setdefault(key, set()).add(text)
            case ["recovered", number]:
                self.recovered = number
            case _:
                raise ValueError(f"the process said {line!r}")


@attrs.define(kw_only=True)
class Count:
    """What the journal and the books say in the end.

    Messages `accepted` before the kill, of which some were `answered` before it and the others by the next process (`recovered`); tool
    calls `in_doubt`; `payments` in the books; and what must not be: messages `answered_twice`, payments `paid_twice`, messages `lost`.
    """

    accepted: int = 0
    answered: int = 0
    recovered: int = 0
    in_doubt: int = 0
    payments: int = 0
    answered_twice: int = 0
    paid_twice: int = 0
    lost: int = 0

    def rows(self) -> list[list[str]]:
        """As a table."""
        return [
            ["messages accepted before the kill", f"{self.accepted:,}"],
            ["  answered before it", f"{self.answered:,}"],
            ["  recovered, and answered by the next process", f"{self.recovered:,}"],
            ["  answered twice", f"{self.answered_twice:,}"],
            ["  lost", f"{self.lost:,}"],
            ["payments in the bank's books", f"{self.payments:,}"],
            ["  made twice", f"{self.paid_twice:,}"],
            ["tool calls in doubt, as the model was told", f"{self.in_doubt:,}"],
        ]

    def wrong(self) -> list[str]:
        """What is not as it must be, in sentences."""
        must_not_be = {
            "messages were answered twice": self.answered_twice,
            "payments were made twice": self.paid_twice,
            "accepted messages were lost": self.lost,
        }
        problems = [f"{number:,} {what}." for what, number in must_not_be.items() if number]
        if not self.answered or not self.recovered:
            problems.append(f"The process was not killed in the middle: of {self.accepted:,} messages {self.answered:,} were answered before.")
        return problems


async def show_survival(screen: Screen, sessions: int, backend: str) -> list[str]:
    """Kill it, start it again, and count; returns what was wrong, if anything."""
    names = clerk.session_names(sessions)
    in_all = sessions * clerk.MESSAGES
    screen.console.print()
    screen.code("async def life(runtime, spec, names, tell):", *_indented(clerk.life), "", "async def send(session, number, tell):", *_indented(clerk.send))
    with TemporaryDirectory() as name, anyio.fail_after(MOST_SECONDS):
        folder = Path(name)
        with screen.bar(in_all, "the process begins") as bar:
            first = await _live(folder, sessions, backend, bar, dies_after=in_all // 2)
            second = await _live(folder, sessions, backend, bar)
        counted = count(await _read(folder, names), Bank(folder / clerk.BOOKS).payments(), [first, second])
    screen.came_out(
        f"the first process: {len(first.accepted):,} messages accepted, {len(first.answers):,} answered; then SIGKILL",
        f"the second process: runtime.recover() went on with {second.recovered:,} of {sessions:,} sessions; {len(second.answers):,} messages sent "
        f"again under their keys, of which {sum(key in first.answers for key in second.answers):,} had their answer already",
    )
    screen.table(("counted in the journal and the books", ""), counted.rows())
    return [*counted.wrong(), *([] if len(second.answers) == in_all else [f"Only {len(second.answers):,} of {in_all:,} messages have an answer."])]


def _indented(function: Any) -> list[str]:
    return [f"    {line}" for line in source_of(function).splitlines()]


async def _live(folder: Path, sessions: int, backend: str, bar: Bar, dies_after: int | None = None) -> Life:
    """One process, killed once it has told of so many answers; raises `ChildProcessError` when it fails by itself."""
    heard = Life()
    command = [sys.executable, "-P", "-m", clerk.__name__, str(folder), str(sessions), backend]
    with (folder / "stderr").open("wb") as errors:
        async with await anyio.open_process(command, stderr=errors) as process:
            async for line in _lines(process):
                heard.take(line)
                bar.show(len(heard.answers), sessions * clerk.MESSAGES, f"{len(heard.accepted):,} accepted, {len(heard.answers):,} answered")
                if len(heard.answers) == dies_after:
                    process.kill()
                    dies_after = None
            killed = await process.wait() < 0
    if not killed and process.returncode:
        said = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ChildProcessError(f"the process that was to be killed ended with status {process.returncode}: {said[-1] if said else 'it said nothing'}")
    return heard


async def _lines(process: Process) -> AsyncIterator[Sequence[Any]]:
    """What a process says, up to its end; half a line was not said."""
    stream = BufferedByteReceiveStream(cast(ByteReceiveStream, process.stdout))
    while True:
        try:
            raw = await stream.receive_until(b"\n", LONGEST_LINE)
        except anyio.IncompleteRead:
            return
        yield msgspec.json.decode(raw)


async def _read(folder: Path, names: Sequence[str]) -> list[Sequence[Record]]:
    """The records of each session."""
    journal = SQLiteJournal(folder / clerk.JOURNAL)
    async with Runtime(journal):
        return [await journal.read(name, codec=RECORDS) for name in names]


def count(logs: Sequence[Sequence[Record]], payments: Sequence[tuple[str, int]], lives: Sequence[Life]) -> Count:
    """What the journal and the books say: the records of each session, the payments, and what each process said it was told."""
    counted = Count(payments=len(payments), paid_twice=len(payments) - len({key for key, _ in payments}))
    ends: Counter[str] = Counter()
    for records in logs:
        _count_log(records, counted, ends)
    told: dict[str, set[str]] = {}
    for life in lives:
        for key, texts in life.answers.items():
            told.setdefault(key, set()).update(texts)
    counted.answered_twice = len({key for key in ends if ends[key] > 1} | {key for key, texts in told.items() if len(texts) > 1})
    accepted: set[str] = set().union(*(life.accepted for life in lives))
    counted.lost = len({key for key in accepted | set(ends) if not ends[key] or key not in told})
    return counted


def _count_log(records: Sequence[Record], counted: Count, ends: Counter[str]) -> None:
    """Take one session into account; `ends` is how often the message of each key came to an end."""
    before = records[0].epoch if records else 0  # the epoch of the process that was killed
    keys: dict[str, str] = {}
    of_turn: dict[str, str] = {}
    early: set[str] = set()
    for record in records:
        match record.body:
            case Accepted(prompt_id=prompt_id, key=str(key)):
                keys[prompt_id] = key
            case Begun(turn_id=turn_id, prompt_ids=(prompt_id, *_), key=key):
                of_turn[turn_id] = keys.setdefault(prompt_id, key or prompt_id)
            case Resumed(in_doubt=calls):
                counted.in_doubt += len(calls)
            case Settled(turn_id=turn_id):
                key = of_turn[turn_id]
                ends[key] += 1
                counted.answered += record.epoch == before
                counted.recovered += record.epoch != before and key in early
            case _:
                pass
        if record.epoch == before:
            early = set(keys.values())
    for key in keys.values():
        ends[key] += 0
    counted.accepted += len(early)

"""The real conversations: `examples/conversations.py` plays and checks them; this finds it, shows its bar and its table, and measures."""

from __future__ import annotations

import importlib
import sys
import textwrap
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import anyio

from ropewalk.actors.terminal.figures import Figures, Life, cpu_seconds, idle_bytes
from ropewalk.actors.terminal.screen import Bar, Screen
from ropewalk.runtime.errors import RopewalkError

__all__ = ["Missing", "find_examples", "load", "show_conversations"]

MOST_SECONDS = 240
SAMPLE = 50
SHOWN_FAULTS = 3


class Missing(RopewalkError):
    """Something the tour plays is not here; the text says what, and the command that gets it."""


class Row(Protocol):
    """A line of the example's report; see `SetResult` there."""

    @property
    def name(self) -> str: ...
    @property
    def conversations(self) -> int: ...
    @property
    def turns(self) -> int: ...
    @property
    def calls(self) -> int: ...
    @property
    def equal(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def p50(self) -> float: ...
    @property
    def p99(self) -> float: ...


def find_examples() -> Path:
    """The folder of the examples: beside the sources where the package runs from a checkout, else in a checkout one stands in.

    Raises `Missing`.
    """
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "examples" / "conversations.py").is_file() and _is_checkout(root):
            return root / "examples"
    raise Missing("The real conversations are played by an example of Ropewalk's repository; run `make run` in a checkout of it to see them.")


def _is_checkout(root: Path) -> bool:
    try:
        described = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(described.get("project", {}).get("name") == "ropewalk")


def load(folder: Path | None, limit: int | None) -> tuple[ModuleType, list[Any]]:
    """The example, and the first `limit` conversations of each of its sets, from where they are installed. Raises `Missing`."""
    example = _import_example(find_examples())
    try:
        conversations = [one for name in example.SETS for one in example.load_conversations(folder or example.FOLDER, [name])[:limit]]
    except example.ConversationsMissing as error:
        raise Missing(f"The real conversations are missing: {error}.") from None
    return example, conversations


def _import_example(folder: Path) -> ModuleType:
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("conversations")
    finally:
        sys.path.remove(str(folder))


async def show_conversations(screen: Screen, example: ModuleType, conversations: Sequence[Any]) -> tuple[Figures, list[str]]:
    """Play them all at once and show the table; returns the figures and what was wrong, if anything."""
    _show_one(screen, conversations[0])
    report: Any = None
    with anyio.fail_after(MOST_SECONDS), screen.bar(None, f"{len(conversations):,} agents are being made, each with its tools") as bar:
        meter = _Meter(bar, len(conversations))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meter.begin)
            report = await example.run_conversations(conversations, on_progress=meter.turn_done)
    total: Row = report.total
    screen.table(("set", "sessions", "turns", "tool calls", "equal", "p50 ms", "p99 ms"), [_cells(row) for row in report.sets], footer=_cells(total))
    screen.say("Equal: every message, and the final state of every tool, is what the same calls made by hand give.")
    problems = _problems(report, sum(len(one.turns) for one in conversations))
    with screen.bar(None, "the bytes of idle sessions are being counted"):
        size = 0.0 if problems else await idle_bytes([_life(example, one) for one in conversations[:: max(1, len(conversations) // SAMPLE)]])
    figures = Figures(sessions=total.conversations, turns=total.turns, seconds=total.seconds, cpu=meter.cpu, p50=total.p50, p99=total.p99, session_bytes=size)
    return figures, problems


def _show_one(screen: Screen, conversation: Any) -> None:
    """How one of them begins, to have an idea of all."""
    turn = conversation.turns[0]
    calls = [f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.input.items())})" for call in turn.calls]
    screen.say(f"The first of {len(conversation.turns)} turns of {conversation.id}:")
    screen.came_out(textwrap.shorten(turn.prompt, 180), textwrap.shorten("calls " + ", ".join(calls), 180))


class _Meter:
    """Moves the bar, and measures the processor time from the first session's start to the last turn's end."""

    def __init__(self, bar: Bar, sessions: int) -> None:
        self.cpu = 0.0
        self._bar = bar
        self._sessions = sessions
        self._began = cpu_seconds()

    async def begin(self) -> None:
        """Runs when the example first waits: its agents are made, its sessions are about to start."""
        self._began = cpu_seconds()

    def turn_done(self, done: int, in_all: int) -> None:
        """Another turn has ended."""
        if done < in_all:
            self._bar.show(done, in_all, f"{self._sessions:,} sessions, {done:,} of {in_all:,} turns")
        else:
            self.cpu = cpu_seconds() - self._began
            self._bar.show(0, None, "the same calls are being made by hand, to compare")


def _life(example: ModuleType, conversation: Any) -> Life:
    _, spec = example.make_agent(conversation)
    return Life(conversation.id, spec, [turn.prompt for turn in conversation.turns])


def _cells(row: Row) -> tuple[str, ...]:
    counts = (row.conversations, row.turns, row.calls, row.equal)
    return (row.name, *(f"{count:,}" for count in counts), f"{row.p50 * 1000:,.0f}", f"{row.p99 * 1000:,.0f}")


def _problems(report: Any, in_all: int) -> list[str]:
    problems = [f"Conversation {fault.conversation_id} came out wrong: {fault.text}" for fault in report.faults[:SHOWN_FAULTS]]
    if len(report.faults) > SHOWN_FAULTS:
        problems.append(f"So did {len(report.faults) - SHOWN_FAULTS:,} more conversations.")
    if not problems and report.total.turns != in_all:
        problems.append(f"Of {in_all:,} turns of the conversations {report.total.turns:,} were played.")
    return problems

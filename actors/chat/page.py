"""Where a chat is shown. A plain page takes text as it comes; a terminal's page draws Markdown and what is going on now.

A turn is shown between `begin` and `end`, by one thread at a time: first by the event loop's, afterwards by the main one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Literal, Protocol, TextIO, TypeAlias

import attrs
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from ropewalk.actors.chat.notes import Mark, Note, note_of, seconds
from ropewalk.actors.events import Event, ModelRetry, ReasoningDelta, ReductionEnded, ReductionStarted, TextDelta, ToolEnded, ToolStarted
from ropewalk.actors.terminal.markdown import Blocks, settled_length
from ropewalk.actors.terminal.printable import printable
from ropewalk.actors.terminal.screen import WIDTH
from ropewalk.runtime.clock import Clock

__all__ = ["Page", "PlainPage", "TerminalPage"]

MARKS: dict[Mark, tuple[str, str]] = {"going": ("·", "dim"), "good": ("✓", "green"), "bad": ("✗", "bold red"), "plain": ("·", "dim")}
SHOWN_SECONDS = 2

Kind: TypeAlias = Literal["answer", "reasoning", "notes", "words"]


class Page(Protocol):
    """What a chat is shown on."""

    moves: bool
    """Whether `draw` is to be called a few times a second during a turn."""

    def begin(self) -> None:
        """A turn begins."""

    def show(self, event: Event) -> None:
        """Something happened in the turn."""

    def draw(self) -> None:
        """Show what has come since the last time."""

    def end(self) -> None:
        """Nothing more comes of the turn: leave it as it is to stay."""

    def note(self, note: Note) -> None:
        """A line about the turn."""

    def say(self, text: str) -> None:
        """Lines of the chat itself, such as what a command found."""

    def space(self) -> None:
        """An empty line."""

    def asked(self, text: str) -> None:
        """What is asked now, by something that does not see what it types."""

    def prompt(self, text: str) -> None:
        """What somebody asked before."""

    def answer(self, text: str, kind: Literal["answer", "reasoning"] = "answer") -> None:
        """What was answered before, whole."""


class PlainPage:
    """Text as it comes, for a pipe and for simple terminals: answers to `out`, what is said about them to `notes`, flushed at once.

    What `asked` is told stands among the notes, and an empty line in `out` between one answer and the next.
    """

    moves = False

    def __init__(self, out: TextIO, notes: TextIO) -> None:
        self._out = _Stream(out)
        self._notes = self._out if out is notes else _Stream(notes)
        self._last: object = None
        self._any_asked = False

    def begin(self) -> None:
        self._last = None

    def show(self, event: Event) -> None:
        if isinstance(event, TextDelta | ReasoningDelta):
            stream = self._out if isinstance(event, TextDelta) else self._notes
            part = (type(event), event.block)
            if part != self._last:
                stream.end_line()
            self._last = part
            stream.write(printable(event.text))
        elif (note := note_of(event)) is not None:
            self.note(note)

    def draw(self) -> None:
        pass

    def end(self) -> None:
        self._out.end_line()
        self._notes.end_line()

    def note(self, note: Note) -> None:
        self._last = None
        self._out.end_line()
        self._notes.end_line()
        self._notes.write(f"{MARKS[note.mark][0]} {note.text}\n")

    def say(self, text: str) -> None:
        self._out.write(f"{printable(text)}\n")

    def space(self) -> None:
        self._out.write("\n")

    def asked(self, text: str) -> None:
        if self._any_asked:
            self.space()
        self._any_asked = True
        self._notes.write(f"> {printable(text)}\n")

    def prompt(self, text: str) -> None:
        self._out.write(f"> {printable(text)}\n")

    def answer(self, text: str, kind: Literal["answer", "reasoning"] = "answer") -> None:
        self._out.write(f"{printable(text)}\n")


@attrs.define
class _Stream:
    """A file that is written to in pieces of lines."""

    file: TextIO
    within_line: bool = False

    def write(self, text: str) -> None:
        if text:
            self.within_line = not text.endswith("\n")
            self.file.write(text)
            self.file.flush()

    def end_line(self) -> None:
        if self.within_line:
            self.write("\n")


@attrs.define
class _Growing:
    """A part of an answer that is being streamed: what of it can still change, as printable text."""

    kind: Literal["answer", "reasoning"]
    block: int
    text: str = ""

    def drawn(self) -> RenderableType:
        return _drawn(self.kind, self.text)


class TerminalPage:
    """A terminal. What has come to stay scrolls as text does; below it stands a small area with what still changes."""

    moves = True

    def __init__(self, console: Console, clock: Clock | None = None) -> None:
        self.console = console
        self._now = (clock or Clock()).stopwatch
        self._growing: _Growing | None = None
        self._going: dict[Hashable, tuple[Note, float]] = {}
        self._last: Kind | None = None
        self._waiting_since: float | None = None
        self._live: Live | None = None
        self._drawn: object = None
        self._hidden = False

    # A turn.

    def begin(self) -> None:
        self._last = "words"
        self._waiting_since = self._now()
        self._drawn = None
        self._live = Live(
            console=self.console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="visible",
            get_renderable=lambda: _Tail(Group(*self._area())),
        )
        self._live.start(refresh=True)

    def show(self, event: Event) -> None:
        if isinstance(event, TextDelta | ReasoningDelta):
            self._grow("answer" if isinstance(event, TextDelta) else "reasoning", event.block, printable(event.text))
            return
        if isinstance(event, ModelRetry) and event.withdrawn is not None:
            self._growing = None
        note, name = note_of(event), _name_of(event)
        if note is not None:
            self._settle()
            if note.mark == "going":
                self._going[name] = (note, self._now())
            else:
                self._going.pop(name, None)
                self.note(note)
            self._waiting_since = self._now()
            self.draw()

    def draw(self) -> None:
        if self._growing is not None and self._growing.kind == "answer":
            whole = settled_length(self._growing.text)
            if whole:
                self._print("answer", _drawn("answer", self._growing.text[:whole]))
                self._growing.text = self._growing.text[whole:]
        state = (self._growing and (self._growing.kind, len(self._growing.text)), tuple(note.text for note in self._moving()), self._last)
        if self._live is not None and state != self._drawn:
            self._live.refresh()
            self._drawn = state

    def end(self) -> None:
        self._settle()
        self._going.clear()
        self._waiting_since = None
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _grow(self, kind: Literal["answer", "reasoning"], block: int, text: str) -> None:
        growing = self._growing
        if growing is None or (growing.kind, growing.block) != (kind, block):
            self._settle()
            growing = self._growing = _Growing(kind, block)
        growing.text += text
        self._waiting_since = None

    def _settle(self) -> None:
        growing, self._growing = self._growing, None
        if growing is not None and growing.text.strip():
            self._print(growing.kind, growing.drawn())

    def _area(self) -> Iterator[RenderableType]:
        """What is drawn below the text that has come to stay."""
        if self._hidden:
            return
        last = self._last
        growing = self._growing
        if growing is not None and growing.text.strip():
            yield from _separated(last, growing.kind)
            yield Constrain(growing.drawn(), WIDTH)
            last = growing.kind
        for note in self._moving():
            yield from _separated(last, "notes")
            yield Constrain(_line(note), WIDTH)
            last = "notes"

    def _moving(self) -> Iterator[Note]:
        """A line for each thing that is going on, or for the wait when nothing is to be seen, with the seconds it has taken."""
        going = list(self._going.values())
        if not going and self._waiting_since is not None:
            going.append((Note("going", "…"), self._waiting_since))
        for note, since in going:
            spent = self._now() - since
            yield attrs.evolve(note, text=f"{note.text} {seconds(spent)}") if spent >= SHOWN_SECONDS else note

    # Lines.

    def note(self, note: Note) -> None:
        self._print("notes", _line(note))

    def say(self, text: str) -> None:
        self._print("words", Text(printable(text)))

    def space(self) -> None:
        self.console.print()
        self._last = None

    def asked(self, text: str) -> None:
        self.prompt(text)

    def prompt(self, text: str) -> None:
        if self._last is not None:
            self.space()
        self._print("words", Text.assemble(("> ", "bold"), printable(text)))

    def answer(self, text: str, kind: Literal["answer", "reasoning"] = "answer") -> None:
        self._print(kind, _drawn(kind, printable(text)))

    def _print(self, kind: Kind, drawn: RenderableType) -> None:
        with self.console:  # in one piece
            if self._live is not None:
                # What is drawn below goes first: printed above it, this would push it up the screen, and it would leave a hole.
                self._hidden = True
                self._live.refresh()
                self._hidden = False
            self.console.print(Group(*_separated(self._last, kind), Constrain(drawn, WIDTH)))
        self._last = kind
        self._drawn = None


class _Tail:
    """As many lines of something, from its end, as a terminal can draw again in place."""

    def __init__(self, drawn: RenderableType) -> None:
        self._drawn = drawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._drawn, options.update(height=None), pad=False)
        for number, line in enumerate(lines[-max(1, console.size.height - 2) :]):
            if number:
                yield Segment.line()
            yield from line


def _drawn(kind: Literal["answer", "reasoning"], text: str) -> RenderableType:
    return Blocks(text) if kind == "answer" else Text(text.strip(), style="dim italic")


def _line(note: Note) -> Text:
    mark, style = MARKS[note.mark]
    return Text.assemble((f"{mark} ", style), (note.text, "" if note.mark == "bad" else "dim"))


def _separated(last: Kind | None, kind: Kind) -> Iterator[RenderableType]:
    """An empty line, where one thing follows another that it should not stick to."""
    if last is not None and (last != kind or kind == "answer"):
        yield Text()


def _name_of(event: Event) -> Hashable:
    """What the start and the end of one thing have in common."""
    if isinstance(event, ToolStarted | ToolEnded):
        return str(event.tool_use["toolUseId"])
    return "reduction" if isinstance(event, ReductionStarted | ReductionEnded) else None

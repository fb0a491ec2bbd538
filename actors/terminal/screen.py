"""Where a command is shown: a terminal, or a pipe, which gets the same lines without colour and without anything that moves."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Container, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.style import Style
from rich.syntax import ANSISyntaxTheme, Syntax
from rich.table import Table
from rich.text import Text

from ropewalk.runtime.clock import Clock

__all__ = ["COLOURS", "WIDTH", "Bar", "Screen", "source_of"]

WIDTH = 100
INDENT = 2
BAR_SECONDS = 0.125

# Only colours of the terminal's own palette, and of those only the ones that can be read on light and on dark alike.
COLOURS = ANSISyntaxTheme(
    {
        ("Keyword",): Style(bold=True),
        ("Literal", "String"): Style(color="green"),
        ("Literal", "Number"): Style(color="magenta"),
        ("Comment",): Style(dim=True),
    }
)


class Screen:
    """Prints to a rich console, at most 100 columns wide. Every method prints whole lines.

    :param patience: seconds without a line after which a pipe is told how far things are, as a terminal is all the time.
    """

    def __init__(self, console: Console | None = None, *, patience: float = 10.0) -> None:
        self.console = console or Console(highlight=False)
        self.console.width = min(self.console.width, WIDTH) if self.console.is_terminal else WIDTH
        self._now = Clock().stopwatch
        self._began = self._now()
        self._printed = self._began
        self._patience = patience
        self._parts = 0

    @property
    def elapsed(self) -> float:
        """Seconds since there was anything to show."""
        return self._now() - self._began

    @contextmanager
    def part(self, title: str, says: str) -> Generator[None]:
        """A part of the tour: its number and title, what is to be seen, and below it the seconds it took."""
        self._parts += 1
        self.heading(f"{self._parts}. {title}")
        self.say(says)
        began = self._now()
        yield
        self.console.print()
        self._lines(f"This part took {self._now() - began:.1f} s.", style="dim")

    def heading(self, title: str) -> None:
        """The title of a part."""
        self.console.print()
        self._print(Text(title, style="bold reverse" if self.console.is_terminal else ""))

    def say(self, text: str, *, style: str = "") -> None:
        """A paragraph, after an empty line."""
        self.console.print()
        self._lines(text, style=style)

    def step(self, title: str, says: str) -> None:
        """The heading of something small within a part."""
        self.console.print()
        lines = textwrap.wrap(f"{title}. {says}", self.console.width - INDENT)
        for number, line in enumerate(lines):
            text = Text(" " * INDENT + line)
            if number == 0:
                text.stylize("bold", INDENT, INDENT + len(title) + 1)
            self._print(text)

    def code(self, *sources: str) -> None:
        """Python source, in colour where there is any."""
        syntax = Syntax("", "python", theme=COLOURS)
        for line in syntax.highlight("\n".join(sources).strip("\n")).split("\n"):
            self._print(Text.assemble(" " * INDENT, ("│ ", "dim"), line))

    def came_out(self, *lines: str) -> None:
        """What the code above gave."""
        for line in lines:
            for number, piece in enumerate(textwrap.wrap(line, self.console.width - INDENT - 2, subsequent_indent="  ") or [""]):
                self._print(Text.assemble(" " * INDENT, ("→ " if number == 0 else "  ", "bold green"), piece))

    @contextmanager
    def streamed(self) -> Generator[Callable[[str], None]]:
        """What comes in pieces, shown as it comes, in whole words; the block is given what takes a piece."""
        words = _Words(self._bare, self.console.width - INDENT - 2)
        self._bare(Text.assemble(" " * INDENT, ("→ ", "bold green")))
        try:
            yield words.take
        finally:
            words.finish()

    def _bare(self, text: Text) -> None:
        self.console.print(text, end="", soft_wrap=True)
        self._printed = self._now()

    def took(self, seconds: float) -> None:
        """How long something small within a part took."""
        self._print(Text(f"{' ' * INDENT}  {seconds:.1f} s", style="dim"))

    def good(self, text: str) -> None:
        """Something that was checked and is as it should be."""
        self._marked("✓", "bold green", text)

    def bad(self, text: str) -> None:
        """Something that is missing or wrong."""
        self._marked("✗", "bold red", text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, footer: Sequence[str] | None = None, right: Container[int] | None = None) -> None:
        """A table: the first column to the left and the others, or those of the numbers in `right`, to the right."""
        right = range(1, len(columns)) if right is None else right
        table = Table(box=SIMPLE, show_footer=footer is not None, padding=(0, 1, 0, 0), header_style="bold", footer_style="bold")
        for place, column in enumerate(columns):
            table.add_column(column, footer[place] if footer else "", justify="right" if place in right else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(Padding(table, (0, 0, 0, INDENT - 1), expand=False))

    @contextmanager
    def bar(self, total: int | None, says: str) -> Generator[Bar]:
        """A live bar while the block runs, gone after it; in a pipe a line now and then. `total` is None while nobody knows how long it will take."""
        if not self.console.is_terminal:
            self._say_where(says)
            yield Bar(None, None, self._say_where, self._patience)
            return
        columns = (TextColumn(" " * (INDENT - 1)), BarColumn(bar_width=30), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, refresh_per_second=8) as progress:
            yield Bar(progress, progress.add_task(says, total=total), self._say_where, BAR_SECONDS)

    def _say_where(self, says: str) -> None:
        """How far things are, where nothing was printed for so long that somebody might think that nothing happens."""
        if self._now() - self._printed >= self._patience:
            self._print(Text(f"{' ' * INDENT}… {says}", style="dim"))

    def _marked(self, mark: str, style: str, text: str) -> None:
        self.console.print()
        for number, line in enumerate(textwrap.wrap(text, self.console.width - INDENT - 2)):
            self._print(Text.assemble(" " * INDENT, (f"{mark} " if number == 0 else "  ", style), line))

    def _lines(self, text: str, *, style: str = "") -> None:
        for paragraph in text.splitlines():
            for line in textwrap.wrap(paragraph, self.console.width - INDENT, subsequent_indent=" " * (len(paragraph) - len(paragraph.lstrip()))):
                self._print(Text(" " * INDENT + line, style=style))

    def _print(self, text: Text) -> None:
        # A terminal that is too narrow breaks a line better than we could: what is copied from it is still one line.
        self.console.print(text, soft_wrap=True)
        self._printed = self._now()


class _Words:
    """Breaks text into lines that comes in pieces, wherever the pieces end."""

    def __init__(self, show: Callable[[Text], None], width: int) -> None:
        self._show = show
        self._width = width
        self._column = 0
        self._word = ""

    def take(self, piece: str) -> None:
        """Show what is complete of it."""
        for letter in piece:
            if letter.isspace():
                self._end_word()
            else:
                self._word += letter

    def finish(self) -> None:
        """Show the rest, and end the line."""
        self._end_word()
        self._show(Text("\n"))

    def _end_word(self) -> None:
        if not self._word:
            return
        if self._column and self._column + 1 + len(self._word) > self._width:
            self._show(Text("\n" + " " * (INDENT + 2)))
            self._column = 0
        shown = f"{' ' if self._column else ''}{self._word}"
        self._show(Text(shown))
        self._column += len(shown)
        self._word = ""


class Bar:
    """How far things are: a live bar in a terminal, a line now and then in a pipe. `pace` is the seconds between two looks that are worth it."""

    def __init__(self, progress: Progress | None, task: Any, say: Callable[[str], None], pace: float) -> None:
        self.pace = pace
        self._progress = progress
        self._task = task
        self._say = say

    def show(self, completed: int, total: int | None, says: str) -> None:
        """The bar at so many of `total`, with these words."""
        if self._progress is None:
            self._say(says)
        else:
            self._progress.update(self._task, completed=completed, total=total, description=says)


def source_of(function: Any, *, whole: bool = False) -> str:
    """The lines of a function's body as they stand in its file, without its docstring; `whole` gives all of it, or of a class."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    if whole:
        return "\n".join(lines)
    definition: Any = ast.parse("\n".join(lines)).body[0]
    body = definition.body[1:] if ast.get_docstring(definition) is not None else definition.body
    first = min(node.lineno for node in (body[0], *getattr(body[0], "decorator_list", ())))
    return textwrap.dedent("\n".join(lines[first - 1 :]))

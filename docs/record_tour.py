"""Make the picture of the tour, its text in README.md, and the table in docs/models.md, from a real run: ``.venv/bin/python docs/record_tour.py``.

Needs the embedded model and takes about a minute. What stands in the documents between two lines that name a record is replaced.
"""

from __future__ import annotations

import io
import math
import re
import sys
from pathlib import Path

import anyio
from rich.console import Console
from rich.text import Text

from ropewalk.actors.terminal.screen import WIDTH, Screen
from ropewalk.actors.tool_check import CheckOptions, run_check
from ropewalk.actors.tour.embedded import SAYS, TITLE, show_embedded

DOCS = Path(__file__).resolve().parent
README, MODELS, PICTURE = DOCS.parent / "README.md", DOCS / "models.md", DOCS / "tour.svg"
LEFT_OUT = ("  Which tool.", "  An overflow.")
"""The step from one heading to the other is a long table, which docs/models.md has."""
FETCHED = re.compile(r"\s*@font-face \{.*?\}|\s*<!--.*?-->", re.DOTALL)
"""Fonts of a server elsewhere, and a comment with an address."""
TEXT = re.compile(r'<text class="([\w-]+)" x="([\d.]+)" y="([\d.]+)" textLength="([\d.]+)" clip-path="([^"]+)">([^<]*)</text>')
BLANK, COLUMN = "&#160;", 12.2
MONOSPACE = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def recorder() -> Console:
    """A console that shows nothing and remembers all."""
    return Console(record=True, file=io.StringIO(), width=WIDTH, highlight=False)


def tour_lines() -> list[str]:
    """The part of the tour with the embedded model, with its colours. Exits when something in it was not right."""
    console = recorder()
    screen = Screen(console, patience=math.inf)
    with screen.part(TITLE, SAYS):
        problems = anyio.run(show_embedded, screen)
    if problems:
        sys.exit("\n".join(problems))
    lines = console.export_text(styles=True).rstrip().splitlines()
    plain = [Text.from_ansi(line).plain for line in lines]
    first, last = (next(number for number, line in enumerate(plain) if line.startswith(heading)) for heading in LEFT_OUT)
    return [*lines[:first], "  [...]", "", *lines[last:]]


def picture(lines: list[str]) -> str:
    """The lines as SVG that fetches nothing."""
    console = recorder()
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=True)
    drawn = FETCHED.sub("", console.export_svg(title="make run", unique_id="tour"))
    drawn = drawn.replace("font-family: Fira Code, monospace;", f"font-family: {MONOSPACE};")
    drawn = TEXT.sub(_without_blanks, drawn)
    return "".join(f"{line.rstrip()}\n" for line in drawn.strip().splitlines())


def _without_blanks(text: re.Match[str]) -> str:
    """A piece of text that begins where its first letter is: some viewers leave out blanks at its ends."""
    style, x, y, length, clip, said = text.groups()
    begun = said.strip("\n")
    left = 0
    while begun.startswith(BLANK):
        begun, left = begun.removeprefix(BLANK), left + 1
    right = 0
    while begun.endswith(BLANK):
        begun, right = begun.removesuffix(BLANK), right + 1
    if not begun:
        return ""
    place, width = float(x) + left * COLUMN, float(length) - (left + right) * COLUMN
    return f'<text class="{style}" x="{place:g}" y="{y}" textLength="{width:g}" clip-path="{clip}">{begun}</text>'


def table() -> str:
    """What ``ropewalk models check`` shows."""
    console = recorder()
    problems = run_check(CheckOptions(model="local", may_miss=1), Screen(console, patience=math.inf))
    if problems:
        sys.exit("\n".join(problems))
    return console.export_text()


def put(page: Path, name: str, text: str) -> None:
    """Replace a record in a page."""
    begin, end = f"<!-- record: {name} -->\n", f"<!-- end of record: {name} -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    lines = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
    page.write_text(f"{before}{begin}\n```text\n{lines}\n```\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Make all three."""
    lines = tour_lines()
    PICTURE.write_text(picture(lines), encoding="utf-8")
    put(README, "tour", "\n".join(Text.from_ansi(line).plain for line in lines))
    put(MODELS, "check", table())


if __name__ == "__main__":
    main()

"""An answer's Markdown on a terminal, drawn as it is streamed.

What is drawn once stays: blocks that no later text can change are printed above a small area that is drawn again and again,
which holds the block that still grows. So an answer of any length costs the screen one block, and scrolls as text does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, HorizontalRule, Markdown
from rich.padding import Padding
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

from ropewalk.actors.terminal.printable import printable
from ropewalk.actors.terminal.screen import COLOURS

__all__ = ["Blocks", "settled_length"]

# Tags are shown as they are written: a model that writes about HTML, or of List<int>, means the letters.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def settled_length(text: str) -> int:
    """How many characters at the start of a growing printable Markdown text are blocks that stay as they are.

    All of them but the last end where another begins; of a line without its end nobody knows yet what it will be.
    """
    whole = text[: text.rfind("\n") + 1]
    begins = [token.map[0] for token in _PARSER.parse(whole) if token.level == 0 and token.nesting >= 0 and token.map is not None]
    return sum(len(line) + 1 for line in whole.split("\n")[: begins[-1]]) if begins else 0


class Blocks:
    """Markdown as rich draws it, but with one empty line between blocks, and nothing lost or hidden: addresses and tags are shown.

    Blocks that are drawn one after the other look as they do when they are drawn together.
    """

    def __init__(self, markup: str) -> None:
        self._blocks = list(_top_level(_PARSER.parse(printable(markup))))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        options = options.update(height=None)
        for number, tokens in enumerate(self._blocks):
            if number:
                yield Segment.line()
            lines = [_stripped(line) for line in console.render_lines(_Block(tokens), options, pad=False)]
            drawn = [place for place, line in enumerate(lines) if line]
            for line in lines[drawn[0] : drawn[-1] + 1] if drawn else []:
                yield from line
                yield Segment.line()


def _stripped(line: list[Segment]) -> list[Segment]:
    """The line without blanks at its end, so that what is copied from the screen has none."""
    for place in range(len(line) - 1, -1, -1):
        text, style, control = line[place]
        if text.rstrip():
            return [*line[:place], Segment(text.rstrip(), style, control)]
    return []


def _top_level(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """The tokens of each block that stands in no other."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar[dict[str, Any]] = {}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.stylize("bold underline" if self.tag == "h1" else "bold")
        yield self.text


class _Code(CodeBlock):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The terminal's own ground and palette: what is bright on dark is not lost on light.
        yield Padding(Syntax(str(self.text).rstrip(), self.lexer_name, theme=COLOURS, word_wrap=True), (0, 0, 0, 2))


class _Rule(HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("─" * min(options.max_width, 20), style="dim")


class _Block(Markdown):
    elements: ClassVar[dict[str, Any]] = {**Markdown.elements, "heading_open": _Heading, "fence": _Code, "code_block": _Code, "hr": _Rule}

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = tokens

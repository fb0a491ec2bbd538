"""An answer's Markdown on a terminal, drawn as it is streamed.

What is drawn once stays: blocks that no later text can change are printed above a small area that is drawn again and again,
which holds the block that still grows. So an answer of any length costs the screen one block, and scrolls as text does.
"""

from __future__ import annotations

from typing import Any, ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown
from rich.padding import Padding
from rich.syntax import Syntax

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


class Blocks(Markdown):
    """Markdown as rich draws it, but for headings in the middle, code on a ground of its own, hidden addresses and lost HTML."""

    elements: ClassVar[dict[str, Any]] = {}

    def __init__(self, markup: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = markup
        self.parsed = _PARSER.parse(printable(markup))


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar[dict[str, Any]] = {}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.stylize("bold underline" if self.tag == "h1" else "bold")
        yield self.text


class _Code(CodeBlock):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Padding(Syntax(str(self.text).rstrip(), self.lexer_name, theme=COLOURS, word_wrap=True), (0, 0, 0, 2))


Blocks.elements = {**Markdown.elements, "heading_open": _Heading, "fence": _Code, "code_block": _Code}

"""Where a chat's prompts come from: a person at a terminal, with line editing and history, or the lines of a pipe."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper

__all__ = ["Reader"]

PROMPT = "> "


class Reader:
    """Reads a prompt at a time.

    :param commands: what Tab completes at the start of a line.
    :param styled: whether the mark before a prompt may be drawn bold.
    """

    def __init__(self, commands: Sequence[str] = (), *, styled: bool = False) -> None:
        self.interactive = sys.stdin.isatty()
        """Whether a person types."""
        self.edits = self.interactive and sys.stdout.isatty()
        """Whether they do so where the answers are shown; otherwise the mark before a prompt goes to standard error."""
        self._prompt = f"\001\x1b[1m\002{PROMPT}\001\x1b[0m\002" if styled else PROMPT
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        if self.edits:
            _prepare_editing(commands)

    def read(self) -> str | None:
        """The next prompt without its line's end, None when there are no more. Raises `KeyboardInterrupt` on Ctrl-C."""
        if self.edits:
            try:
                return input(self._prompt)
            except EOFError:
                self._say("\n")
                return None
        if self.interactive:
            self._say(PROMPT)
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None

    def interrupted(self) -> bool:
        """After Ctrl-C: whether it threw away a line that somebody had begun."""
        self._say("\n")
        if not self.edits:
            return False
        import readline

        return bool(readline.get_line_buffer())

    def _say(self, text: str) -> None:
        stream = sys.stdout if self.edits else sys.stderr
        stream.write(text)
        stream.flush()

    @contextmanager
    def silent(self) -> Generator[None]:
        """What is typed meanwhile is kept for the next prompt and not shown amid the answer."""
        if not self.interactive:
            yield
            return
        import termios

        before = termios.tcgetattr(sys.stdin)
        during = [*before]
        during[3] &= ~termios.ECHO
        termios.tcsetattr(sys.stdin, termios.TCSANOW, during)
        try:
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _prepare_editing(commands: Sequence[str]) -> None:
    import readline

    def complete(text: str, state: int) -> str | None:
        found = [name for name in commands if name.startswith(text)] if text.startswith("/") else []
        return found[state] if state < len(found) else None

    readline.set_completer_delims(" \t\n")
    readline.set_completer(complete)
    if getattr(readline, "backend", "") == "editline" or "libedit" in (readline.__doc__ or ""):
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")  # several lines that are pasted are one prompt

"""A terminal for the command line's tests: a pseudo-terminal with a program in it, and the screen that a program's output makes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from types import TracebackType
from typing import Self

SECONDS = 30.0
"""How long to wait for something that should come at once, on a machine with much else to do."""

CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b[=>]")
HALF = re.compile(r"\x1b[^A-Za-z\x07]*$")
IN_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


class PseudoTerminal:
    """``python ARGUMENTS`` at a terminal, as its foreground job: what is typed reaches it, Ctrl-C as a signal."""

    def __init__(self, *arguments: str, env: dict[str, str], rows: int = 40, columns: int = 100) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        command = [sys.executable, "-c", IN_TERMINAL, *arguments]
        self._process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True, close_fds=True)
        os.close(slave)
        self.raw = ""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        """Type it, Enter and Ctrl-C included where the text has them."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> str:
        """Read until the text has come since the last call; returns what came, without control sequences. Fails when it does not come."""
        deadline = time.monotonic() + SECONDS
        while (place := self._new.find(text)) < 0:
            assert self._read(deadline), f"{text!r} did not come, but:\n{self._new}"
        came = self._new[: place + len(text)]
        self._seen += len(came)
        return came

    def wait_for_end(self) -> int:
        """Read to the end; returns the program's exit status."""
        deadline = time.monotonic() + SECONDS
        while self._read(deadline):
            pass
        return self._process.wait(max(0.1, deadline - time.monotonic()))

    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    @property
    def _new(self) -> str:
        return HALF.sub("", CONTROL.sub("", self.raw)).replace("\r", "")[self._seen :]

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # what Linux says when the other side is closed
            data = b""
        self.raw += data.decode("utf-8", "replace")
        return bool(data)


def screen_after(output: str, rows: int) -> list[str]:
    """The lines that a terminal with so many rows shows and has scrolled away, after a program's output."""
    lines, row, column = [""], 0, 0
    place = 0
    while place < len(output):
        found = CONTROL.match(output, place)
        if found is not None:
            place = found.end()
            number = int(found[1] or "1") if (found[1] or "1").isdecimal() else 0
            if found[2] == "A":
                row = max(max(0, len(lines) - rows), row - number)
            elif found[2] == "K":
                lines[row] = "" if number == 2 else lines[row][:column]
            continue
        letter = output[place]
        place += 1
        if letter == "\r":
            column = 0
        elif letter == "\n":
            row, column = row + 1, 0  # as a terminal's line discipline has it
            if row == len(lines):
                lines.append("")
        else:
            lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]

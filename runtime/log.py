"""The log: what whoever runs a program should hear of.

Structlog is imported at the first word, not before: with the pretty tracebacks it looks for it takes as long to import as
all of Ropewalk, and most programs end without a word.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

__all__ = ["log"]

FRAMES = 50
"""How many frames of an error's traceback are told: the last ones. An error that is raised again and again gains some each time."""


class Log:
    """Says events by name, with fields, through structlog as the program configured it, or else to standard error.

    The traceback of an error is a field `stack`, made here. Given as `exc_info` it would be the renderer's to make, and the one
    that structlog has by default shows every variable of every frame: it takes seconds, in which no session of the process goes
    on, and it shows what users said.
    """

    __slots__ = ()

    def warning(self, event: str, *, traceback_of: BaseException | None = None, **fields: Any) -> None:
        """Something was off and was dealt with."""
        _logger().warning(event, **fields, **_stack(traceback_of))

    def error(self, event: str, *, traceback_of: BaseException | None = None, **fields: Any) -> None:
        """Something failed, and somebody should look."""
        _logger().error(event, **fields, **_stack(traceback_of))


log = Log()


def _stack(error: BaseException | None) -> dict[str, str]:
    return {} if error is None else {"stack": "".join(traceback.format_exception(error, limit=-FRAMES)).rstrip()}


def _logger() -> Any:
    import structlog

    return structlog.get_logger("ropewalk") if structlog.is_configured() or sys.stderr is None else _plain(structlog)


def _plain(structlog: Any) -> Any:
    """A logger for a program that has no wishes: by itself structlog prints to standard output, among what the program says."""
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=False),
        ],
    )

"""The log: what whoever runs a program should hear of.

Structlog is imported at the first word, not before: with the pretty tracebacks it looks for it takes as long to import as
all of Ropewalk, and most programs end without a word.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["log"]


class Log:
    """Says events by name, with fields, through structlog as the program configured it, or else to standard error."""

    __slots__ = ()

    def warning(self, event: str, **fields: Any) -> None:
        """Something was off and was dealt with."""
        _logger().warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something failed, and somebody should look."""
        _logger().error(event, **fields)


log = Log()


def _logger() -> Any:
    import structlog

    return structlog.get_logger("ropewalk") if structlog.is_configured() or sys.stderr is None else _plain(structlog)


def _plain(structlog: Any) -> Any:
    """A logger for a program that has no wishes.

    By itself structlog prints to standard output, among what the program says, and shows the values of all variables beside
    a traceback.
    """
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
    )

"""The log: what whoever runs a program should hear of.

Structlog is imported at the first word, not before: with the pretty tracebacks it looks for it takes as long to import as
all of Ropewalk, and most programs end without a word.
"""

from __future__ import annotations

from typing import Any

__all__ = ["log"]


class Log:
    """Says events by name, with fields, through the logger that the program configured for ``"ropewalk"``."""

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

    return structlog.get_logger("ropewalk")

"""How a command says that what was asked for cannot be done."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import click

__all__ = ["usage_errors"]


class _Unusable(click.ClickException):
    exit_code = 2


@contextmanager
def usage_errors() -> Generator[None]:
    """What was asked for cannot be done as it was asked: a sentence and status 2."""
    from ropewalk import RopewalkError

    try:
        yield
    except RopewalkError as error:
        raise _Unusable(str(error)) from error

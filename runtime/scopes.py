"""Cancel scopes around somebody else's code, which may enter scopes of its own and never leave them.

A task's scopes are a stack. One that is left standing on it makes every exit below fail, and with a deadline it goes on to
cancel whatever the task does next, on behalf of code that is long gone. A `guarded` scope takes those off that were left
within it, and says so.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

import anyio

from ropewalk.runtime.log import log
from ropewalk.runtime.supervision import Failure, contain

__all__ = ["CancelScopeLeft", "guarded"]


class CancelScopeLeft(Exception):
    """Somebody else's code entered a cancel scope and never left it."""


class guarded:  # noqa: N801 - a context manager, named as those of the standard library are
    """``with guarded(scope): ...`` enters and leaves a scope, and first leaves whatever was entered in between and is still standing.

    Raises `CancelScopeLeft` then, in place of what came out of the block, unless that is a cancellation from further out.
    """

    __slots__ = ("_scope",)

    def __init__(self, scope: Any = None) -> None:
        self._scope: Any = anyio.CancelScope() if scope is None else scope

    def __enter__(self) -> Any:
        return self._scope.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        try:
            return bool(self._scope.__exit__(kind, error, trace))
        except RuntimeError as left:
            log.warning("cancel_scope_left")
            if isinstance(contain(asyncio.current_task), asyncio.Task):  # trio has taken the others off by itself
                caught = _leave_inner(self._scope, kind, error, trace)
                if isinstance(error, asyncio.CancelledError) and not caught:
                    return False
            raise CancelScopeLeft("a cancel scope was entered and never left; use `with`") from left


def _leave_inner(scope: Any, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
    """Leave the scopes of this task that stand above this one, then this one; whether one of them took the error for its own."""
    caught = False
    while isinstance(left := contain(scope.__exit__, *((None, None, None) if caught else (kind, error, trace))), Failure):
        inner = _innermost()
        if inner is None or inner is scope:
            raise left.error
        taken = contain(inner.__exit__, *((None, None, None) if caught else (kind, error, trace)))
        if isinstance(taken, Failure):
            raise left.error
        caught = caught or bool(taken)
    return caught or bool(left)


def _innermost() -> Any:
    """The scope that the running asyncio task stands in, None where that cannot be told.

    anyio keeps that to itself, but a scope that is entered notes which one it stands in. Looking for it among all objects
    would do too, and would hold every session up for as long as that takes in a large process.
    """
    probe: Any = anyio.CancelScope()
    probe.__enter__()
    try:
        return getattr(probe, "_parent_scope", None)
    finally:
        probe.__exit__(None, None, None)

"""Cancel scopes around somebody else's code, which may enter scopes of its own and never leave them.

A task's scopes are a stack. One that is left standing on it makes every exit below fail, and with a deadline it goes on to
cancel whatever the task does next, on behalf of code that is long gone. A `guarded` scope takes those off that were left
within it, and says so.
"""

from __future__ import annotations

import asyncio
import gc
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
    """Leave the scopes of this task that stand above this one, then this one; whether one of them took the error for its own.

    Nobody keeps a list of them, but every scope knows when it may be left: only the innermost of the running task may.
    """
    standing = [found for found in gc.get_objects() if type(found) is type(scope) and found is not scope]
    caught = False
    while isinstance(left := contain(scope.__exit__, *((None, None, None) if caught else (kind, error, trace))), Failure):
        for other in standing:
            inner = contain(other.__exit__, *((None, None, None) if caught else (kind, error, trace)))
            if not isinstance(inner, Failure):
                caught = caught or bool(inner)
                break
        else:
            raise left.error
    return caught or bool(left)

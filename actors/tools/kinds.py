"""What kind of function stands behind a callable, however it is wrapped."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from ropewalk.actors.errors import InvalidTool

__all__ = ["Kind", "kind_of", "underlying"]

Kind: TypeAlias = Literal["sync", "async", "generator"]


def underlying(function: Callable[..., Any]) -> Any:
    """The plain function that carries the docstring, the module and the code: without partials, objects and wrappers."""
    return inspect.unwrap(_called(function))


def kind_of(name: str, function: Callable[..., Any]) -> Kind:
    """How a tool's callable is to be run. Raises `InvalidTool` for a sync generator, which nobody would iterate.

    A sync callable that returns an awaitable or an async iterator counts as sync here; what it returns is followed.
    """
    # Not `underlying`: a sync wrapper around an async function is itself sync, and awaiting what it returns comes later.
    called = _called(function)
    if inspect.isasyncgenfunction(called):
        return "generator"
    if inspect.iscoroutinefunction(called):
        return "async"
    if inspect.isgeneratorfunction(called):
        raise InvalidTool(f"tool {name!r}: a sync generator cannot be a tool; write `async def` to report progress, or return the whole result")
    return "sync"


def _called(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__

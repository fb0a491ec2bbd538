"""Several callback handlers as one."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from ropewalk.runtime.errors import InvalidHandler
from ropewalk.runtime.supervision import Failure, attempt, contain

__all__ = ["CompositeCallbackHandler"]


class CompositeCallbackHandler:
    """Calls each of its handlers with every event, in the order they were given, sync and async ones alike.

    A handler that raises keeps the event from none of the others; the first error is raised once all have had it. Raises
    `InvalidHandler` for what cannot be called.
    """

    def __init__(self, *handlers: Callable[..., Any]) -> None:
        for handler in handlers:
            if not callable(handler):
                raise InvalidHandler(
                    f"a callback handler is called with keywords; {handler!r:.200} is not callable, give a function or an object with __call__"
                )
        self.handlers = handlers

    def __call__(self, **event: Any) -> Awaitable[None] | None:
        """Hand one callback event on; what comes back, if anything, is to be awaited."""
        return self._go_on(iter(self.handlers), event, None)

    def _go_on(self, handlers: Iterator[Callable[..., Any]], event: dict[str, Any], failure: Failure | None) -> Awaitable[None] | None:
        for handler in handlers:
            result = contain(_call, handler, event)
            if isinstance(result, Failure):
                failure = failure or result
            elif inspect.isawaitable(result):
                return self._wait(result, handlers, event, failure)
        if failure is not None:
            raise failure.error
        return None

    async def _wait(self, result: Awaitable[Any], handlers: Iterator[Callable[..., Any]], event: dict[str, Any], failure: Failure | None) -> None:
        outcome = await attempt(result)
        rest = self._go_on(handlers, event, failure or (outcome if isinstance(outcome, Failure) else None))
        if rest is not None:
            await rest


def _call(handler: Callable[..., Any], event: dict[str, Any]) -> Any:
    return handler(**event)

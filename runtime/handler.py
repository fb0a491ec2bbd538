"""Handlers: callbacks called in line with each event they want, contained, timed, and reported when they fail."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias

import anyio

from ropewalk.runtime.errors import InvalidHandler, InvalidOption, RopewalkError
from ropewalk.runtime.event import Event
from ropewalk.runtime.log import log
from ropewalk.runtime.scopes import CancelScopeLeft, guarded
from ropewalk.runtime.seconds import is_seconds
from ropewalk.runtime.supervision import Exited, Failure, attempt_foreign, contained, in_words, stepwise

__all__ = ["Handler", "HandlerFault", "OnError", "exit_in"]

OnError: TypeAlias = Literal["report", "fail_turn"]
BLOCKING_SECONDS = 0.1


class HandlerFault(RopewalkError):
    """A handler added with ``on_error="fail_turn"`` failed, or any asked for an exit; the turn it was called in ends failed with this as its cause."""


def exit_in(error: BaseException | None) -> SystemExit | None:
    """The exit that code of a turn asked for, when an error came of that; None when it did not."""
    while isinstance(error, HandlerFault):
        error = error.__cause__
    return error.exit if isinstance(error, Exited) else None


class Handler:
    """A callback called in line with each event it wants. Made by `Channel.add_handler`; `remove` ends it."""

    __slots__ = ("_failures", "_logged", "_remove", "_stopwatch", "callback", "kinds", "name", "offer", "on_error", "timeout")

    def __init__(
        self,
        callback: Callable[[Any], Any],
        kinds: frozenset[type[Event]] | None,
        on_error: OnError,
        timeout: float | None,
        remove: Callable[[Handler], None],
        stopwatch: Callable[[], float],
    ) -> None:
        if not callable(callback):
            raise InvalidHandler(f"a handler is called with each event; {callback!r} is not callable, give a function or an object with __call__")
        if on_error not in ("report", "fail_turn"):
            raise InvalidOption(f"on_error is 'report' or 'fail_turn', not {on_error!r}")
        if timeout is not None and not (is_seconds(timeout) and timeout > 0):
            raise InvalidOption(f"a handler's timeout is a number of seconds above 0, or None, not {timeout!r:.100}")
        self.callback = callback
        self.kinds = kinds
        self.on_error: OnError = on_error
        self.timeout = timeout
        self.name = getattr(callback, "__qualname__", None) or type(callback).__qualname__
        self._remove = remove
        self._stopwatch = stopwatch
        self._failures = 0
        self._logged = 0  # how many of them the log has been told of, together
        # Calls the callback; what it returns or raises (as a `Failure`) is for the publisher to deal with.
        self.offer: Any = contained(callback, stopwatch, BLOCKING_SECONDS, self._overran)

    def remove(self) -> None:
        """Call it no more, not even with an event that is on its way; removing twice does nothing."""
        self.offer = _nothing
        self._remove(self)
        self.sum_up()

    def wants(self, kind: type[Event]) -> bool:
        """Whether events of this kind go to the callback."""
        return kind.numbered if self.kinds is None else kind in self.kinds

    async def settle(self, session_id: str, result: Awaitable[Any]) -> Failure | None:
        """Await what the callback returned, for `timeout` seconds at most."""
        coroutine = result if inspect.iscoroutine(result) else _awaited(result)
        watched = stepwise(functools.partial(self._step, session_id), coroutine)
        outcome: Any = Failure(TimeoutError(f"handler {self.name} took longer than {self.timeout} s"))
        try:
            if self.timeout is None:
                outcome = await attempt_foreign(watched)
            else:
                with guarded(anyio.move_on_after(self.timeout)):
                    outcome = await attempt_foreign(watched)
        except CancelScopeLeft as left:
            outcome = Failure(left)
        except SystemExit as left:
            outcome = Failure(Exited(left))
        return outcome if isinstance(outcome, Failure) else None

    def failed(self, event: Event, failure: Failure) -> None:
        """Log that the callback failed on an event: the first time with all there is to say, then at each power of ten.

        A handler that fails is likely to fail on each of the thousands of deltas of a turn.
        """
        self._failures += 1
        said: dict[str, Any] = {"handler": self.name, "session_id": event.session_id, "event_kind": type(event).__name__, "error": in_words(failure.error)}
        if self._failures == 1:
            log.warning("handler_failed", **said, traceback_of=failure.error)
        elif _is_power_of_ten(self._failures):
            log.warning("handler_failed_again", **said, failures=self._failures)
        else:
            return
        self._logged = self._failures

    def sum_up(self) -> None:
        """Log how often the callback failed, where the log has not been told yet."""
        if self._failures > self._logged:
            self._logged = self._failures
            log.warning("handler_failed_in_all", handler=self.name, failures=self._failures)

    def _step(self, session_id: str, step: Callable[[Any], Any], argument: Any) -> Any:
        started = self._stopwatch()
        try:
            return step(argument)
        finally:
            if (took := self._stopwatch() - started) > BLOCKING_SECONDS:
                self._warn(session_id, took)

    def _overran(self, event: Event, seconds: float) -> None:
        self._warn(event.session_id, seconds)

    def _warn(self, session_id: str, seconds: float) -> None:
        log.warning("handler_blocked_the_loop", handler=self.name, session_id=session_id, seconds=round(seconds, 3))


def _is_power_of_ten(number: int) -> bool:
    return str(number).strip("0") == "1"


def _nothing(event: Event) -> None:
    """What a handler that was removed does."""


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable

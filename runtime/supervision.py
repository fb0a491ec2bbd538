"""Supervision: what fails becomes a value here, and a policy decides what follows.

`contain` and `attempt` are the one place where somebody else's exception is caught; nothing else in Ropewalk catches
`Exception`. Cancellation and exits are not exceptions of that kind and always pass through. `supervise` builds a step with
a deadline and a retry budget on them, `RestartLedger` counts how often an actor may fail (after OTP's restart intensity).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import attrs

from ropewalk.runtime.errors import InvalidOption

__all__ = ["Backoff", "Failure", "RestartLedger", "RestartPolicy", "StepTimeout", "attempt", "contain", "supervise", "unwrap"]

T = TypeVar("T")


@attrs.frozen
class Failure:
    """What a contained call raised."""

    error: Exception


class StepTimeout(Exception):
    """A supervised step did not end within its deadline."""


def unwrap(error: Exception) -> Exception:
    """The only leaf of an exception group, however deep; the group itself when it has several."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def contain(call: Callable[..., T], *arguments: Any) -> T | Failure:
    """Call a plain function; what it raises comes back as a `Failure`. Cancellation and exits pass through."""
    try:
        return call(*arguments)
    except Exception as error:
        return Failure(unwrap(error))


async def attempt(awaitable: Awaitable[T]) -> T | Failure:
    """Await somebody else's work; what it raises comes back as a `Failure`. Cancellation and exits pass through."""
    try:
        return await awaitable
    except Exception as error:
        return Failure(unwrap(error))


def _positive(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not value > 0:
        raise InvalidOption(f"{type(instance).__name__}.{attribute.name} is a number above 0, not {value!r}")


def _not_negative(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not value >= 0:
        raise InvalidOption(f"{type(instance).__name__}.{attribute.name} is 0 or more, not {value!r}")


@attrs.frozen
class Backoff:
    """Waits that grow: the n-th (from 1) is ``min(longest, first * factor ** (n - 1))`` seconds, less up to `jitter` of it.

    `jitter` is a share between 0 and 1; the draw comes from the runtime's seeded randomness.
    """

    first: float = attrs.field(default=0.2, validator=_positive)
    factor: float = attrs.field(default=2.0, validator=_positive)
    longest: float = attrs.field(default=30.0, validator=_positive)
    jitter: float = attrs.field(default=0.2, validator=_not_negative)

    def delay(self, attempt: int, draw: float) -> float:
        """Seconds to wait before the `attempt`-th retry; `draw` is a random number in [0, 1)."""
        # The exponent is capped because factor ** attempt overflows long before anybody has retried so often.
        grown = self.first * self.factor ** min(attempt - 1, 60)
        return min(self.longest, grown) * (1 - self.jitter * draw)


@attrs.frozen
class RestartPolicy:
    """How often an actor may fail: more than `max_restarts` within `within` seconds quarantines it; between restarts it waits for `backoff`."""

    max_restarts: int = attrs.field(default=5, validator=_not_negative)
    within: float = attrs.field(default=30.0, validator=_positive)
    backoff: Backoff = Backoff()


@attrs.frozen
class RestartLedger:
    """The failures of one actor that still count, as times on the backend's clock."""

    times: tuple[float, ...] = ()

    def failed(self, now: float, policy: RestartPolicy) -> RestartLedger:
        """The ledger after one failure more; those older than the policy's window are forgotten."""
        return RestartLedger((*(time for time in self.times if now - time <= policy.within), now))

    def exhausted(self, policy: RestartPolicy) -> bool:
        """Whether the actor has failed more often than its policy allows."""
        return len(self.times) > policy.max_restarts


async def supervise(
    step: Callable[[], Awaitable[T]],
    *,
    deadline: float | None,
    retries: int = 0,
    backoff: Backoff | None = None,
    draw: Callable[[], float] = lambda: 0.0,
    restarting: Callable[[int, Exception], Awaitable[None] | None] = lambda attempt, error: None,
) -> T | Failure:
    """Run a step under a deadline and a retry budget; its last failure comes back as a value.

    :param deadline: seconds for all attempts and the waits between them; None is no limit. Overrunning is a `StepTimeout`.
    :param retries: how many attempts more after the first.
    :param draw: gives random numbers in [0, 1) for the backoff's jitter.
    :param restarting: told the number of the attempt to come (from 2) and the error, before the wait.
    """
    with anyio.move_on_after(deadline):
        for number in range(1, retries + 2):
            outcome = await attempt(step())
            if not isinstance(outcome, Failure) or number > retries:
                return outcome
            told = restarting(number + 1, outcome.error)
            if told is not None:
                await told
            await anyio.sleep((backoff or Backoff()).delay(number, draw()))
    return Failure(StepTimeout(f"the step did not end within {deadline} s"))

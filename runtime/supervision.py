"""Supervision: what fails becomes a value here, and a policy decides what follows.

`contain` and `attempt` are the one place where somebody else's exception is caught; nothing else in Ropewalk catches
`Exception`. Cancellation and exits always pass through; what is neither an `Exception` nor one of those, such as the panic of
an extension module, is `Crashed`, a failure like any other. `supervise` builds a step with
a deadline and a retry budget on them, `RestartLedger` counts how often an actor may fail (after OTP's restart intensity).
`stepwise` lends a coroutine the surroundings that each of its steps is to run in: a context, a stopwatch.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import sys
import types
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar, overload

import anyio
import attrs

from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.log import log

__all__ = [
    "Backoff",
    "Crashed",
    "Exited",
    "Failure",
    "RestartLedger",
    "RestartPolicy",
    "StepTimeout",
    "attempt",
    "attempt_foreign",
    "contain",
    "contained",
    "in_cancelled_scope",
    "in_words",
    "leaves",
    "own_task",
    "running_task",
    "stepwise",
    "supervise",
    "unwrap",
]

T = TypeVar("T")
running_loop = asyncio._get_running_loop  # pyright: ignore[reportPrivateUsage]
"""The asyncio loop that runs this code, None on trio, where `asyncio.get_running_loop` costs an exception: it is asked several times a turn."""

FELLOWS = 8
"""How many other tasks are looked at to tell whether the event loop is ending: a few thousand may be asking at that moment."""


@attrs.frozen
class Failure:
    """What a contained call raised."""

    error: Exception

    @property
    def kind(self) -> str:
        """The name of the type of what was raised."""
        return type(self.error.__cause__ if isinstance(self.error, Crashed | Exited) else self.error).__name__


class StepTimeout(Exception):
    """A supervised step did not end within its deadline."""


@overload
def unwrap(error: Exception) -> Exception: ...
@overload
def unwrap(error: BaseException) -> BaseException: ...
def unwrap(error: BaseException) -> BaseException:
    """The only leaf of an exception group, however deep; the group itself when it has several."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in an exception group, however deep; of any other error, that error."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def contain(call: Callable[..., T], *arguments: Any, **named: Any) -> T | Failure:
    """Call a plain function; what it raises comes back as a `Failure`. Cancellation and exits pass through."""
    try:
        return call(*arguments, **named)
    except Exception as error:
        return Failure(unwrap(error))
    except BaseException as error:
        if _passes(error):
            raise
        return Failure(Crashed(unwrap(error)))


def contained(call: Callable[[Any], Any], stopwatch: Callable[[], float], limit: float, overran: Callable[[Any, float], None]) -> Callable[[Any], Any]:
    """`contain` for one function that is called very often: as a function of its one argument, with everything looked up already.

    An exit does not pass: it comes back as a `Failure` of `Exited`, for what follows this call must not be left out.
    `overran` is told the argument and the seconds when a call kept the processor for more than `limit` seconds.
    """

    def contain_it(argument: Any) -> Any:
        started = stopwatch()
        try:
            result = call(argument)
        except Exception as error:
            result = Failure(unwrap(error))
        except asyncio.CancelledError as error:
            if in_cancelled_scope():
                raise
            result = Failure(CancelledItself(str(error)))
        except SystemExit as left:
            result = Failure(Exited(left))
        except BaseException as error:
            if _passes(error):
                raise
            result = Failure(Crashed(unwrap(error)))
        if (took := stopwatch() - started) > limit:
            overran(argument, took)
        return result

    return contain_it


async def attempt(awaitable: Awaitable[T]) -> T | Failure:
    """Await somebody else's work; what it raises comes back as a `Failure`. Cancellation and exits pass through.

    So they do when failures come with them in one group: the failures are logged, for work that is given up has no result.
    """
    try:
        return await awaitable
    except Exception as error:
        return Failure(unwrap(error))
    except BaseException as raised:
        passing = _passing_in(raised)
        if passing is None:
            return Failure(Crashed(unwrap(raised)))
        if passing is raised:
            raise
        raise passing from None


class Crashed(Exception):
    """Somebody else's code raised what is no `Exception` and wishes nothing either; `__cause__` is what."""

    def __init__(self, raised: BaseException) -> None:
        super().__init__(f"it raised {in_words(raised)}")
        self.__cause__ = raised


class Exited(Exception):
    """Somebody else's code asked for the process to end. That is for whoever waits for that code to decide, not for others."""

    def __init__(self, exit: SystemExit) -> None:
        super().__init__(f"it raised SystemExit({exit.code!r})")
        self.exit = self.__cause__ = exit


def in_words(error: BaseException) -> str:
    """The type and text of an error that may be somebody else's, and so may not even be able to say what it is."""
    text = contain(str, error)
    return type(error).__name__ if isinstance(text, Failure) or not text else f"{type(error).__name__}: {text}"


class CancelledItself(Exception):
    """Somebody else's code was cancelled by itself, not by a scope it stands in: a failure of its own like any other."""


async def attempt_foreign(awaitable: Awaitable[T]) -> T | Failure:
    """`attempt` for code that may raise a cancellation of its own making, awaited in a task of Ropewalk's.

    On asyncio any code can: by awaiting a task that was cancelled, or by cancelling the task it runs in. Such a cancellation
    belongs to no scope, and let through it would take down whatever the task belongs to. In a task that is not known as
    `own_task` a cancellation of the task is its owner's, and passes.
    """
    try:
        outcome: T | Failure = await awaitable
    except Exception as error:
        outcome = Failure(unwrap(error))
    except BaseException as raised:
        passing = _passing_in(raised)
        if passing is raised and not _is_foreign(raised):
            raise
        if passing is not None and not _is_foreign(passing):
            raise passing from None
        outcome = Failure(Crashed(unwrap(raised)) if passing is None else CancelledItself(OF_ITSELF))
    loop = running_loop()
    if loop is not None and (task := asyncio.current_task(loop)) is not None and task.cancelling() and not (in_cancelled_scope() or _is_cancelled_by_owner()):
        await _absorb_own_cancellation(task)
    return outcome


OF_ITSELF = "it was cancelled, and no scope of Ropewalk's was"


def _is_foreign(raised: BaseException) -> bool:
    """Whether this is a cancellation that nobody asked for who has a right to."""
    return isinstance(raised, anyio.get_cancelled_exc_class()) and not (in_cancelled_scope() or _is_cancelled_by_owner())


def _running() -> asyncio.Task[Any] | None:
    """The asyncio task that runs now, None on trio."""
    loop = running_loop()
    return None if loop is None else asyncio.current_task(loop)


_own_tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], weakref.ref[asyncio.Task[Any]] | None] = weakref.WeakKeyDictionary()


def running_task() -> weakref.ref[asyncio.Task[Any]] | None:
    """The asyncio task that runs now, None where there is none."""
    task = _running()
    return None if task is None else weakref.ref(task)


def own_task(host: weakref.ref[asyncio.Task[Any]] | None = None) -> None:
    """Declare that the running task is Ropewalk's, so that nobody but its scopes has a right to cancel it.

    :param host: the task it hangs from. An event loop that ends cancels all its tasks, and those two together.
    """
    task = _running()
    if task is not None:
        _own_tasks[task] = host


def _is_cancelled_by_owner() -> bool:
    task = _running()
    return task is not None and task.cancelling() > 0 and (task not in _own_tasks or _is_loop_ending(_own_tasks[task]))


def _is_loop_ending(host: weakref.ref[asyncio.Task[Any]] | None) -> bool:
    """Whether the running task was cancelled together with its host and the others that hang from it: so does no tool."""
    hosting = None if host is None else host()
    if hosting is None or not hosting.cancelling():
        return False
    fellows = (task for task, other in _own_tasks.items() if other is host and not task.done())
    return all(task.cancelling() for task in itertools.islice(fellows, FELLOWS))


def in_cancelled_scope() -> bool:
    """Whether a cancellation that arrives here was asked for by a scope around it."""
    return anyio.current_effective_deadline() == -math.inf


async def _absorb_own_cancellation(task: asyncio.Task[Any]) -> None:
    """Take a cancellation away that code asked for of the task it ran in, so that it does not strike where the task goes on.

    It has no owner, so there is nobody to let it through to, and asyncio has no way of taking back one that is still to be
    delivered but to have it delivered: hence the one `CancelledError` in Ropewalk that goes no further. A scope that is
    cancelled in the same moment is not cheated by that, for anyio delivers its cancellation again until the scope is left; nor is
    an event loop that ends, for it cancels the host of this task too, which cancels the scope around it.
    """
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while task.cancelling():
        task.uncancel()


def _passing() -> tuple[type[BaseException], ...]:
    """What is never a failure of the code it comes out of: cancellation, and wishes for something to end."""
    cancelled = getattr(sys.modules.get("trio"), "Cancelled", asyncio.CancelledError)  # nothing raises it where trio was never imported
    return KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, cancelled


def _passes(error: BaseException) -> bool:
    passing = _passing()
    return any(isinstance(leaf, passing) for leaf in leaves(error))


def _passing_in(raised: BaseException) -> BaseException | None:
    """What of this must pass, the thing itself or a part of a group; None when nothing must."""
    if not isinstance(raised, BaseExceptionGroup):
        return raised if _passes(raised) else None
    rest, failures = raised.split(_passing())
    if rest is None:
        return None
    if failures is not None:
        log.warning("failed_while_leaving", errors=[type(error).__name__ for error in leaves(failures)])
    left = leaves(rest)
    # Whoever waits for a cancellation looks for a bare one, and one is as good as another.
    return left[0] if all(type(leaf) is type(left[0]) for leaf in left) else rest


@types.coroutine
def stepwise(run: Callable[..., Any], coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Await a coroutine with each of its steps made by ``run(step, argument)``, such as the `run` of a `contextvars.Context`."""
    try:
        yielded = run(coroutine.send, None)
        while True:
            try:
                received = yield yielded
            except GeneratorExit:
                run(coroutine.close)
                raise
            except BaseException as error:  # thrown on into the coroutine, whose it is: cancellation too
                yielded = run(coroutine.throw, error)
            else:
                yielded = run(coroutine.send, received)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def _positive(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not (isinstance(value, int | float) and value > 0):
        raise InvalidOption(f"{type(instance).__name__}.{attribute.name} is a number above 0, not {value!r}")


def _finite(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise InvalidOption(f"{type(instance).__name__}.{attribute.name} is a finite number above 0, not {value!r}")


def _share(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not (isinstance(value, int | float) and 0 <= value <= 1):
        raise InvalidOption(f"{type(instance).__name__}.{attribute.name} is a share from 0 to 1, not {value!r}")


def _not_negative_count(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if type(value) is not int or value < 0:
        raise InvalidOption(f"{type(instance).__name__}.{attribute.name} is a whole number, 0 or more, not {value!r}")


@attrs.frozen
class Backoff:
    """Waits that grow: the n-th (from 1) is ``min(longest, first * factor ** (n - 1))`` seconds, less up to `jitter` of it.

    `jitter` is a share between 0 and 1; the draw comes from the runtime's seeded randomness.
    """

    first: float = attrs.field(default=0.2, validator=_finite)
    factor: float = attrs.field(default=2.0, validator=_finite)
    longest: float = attrs.field(default=30.0, validator=_finite)
    jitter: float = attrs.field(default=0.2, validator=_share)

    def delay(self, attempt: int, draw: float) -> float:
        """Seconds to wait before the `attempt`-th retry; `draw` is a random number in [0, 1)."""
        try:
            grown = self.first * float(self.factor) ** (attempt - 1)
        except OverflowError:
            grown = self.longest
        return min(self.longest, grown) * (1 - self.jitter * draw)


@attrs.frozen
class RestartPolicy:
    """How often an actor may fail: more than `max_restarts` within `within` seconds quarantines it; between restarts it waits for `backoff`."""

    max_restarts: int = attrs.field(default=5, validator=_not_negative_count)
    within: float = attrs.field(default=30.0, validator=_positive)
    backoff: Backoff = attrs.field(factory=Backoff, validator=attrs.validators.instance_of(Backoff))


@attrs.frozen
class RestartLedger:
    """The failures of one actor that still count, as times on the backend's clock."""

    times: tuple[float, ...] = ()

    def failed(self, now: float, policy: RestartPolicy) -> RestartLedger:
        """The ledger after one failure more; those older than the policy's window are forgotten."""
        return RestartLedger((*self.counting(now, policy), now))

    def counting(self, now: float, policy: RestartPolicy) -> tuple[float, ...]:
        """The failures that still count now."""
        return tuple(time for time in self.times if now - time <= policy.within)

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
    :param restarting: told the number of the attempt to come (from 2) and the error, before the wait. What it raises is raised.
    """
    if type(retries) is not int or retries < 0:
        raise InvalidOption(f"retries is a whole number of attempts, 0 or more, not {retries!r}")
    ends = math.inf if deadline is None else anyio.current_time() + deadline
    for number in itertools.count(1):
        outcome = await attempt(_in_time(step, ends, deadline))
        if not isinstance(outcome, Failure) or number > retries or anyio.current_time() >= ends:
            return outcome
        with anyio.CancelScope(deadline=ends):
            told = restarting(number + 1, outcome.error)
            if told is not None:
                await told
            await anyio.sleep((backoff or Backoff()).delay(number, draw()))
            continue
        break
    return Failure(_timeout(deadline))


async def _in_time(step: Callable[[], Awaitable[T]], ends: float, deadline: float | None) -> T:
    with anyio.CancelScope(deadline=ends):
        return await step()
    raise _timeout(deadline)


def _timeout(deadline: float | None) -> StepTimeout:
    return StepTimeout(f"the step did not end within {deadline} s")

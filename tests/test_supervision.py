"""What fails becomes a value, what is cancelled stays cancelled, and budgets are kept to the number and to the second."""

from __future__ import annotations

import contextvars
import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.actors.testing.loop import cancelled_at_step, in_trio
from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.supervision import Backoff, Crashed, Failure, RestartLedger, RestartPolicy, StepTimeout, attempt, contain, stepwise, supervise, unwrap

seconds = st.floats(min_value=0.001, max_value=1e6, allow_nan=False)
draws = st.floats(min_value=0, max_value=1, exclude_max=True)
backoffs = st.builds(Backoff, first=seconds, factor=st.floats(1, 1e9), longest=seconds, jitter=st.floats(0, 1))


class Broken(Exception):
    pass


async def broken() -> None:
    raise Broken("no")


# Backoff.


@given(backoffs, st.integers(1, 10**6), draws)
def test_a_delay_is_never_longer_than_the_longest_nor_negative(backoff: Any, attempt_number: Any, draw: Any) -> None:
    delay = backoff.delay(attempt_number, draw)

    assert 0 <= delay <= backoff.longest
    assert delay >= min(backoff.first, backoff.longest) * (1 - backoff.jitter)


@given(backoffs, st.integers(1, 10**6))
def test_without_its_jitter_a_backoff_only_grows(backoff: Any, attempt_number: Any) -> None:
    assert backoff.delay(attempt_number, 0.0) <= backoff.delay(attempt_number + 1, 0.0)


@given(backoffs, st.integers(1, 100), draws, draws)
def test_the_jitter_only_takes_away(backoff: Any, attempt_number: Any, one: Any, other: Any) -> None:
    low, high = sorted((one, other))

    assert backoff.delay(attempt_number, high) <= backoff.delay(attempt_number, low)


def test_the_formula_is_the_documented_one() -> None:
    backoff = Backoff(first=0.2, factor=2.0, longest=30.0, jitter=0.2)

    assert [backoff.delay(number, 0.0) for number in range(1, 10)] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0])
    assert backoff.delay(1, 0.5) == pytest.approx(0.2 * 0.9)


@pytest.mark.parametrize("factor", [1e300, 10**40])
def test_no_factor_is_too_large(factor: Any) -> None:
    assert Backoff(factor=factor).delay(1000, 0.0) == 30.0


@pytest.mark.parametrize(
    "arguments", [{"first": 0}, {"first": -1}, {"factor": 0}, {"longest": math.inf}, {"longest": math.nan}, {"jitter": 1.1}, {"jitter": -0.1}, {"first": "1"}]
)
def test_a_backoff_that_makes_no_sense_is_refused(arguments: Any) -> None:
    with pytest.raises(InvalidOption, match=f"Backoff.{next(iter(arguments))} is"):
        Backoff(**arguments)


# The restart ledger.


@given(st.lists(st.floats(0, 100), max_size=30), st.integers(0, 6), st.floats(0.1, 50))
def test_a_ledger_is_exhausted_when_more_failures_than_allowed_lie_within_the_window(gaps: Any, max_restarts: Any, within: Any) -> None:
    policy = RestartPolicy(max_restarts=max_restarts, within=within)
    ledger, now, times = RestartLedger(), 0.0, list[float]()
    for gap in gaps:
        now += gap
        times.append(now)
        ledger = ledger.failed(now, policy)

        counting = [time for time in times if now - time <= within]
        assert list(ledger.times) == counting
        assert ledger.exhausted(policy) == (len(counting) > max_restarts)


@given(st.lists(st.floats(0.001, 10), max_size=100))
def test_a_ledger_forgets_what_no_longer_counts(gaps: Any) -> None:
    policy = RestartPolicy(max_restarts=5, within=1.0)
    ledger, now = RestartLedger(), 0.0
    for gap in gaps:
        now += gap
        ledger = ledger.failed(now, policy)

    assert all(now - time <= 1.0 for time in ledger.times)


@pytest.mark.parametrize("arguments", [{"max_restarts": -1}, {"max_restarts": 1.5}, {"within": 0}, {"within": math.nan}])
def test_a_policy_that_makes_no_sense_is_refused(arguments: Any) -> None:
    with pytest.raises(InvalidOption, match=f"RestartPolicy.{next(iter(arguments))} is"):
        RestartPolicy(**arguments)


def test_a_policy_takes_a_backoff() -> None:
    with pytest.raises(TypeError, match="backoff"):
        RestartPolicy(backoff=3)  # type: ignore[arg-type]


# Groups.

leaves = st.builds(Broken, st.text(max_size=3))
groups = st.recursive(leaves, lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda errors: ExceptionGroup("several", errors)), max_leaves=6)


def leaves_of(error: BaseException) -> list[BaseException]:
    return [leaf for inner in error.exceptions for leaf in leaves_of(inner)] if isinstance(error, BaseExceptionGroup) else [error]


@given(groups)
def test_a_group_with_one_leaf_is_that_leaf_and_others_stay_whole(error: Any) -> None:
    unwrapped = unwrap(error)

    assert leaves_of(unwrapped) == leaves_of(error)
    assert isinstance(unwrapped, ExceptionGroup) == (len(leaves_of(error)) > 1)


def test_an_exit_is_unwrapped_too() -> None:
    interrupt = KeyboardInterrupt()

    assert unwrap(BaseExceptionGroup("one", [interrupt])) is interrupt


# contain and attempt.


def test_what_a_plain_call_raises_comes_back_as_a_value() -> None:
    def divide(one: int, other: int) -> float:
        return one / other

    assert contain(divide, 6, 3) == 2
    failure = contain(divide, 6, 0)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, ZeroDivisionError)


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_exits_pass_through(leaving: Any) -> None:
    def leave() -> None:
        raise leaving

    async def leave_later() -> None:
        raise leaving

    with pytest.raises(leaving):
        contain(leave)
    with pytest.raises(leaving):
        await attempt(leave_later())


class Panic(BaseException):
    pass


crashes = st.recursive(
    st.one_of(leaves, st.builds(Panic)), lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda errors: BaseExceptionGroup("several", errors))
)


@given(crashes, st.none() | st.sampled_from([KeyboardInterrupt, SystemExit]))
async def test_what_is_neither_an_exception_nor_an_exit_is_a_failure_and_exits_pass_among_them(error: Any, leaving: Any) -> None:
    raised: BaseException = error if leaving is None else BaseExceptionGroup("both", [error, leaving()])

    def fail() -> None:
        raise raised

    async def fail_later() -> None:
        raise raised

    if leaving is not None:
        with pytest.raises(BaseExceptionGroup) as caught:
            contain(fail)
        assert caught.value is raised
        with pytest.raises(leaving):
            await attempt(fail_later())
        return
    for failure in (contain(fail), await attempt(fail_later())):
        assert isinstance(failure, Failure)
        cause = failure.error.__cause__ if isinstance(failure.error, Crashed) else failure.error
        assert leaves_of(cause or failure.error) == leaves_of(error)
        assert failure.kind == type(unwrap(error)).__name__


@pytest.mark.anyio
async def test_what_awaited_work_raises_comes_back_as_a_value() -> None:
    async def three() -> int:
        return 3

    assert await attempt(three()) == 3
    failure = await attempt(broken())
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, Broken)


@pytest.mark.anyio
async def test_a_failure_from_a_task_group_is_the_failure_itself() -> None:
    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(broken)

    failure = await attempt(work())

    assert isinstance(failure, Failure)
    assert isinstance(failure.error, Broken)


@pytest.mark.anyio
async def test_cancellation_passes_through() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await attempt(anyio.sleep_forever())
        pytest.fail("the cancellation was swallowed")

    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_cancellation_passes_through_alone_when_something_fails_on_the_way_out(anyio_backend_name: str) -> None:
    """In one group they would end in the task that did the cancelling, as an error."""

    async def fail_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise Broken("in the clean-up")

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail_when_cancelled)
            await anyio.sleep_forever()

    with structlog.testing.capture_logs() as logs, anyio.CancelScope() as scope:
        async with anyio.create_task_group() as outer:

            async def cancel_it() -> None:
                await anyio.wait_all_tasks_blocked()
                scope.cancel()

            outer.start_soon(cancel_it)
            outcome = await attempt(work())
            # Only trio tells of both; elsewhere the error comes first, and the cancellation again with the next wait.
            assert isinstance(outcome, Failure)
            await anyio.sleep_forever()

    assert scope.cancelled_caught
    assert [entry["errors"] for entry in logs] == ([["Broken"]] if anyio_backend_name == "trio" else [])


async def test_an_exit_leaves_the_failures_beside_it_behind() -> None:
    async def work() -> None:
        raise BaseExceptionGroup("both", [KeyboardInterrupt(), Broken("no")])

    with structlog.testing.capture_logs() as logs, pytest.raises(KeyboardInterrupt):
        await attempt(work())

    assert [entry["errors"] for entry in logs] == [["Broken"]]


# stepwise.


@pytest.mark.anyio
async def test_every_step_is_made_through_the_runner_and_nothing_else() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")
    context = contextvars.Context()
    context.run(variable.set, "inside")
    steps = 0

    def run(step: Callable[..., object], argument: object) -> object:
        nonlocal steps
        steps += 1
        return context.run(step, argument)

    async def work() -> list[str]:
        seen = []
        for _ in range(3):
            seen.append(variable.get())
            await anyio.lowlevel.checkpoint()
        variable.set("changed")
        return seen

    assert await stepwise(run, work()) == ["inside"] * 3
    assert steps >= 4
    assert variable.get() == "outside"
    assert context[variable] == "changed"


@pytest.mark.anyio
async def test_cancellation_and_errors_go_through_the_steps() -> None:
    unwound = False

    async def work() -> None:
        nonlocal unwound
        try:
            await anyio.sleep_forever()
        finally:
            unwound = True

    with anyio.CancelScope() as scope:
        scope.cancel()
        await stepwise(contextvars.Context().run, work())

    assert unwound
    with pytest.raises(Broken):
        await stepwise(contextvars.Context().run, broken())


# supervise.


class Step:
    """Fails `failures` times, each after `seconds`, then returns the number of the attempt."""

    def __init__(self, failures: int, seconds: float = 0.0) -> None:
        self.failures = failures
        self.seconds = seconds
        self.attempts: list[float] = []

    async def __call__(self) -> int:
        self.attempts.append(anyio.current_time())
        await anyio.sleep(self.seconds)
        if len(self.attempts) <= self.failures:
            raise Broken(f"attempt {len(self.attempts)}")
        return len(self.attempts)


@given(st.integers(0, 6), st.integers(0, 6), draws)
@in_trio
async def test_a_step_is_tried_as_often_as_its_budget_says(failures: Any, retries: Any, draw: Any) -> None:
    step, told = Step(failures, 1.0), list[tuple[int, str]]()
    backoff = Backoff(first=1.0, factor=2.0, longest=5.0, jitter=0.5)

    outcome = await supervise(
        step, deadline=None, retries=retries, backoff=backoff, draw=lambda: draw, restarting=lambda number, error: told.append((number, str(error)))
    )

    tries = min(failures, retries) + 1
    assert len(step.attempts) == tries
    assert told == [(number + 1, f"attempt {number}") for number in range(1, tries)]
    waits = [later - sooner for sooner, later in zip(step.attempts, step.attempts[1:], strict=False)]
    assert waits == pytest.approx([1.0 + backoff.delay(number, draw) for number in range(1, tries)])
    if failures > retries:
        assert isinstance(outcome, Failure)
        assert str(outcome.error) == f"attempt {tries}"
    else:
        assert outcome == tries


@given(st.integers(0, 4), st.integers(0, 4), st.floats(0, 5), st.floats(0, 20))
@in_trio
async def test_a_deadline_holds_for_all_attempts_and_the_waits_between_them(failures: Any, retries: Any, length: Any, deadline: Any) -> None:
    step = Step(failures, length)
    started = trio.current_time()

    outcome = await supervise(step, deadline=deadline, retries=retries, backoff=Backoff(first=1.0, jitter=0))

    assert trio.current_time() - started <= deadline + 1e-6
    if isinstance(outcome, Failure) and len(step.attempts) <= min(failures, retries):
        assert isinstance(outcome.error, StepTimeout | Broken)


@pytest.mark.anyio
async def test_a_step_that_hangs_is_a_timeout() -> None:
    failure = await supervise(anyio.sleep_forever, deadline=0.01)

    assert isinstance(failure, Failure)
    assert isinstance(failure.error, StepTimeout)
    assert "within 0.01 s" in str(failure.error)


async def test_a_deadline_in_the_wait_is_a_timeout(autojump_clock: trio.testing.MockClock) -> None:
    failure = await supervise(broken, deadline=1.0, retries=9, backoff=Backoff(first=10.0))

    assert isinstance(failure, Failure)
    assert isinstance(failure.error, StepTimeout)
    assert trio.current_time() == pytest.approx(1.0)


async def test_a_deadline_already_past_is_a_timeout_too(autojump_clock: trio.testing.MockClock) -> None:
    failure = await supervise(anyio.sleep_forever, deadline=-1.0)

    assert isinstance(failure, Failure)
    assert isinstance(failure.error, StepTimeout)


async def test_a_step_that_fails_in_a_task_when_its_deadline_passes_is_still_a_value(autojump_clock: trio.testing.MockClock) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Broken("in the clean-up")

    async def step() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled)

    failure = await supervise(step, deadline=1.0, retries=3)

    assert isinstance(failure, Failure)
    assert isinstance(failure.error, Broken | StepTimeout)
    assert trio.current_time() == pytest.approx(1.0)


async def test_a_step_that_raises_before_it_is_awaited_is_a_value_too() -> None:
    def step() -> Awaitable[None]:
        raise Broken("at once")

    failure = await supervise(step, deadline=None)

    assert isinstance(failure, Failure)
    assert isinstance(failure.error, Broken)


async def test_who_is_told_of_a_restart_may_take_time_and_may_fail(autojump_clock: trio.testing.MockClock) -> None:
    async def restarting(number: int, error: Exception) -> None:
        await trio.sleep(5)
        if number == 3:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        await supervise(broken, deadline=None, retries=5, backoff=Backoff(first=1.0, jitter=0), restarting=restarting)

    assert trio.current_time() == pytest.approx(5 + 1 + 5)


@pytest.mark.parametrize("retries", [-1, 1.5, None])
async def test_a_budget_is_a_whole_number(retries: Any) -> None:
    with pytest.raises(InvalidOption, match="retries is a whole number"):
        await supervise(broken, deadline=None, retries=retries)


async def test_supervision_may_be_cancelled_at_every_step(autojump_clock: trio.testing.MockClock) -> None:
    """Whatever it is doing then: the step, the telling, the wait."""
    number = 0
    while True:
        number += 1
        step = Step(3, 1.0)
        outcome = None
        with cancelled_at_step(number) as scope:
            outcome = await supervise(step, deadline=100, retries=5, backoff=Backoff(first=1.0))
        if not scope.cancelled_caught:
            break
        assert outcome is None

    assert number > 7
    assert outcome == 4

"""How every test here runs: which backend, how much of it, from which seed, and what it may leave behind.

``ROPEWALK_BUDGET`` says how many examples a law gets: `short` (every day), `long`, or `slice` (the laws alone, each with a
part of the long budget, in an order made from the seed, as far as ``ROPEWALK_SLICE_SECONDS`` allow). ``ROPEWALK_SEED`` seeds
hypothesis and, with it, trio's scheduler; without it each run takes a new one and says which.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, is_hypothesis_test, settings
from hypothesis.internal.entropy import deterministic_PRNG

from leaks import busy_threads, running_tasks, threads_left_since

EXAMPLES = {"short": 50, "slice": 120, "long": 1500}
STEPS = {"short": 25, "slice": 50, "long": 100}
BUDGET = os.environ.get("ROPEWALK_BUDGET", "short")
SLICE_SECONDS = float(os.environ.get("ROPEWALK_SLICE_SECONDS", "180"))

SEED = pytest.StashKey[int]()
SLICE_ENDS = pytest.StashKey[float]()

BACKENDS = ["asyncio", "trio"]
if BUDGET != "short" and importlib.util.find_spec("uvloop"):
    BACKENDS.append("uvloop")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if BUDGET not in EXAMPLES:
        raise pytest.UsageError(f"ROPEWALK_BUDGET is {BUDGET!r}; it may be {', '.join(EXAMPLES)}")
    config.stash[SEED] = _seed(config.getoption("--hypothesis-seed") or os.environ.get("ROPEWALK_SEED"))
    os.environ["ROPEWALK_SEED"] = str(config.stash[SEED])  # for the processes that share the run: they draw from the same one
    config.stash[SLICE_ENDS] = time.monotonic() + SLICE_SECONDS
    for name, examples in EXAMPLES.items():
        settings.register_profile(
            name,
            settings.get_profile("default"),
            max_examples=examples,
            stateful_step_count=STEPS[name],
            deadline=None,
            derandomize=False,
            print_blob=True,
            # A slice has no time to make a failure small; `make test-long` with the same seed does.
            phases=[phase for phase in Phase if name != "slice" or phase not in (Phase.shrink, Phase.explain)],
            # How long an example takes says more about who else uses the machine than about the strategy.
            suppress_health_check=[HealthCheck.too_slow],
        )
    settings.load_profile(BUDGET)
    # A shell that starts a job in the background has it ignore Ctrl-C; the tests of Ctrl-C mean it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["ROPEWALK_MODEL"] = "none"  # the embedded model is for the tests that ask for it
    for name in ("ROPEWALK_BACKEND", "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        os.environ.pop(name, None)


def _seed(given: str | None) -> int:
    if given is None or given == "random":
        return random.SystemRandom().getrandbits(32)
    if not given.isdecimal() or int(given) >= 2**32:
        raise pytest.UsageError(f"the seed is {given!r}; it may be a number from 0 to {2**32 - 1}")
    return int(given)


def _again(config: pytest.Config) -> str:
    return f"budget {BUDGET}, seed {config.stash[SEED]} (again: ROPEWALK_BUDGET={BUDGET} ROPEWALK_SEED={config.stash[SEED]})"


def pytest_report_header(config: pytest.Config) -> str:
    return f"ropewalk: {_again(config)}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(f"ropewalk: {_again(config)}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        _route(item)
    if BUDGET == "slice":
        laws = [item for item in items if _is_law(item)]
        config.hook.pytest_deselected(items=[item for item in items if not _is_law(item)])
        random.Random(config.stash[SEED]).shuffle(laws)
        items[:] = laws


def _route(item: pytest.Item) -> None:
    """Async tests run on trio; those marked anyio on each backend, and there the tasks of asyncio are counted too."""
    function = getattr(item, "obj", None)
    inner = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    if not inspect.iscoroutinefunction(inner):
        return
    if item.get_closest_marker("anyio") is None:
        item.add_marker(pytest.mark.trio)
    elif isinstance(item, pytest.Function) and "no_task_left" not in item.fixturenames:
        item.fixturenames.insert(0, "no_task_left")


def _is_law(item: pytest.Item) -> bool:
    return is_hypothesis_test(getattr(item, "obj", None)) or item.get_closest_marker("long") is not None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if BUDGET == "short" and item.get_closest_marker("long"):
        pytest.skip("runs with ROPEWALK_BUDGET=long")
    if BUDGET == "slice" and time.monotonic() > item.config.stash[SLICE_ENDS]:
        pytest.skip("beyond this slice")


@pytest.fixture(scope="module", params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
    """The backends that a test marked anyio runs on, one after the other."""
    return ("asyncio", {"use_uvloop": True}) if request.param == "uvloop" else request.param


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = busy_threads()
    yield
    left = threads_left_since(before)
    assert not left, f"threads still at work after the test: {sorted(thread.name for thread in left)}"


@pytest.fixture
async def no_task_left(anyio_backend_name: str) -> AsyncIterator[None]:
    if anyio_backend_name != "asyncio":
        yield
        return
    before = running_tasks()
    yield
    left = running_tasks() - before
    assert not left, f"tasks left after the test: {sorted(repr(task.get_coro()) for task in left)}"


@pytest.fixture(autouse=True)
def seeded(pytestconfig: pytest.Config) -> Iterator[None]:
    """Draw from the run's seed: hypothesis' examples, trio's order of tasks, and the global random numbers."""
    with deterministic_PRNG(pytestconfig.stash[SEED]):
        yield

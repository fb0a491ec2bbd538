"""Trio under hypothesis: whole examples in one run, and state machines whose rules share a run pumped by hand.

A rule-based machine is driven by plain function calls, one for each rule, while tasks of the code under test must live
from one rule to the next. So the trio run is a guest of the test: each rule pumps its host loop until the rule's own
coroutine is done. All of it is one thread and virtual time, so a failing example replays.
"""

from __future__ import annotations

import contextlib
import functools
import queue
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

import hypothesis.stateful as stateful
import outcome
import trio
import trio.testing

from ropewalk.runtime.errors import RopewalkError

__all__ = ["TrioLoop", "TrioStateMachine", "ainitialize", "ainvariant", "arule", "cancelled_at_step", "in_trio"]

T = TypeVar("T")


class LoopEnded(RopewalkError):
    """The trio run ended before the rule did; what ended it is the cause."""


def in_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test in a trio run and on a virtual clock of its own; put it below ``@given``, so that every example gets one."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        trio.run(functools.partial(test, *arguments, **named), clock=trio.testing.MockClock(autojump_threshold=0), strict_exception_groups=True)

    return run


class TrioLoop:
    """A trio run that goes on between calls: `run` awaits one async function in it, `close` ends it."""

    def __init__(self) -> None:
        self.clock = trio.testing.MockClock(autojump_threshold=0)
        self._due: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._ended: outcome.Outcome[None] | None = None
        self._sender: trio.MemorySendChannel[tuple[Callable[[], Awaitable[Any]], list[outcome.Outcome[Any]]]] | None = None
        self.nursery: trio.Nursery
        trio.lowlevel.start_guest_run(
            self._main,
            done_callback=self._note_end,
            run_sync_soon_threadsafe=self._due.put,
            host_uses_signal_set_wakeup_fd=False,
            clock=self.clock,
            strict_exception_groups=True,
        )
        while self._sender is None:
            self._pump()

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any, **named: Any) -> T:
        """Await a function in the run; what it raises is raised."""
        box: list[outcome.Outcome[T]] = []
        sender = self._sender
        assert sender is not None
        self._due.put(lambda: sender.send_nowait((functools.partial(function, *arguments, **named), box)))
        while not box:
            if self._ended is not None:
                self._ended.unwrap()
                raise LoopEnded("the run ended while a rule was waiting for it")
            self._pump()
        return box[0].unwrap()

    def close(self) -> None:
        """Cancel what is left in the nursery and end the run; what crashed in it is raised."""
        sender = self._sender
        if self._ended is None and sender is not None:
            self._due.put(sender.close)
        while self._ended is None:
            self._pump()
        self._ended.unwrap()

    def _note_end(self, ended: outcome.Outcome[None]) -> None:
        self._ended = ended

    def _pump(self) -> None:
        self._due.get()()

    async def _main(self) -> None:
        self._sender, receiver = trio.open_memory_channel[Any](1)
        async with trio.open_nursery() as self.nursery, receiver:
            async for function, box in receiver:
                box.append(await outcome.acapture(function))
            self.nursery.cancel_scope.cancel()


class TrioStateMachine(stateful.RuleBasedStateMachine):
    """A hypothesis state machine whose rules are async: decorate them with `arule`, `ainitialize` and `ainvariant`. `loop` is the run they share."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = TrioLoop()

    def teardown(self) -> None:
        """End the run; a machine that overrides this calls it last."""
        self.loop.close()
        super().teardown()


def _awaited(method: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(self: TrioStateMachine, *arguments: Any, **named: Any) -> Any:
        return self.loop.run(method, self, *arguments, **named)

    return run


def arule(**strategies: Any) -> Callable[[Callable[..., Awaitable[Any]]], Any]:
    """`hypothesis.stateful.rule` for an async method."""
    return lambda method: stateful.rule(**strategies)(_awaited(method))  # type: ignore[no-untyped-call]


def ainitialize(**strategies: Any) -> Callable[[Callable[..., Awaitable[Any]]], Any]:
    """`hypothesis.stateful.initialize` for an async method."""
    return lambda method: stateful.initialize(**strategies)(_awaited(method))  # type: ignore[no-untyped-call]


def ainvariant() -> Callable[[Callable[..., Awaitable[Any]]], Any]:
    """`hypothesis.stateful.invariant` for an async method."""
    return lambda method: stateful.invariant()(_awaited(method))


class _StepCounter(trio.abc.Instrument):
    def __init__(self, task: trio.lowlevel.Task | None, step: int, cancel: Callable[[], object]) -> None:
        self._task = task
        self._left = step
        self._cancel = cancel

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._task is None or task is self._task:
            self._left -= 1
            if self._left == 0:
                self._cancel()


@contextlib.contextmanager
def cancelled_at_step(step: int, *, of_anyone: bool = False) -> Generator[trio.CancelScope]:
    """Cancel the body at the `step`-th step the scheduler gives it, counted from 1; ``cancelled_caught`` of what this gives tells whether it came so far.

    :param of_anyone: count the steps of every task, so that a body that only waits is cancelled at each moment of what it waits for.
    """
    scope = trio.CancelScope()
    counter = _StepCounter(None if of_anyone else trio.lowlevel.current_task(), step, scope.cancel)
    trio.lowlevel.add_instrument(counter)
    try:
        with scope:
            yield scope
    finally:
        trio.lowlevel.remove_instrument(counter)

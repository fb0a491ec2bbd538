"""The one call: every law, on as many examples as asked for, each on a store of its own."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import attrs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ropewalk.actors.testing.journals.harness import JournalHarness
from ropewalk.actors.testing.journals.laws import LAWS, Law
from ropewalk.actors.testing.journals.life import FAMILIES, LIFE

__all__ = ["Conformance", "check_journal"]


@attrs.frozen
class Conformance:
    """What was shown: the laws that held, and those that could not be asked because the harness lacks what they need."""

    held: tuple[str, ...]
    skipped: tuple[str, ...]


def check_journal(harness: Callable[[], JournalHarness], *, examples: int | None = None, backend: str = "asyncio", only: str | None = None) -> Conformance:
    """Hold an implementation against everything that `Journal` promises.

    :param harness: makes a `JournalHarness` with an empty store; a subclass of it will do.
    :param examples: how many a law gets; None is what hypothesis' profile says.
    :param backend: what the laws run on.
    :param only: one law, by name.

    Raises `AssertionError` with the smallest example that shows a promise broken; a note on it names the law.
    """
    held, skipped = list[str](), list[str]()
    looked_at = harness()
    kind = type(looked_at)
    looked_at.dispose()
    for law in (LIFE, FAMILIES, *LAWS):
        if only is not None and law.name != only:
            continue
        if all(kind.has(hook) for hook in law.needs):
            _hold(law, harness, examples, backend)
            held.append(law.name)
        else:
            skipped.append(law.name)
    if only is not None and not held and not skipped:
        raise ValueError(f"a law is one of {', '.join(law.name for law in (LIFE, FAMILIES, *LAWS))}, not {only!r}")
    return Conformance(tuple(held), tuple(skipped))


def _hold(law: Law, harness: Callable[[], JournalHarness], examples: int | None, backend: str) -> None:
    def example(plan: object, schedule: object) -> None:
        made = harness()
        try:
            anyio.run(law.hold, made, plan, backend=backend)
        except BaseExceptionGroup as group:
            raise _leaf(group) from None
        finally:
            made.dispose()

    example.__name__ = example.__qualname__ = law.name
    budget = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])
    if examples is not None:
        budget = settings(budget, max_examples=examples)
    checked = budget(given(law.plans, st.random_module())(example))
    try:
        checked()
    except BaseException as error:
        error.add_note(f"the law that is broken: {law.name}: {law.hold.__doc__}")
        raise


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

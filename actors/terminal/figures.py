"""What a command measures of many sessions at once, and how."""

from __future__ import annotations

import gc
import math
import os
import tracemalloc
from collections.abc import Iterable, Sequence

import anyio
import attrs

from ropewalk.actors.spec import AgentSpec
from ropewalk.actors.testing import ScriptedModel
from ropewalk.runtime.clock import Clock
from ropewalk.runtime.runtime import Runtime

__all__ = ["Figures", "Lag", "Life", "cpu_seconds", "idle_bytes", "percentile"]

LOOKED_AFTER = 0.002


@attrs.frozen(kw_only=True)
class Figures:
    """What came of many sessions at once.

    `seconds` and `cpu` are wall and processor seconds from the first prompt to the last turn's end; `p50` and `p99` are the
    seconds from a prompt to its turn's end; `session_bytes` is what the runtime keeps of a session that does nothing.
    """

    sessions: int
    turns: int
    seconds: float
    cpu: float
    p50: float
    p99: float
    session_bytes: float


@attrs.frozen
class Life:
    """A session to be, and what is said in it."""

    session_id: str
    spec: AgentSpec
    prompts: Sequence[str]


def cpu_seconds() -> float:
    """Processor seconds this process has taken so far, as exact as the system counts them."""
    spent = os.times()
    return spent.user + spent.system


@attrs.define
class Lag:
    """How far an event loop lags, in seconds, once for each time that was looked.

    `late` is how much later than asked it came back, which says as much about the machine and who else uses it; `worked` is
    what its own thread had of a processor meanwhile, and so the most it can have been kept from others.
    """

    late: list[float] = attrs.field(factory=list[float])
    worked: list[float] = attrs.field(factory=list[float])

    async def watch(self) -> None:
        """Look a few hundred times a second, for ever."""
        clock = Clock()
        while True:
            asked, before = clock.stopwatch(), clock.processor()
            await anyio.sleep(LOOKED_AFTER)
            self.late.append(max(0.0, clock.stopwatch() - asked - LOOKED_AFTER))
            self.worked.append(clock.processor() - before)


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed; 0.0 when there are none."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0.0


async def idle_bytes(lives: Sequence[Life]) -> float:
    """Bytes a runtime keeps of each of these sessions once they have had their turns: its history, and its journal in memory.

    The specs and what their tools hold are not counted. The sessions talk one after the other.
    """
    taken = 0
    gc.collect()
    tracemalloc.start()
    try:
        async with Runtime() as runtime:
            for life in lives:
                session = await runtime.open(life.session_id, life.spec)
                for prompt in life.prompts:
                    await session.ask(prompt)
                if isinstance(life.spec.model, ScriptedModel):
                    life.spec.model.requests.clear()  # what a scripted model remembers is not the session's
            gc.collect()
            taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return taken / max(1, len(lives))

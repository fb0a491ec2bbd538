"""Ten thousand people talk at once, each in a session of their own, with a model that takes a second for every answer.

Run it with `python examples/ten_thousand.py`, or with another number: `python examples/ten_thousand.py 500`.
"""

import gc
import resource
import sys
import time

import anyio

from ropewalk import AgentSpec, Runtime
from ropewalk.testing import Reply, ScriptedModel

TURNS = 2

# The model plays a script here. Leave model= out, or give it "openai:NAME", to talk to a real one.
model = ScriptedModel(lambda messages: Reply(text=f"You said: {messages[-1]['content'][0]['text']}", delay=1), remember=0)
spec = AgentSpec(name="assistant", model=model)


def memory() -> int:
    """The most memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


async def talk(runtime: Runtime, name: str, waits: list[float]) -> None:
    session = await runtime.open(name, spec)
    for number in range(TURNS):
        asked = time.perf_counter()
        result = await session.ask(f"{name}, {number}")
        waits.append(time.perf_counter() - asked)
        assert str(result) == f"You said: {name}, {number}"


async def main(sessions: int) -> None:
    gc.set_threshold(50_000)  # the more objects live, the less often the collector should look through them all
    waits: list[float] = []
    before, began = memory(), time.perf_counter()
    async with Runtime() as runtime:
        async with anyio.create_task_group() as people:
            for number in range(sessions):
                people.start_soon(talk, runtime, f"person-{number}", waits)
        seconds, used = time.perf_counter() - began, memory() - before
        statistics = runtime.statistics()

    waits.sort()
    print(f"{statistics.known:,} sessions had {len(waits):,} turns, and each got its own answers.")
    print(f"{seconds:>8.1f} s in all; one turn after the other would take {len(waits) / 3600:.1f} hours")
    print(f"{len(waits) / seconds:>8,.0f} turns a second")
    print(f"{waits[len(waits) // 2]:>8.2f} s from a prompt to its answer (p50; p99 is {waits[int(len(waits) * 0.99)]:.2f} s); the model takes one of them")
    print(f"{used / sessions / 1000:>8.0f} kB of memory a session, with its task and its turns")


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)

"""The swarm as a command: the bar while it runs, then the table, and a sentence where turns failed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

import anyio
import attrs

from ropewalk.actors.spec import AgentSpec
from ropewalk.actors.swarm.talks import Swarm, play
from ropewalk.actors.terminal.figures import Life, idle_bytes, percentile
from ropewalk.actors.terminal.named import find_model, name_of_model
from ropewalk.actors.terminal.printable import in_short
from ropewalk.actors.terminal.screen import Bar, Screen
from ropewalk.actors.testing import Reply, ScriptedModel

__all__ = ["SwarmOptions", "problems_of", "rows_of", "run_swarm"]

SAMPLE = 100
WORDS = 300


@attrs.frozen(kw_only=True)
class SwarmOptions:
    """How large the swarm is.

    :param sessions: how many talk at once.
    :param turns: how many turns each takes.
    :param model: the model's name, see `find_model`; None is what `Agent()` takes.
    :param system: the system prompt.
    :param model_concurrency: how many may call the model at once; None is all.
    :param backend: the event loop.
    """

    sessions: int
    turns: int
    model: str | None = None
    system: str | None = None
    model_concurrency: int | None = None
    backend: Literal["asyncio", "trio"] = "asyncio"


def run_swarm(options: SwarmOptions, screen: Screen | None = None) -> tuple[Swarm, list[str]]:
    """Run it and show the table; returns what was measured, and what failed in sentences, none when nothing did.

    Raises `NoModel` and `InvalidOption` before anything runs.
    """
    model = find_model(options.model)
    spec = AgentSpec(name="swarm", model=model, system_prompt=options.system, model_concurrency=options.model_concurrency)
    swarm = Swarm(sessions=options.sessions, turns=options.turns)
    name = name_of_model(options.model, model)
    fast = options.backend == "asyncio" and importlib.util.find_spec("uvloop") is not None
    loop_options: dict[str, Any] = {"use_uvloop": True} if fast else {}
    anyio.run(_show, swarm, spec, name, screen or Screen(), backend=options.backend, backend_options=loop_options)
    return swarm, problems_of(swarm)


async def _show(swarm: Swarm, spec: AgentSpec, name: str, screen: Screen) -> None:
    with screen.bar(swarm.expected, f"{swarm.sessions:,} sessions are being opened") as bar:
        async with anyio.create_task_group() as around:
            around.start_soon(_report_live, swarm, bar)
            await play(swarm, spec)
            around.cancel_scope.cancel()
    with screen.bar(None, "the bytes of idle sessions are being counted"):
        kept = await idle_bytes(lives) if (lives := _lives(swarm)) else None
    screen.table(("swarm", in_short(name, 50)), rows_of(swarm, kept))


async def _report_live(swarm: Swarm, bar: Bar) -> None:
    """Show how far it is now and then, for ever."""
    while True:
        await anyio.sleep(bar.pace)
        done = len(swarm.all_taken)
        failed = swarm.failures.total()
        bar.show(done, swarm.expected, f"{done:,} of {swarm.expected:,} turns, {swarm.streaming:,} streaming" + (f", {failed:,} failed" if failed else ""))


def _lives(swarm: Swarm) -> list[Life]:
    """A sample of the sessions in which nothing failed, to be lived again: the same answers, from a script and so without the model."""
    sound = [number for number, turns in swarm.taken.items() if all(turn.failure is None for turn in turns)]
    lives: list[Life] = []
    for number in sound[:: max(1, len(sound) // SAMPLE)]:
        script = [Reply(text=turn.answer) for turn in swarm.taken[number]]
        lives.append(Life(f"swarm-{number}", AgentSpec(name="swarm", model=ScriptedModel(script, remember=0)), swarm.prompts(number)))
    return lives


def rows_of(swarm: Swarm, session_bytes: float | None) -> list[tuple[str, str]]:
    """The table. What could not be measured is a dash."""
    taken, failures = swarm.all_taken, swarm.failures
    ended = [turn for turn in taken if turn.failure is None]
    whole, first = [turn.seconds for turn in ended], [turn.first_text for turn in ended if turn.first_text is not None]
    return [
        ("sessions at once", f"{swarm.sessions:,}"),
        ("turns", f"{len(taken):,}"),
        ("turns that failed", f"{failures.total():,}"),
        *((f"  {kind}", f"{count:,}") for kind, count in failures.most_common()),
        ("seconds", f"{swarm.seconds:,.2f}"),
        ("turns a second", _rate(len(ended), swarm.seconds)),
        ("turn p50, ms", _milliseconds(whole, 0.50)),
        ("turn p99, ms", _milliseconds(whole, 0.99)),
        ("first text p50, ms", _milliseconds(first, 0.50)),
        ("first text p99, ms", _milliseconds(first, 0.99)),
        ("tokens a second", _rate(swarm.output_tokens, swarm.seconds)),
        ("CPU per turn, µs", f"{swarm.cpu / len(taken) * 1e6:,.0f}" if taken else "-"),
        ("bytes per idle session", "-" if session_bytes is None else f"{session_bytes:,.0f}"),
    ]


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:,.1f}" if count and seconds else "-"


def _milliseconds(values: Sequence[float], share: float) -> str:
    return f"{percentile(values, share) * 1000:,.1f}" if values else "-"


def problems_of(swarm: Swarm) -> list[str]:
    """How many turns failed and why, a sentence for each kind; nothing when none did."""
    failures = swarm.failures
    if not failures:
        return []
    first = {turn.failure: turn.words for turn in reversed(swarm.all_taken) if turn.failure is not None}
    because = [f"{count:,} × {kind}, such as: {in_short(first[kind] or 'no reason given', WORDS)}" for kind, count in failures.most_common()]
    return [f"{failures.total():,} of {len(swarm.all_taken):,} turns failed:", *because]

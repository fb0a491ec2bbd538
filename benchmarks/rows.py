"""The rows: what each measures, how large, and what Ropewalk promises there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal, TypeAlias

import attrs

from backends import Backend
from crowds import bytes_of_many, opening_many, recovering_many
from durable import durable_at_once, waking_long_and_short
from growing import growth
from lives import Elsewhere, bytes_idle, bytes_known, bytes_passive, bytes_talked, first_and_last, opening, waking
from measure import Medians, Side, interleaved
from neighbours import TROUBLES, others_p99
from nullmodel import NullModel
from work import BARE, HANDLER, STREAM, Load, at_once, latency, one_session, sides

__all__ = ["ROWS", "Line", "Row", "Size"]

Size: TypeAlias = Literal["full", "quick", "toy"]


@attrs.frozen
class Line:
    """One line of the table: three figures in `unit`, and what is held against the promise.

    `compared` are the handler's and the stream's figures in the terms of the promise (times bare, times what it is at ten
    messages, ...), `promised` the most they may be; None where there is nothing to compare or nothing is promised.
    """

    what: str
    unit: str
    bare: float | None
    handler: float | None
    stream: float | None
    compared: tuple[float | None, float | None] = (None, None)
    promised: tuple[float | None, float | None] = (None, None)
    terms: str = "× bare"

    @property
    def held(self) -> bool | None:
        """Whether every promise of this line is held; None when there is none."""
        judged = [figure <= most for figure, most in zip(self.compared, self.promised, strict=True) if figure is not None and most is not None]
        return all(judged) if judged else None


@attrs.frozen
class Row:
    """A row: its `name` for the command line, a title, the backends it is run on, and what measures it."""

    name: str
    title: str
    measure: Callable[[Backend, Size], Awaitable[list[Line]]]
    backends: tuple[str, ...] = ("asyncio", "trio", "uvloop")


def sized(size: Size, full: int, quick: int, toy: int) -> int:
    return {"full": full, "quick": quick, "toy": toy}[size]


def repetitions(size: Size, full: int) -> int:
    return sized(size, full, min(full, 3), 1)


def times_bare(what: str, medians: Medians, promised: tuple[float | None, float | None], unit: str = "µs") -> Line:
    floor, handler, stream = (medians[name] for name in (BARE, HANDLER, STREAM))
    return Line(what, unit, floor, handler, stream, (handler / floor, stream / floor), promised)


# The measuring functions: a backend and a size to the lines of a row ---------------------------------------------------


async def text_turn(backend: Backend, size: Size) -> list[Line]:
    load = Load(backend, NullModel(backend), turns=sized(size, 400, 200, 2))
    return [times_bare("one session, text turn", await interleaved(sides(one_session, load), repetitions(size, 15)), (4, 6))]


async def window_turn(backend: Backend, size: Size) -> list[Line]:
    load = Load(backend, NullModel(backend), turns=sized(size, 400, 200, 2), history=40, window=40)
    medians = await interleaved(sides(one_session, load), repetitions(size, 15))
    return [times_bare("one session, text turn, with the window of 40 messages that an agent has by default", medians, (None, None))]


async def tool_turn(backend: Backend, size: Size) -> list[Line]:
    load = Load(backend, NullModel(backend, calls_tool=True), turns=sized(size, 300, 150, 2))
    return [times_bare("tool turn: model, async tool, model", await interleaved(sides(one_session, load), repetitions(size, 15)), (5, 7))]


async def many(sessions: int, toy: int, backend: Backend, size: Size) -> list[Line]:
    load = Load(backend, NullModel(backend, pause=True), sessions=sized(size, sessions, sessions, toy))
    medians = await interleaved(sides(at_once, load), repetitions(size, 9 if sessions <= 1000 else 5))
    return [times_bare(f"{load.sessions:,} sessions at once, a text turn each", medians, (2.5, 4))]


async def paced(backend: Backend, size: Size) -> list[Line]:
    load = Load(backend, NullModel(backend, pace=0.02), sessions=sized(size, 5000, 2000, 3))
    medians = await interleaved(sides(latency, load), repetitions(size, 5), warm_up=0)
    promised = (None, None) if backend.name == "trio" else (1.5, 2.5)
    return [times_bare(f"{load.sessions:,} sessions at once, 20 ms a chunk: half have their answer after (ideal 400 ms)", medians, promised, "ms")]


async def history(backend: Backend, size: Size) -> list[Line]:
    lengths = (10, 1000, 10_000) if size != "toy" else (10, 20, 30)
    model = NullModel(backend)
    all_sides = [side for length in lengths for side in sides(one_session, Load(backend, model, turns=sized(size, 100, 100, 2), history=length), f" {length}")]
    medians = await interleaved(all_sides, repetitions(size, 9))

    def line(length: int) -> Line:
        floor, handler, stream = (medians[f"{name} {length}"] for name in (BARE, HANDLER, STREAM))
        compared = handler / medians[f"{HANDLER} {lengths[0]}"], stream / medians[f"{STREAM} {lengths[0]}"]
        promised = (None, None) if length == lengths[0] else (1.1, 1.1)
        return Line(f"text turn with {length:,} messages of history", "µs", floor, handler, stream, compared, promised, f"× that with {lengths[0]}")

    return [line(length) for length in lengths]


async def ageing(backend: Backend, size: Size) -> list[Line]:
    lines = []
    for window in (None, 40):
        load = Load(backend, NullModel(backend), sessions=sized(size, 4, 2, 1), turns=sized(size, 500, 500, 8), window=window)
        part = sized(size, 50, 50, 2)
        medians = await interleaved([Side(name, partial(first_and_last, name, load, part)) for name in (BARE, HANDLER, STREAM)], repetitions(size, 7))
        floor, handler, stream = (medians[name] for name in (BARE, HANDLER, STREAM))
        kept = "all messages kept" if window is None else "window of 40, which slides from the 20th turn on"
        what = f"a session of {load.turns} turns: its last {part} over its first {part} ({kept})"
        promised = (1.05, 1.05) if window is None else (None, None)
        lines.append(Line(what, "×", floor, handler, stream, (handler, stream), promised, f"× its first {part}"))
    return lines


async def idle(backend: Backend, size: Size) -> list[Line]:
    async def lines(what: str, taken: Callable[..., Awaitable[float]], load: Load) -> list[Line]:
        sides = [*(Side(name, partial(taken, name, load)) for name in (BARE, HANDLER)), Side("elsewhere", partial(taken, HANDLER, load, Elsewhere))]
        medians = await interleaved(sides, 1)
        floor = medians[BARE]

        def line(kept: str, figure: float) -> Line:
            return Line(f"{what}, its journal {kept}", "bytes", floor, figure, None, (figure - floor, None), (1000, None), "bytes above bare")

        return [line("in memory", medians[HANDLER]), line("elsewhere", medians["elsewhere"])]

    model = NullModel(backend)
    told = Load(backend, model, sessions=sized(size, 10_000, 1000, 3), history=20)
    talked = Load(backend, model, sessions=sized(size, 1000, 200, 3), turns=10)
    return [
        *await lines("idle session, opened with 20 messages", bytes_idle, told),
        *await lines("idle session after 10 turns (20 messages)", bytes_talked, talked),
    ]


async def passive(backend: Backend, size: Size) -> list[Line]:
    def line(what: str, figure: float) -> Line:
        return Line(what, "bytes", None, figure, None, (figure, None), (200, None), "bytes")

    model = NullModel(backend)
    gone = Load(backend, model, sessions=sized(size, 10_000, 1000, 3), history=20)
    many = Load(backend, model, sessions=sized(size, 100_000, 10_000, 30), history=20)
    most = sized(size, 100, 100, 2)
    return [
        line("known but passivated session, whose handle nobody holds", await bytes_passive(gone, held=False)),
        line("known but passivated session, with the handle that somebody holds of it", await bytes_passive(gone, held=True)),
        line(f"{many.sessions:,} known sessions with 20 messages, at most {most} of them in memory: each", await bytes_known(many, most)),
    ]


async def crowd(backend: Backend, size: Size) -> list[Line]:
    load = Load(backend, NullModel(backend, pause=True), sessions=sized(size, 100_000, 5000, 20))
    most = sized(size, 100, 100, 4)
    opening, turn = await opening_many(load, most)
    each = await bytes_of_many(load, most)
    some = f"{most} of {load.sessions:,} sessions in a file"
    return [
        Line(f"{load.sessions:,} sessions opened, in a file, {most} of them in memory at most (wall time)", "s", None, opening, None),
        Line(f"{some} woken and asked at once, a text turn each", "µs", None, turn, None),
        Line(f"{some} busy: each that is known", "bytes", None, each, None, (each, None), (200, None), "bytes"),
    ]


async def recovering(backend: Backend, size: Size) -> list[Line]:
    load = Load(backend, NullModel(backend), sessions=sized(size, 10_000, 1000, 60))
    seconds, most = await recovering_many(load)
    return [
        Line(f"{load.sessions:,} unfinished turns in a file recovered and answered (wall time)", "s", None, seconds, None),
        Line("models at work on that at once, at most", "", None, most, None, (most, None), (50, None), "at once"),
    ]


async def cold(backend: Backend, size: Size) -> list[Line]:
    load = Load(backend, NullModel(backend), sessions=sized(size, 200, 100, 2), turns=20)
    medians = await interleaved([Side(name, partial(waking, name, load)) for name in (BARE, HANDLER)], repetitions(size, 7))
    floor, handler = medians[BARE], medians[HANDLER]
    return [Line("cold wake of a 40-message session from the journal in memory, and one turn", "µs", floor, handler, None, (handler / floor, None), (2, None))]


async def durable(backend: Backend, size: Size) -> list[Line]:
    load = Load(backend, NullModel(backend, pause=True), sessions=sized(size, 1000, 1000, 3))
    medians = await interleaved(sides(durable_at_once, load), repetitions(size, 7))
    return [times_bare(f"{load.sessions:,} durable sessions at once, a text turn each, fsync", medians, (2.5, 4))]


async def wakes(backend: Backend, size: Size) -> list[Line]:
    load = Load(backend, NullModel(backend), sessions=sized(size, 20, 5, 2), turns=sized(size, 2000, 2000, 40), window=40)
    long, short = await waking_long_and_short(load, 20, repetitions(size, 7))
    what = f"waking a session with a view of 40 messages and a transcript of {2 * load.turns:,} from the disk"
    return [Line(what, "µs", None, long, None, (long / short, None), (1.1, None), "× one whose transcript has 40")]


async def growing(backend: Backend, size: Size) -> list[Line]:
    load = Load(backend, NullModel(backend), sessions=sized(size, 10, 20, 3), turns=sized(size, 10_000, 1000, 24), window=40)
    part, times = sized(size, 50, 25, 6), repetitions(size, 7)
    floor, ours = await growth(BARE, load, part, times), await growth(HANDLER, load, part, times)
    late, early = f"turns {load.turns - part * times + 1:,} to {load.turns:,}", f"turns {part + 1} to {2 * part}"

    def line(what: str, floor: float, ours: float) -> Line:
        return Line(f"{what}, {late} of a session over {early}", "×", floor, ours, None, (ours, None), (1.05, None), "× early")

    return [
        Line(f"bytes a durable turn leaves on the disk, {late} of a session", "bytes", floor.late_bytes, ours.late_bytes, None),
        line("bytes a durable turn leaves on the disk", floor.late_bytes / floor.early_bytes, ours.late_bytes / ours.early_bytes),
        line("time of a durable turn", floor.late_time / floor.early_time, ours.late_time / ours.early_time),
    ]


async def reduction(backend: Backend, size: Size) -> list[Line]:
    sessions = sized(size, 300, 200, 2)
    fits = Load(backend, NullModel(backend), sessions=sessions, history=40, window=100)
    overflows = attrs.evolve(fits, model=NullModel(backend, overflows=40))
    medians = await interleaved([*sides(one_session, fits, " fits"), *sides(one_session, overflows, " overflows")], repetitions(size, 9))
    floor, handler, stream = (medians[f"{name} overflows"] - medians[f"{name} fits"] for name in (BARE, HANDLER, STREAM))
    what = "one reduction of 41 messages at overflow: a turn that needs it less one that does not"
    return [Line(what, "µs", floor, handler, stream, (handler, stream), (100, 100), "µs")]


async def coming_and_going(backend: Backend, size: Size) -> list[Line]:
    sessions = sized(size, 10_000, 10_000, 5)
    closing, left = 0.0, 0

    async def opens() -> float:
        nonlocal left, closing
        taken, closing, tasks = await opening(Load(backend, NullModel(backend), sessions=sessions))
        left = max(left, tasks)
        return taken

    async def closes() -> float:
        return closing

    medians = await interleaved([Side("opens", opens), Side("closes", closes)], repetitions(size, 7))
    return [
        Line(f"{sessions:,} sessions opened", "s", None, medians["opens"], None, (medians["opens"], None), (1.0, None), "s"),
        Line(f"{sessions:,} idle sessions closed", "s", None, medians["closes"], None, (medians["closes"], None), (0.5, None), "s"),
        Line("tasks left after that", "", None, left, None, (left, None), (0, None), "tasks"),
    ]


async def troubles(backend: Backend, size: Size) -> list[Line]:
    sessions, seconds = sized(size, 1000, 300, 3), {"full": 6.0, "quick": 2.0, "toy": 0.01}[size]
    load = Load(backend, NullModel(backend, pace=0.005), sessions=sessions)
    medians = await interleaved([Side(trouble, partial(others_p99, trouble, load, seconds)) for trouble in TROUBLES], repetitions(size, 3), warm_up=0)
    calm = medians["none"]
    lines = [Line(f"{sessions:,} sessions, 5 ms a chunk, evenly over {seconds:g} s: p99 of a turn (ideal 100 ms)", "ms", None, calm, None)]
    beside = {trouble: p99 for trouble, p99 in medians.items() if trouble != "none"}
    lines.extend(Line(f"the same beside {trouble}", "ms", None, p99, None, (p99 / calm, None), (1.2, None), "× without") for trouble, p99 in beside.items())
    return lines


ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("text", "one session, text turn", text_turn),
        Row("window", "the same with the default window", window_turn),
        Row("tool", "tool turn", tool_turn),
        Row("1000", "1,000 sessions at once", partial(many, 1000, 3)),
        Row("5000", "5,000 sessions at once", partial(many, 5000, 5)),
        Row("paced", "5,000 sessions at 20 ms a chunk", paced),
        Row("history", "text turn at 10, 1,000 and 10,000 messages of history", history),
        Row("ageing", "the last 50 of 500 turns over the first", ageing),
        Row("idle", "bytes of an idle session", idle, ("asyncio",)),
        Row("passive", "bytes of a passivated session", passive, ("asyncio",)),
        Row("crowd", "100,000 known sessions in a file, 100 of them busy", crowd, ("asyncio",)),
        Row("recovery", "10,000 recoveries, 50 at once", recovering, ("asyncio",)),
        Row("cold", "cold wake and one turn", cold),
        Row("wakes", "waking with a long transcript", wakes, ("asyncio",)),
        Row("durable", "1,000 durable sessions at once", durable),
        Row("growth", "what a turn leaves on the disk and takes, early and late", growing, ("asyncio",)),
        Row("reduction", "one reduction at overflow", reduction),
        Row("opening", "10,000 sessions opened and closed", coming_and_going),
        Row("troubles", "one session in trouble among 1,000", troubles),
    )
}

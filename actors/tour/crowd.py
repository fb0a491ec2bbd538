"""Five thousand sessions that stream at once, in one runtime, each answer checked to the last letter."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import attrs

from ropewalk import AgentSpec, RopewalkError, Runtime, Session, TextDelta
from ropewalk.actors.messages import Message, assistant, text_of, user
from ropewalk.actors.tour.figures import Figures, Life, cpu_seconds, idle_bytes, percentile
from ropewalk.actors.tour.screen import Bar, Screen, source_of
from ropewalk.testing import Reply, ScriptedModel

__all__ = ["show_crowd"]

MOST_SECONDS = 120
PIECES = 20
PACE = 0.1
PAUSES = PIECES + 4
"""A pause stands before each piece, and before each of the four chunks that frame an answer."""
SAMPLE = 500


@attrs.define
class Talk:
    """One session's part, filled in as it goes."""

    number: int
    session: Session
    seconds: float = 0.0
    text: str = ""
    messages: Sequence[Message] = ()
    failure: str | None = None

    @property
    def prompt(self) -> str:
        """What is asked in this session and no other."""
        return f"What is your number? It is {self.number}."

    @property
    def is_right(self) -> bool:
        """Whether this session got its own answer, whole, and remembers it."""
        right = "".join(pieces(self.prompt))
        return self.failure is None and self.text == right and list(self.messages) == [user(self.prompt), assistant(right)]


@attrs.define
class Count:
    """What is going on now, in all sessions together."""

    streaming: int = 0
    done: int = 0
    pieces: int = 0


def pieces(prompt: str) -> list[str]:
    """The answer to a prompt, as it is streamed."""
    return [f"{prompt.split()[-1]}{number}, " for number in range(PIECES)]


def make_spec(pace: float) -> AgentSpec:
    """An agent for all of them, whose model answers every prompt otherwise, a piece every `pace` seconds."""
    model = ScriptedModel(lambda messages: Reply(text=pieces(text_of(messages[-1])), pace=pace), remember=0)
    return AgentSpec(name="crowd", model=model)


async def follow(session: Session, prompt: str, count: Count) -> str:
    """Ask, and put the answer together from its events."""
    text = ""
    async with session.stream(prompt) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                text += event.text
                count.pieces += 1
    return text


async def show_crowd(screen: Screen, sessions: int) -> tuple[Figures, list[str]]:
    """Have so many sessions stream at once; returns the figures and what was wrong, if anything."""
    screen.console.print()
    screen.code("async def follow(session, prompt, count):", *("    " + line for line in source_of(follow).splitlines()))
    count = Count()
    with anyio.fail_after(MOST_SECONDS), screen.bar(sessions, f"{sessions:,} sessions are being opened") as bar:
        async with Runtime() as runtime:
            talks, opening = await _opened(runtime, sessions)
            began, cpu_began = anyio.current_time(), cpu_seconds()
            await _all_at_once(talks, count, bar)
            seconds, cpu = anyio.current_time() - began, cpu_seconds() - cpu_began
            for talk in talks:
                talk.messages = await talk.session.messages()
    problems, spec = _problems(talks), make_spec(pace=0.0)
    size = 0.0 if problems else await idle_bytes([Life(talk.session.id, spec, [talk.prompt]) for talk in talks[:SAMPLE]])
    latencies = [talk.seconds for talk in talks]
    p50, p99 = percentile(latencies, 0.50), percentile(latencies, 0.99)
    screen.came_out(
        f"{sessions:,} sessions opened in {opening:.2f} s; all streamed at once, {count.pieces:,} events heard in {seconds:.1f} s",
        f"from prompt to end: p50 {p50 * 1000:,.0f} ms, p99 {p99 * 1000:,.0f} ms, of which the model's own pauses are {PAUSES * PACE * 1000:,.0f} ms",
    )
    figures = Figures(sessions=sessions, turns=count.done, seconds=seconds, cpu=cpu, p50=p50, p99=p99, session_bytes=size)
    return figures, problems


async def _opened(runtime: Runtime, sessions: int) -> tuple[list[Talk], float]:
    began = anyio.current_time()
    spec = make_spec(PACE)
    talks = [Talk(number, await runtime.open(f"crowd-{number}", spec)) for number in range(sessions)]
    return talks, anyio.current_time() - began


async def _all_at_once(talks: Sequence[Talk], count: Count, bar: Bar) -> None:
    async with anyio.create_task_group() as tasks:
        if bar.visible:
            tasks.start_soon(_report_live, count, len(talks), bar)
        for talk in talks:
            tasks.start_soon(_play, talk, count)


async def _play(talk: Talk, count: Count) -> None:
    began = anyio.current_time()
    count.streaming += 1
    try:
        talk.text = await follow(talk.session, talk.prompt, count)
        count.done += 1
    except RopewalkError as error:
        talk.failure = f"{type(error).__name__}: {error}"
    finally:
        count.streaming -= 1
    talk.seconds = anyio.current_time() - began


async def _report_live(count: Count, sessions: int, bar: Bar) -> None:
    """Show the count a few times a second until nobody streams any more; a call for each piece would cost more than the piece."""
    while True:
        await anyio.sleep(0.125)
        bar.show(count.pieces // PIECES, f"{count.streaming:,} sessions streaming, {count.pieces:,} pieces heard, {count.done:,} done")
        if not count.streaming:
            return


def _problems(talks: Sequence[Talk]) -> list[str]:
    wrong = [talk for talk in talks if not talk.is_right]
    if not wrong:
        return []
    first = wrong[0]
    found = first.failure or f"its reader heard {first.text[-60:]!r} at the end, and its history is {list(first.messages)!s:.200}"
    return [f"Of {len(talks):,} sessions of the crowd {len(wrong):,} came out wrong; session {first.session.id} for one: {found}"]

"""Five thousand sessions that stream at once, in one runtime, each answer checked to the last letter."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import anyio
import attrs

from ropewalk import AgentSpec, RopewalkError, Runtime, Session, TextDelta
from ropewalk.actors.messages import Message, assistant, text_of, user
from ropewalk.actors.terminal.figures import Figures, Life, cpu_seconds, idle_bytes, percentile
from ropewalk.actors.terminal.screen import Bar, Screen, source_of
from ropewalk.testing import Reply, ScriptedModel

__all__ = ["PAUSES", "Crowd", "Talk", "follow", "make_spec", "show_crowd", "wrong_talks"]

MOST_SECONDS = 120
PIECES = 20
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
class Crowd:
    """All of them, and what is going on now: how many stream, how many are done, how many pieces were heard.

    `opening` and `seconds` are wall seconds, `cpu` processor seconds.
    """

    talks: list[Talk] = attrs.field(factory=list[Talk])
    streaming: int = 0
    done: int = 0
    pieces: int = 0
    opening: float = 0.0
    seconds: float = 0.0
    cpu: float = 0.0


def pieces(prompt: str) -> list[str]:
    """The answer to a prompt, as it is streamed."""
    asked = prompt.rpartition(" ")[2]
    return [f"{asked}{number}, " for number in range(PIECES)]


def make_spec(pace: float) -> AgentSpec:
    """An agent for all of them, whose model answers every prompt otherwise, a piece every `pace` seconds."""
    model = ScriptedModel(lambda messages: Reply(text=pieces(text_of(messages[-1])), pace=pace), remember=0)
    return AgentSpec(name="crowd", model=model)


async def follow(session: Session, prompt: str, crowd: Crowd) -> str:
    """Ask, and put the answer together from its events."""
    text = ""
    async with session.stream(prompt) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                text += event.text
                crowd.pieces += 1
    return text


async def show_crowd(screen: Screen, sessions: int, pace: float) -> tuple[Figures, list[str]]:
    """Have so many sessions stream at once, a piece every `pace` seconds; returns the figures and what was wrong, if anything."""
    screen.console.print()
    screen.code("async def follow(session, prompt, crowd):", textwrap.indent(source_of(follow), "    "))
    crowd = Crowd()
    with anyio.fail_after(MOST_SECONDS + PAUSES * pace), screen.bar(None, f"{sessions:,} sessions are being opened") as bar:
        async with Runtime() as runtime:
            await _open(crowd, runtime, sessions, pace)
            await _stream_all_at_once(crowd, bar)
            for talk in crowd.talks:
                talk.messages = await talk.session.messages()
    latencies = [talk.seconds for talk in crowd.talks]
    p50, p99 = percentile(latencies, 0.50), percentile(latencies, 0.99)
    screen.came_out(
        f"{sessions:,} sessions opened in {crowd.opening:.2f} s; all streamed at once, {crowd.pieces:,} pieces heard in {crowd.seconds:.1f} s",
        f"from prompt to end: p50 {p50 * 1000:,.0f} ms, p99 {p99 * 1000:,.0f} ms, of which the model's own pauses are {PAUSES * pace * 1000:,.0f} ms",
    )
    problems, spec = wrong_talks(crowd.talks), make_spec(pace=0.0)
    with screen.bar(None, "the bytes of idle sessions are being counted"):
        size = 0.0 if problems else await idle_bytes([Life(talk.session.id, spec, [talk.prompt]) for talk in crowd.talks[:SAMPLE]])
    return Figures(sessions=sessions, turns=crowd.done, seconds=crowd.seconds, cpu=crowd.cpu, p50=p50, p99=p99, session_bytes=size), problems


async def _open(crowd: Crowd, runtime: Runtime, sessions: int, pace: float) -> None:
    began = anyio.current_time()
    spec = make_spec(pace)
    for number in range(sessions):
        crowd.talks.append(Talk(number, await runtime.open(f"crowd-{number}", spec)))
    crowd.opening = anyio.current_time() - began


async def _stream_all_at_once(crowd: Crowd, bar: Bar) -> None:
    began, cpu_began = anyio.current_time(), cpu_seconds()
    async with anyio.create_task_group() as around:
        around.start_soon(_report_live, crowd, bar)
        async with anyio.create_task_group() as tasks:
            for talk in crowd.talks:
                tasks.start_soon(_play, talk, crowd)
        crowd.seconds, crowd.cpu = anyio.current_time() - began, cpu_seconds() - cpu_began
        around.cancel_scope.cancel()


async def _play(talk: Talk, crowd: Crowd) -> None:
    began = anyio.current_time()
    crowd.streaming += 1
    try:
        talk.text = await follow(talk.session, talk.prompt, crowd)
        crowd.done += 1
    except RopewalkError as error:
        talk.failure = f"{type(error).__name__}: {error}"
    finally:
        crowd.streaming -= 1
    talk.seconds = anyio.current_time() - began


async def _report_live(crowd: Crowd, bar: Bar) -> None:
    """Show the count now and then, for ever; a call for each piece would cost more than the piece."""
    while True:
        await anyio.sleep(bar.pace)
        words = f"{crowd.streaming:,} sessions streaming, {crowd.pieces:,} pieces heard, {crowd.done:,} done"
        bar.show(crowd.pieces, len(crowd.talks) * PIECES, words)


def wrong_talks(talks: Sequence[Talk]) -> list[str]:
    """What came of talks that are not right, in a sentence; nothing when all are."""
    wrong = [talk for talk in talks if not talk.is_right]
    if not wrong:
        return []
    first = wrong[0]
    found = first.failure or f"its reader heard {first.text[-60:]!r} at the end, and its history is {list(first.messages)!s:.200}"
    return [f"Of {len(talks):,} sessions of the crowd {len(wrong):,} came out wrong; session {first.session.id} for one: {found}"]

"""The sessions of a swarm: they ask, listen, and write down what each turn took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import anyio
import attrs

from ropewalk.actors.events import TextDelta
from ropewalk.actors.messages import text_of
from ropewalk.actors.session.handle import Session
from ropewalk.actors.spec import AgentSpec
from ropewalk.actors.terminal.figures import cpu_seconds
from ropewalk.runtime.errors import RopewalkError
from ropewalk.runtime.runtime import Runtime

__all__ = ["PROMPTS", "Swarm", "TurnTaken", "play"]

PROMPTS = (
    "What is a rope made of? Answer in one sentence.",
    "Name three knots, and what each is good for.",
    "Why does a rope under load get thinner?",
    "Tell me about sailing ships in two sentences.",
    "What did I ask you first?",
    "Say something kind in five words.",
    "How long is a nautical mile?",
)


@attrs.frozen(kw_only=True)
class TurnTaken:
    """One turn: seconds from its prompt to its end and to the first piece of text (None where there was none), and what failed it.

    `failure` is the kind of the error, `words` its text; both None for a turn that ended by itself.
    """

    seconds: float
    first_text: float | None
    answer: str = ""
    failure: str | None = None
    words: str | None = None


@attrs.define(kw_only=True)
class Swarm:
    """What came of all sessions so far, and what goes on now.

    `taken` holds each session's turns in their order. `seconds` and `cpu` are wall and processor seconds from the first prompt
    to the last turn's end; `output_tokens` is what the model reported, 0 where it reports none.
    """

    sessions: int
    turns: int
    taken: dict[int, list[TurnTaken]] = attrs.field(factory=dict[int, list[TurnTaken]])
    streaming: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    cpu: float = 0.0

    @property
    def all_taken(self) -> Sequence[TurnTaken]:
        """Every turn that came to an end, one session's after the other's."""
        return [turn for turns in self.taken.values() for turn in turns]

    @property
    def failures(self) -> Counter[str]:
        """How many turns failed, by the kind of what failed them."""
        return Counter(turn.failure for turn in self.all_taken if turn.failure is not None)

    @property
    def expected(self) -> int:
        """How many turns there are to be."""
        return self.sessions * self.turns

    def prompts(self, number: int) -> list[str]:
        """What is asked in one of the sessions: neighbours begin with another question each."""
        return [PROMPTS[(number + turn) % len(PROMPTS)] for turn in range(self.turns)]


async def play(swarm: Swarm, spec: AgentSpec) -> None:
    """Have all sessions talk at once, in one runtime."""
    async with Runtime() as runtime:
        sessions: list[Session] = [await runtime.open(f"swarm-{number}", spec) for number in range(swarm.sessions)]
        began, cpu_began = anyio.current_time(), cpu_seconds()
        async with anyio.create_task_group() as tasks:
            for number, session in enumerate(sessions):
                tasks.start_soon(_talk, swarm, number, session)
        swarm.seconds, swarm.cpu = anyio.current_time() - began, cpu_seconds() - cpu_began
        swarm.output_tokens = sum(session.statistics().output_tokens for session in sessions)


async def _talk(swarm: Swarm, number: int, session: Session) -> None:
    taken = swarm.taken.setdefault(number, [])
    for prompt in swarm.prompts(number):
        swarm.streaming += 1
        try:
            taken.append(await _take_turn(session, prompt))
        finally:
            swarm.streaming -= 1


async def _take_turn(session: Session, prompt: str) -> TurnTaken:
    began = anyio.current_time()
    first: float | None = None
    try:
        async with session.stream(prompt, kinds={TextDelta}, on_leave="cancel") as events:
            async for _ in events:
                if first is None:
                    first = anyio.current_time() - began
            result = await events.turn.result()
    except RopewalkError as error:
        return TurnTaken(seconds=anyio.current_time() - began, first_text=first, failure=type(error).__name__, words=str(error))
    return TurnTaken(seconds=anyio.current_time() - began, first_text=first, answer=text_of(result.message))

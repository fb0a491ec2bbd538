"""Any mix of asks, cancels, deaths, passivations, forks, rewinds, pins and redactions: no entry is lost, views stay good, and what is redacted is gone."""

from __future__ import annotations

from typing import Any

import attrs
import msgspec
import trio
from hypothesis import given
from hypothesis import strategies as st

from mortal import PLANS, Bank, Mortal, banking, live
from ropewalk import InvalidOption, Runtime, Session, SessionExists
from ropewalk.actors.messages import text_of
from ropewalk.runtime.supervision import Failure, attempt
from ropewalk.testing import in_trio
from talk import assert_sound

_plans, _which = st.sampled_from(sorted(PLANS)), st.integers(0, 3)
_steps = st.one_of(
    st.tuples(st.just("ask"), _which, _plans),
    st.tuples(st.just("ask"), _which, _plans),
    st.tuples(st.just("submit"), _which, _plans),
    st.tuples(st.just("cancel"), _which, st.floats(0, 5)),
    st.tuples(st.just("passivate"), _which),
    st.tuples(st.just("fork"), _which, st.integers(0, 8)),
    st.tuples(st.just("rewind"), _which, st.integers(0, 8)),
    st.tuples(st.just("pin"), _which, st.integers(0, 8)),
    st.tuples(st.just("redact"), _which, st.integers(0, 8)),
)
_lives = st.lists(st.tuples(st.lists(_steps, min_size=1, max_size=8), st.integers(0, 20)), min_size=1, max_size=4)


@attrs.define
class Story:
    """What was done so far: the sessions there are, the entries that were seen in each, and the secrets of prompts, each with whether it must be gone."""

    sessions: list[str] = attrs.Factory(lambda: ["me"])
    seen: dict[str, list[str]] = attrs.Factory(dict[str, list[str]])
    gone: set[str] = attrs.Factory(set[str])
    said: int = 0

    async def step(self, runtime: Runtime, spec: Any, what: str, which: int, *rest: Any) -> None:
        """Do one thing. What is refused at the door is no matter."""
        session: Session = await runtime.open(self.sessions[which % len(self.sessions)], spec)
        match what, rest:
            case "ask", (str(plan),):
                await attempt((await session.submit(self.prompt(plan))).result())
            case "submit", (str(plan),):
                await session.submit(self.prompt(plan))
            case "cancel", (float(seconds),):
                await trio.sleep(seconds)
                await session.cancel()
            case "passivate", ():
                await runtime.passivate(session.id)
            case _:
                await self.history(session, what, int(rest[0]))
        await self.look(session)

    def prompt(self, plan: str) -> str:
        """A prompt with a secret in it."""
        self.said += 1
        return f"{plan}: secret-{self.said:03d}-"

    async def history(self, session: Session, what: str, place: int) -> None:
        """Fork, rewind, pin or redact at an entry."""
        entries = [entry async for entry in session.transcript()]
        if not entries:
            return
        entry = entries[place % len(entries)]
        if what == "redact":
            assert not isinstance(await attempt(session.redact(entry.id)), Failure)
            self.gone.update(word for word in text_of(entry.message).split() if word.startswith("secret-"))
        elif what == "fork":
            forked = await attempt(session.fork(name := f"fork-{len(self.sessions)}", at=entry.id))
            if isinstance(forked, Failure):
                assert isinstance(forked.error, InvalidOption | SessionExists)
            else:
                self.sessions.append(name)
        else:
            done = await attempt(session.rewind(entry.id) if what == "rewind" else session.pin(entry.id))
            assert not isinstance(done, Failure) or isinstance(done.error, InvalidOption)

    async def look(self, session: Session) -> None:
        """The transcript has all that it ever had."""
        ids = [entry.id async for entry in session.transcript()]
        assert set(self.seen.get(session.id, ())) <= set(ids), "the transcript lost an entry"
        self.seen[session.id] = ids


@given(lives=_lives, schedule=st.random_module())
def test_whatever_is_done_and_whoever_dies(lives: list[tuple[list[tuple[Any, ...]], int]], schedule: Any) -> None:
    """The view is good and what a replay gives, no entry is lost, nothing waits for ever, and what was redacted is in no record and no snapshot."""

    @in_trio
    async def run() -> None:
        bank, story = Bank(), Story()
        spec = banking(bank)
        journal: Mortal | None = None
        for steps, life in lives:
            journal = Mortal(life, journal)

            async def go(runtime: Runtime, steps: list[tuple[Any, ...]] = steps) -> None:
                await runtime.recover()
                for step in steps:
                    await story.step(runtime, spec, *step)

            await live(journal, spec, go)
        last = Mortal(beside=journal)

        async def look(runtime: Runtime) -> None:
            assert (await runtime.recover()).failed == ()
            for name in story.sessions:
                session = await runtime.open(name, spec)
                await session.wait_idle()
                await story.look(session)
                await assert_sound(session)
                if await runtime.passivate(name):
                    await session.messages()
                    await assert_sound(session)
            assert [info.status async for info in runtime.list_sessions() if info.status in ("unfinished", "unclaimed", "busy")] == []
            for actor in await last.actors():
                kept = await last.snapshot(actor.id)
                bodies = [record.body for record in await last.read(actor.id)] + ([] if kept is None else [kept.body])
                held = msgspec.json.encode(bodies).decode()
                assert [secret for secret in story.gone if secret in held] == []

        assert not await live(last, spec, look)
        keys = [key for key, _ in bank.books]
        assert len(keys) == len(set(keys)), "an effect was had twice"

    run()

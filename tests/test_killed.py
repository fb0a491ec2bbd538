"""Processes killed with SIGKILL at random moments: no accepted prompt is lost, no effect is had twice, every doubt is told.

The judge has what each process was told (see `clerk.py`), the bank's books, and the journal.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import anyio
import attrs
import msgspec
import pytest

import clerk
from clerk import Orders, key_of, prompt_of, told_of
from ropewalk import Runtime, Session, SQLiteJournal
from ropewalk.actors.messages import Block, tool_results, tool_uses
from ropewalk.actors.session.codec import RECORDS
from ropewalk.actors.session.records import Accepted, Begun, Resumed, Settled, Withdrawn
from ropewalk.actors.session.recovery import DOUBTFUL
from ropewalk.actors.session.settling import IN_DOUBT
from ropewalk.actors.tour.bank import Bank
from ropewalk.actors.view import TranscriptEntry
from ropewalk.runtime.supervision import attempt
from talk import assert_sound

HERE = Path(__file__).parent
BUDGET = os.environ.get("ROPEWALK_BUDGET", "short")
KILLS = 10
"""Of each story. There are two in every run, one on each backend."""
TRIES = 10
ROUNDS = {"short": 2, "slice": 2, "long": 5}[BUDGET]
STORIES = {"short": 1, "slice": 1, "long": 10}[BUDGET]
Backend: TypeAlias = Literal["asyncio", "trio"]
BACKENDS: tuple[Backend, ...] = ("asyncio", "trio")


@attrs.define
class Heard:
    """What the processes of one story said they were told: for each session's key the outcomes."""

    accepted: set[tuple[str, str]] = attrs.Factory(set)
    outcomes: dict[tuple[str, str], set[str]] = attrs.Factory(dict)
    views: dict[str, list[Any]] = attrs.Factory(dict)
    recovered: int = 0
    kinds: Counter[str] = attrs.Factory(Counter)

    def take(self, line: list[Any]) -> None:
        """Hear a line."""
        self.kinds[line[0]] += 1
        match line:
            case ["accepted", session, key]:
                self.accepted.add((session, key))
            case ["outcome", session, key, outcome]:
                self.outcomes.setdefault((session, key), set()).add(msgspec.json.encode(outcome, order="sorted").decode())
            case ["view", session, messages]:
                self.views[session] = messages
            case ["recovered", sessions]:
                self.recovered += len(sessions)
            case _:
                pass


class Life:
    """One process, from its start until it is killed or ends."""

    def __init__(self, orders: Orders, heard: Heard) -> None:
        self._heard = heard
        for name in orders.sessions:
            heard.views.pop(name, None)
        self._log = Path(orders.folder) / "stderr"
        with self._log.open("ab") as log:
            command = [sys.executable, "-P", str(HERE / "clerk.py"), msgspec.json.encode(orders).decode()]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        self.over = False

    def until(self, is_enough: Callable[[list[Any]], bool]) -> list[Any]:
        """Hear what it says up to a line, which is returned. That it never comes is a failure."""
        while True:
            line = self._next()
            assert line is not None, f"the process ended by itself, and said:\n{self._log.read_text(encoding='utf-8')}"
            if is_enough(line):
                return line
            assert line[0] != "done", "it has said all it will say"

    def lines(self, count: int) -> None:
        """Hear so many lines, or all of them."""
        left = count

        def enough(line: list[Any]) -> bool:
            nonlocal left
            left -= 1
            return left <= 0 or line[0] == "done"

        self.until(enough)

    def kill(self) -> None:
        """Kill it, and hear what it had said until then."""
        assert self.process.poll() is None, self._log.read_text(encoding="utf-8")
        self.process.send_signal(signal.SIGKILL)
        self.finish()
        assert self.process.returncode == -signal.SIGKILL

    def finish(self) -> None:
        """Hear the rest, and wait for its end."""
        while self._next() is not None:
            pass
        self.process.wait()

    def ends_well(self) -> None:
        """Hear it to the end, to which it comes by itself."""
        self.finish()
        assert self.over, self._log.read_text(encoding="utf-8")
        assert self.process.returncode == 0

    def survives(self, seconds: float) -> None:
        """Let it go on for a moment."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return
        raise AssertionError(self._log.read_text(encoding="utf-8"))

    def _next(self) -> list[Any] | None:
        assert self.process.stdout is not None
        raw = self.process.stdout.readline()
        if not raw.endswith(b"\n"):
            return None  # half a line was not said
        line: list[Any] = msgspec.json.decode(raw)
        self.over = self.over or line[0] == "done"
        self._heard.take(line)
        return line


Starts = Callable[..., Life]


@pytest.fixture
def start() -> Iterator[Starts]:
    """Starts processes, and sees to it that none is left."""
    started: list[Life] = []

    def begin(orders: Orders, heard: Heard) -> Life:
        started.append(Life(orders, heard))
        return started[-1]

    yield begin
    for life in started:
        if life.process.poll() is None:
            life.process.kill()
            life.process.wait()
        assert life.process.stdout is not None
        life.process.stdout.close()


# The judge ------------------------------------------------------------------------------------------------------------


def in_journal(folder: Path, look: Callable[[Runtime, SQLiteJournal], Any], backend: str) -> None:
    """Look into the journal, as another process that works on nothing."""

    async def open_and_look() -> None:
        journal = SQLiteJournal(folder / "sessions.db", durability="os")
        async with Runtime(journal, [clerk.clerk(Bank(folder / "books"))]) as runtime:
            await look(runtime, journal)

    anyio.run(open_and_look, backend=backend)


def check_file(folder: Path, backend: str) -> None:
    """Whatever was killed, the file is whole."""

    async def look(runtime: Runtime, journal: SQLiteJournal) -> None:
        assert await journal.check() == []

    in_journal(folder, look, backend)


def judge(folder: Path, sessions: Sequence[str], prompts: int, heard: Heard, backend: str) -> Counter[str]:
    """Everything that must hold once all is over; returns how often something came about that is worth a test."""
    figures: Counter[str] = Counter()
    payments = Bank(folder / "books").payments()
    calls: set[str] = set()

    async def look(runtime: Runtime, journal: SQLiteJournal) -> None:
        assert await journal.check() == []
        assert list(await journal.unfinished()) == [], "something was left"
        for name in sessions:
            bodies = [record.body for record in await journal.read(name, codec=RECORDS)]
            session = await runtime.open(name, clerk.clerk(Bank(folder / "books")), create=False)
            await assert_sound(session)
            if name in heard.views:
                assert heard.views[name] == await session.messages(), "what the last process had in memory is not what the journal says"
            entries = [entry async for entry in session.transcript()]
            check_prompts(name, prompts, bodies, entries, heard)
            calls.update(check_calls(name, bodies, entries, dict(payments), figures))
            await check_keys(session, prompts, heard)
            figures["deaths"] += sum(isinstance(body, Resumed) for body in bodies)
            figures["given up"] += sum(isinstance(body, Settled) and body.error == "ProcessDied" for body in bodies)
            assert Bank(folder / "books").payments() == payments, "asking again had an effect"

    in_journal(folder, look, backend)
    paid = Counter(key for key, _ in payments)
    assert not paid or max(paid.values()) == 1, "an effect was had twice"
    assert set(paid) <= calls, "a payment was made that nobody had asked for"
    return figures


def check_prompts(name: str, prompts: int, bodies: Sequence[Any], entries: Sequence[TranscriptEntry], heard: Heard) -> None:
    """Every prompt that was accepted stands in the transcript once and has one turn, which has one end."""
    words = Counter(block["text"] for entry in entries if entry.message["role"] == "user" for block in entry.message["content"] if "text" in block)
    assert {(session, key) for session, key in heard.accepted if session == name} <= {(name, key_of(name, number)) for number in range(prompts)}
    for number in range(prompts):
        key = key_of(name, number)
        assert words.pop(prompt_of(key)) == 1, f"the prompt of {key} is not told once"
        [accepted] = [body for body in bodies if isinstance(body, Accepted | Begun) and body.key == key]
        prompt_id = accepted.prompt_id if isinstance(accepted, Accepted) else accepted.prompt_ids[0]
        [begun] = [body for body in bodies if isinstance(body, Begun) and prompt_id in body.prompt_ids]
        assert sum(isinstance(body, Settled) and body.turn_id == begun.turn_id for body in bodies) == 1
    assert not words, "something is said that nobody sent"
    assert not any(isinstance(body, Withdrawn) for body in bodies)


def check_calls(name: str, bodies: Sequence[Any], entries: Sequence[TranscriptEntry], paid: dict[str, int], figures: Counter[str]) -> set[str]:
    """Every call has one result, which is what the books say, or says that nobody knows; returns the calls' idempotency keys."""
    doubted = Counter((body.turn_id, call) for body in bodies if isinstance(body, Resumed | Settled) for call in set(body.in_doubt))
    keys: set[str] = set()
    told_doubtful: set[tuple[str | None, str]] = set()
    for asking, answering in zip(entries, [*entries[1:], None], strict=True):
        calls = tool_uses(asking.message)
        results = tool_results(answering.message) if answering is not None and calls else []
        assert [call["toolUseId"] for call in calls] == [result["toolUseId"] for result in results], "a call has not one result"
        for call, result in zip(calls, results, strict=True):
            key = f"{name}/{asking.turn_id}/{asking.id}/{call['toolUseId']}"
            keys.add(key)
            outcome = outcome_of(call, result)
            figures[outcome] += 1
            if outcome == "in doubt":
                told_doubtful.add((asking.turn_id, call["toolUseId"]))
                figures["in doubt, paid"] += key in paid
                assert call["name"] in ("pay", "pay_once", "balance")
            elif call["name"].startswith("pay"):
                assert (key in paid) == (outcome == "success"), f"the history says of {call} that it was a {outcome}, and the books do not"
                assert outcome != "success" or paid[key] == call["input"]["amount"]
    assert set(doubted) == told_doubtful, "a doubt is not told, or one is told where there is none"
    return keys


def outcome_of(call: Block, result: Block) -> str:
    """What the history says of a call."""
    [text] = [part["text"] for part in result["content"]]
    if text == DOUBTFUL:
        assert call["name"] == "pay", "a call that may be tried again was not"
        return "in doubt"
    if text == IN_DOUBT:  # its turn was given up
        return "in doubt"
    if result["status"] == "success":
        assert text == ("enough" if call["name"] == "balance" else f"paid {call['input']['amount']}")
        return "success"
    assert text != "Tool was interrupted."
    assert call["input"] == {} or call["input"]["amount"] == 1000, result
    return "refusal"


async def check_keys(session: Session, prompts: int, heard: Heard) -> None:
    """Each key has one outcome, in whatever process it is asked for."""
    for number in range(prompts):
        key = key_of(session.id, number)
        assert (session.id, key) in heard.accepted
        heard.take(["outcome", session.id, key, told_of(await attempt(session.ask(prompt_of(key), key=key)))])
        told = heard.outcomes[session.id, key]
        assert len(told) == 1, f"{key} had {len(told)} outcomes: {told}"


# Kills ----------------------------------------------------------------------------------------------------------------

SESSIONS = ["ann", "bob", "cid", "dot"]
PROMPTS = 2
"""How many more each life has to send in each session."""


def drawn(draw: random.Random, folder: Path, backend: Backend, sessions: Sequence[str], number: int, **more: Any) -> Orders:
    """The orders of a story's life of this number: it has more to do than the one before, and sends again what that one was to send."""
    return Orders(
        **{
            "folder": str(folder),
            "sessions": sessions,
            "prompts": PROMPTS * (1 + min(number, KILLS - 1)),
            "seed": draw.getrandbits(32),
            "backend": backend,
            "recovers": draw.choice(["first", "beside", "not"]),
            "durability": draw.choice(["disk", "os", "os", "os"]),
            "idle_seconds": draw.choice([None, None, 0.01]),
            **more,
        }
    )


def kill_somewhere(life: Life, draw: random.Random, heard: Heard) -> bool:
    """Kill it after some line, and some moment; whether it was at work."""
    life.lines(draw.choice([1, draw.randint(2, 12), draw.randint(2, 24)]) + 2 * len(heard.outcomes))
    life.survives(draw.choice([0, draw.uniform(0, 0.01), draw.uniform(0, 0.1)]))
    life.kill()
    return not life.over


@pytest.mark.parametrize("story", range(STORIES))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_that_is_killed_at_random_moments(backend: Backend, story: int, tmp_path: Path, start: Starts) -> None:
    """Whenever it is, the next ones answer every accepted prompt once, and no effect is had twice."""
    draw, heard, interrupted = random.Random(random.random() + story), Heard(), 0
    for number in range(KILLS):
        interrupted += kill_somewhere(start(drawn(draw, tmp_path, backend, SESSIONS, number), heard), draw, heard)
        check_file(tmp_path, backend)
    start(drawn(draw, tmp_path, backend, SESSIONS, KILLS, stays=False), heard).ends_well()
    figures = judge(tmp_path, SESSIONS, PROMPTS * KILLS, heard, backend)
    assert heard.kinds["lost"] == heard.kinds["elsewhere"] == heard.kinds["locked"] == 0
    assert interrupted > KILLS / 4, "hardly anything was under way"
    assert figures["deaths"] > 0


# Two processes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("story", range(STORIES))
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_side_by_side_of_which_one_or_the_other_is_killed(backend: Backend, story: int, tmp_path: Path, start: Starts) -> None:
    """Each has sessions of its own and goes on with what the other leaves behind, so that sessions wander; what is true of one is true of two."""
    draw, heard = random.Random(random.random() + story), Heard()
    shares = (["ann", "bob"], ["cid", "dot"])
    lives = [start(drawn(draw, tmp_path, backend, share, 0), heard) for share in shares]
    for number in range(1, ROUNDS + 1):
        for place, share in enumerate(shares):
            if draw.random() < 0.7:
                kill_somewhere(lives[place], draw, heard)
                lives[place] = start(drawn(draw, tmp_path, backend, share, number), heard)
        check_file(tmp_path, backend)
    for life in lives:
        life.kill()
    for life in [start(drawn(draw, tmp_path, backend, share, KILLS, stays=False), heard) for share in shares]:
        life.ends_well()
    judge(tmp_path, [*shares[0], *shares[1]], PROMPTS * KILLS, heard, backend)
    assert heard.kinds["lost"] == heard.kinds["elsewhere"] == heard.kinds["locked"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_has_one_owner_at_a_time_who_may_be_stopped_but_not_robbed(backend: Backend, tmp_path: Path, start: Starts) -> None:
    """A process that is stopped lives, however long it says nothing; one that is killed leaves its session to whoever waits, at once."""
    draw, heard = random.Random(random.random()), Heard()
    first = start(drawn(draw, tmp_path, backend, ["ann"], 3, recovers="not", idle_seconds=None, delay=0.1), heard)
    first.until(lambda line: line[0] == "paid")
    for _ in range(TRIES):  # it may be stopped while it writes: then nobody else can write, and that is what they are told
        first.process.send_signal(signal.SIGSTOP)
        turned_away = start(drawn(draw, tmp_path, backend, ["ann"], 0, recovers="not", open_timeout=0, timeout=0.5, stays=False), heard)
        turned_away.ends_well()
        first.process.send_signal(signal.SIGCONT)
        if heard.kinds["elsewhere"]:
            break
    assert heard.kinds["elsewhere"] == 1
    waits = start(drawn(draw, tmp_path, backend, ["ann", "bob"], 3, recovers="not", stays=False), heard)
    waits.until(lambda line: line[0] in ("accepted", "outcome") and line[1] == "bob")
    first.kill()
    waits.ends_well()
    judge(tmp_path, ["ann", "bob"], PROMPTS * 4, heard, backend)
    assert heard.kinds["lost"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_owner_who_was_taken_for_dead_commits_nothing_any_more(backend: Backend, tmp_path: Path, start: Starts) -> None:
    """Somebody takes away the file that says an owner is alive: another gets the session while the first still works on it, and is fenced off."""
    draw, heard = random.Random(random.random()), Heard()
    robbed = start(drawn(draw, tmp_path, backend, ["ann"], 3, idle_seconds=None, open_timeout=0, delay=0.5, stays=False), heard)
    robbed.until(lambda line: line[0] == "paid")
    [lock] = tmp_path.glob("sessions.db-owner-*")
    lock.unlink()
    robber = start(drawn(draw, tmp_path, backend, ["ann"], 3), heard)
    robber.until(lambda line: line[0] in ("recovered", "accepted", "outcome"))
    robbed.ends_well()
    assert heard.kinds["lost"] > 0, "the first owner went on as if nothing had happened"
    robber.until(lambda line: line[0] == "done")
    robber.kill()
    judge(tmp_path, ["ann"], PROMPTS * 4, heard, backend)


AGENT = """
import os, signal, sys
from ropewalk import Agent, tool
from ropewalk.testing import Reply, ScriptedModel, ToolUse

@tool
def pay(cents: int) -> str:
    \"\"\"Pay.\"\"\"
    os.kill(os.getpid(), signal.SIGKILL)

first = sys.argv[1] == "first"
model = ScriptedModel([Reply(tool_uses=[ToolUse("pay", {"cents": 5})])] if first else ["well"])
agent = Agent(model=model, tools=[pay], journal="agent.db", session_id="me", callback_handler=None)
print(agent(f"hi {sys.argv[1]}"))
print([(message["role"], *(next(iter(block)) for block in message["content"])) for message in agent.messages])
print("may or may not have had its effect" in str(agent.messages[2]))
"""


def test_an_agent_whose_process_is_killed_in_a_tool_goes_on_in_the_next(tmp_path: Path) -> None:
    def live(argument: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-W", "error", "-c", AGENT, argument], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    assert live("first").returncode == -signal.SIGKILL
    second = live("second")
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout.splitlines() == [
        "well",
        "[('user', 'text'), ('assistant', 'toolUse'), ('user', 'toolResult', 'text'), ('assistant', 'text')]",
        "True",
    ]

"""What the tests of sessions share: small agents, tools that wait to be let go, and questions about what a session holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import anyio

from ropewalk import AgentSpec, Event, MemoryJournal, PromptAccepted, PromptSettled, Runtime, Session, ToolContext, TurnEnded, TurnStarted, tool
from ropewalk.actors.messages import Block, Message
from ropewalk.actors.session.records import Body
from ropewalk.actors.session.state import SessionState, entries_in, transcribe
from ropewalk.actors.validity import is_open, is_valid
from ropewalk.actors.view import Entry, Transcript, TranscriptEntry
from ropewalk.testing import EventFold, ScriptedModel, VirtualClock

__all__ = [
    "Gate",
    "Witness",
    "agent",
    "assert_sound",
    "calls",
    "echo",
    "fail",
    "journal_of",
    "kinds",
    "note",
    "replayed",
    "result_block",
    "results",
    "said",
    "told",
    "transcribed",
    "transcript",
    "virtual_runtime",
    "wait",
]


@tool
async def echo(text: str = "echo") -> str:
    """Say the text again."""
    return text


@tool
async def fail(text: str = "no") -> str:
    """Fail."""
    raise RuntimeError(text)


@tool
async def wait(seconds: float = 3600.0) -> str:
    """Wait, then say so."""
    await anyio.sleep(seconds)
    return "waited"


@tool
async def note(key: str, context: ToolContext) -> str:
    """Write the key into the request state."""
    context.request_state[key] = True
    return "noted"


def agent(replies: Any = (), *, tools: Sequence[Any] = (echo, fail, wait, note), **options: Any) -> AgentSpec:
    """An agent whose model plays these replies."""
    model = replies if hasattr(replies, "stream") else ScriptedModel(replies)
    return AgentSpec(model=model, tools=tools, **options)


def virtual_runtime(**options: Any) -> Runtime:
    """A runtime for virtual time: nothing of it depends on the real clock or on threads."""
    return Runtime(**{"clock": VirtualClock(7), "sync_calls": "inline", **options})


class Gate:
    """A door that a test holds shut: what arrives waits until it is opened."""

    def __init__(self) -> None:
        self._reached = anyio.Event()
        self._open = anyio.Event()

    def open(self) -> None:
        """Let everything through, now and later."""
        self._open.set()

    async def reached(self) -> None:
        """Return when somebody has arrived."""
        await self._reached.wait()

    async def __call__(self, *ignored: Any) -> None:
        """Arrive, and go on when the gate is open."""
        self._reached.set()
        await self._open.wait()


# What messages hold.


def told(*blocks: str | Block) -> Message:
    """A user message."""
    return {"role": "user", "content": [{"text": block} if isinstance(block, str) else block for block in blocks]}


def said(*blocks: str | Block) -> Message:
    """An assistant message."""
    return {"role": "assistant", "content": [{"text": block} if isinstance(block, str) else block for block in blocks]}


def calls(name: str, tool_use_id: str, **tool_input: Any) -> Block:
    """A tool call block."""
    return {"toolUse": {"toolUseId": tool_use_id, "name": name, "input": tool_input}}


def result_block(tool_use_id: str, text: str, status: str = "success") -> Block:
    """A tool result block."""
    return {"toolResult": {"toolUseId": tool_use_id, "status": status, "content": [{"text": text}]}}


def results(*pairs: tuple[str, str] | tuple[str, str, str]) -> Message:
    """A user message of tool results: each is an id, a text, and a status where it is not success."""
    return told(*[result_block(*pair) for pair in pairs])


def kinds(events: Iterable[Event]) -> list[str]:
    """The names of the kinds of these events, neighbours of one kind once."""
    names: list[str] = []
    for event in events:
        name = type(event).__name__
        if not names or names[-1] != name:
            names.append(name)
    return names


# What a session holds.


def journal_of(session: Session) -> MemoryJournal:
    """The journal a session is kept in."""
    journal = session.runtime.journal
    assert isinstance(journal, MemoryJournal)
    return journal


async def replayed(session: Session) -> SessionState:
    """The state that the session's records give."""
    state = SessionState()
    for record in await session.runtime.journal.read(session.id):
        state.apply(record.body)
    return state


async def assert_sound(session: Session) -> None:
    """The session is idle, a model may be shown its view, and its journal says the same as its memory."""
    assert session.status in ("idle", "in doubt")
    view = await session.messages()
    assert not view or is_valid(view), view
    assert not is_open(view)
    state = await replayed(session)
    assert state.view.messages == view
    assert state.turn is None
    assert state.waiting is None
    actor = session._actor
    assert actor is not None
    assert actor.writer.is_durable
    assert actor.state.view.entries == state.view.entries
    assert (actor.state.next_entry, actor.state.turns, actor.state.cycles, actor.state.usage) == (state.next_entry, state.turns, state.cycles, state.usage)


def transcribed(records: Sequence[Body]) -> list[TranscriptEntry]:
    """Everything ever said, as the records tell it when all of them are at hand."""
    transcript = Transcript()
    said: dict[int, Entry] = {}
    for body in records:
        transcribe(transcript, body)
        for entry in entries_in(body):
            said.setdefault(entry.number, entry)
    return [transcript.shown(entry) for _, entry in sorted(said.items())]


async def transcript(session: Session) -> list[tuple[Message, str | None]]:
    """Everything ever said, each with why it left the view, None where it is in it."""
    return [(entry.message, entry.left_because) async for entry in session.transcript()]


class Witness:
    """A handler that keeps every event it hears, and knows the laws they keep."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Hear an event."""
        self.events.append(event)

    def of(self, *wanted: type[Event]) -> list[Any]:
        """The events of these kinds."""
        return [event for event in self.events if isinstance(event, wanted)]

    def check(self, view: list[Message], session_id: str = "me") -> None:
        """The events of a session that is idle: numbered without a gap, each turn ended once, each prompt settled once, and the view told."""
        heard = [event for event in self.events if event.session_id == session_id]
        fold = EventFold()
        epoch = seq = 0
        for event in heard:
            assert event.seq == (seq + 1 if event.epoch == epoch else 1), event
            assert event.epoch >= epoch, event
            epoch, seq = event.epoch, event.seq
            fold.take(event)
        started = [event.turn_id for event in heard if isinstance(event, TurnStarted)]
        assert [event.turn_id for event in heard if isinstance(event, TurnEnded)] == started
        accepted = [event.prompt_id for event in heard if isinstance(event, PromptAccepted)]
        assert sorted(event.prompt_id for event in heard if isinstance(event, PromptSettled)) == sorted(accepted)
        assert len(set(accepted)) == len(accepted)
        assert [prompt_id for event in heard if isinstance(event, TurnStarted) for prompt_id in event.prompt_ids if prompt_id not in accepted] == []
        entries, status, partial = fold.picture()
        assert [message for _, message in entries] == view
        assert (status, partial) == ("idle", "")

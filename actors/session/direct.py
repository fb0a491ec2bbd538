"""What a session does for its caller without asking the model: direct tool calls, messages added, the view replaced or wound back, entries pinned."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from ropewalk.actors.errors import InvalidConversation, InvalidTool
from ropewalk.actors.messages import Block, Message, assistant, error_result, user
from ropewalk.actors.session.history import bodies_of, entries_at
from ropewalk.actors.session.records import Added, Body, Edited, Pinned, Redacted
from ropewalk.actors.session.redaction import redactions
from ropewalk.actors.tools import ToolContext, ToolLimits, run_tool
from ropewalk.actors.validity import INTERRUPTED, copied, door, is_dict
from ropewalk.actors.view import Edit, Entry, entry_number, rearrangement
from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.supervision import Failure, contain

if TYPE_CHECKING:
    from ropewalk.actors.session.actor import SessionActor
    from ropewalk.actors.spec import AgentSpec
    from ropewalk.actors.tools import Tool
    from ropewalk.runtime.runtime import Runtime

__all__ = [
    "AddMessages",
    "CallTool",
    "Pin",
    "Redact",
    "Rewind",
    "SetMessages",
    "call_tool",
    "change_history",
    "direct_tool_use",
    "redact",
    "run_direct",
    "show",
    "tool_limits",
    "wanted_by",
]


@attrs.frozen
class CallTool:
    """Call a tool and record it as four messages. `words` are said before what the record says of itself; cancelling `scope` ends the call."""

    tool_use: Block
    context: Any = None
    words: str | None = None
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)


@attrs.frozen
class AddMessages:
    """Put messages at the end of the view."""

    messages: list[Message]


@attrs.frozen
class SetMessages:
    """Have the view show these messages."""

    messages: list[Message]


@attrs.frozen
class Rewind:
    """Have the view be what it was right after an entry."""

    to: str


@attrs.frozen
class Pin:
    """See to it that no reduction takes an entry out of the view, or that it may again."""

    entry_id: str
    pinned: bool


@attrs.frozen
class Redact:
    """Take what an entry said out of the log, and make the session anew.

    `past` are the records, as they were, that a relative's log begins with and shares; only what comes after them is looked
    after here then.
    """

    number: int
    past: tuple[Body, ...] | None = None


def tool_limits(runtime: Runtime) -> ToolLimits:
    """The bounds on tool calls that everybody in this runtime shares."""
    return runtime.resource(ToolLimits, lambda: ToolLimits(threads=None if runtime.sync_calls == "inline" else 40, backend=runtime.backend))


def direct_tool_use(spec: AgentSpec, runtime: Runtime, name: str, tool_input: dict[str, Any]) -> Block:
    """The ``toolUse`` of a direct call, with an id of its own. Raises `InvalidTool` when the agent has no such tool, or that is no input."""
    if spec.tools.get(name) is None:
        known = ", ".join(tool.name for tool in spec.tools) or "none at all"
        raise InvalidTool(f"there is no tool {name!r:.200}; this agent has {known}")
    if not is_dict(tool_input):
        raise InvalidTool(f"the input of {name!r} is a dict of its parameters, not {tool_input!r:.200}")
    own = contain(copied, [tool_input])
    if isinstance(own, Failure):
        raise InvalidTool(f"the input of {name!r} is nested too deeply: {own.error}")
    digits = int(runtime.clock.random() * 10**9)
    return {"toolUseId": f"tooluse_{name}_{digits:09d}", "name": name, "input": own[0]}


async def run_direct(spec: AgentSpec, runtime: Runtime, session_id: str, tool_use: Block, context: Any) -> Block:
    """Run one call outside any turn, with a request state of its own; returns the ``toolResult`` block."""
    live = spec.context if context is None else context

    def make_context(own: Block) -> ToolContext:
        return ToolContext(session_id, None, {}, live, f"{session_id}/direct/{own['toolUseId']}", own)

    return await run_tool(spec.tools, tool_use, make_context, limits=tool_limits(runtime))


async def call_tool(actor: SessionActor, call: CallTool) -> Block:
    """A direct call, recorded as a user's request, the model's call, its result, and a closing word; all four or none."""
    result = error_result(call.tool_use["toolUseId"], INTERRUPTED)
    with call.scope:
        result = await run_direct(actor.spec, actor.cell.runtime, actor.cell.id, call.tool_use, call.context)
    name = call.tool_use["name"]
    tool = actor.spec.tools.get(name)
    given = call.tool_use["input"] if tool is None else _recordable_input(tool, call.tool_use["input"])
    said = [] if call.words is None else [f"{call.words}\n"]
    messages = [
        user(*said, f"agent.tool.{name} direct tool call.\nInput parameters: {json.dumps(given, ensure_ascii=False)}\n"),
        assistant({"toolUse": {**call.tool_use, "input": given}}),
        user({"toolResult": copied([result])[0]}),
        assistant(f"agent.{name} was called"),
    ]
    last = actor.state.view.last
    if last is not None and last.message["role"] == "user":
        await show(actor, door([*actor.state.view.messages, *messages]), "called")
        return result
    first = actor.state.next_entry
    entries = tuple(Entry(number, message) for number, message in enumerate(messages, first))
    actor.writer.write(Added(entries))
    for entry in entries:
        actor.announce_entry(entry, None)
    await actor.writer.commit_whole()
    return result


def wanted_by(change: AddMessages | SetMessages, there: list[Message]) -> list[Message]:
    """What a view that shows the messages `there` shall show, through the door. Raises `InvalidConversation`.

    Of a replacement, messages that are equal to those there keep their entries.
    """
    if isinstance(change, SetMessages):
        shown = door(change.messages)
        return [there[place] if place < len(there) and there[place] == message else message for place, message in enumerate(shown)]
    wanted = contain(door, [*there, *change.messages])
    if isinstance(wanted, Failure):
        raise InvalidConversation(f"{wanted.error} (counted from the start of the session's own {len(there)} messages)") from None
    return wanted


async def show(actor: SessionActor, wanted: list[Message], reason: str) -> None:
    """Have the view show these messages; those that are the same objects keep their entries."""
    await _carry_out(actor, actor.state.view.edit_to(wanted, reason, actor.state.next_entry))


async def _carry_out(actor: SessionActor, edit: Edit) -> None:
    actor.writer.write(Edited(edit))
    actor.announce_edit(edit, None, None)
    await actor.writer.commit_whole()


async def change_history(actor: SessionActor, change: Rewind | Pin) -> None:
    """Wind the view back, or pin an entry. Raises `InvalidOption`, and then nothing has changed."""
    await (_rewind(actor, change.to) if isinstance(change, Rewind) else _pin(actor, change))


async def _rewind(actor: SessionActor, to: str) -> None:
    await actor.writer.wait_durable()  # what is read below is what is known here
    wanted = await entries_at(actor.cell.journal, actor.cell.id, to)
    await _carry_out(actor, rearrangement(actor.state.view.entries, wanted, "rewind"))


async def _pin(actor: SessionActor, change: Pin) -> None:
    state, number = actor.state, entry_number(change.entry_id)
    if number is None or number >= state.next_entry:
        raise InvalidOption(f"the session {actor.cell.id!r} has no entry {change.entry_id!r:.200}; transcript() lists those it has")
    if change.pinned and number not in state.view.numbers:
        raise InvalidOption(f"entry {change.entry_id!r} is not in the view, so there is nothing to keep there; rewind(to=...) brings it back")
    if change.pinned != (number in state.pins):
        actor.writer.write(Pinned(number, change.pinned))
        await actor.writer.commit_whole()


async def redact(actor: SessionActor, change: Redact) -> None:
    """Take what an entry said out of the log. Afterwards the incarnation is over, and its events are not given again."""
    cell, writer = actor.cell, actor.writer
    await writer.commit_whole()
    bodies = await bodies_of(cell.journal, cell.id)
    past = () if change.past is None else change.past
    replaced = redactions([*past, *bodies[len(past) :]], change.number)
    own = {number: body for number, body in replaced.items() if number > len(past)}
    # A relative that was at work since the shared records were replaced may have kept a snapshot of what it remembered.
    if own or change.past is None or await cell.journal.snapshot(cell.id) is not None:
        await writer.redact(own, Redacted(change.number))
    cell.drop_actor()


def _recordable_input(tool: Tool, tool_input: dict[str, Any]) -> dict[str, Any]:
    """What of an input a model could have given: the parameters the tool's schema knows, as JSON values."""
    known = tool.input_schema.get("properties")
    return {name: _recordable(value) for name, value in tool_input.items() if not known or name in known}


def _recordable(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if is_dict(value):
        return {str(key): _recordable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_recordable(inner) for inner in value]
    return f"<<non-serializable: {type(value).__name__}>>"

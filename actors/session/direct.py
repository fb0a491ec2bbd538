"""What a session does for its caller without asking the model: direct tool calls, messages added, the view replaced."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs

from ropewalk.actors.messages import Block, Message, assistant, user
from ropewalk.actors.session.records import Added, Edited
from ropewalk.actors.tools import ToolContext, run_tool
from ropewalk.actors.validity import copied, door
from ropewalk.actors.view import Entry, difference

if TYPE_CHECKING:
    from ropewalk.actors.session.actor import SessionActor
    from ropewalk.actors.spec import AgentSpec
    from ropewalk.actors.tools import ToolLimits
    from ropewalk.runtime.cell import Cell

__all__ = ["AddMessages", "CallTool", "SetMessages", "add_messages", "call_tool", "run_direct", "set_messages"]


@attrs.frozen
class CallTool:
    """Call a tool and record it as four messages."""

    tool_use: Block
    context: Any = None


@attrs.frozen
class AddMessages:
    """Put messages at the end of the view."""

    messages: list[Message]


@attrs.frozen
class SetMessages:
    """Have the view show these messages."""

    messages: list[Message]


async def run_direct(spec: AgentSpec, cell: Cell, limits: ToolLimits, tool_use: Block, context: Any) -> Block:
    """Run one call outside any turn, with a request state of its own; returns the ``toolResult`` block."""
    live = spec.context if context is None else context

    def make_context(own: Block) -> ToolContext:
        return ToolContext(cell.id, None, {}, live, f"{cell.id}/direct/{own['toolUseId']}", own)

    return await run_tool(spec.tools, tool_use, make_context, limits=limits)


async def call_tool(actor: SessionActor, call: CallTool) -> Block:
    """A direct call, recorded as a user's request, the model's call, its result, and a closing word; all four or none."""
    result = await run_direct(actor.spec, actor.cell, actor.tool_limits, call.tool_use, call.context)
    name = call.tool_use["name"]
    messages = [
        user(f"agent.tool.{name} direct tool call.\nInput parameters: {_as_json(call.tool_use['input'])}\n"),
        assistant({"toolUse": call.tool_use}),
        user({"toolResult": result}),
        assistant(f"agent.{name} was called"),
    ]
    last = actor.state.view.last
    if last is not None and last.message["role"] == "user":
        return await _join_and_add(actor, messages, result)
    first = actor.state.next_entry
    entries = tuple(Entry(number, message) for number, message in enumerate(messages, first))
    actor.writer.write(Added(entries))
    for entry in entries:
        actor.announce_entry(entry, None)
    await actor.writer.commit()
    return result


async def _join_and_add(actor: SessionActor, messages: list[Message], result: Block) -> Block:
    await _show(actor, door([*actor.state.view.messages, *messages]), "called")
    return result


async def add_messages(actor: SessionActor, messages: list[Message]) -> None:
    """Messages from outside, through the door. Raises `InvalidConversation`; then nothing was added."""
    await _show(actor, door([*actor.state.view.messages, *copied(messages)]), "added")


async def set_messages(actor: SessionActor, messages: list[Message]) -> None:
    """The view replaced, through the door; messages that are equal to those there keep their entries."""
    there = actor.state.view.messages
    shown = door(copied(messages))
    kept = [there[place] if place < len(there) and there[place] == message else message for place, message in enumerate(shown)]
    await _show(actor, kept, "replaced")


async def _show(actor: SessionActor, wanted: list[Message], reason: str) -> None:
    edit = difference(actor.state.view.entries, wanted, reason, actor.state.next_entry)
    actor.writer.write(Edited(edit))
    actor.announce_edit(edit, None, None)
    await actor.writer.commit()


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=lambda odd: f"<<non-serializable: {type(odd).__name__}>>")

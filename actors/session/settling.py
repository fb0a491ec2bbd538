"""How a turn ends: the one place that decides what finished, stopped, cancelled and failed turns leave behind.

Pure. It looks at the state and what was under way, and writes the `Settled` record. Section "How a turn leaves the view"
of the design is this table:

=========  ==========================================================================================================
finished   all its messages; calls nobody will run any more are answered
stopped    (a limit, in the middle of something) the same, with what had been streamed
cancelled  the same, but as if it had never been when nothing was streamed in its first cycle
failed     as if it had never been, unless a tool has begun: then what was done stays, and "[turn failed]" closes it
=========  ==========================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ropewalk.actors.messages import Block, Message, assistant, calls_tools, error_result, tool_uses
from ropewalk.actors.session.records import Settled
from ropewalk.actors.session.state import OpenTurn, SessionState
from ropewalk.actors.tools import call_keys
from ropewalk.actors.tools.inputs import unreadable_result
from ropewalk.actors.tools.results import unknown_tool_result
from ropewalk.actors.turn import How
from ropewalk.actors.view import Entry, rearrangement

__all__ = ["INTERRUPTED", "IN_DOUBT", "TURN_FAILED", "Ending", "refusals", "settle"]

INTERRUPTED = "Tool was interrupted."
IN_DOUBT = "The turn failed before this tool's result was known; it may or may not have had its effect."
TURN_FAILED = "[turn failed]"


class Ending(msgspec.Struct, frozen=True):
    """How a turn ended, and what was under way: the `partial` answer worth keeping, the `raw` one, results of calls that were in."""

    how: How
    stop_reason: str | None
    error: str | None
    cycles: int
    usage: tuple[int, int, int]
    partial: Message | None = None
    raw: Message | None = None
    results: Mapping[str, Block] = {}
    otherwise: str = INTERRUPTED
    """What calls without a result are answered with."""
    reason: str | None = None
    request_state: dict[str, Any] | None = None


def settle(state: SessionState, turn: OpenTurn, ending: Ending) -> Settled:
    """The record that ends `turn`, which is the state's open turn."""
    calls = _open_calls(state)
    otherwise = IN_DOUBT if ending.how == "failed" else ending.otherwise
    known = ending.results if otherwise != IN_DOUBT else {**refusals(turn, calls), **ending.results}
    answers = [_results(calls, known, otherwise)] if calls else []
    if ending.how == "failed":
        undo, closing = not turn.acted, [*answers, assistant(TURN_FAILED)] if turn.acted and not _answered(state) else []
    else:
        closing = [] if _answered(state) else answers or _partial(ending)
        undo = ending.how == "cancelled" and not turn.spoke and not closing
    edit = rearrangement(state.view.entries, turn.entries_before(state.view), ending.how) if undo else None
    entries: tuple[Entry, ...] = ()
    if closing:
        entries = tuple(Entry(number, message, turn.turn_id) for number, message in enumerate(closing, state.next_entry))
    aside: tuple[Entry, ...] = ()
    if ending.raw is not None and _is_news(state, ending.raw, closing):
        aside = (Entry(state.next_entry + len(closing), ending.raw, turn.turn_id),)
    in_doubt = turn.in_doubt
    if otherwise == IN_DOUBT:
        in_doubt += tuple(call["toolUseId"] for key, call in zip(call_keys(calls), calls, strict=True) if key not in known)
    outcome = (turn.turn_id, ending.how, ending.stop_reason, ending.error, ending.cycles, ending.usage)
    return Settled(*outcome, edit, entries, aside, ending.reason, in_doubt, ending.request_state)


def refusals(turn: OpenTurn, calls: Sequence[Block]) -> dict[str, Block]:
    """The calls of the turn's last answer that cannot have reached a tool, by what they are kept under: each with the error that it has or would have had."""
    found: dict[str, Block] = {}
    for key, call in zip(call_keys(calls), calls, strict=True):
        call_id, raw = call["toolUseId"], (turn.malformed or {}).get(call["toolUseId"])
        if call_id in turn.strays:
            found[key] = unknown_tool_result(call_id, call["name"])
        elif raw is not None and (refused := unreadable_result(call_id, raw)) is not None:
            found[key] = refused
    return found


def _open_calls(state: SessionState) -> list[Block]:
    """The calls the view ends in."""
    last = state.view.last
    return [] if last is None else tool_uses(last.message)


def _partial(ending: Ending) -> list[Message]:
    """What was streamed and is worth keeping, its calls answered."""
    if ending.partial is None:
        return []
    calls = tool_uses(ending.partial)
    return [ending.partial, _results(calls, {}, INTERRUPTED)] if calls else [ending.partial]


def _answered(state: SessionState) -> bool:
    """Whether the view ends in an answer that calls nothing: then nothing can come after it but a prompt."""
    last = state.view.last
    return last is not None and last.message["role"] == "assistant" and not calls_tools(last.message)


def _is_news(state: SessionState, raw: Message, closing: Sequence[Message]) -> bool:
    """Whether what was streamed is said nowhere in the view."""
    last = state.view.last
    return raw not in closing and (last is None or raw != last.message)


def _results(calls: Sequence[Block], results: Mapping[str, Block], otherwise: str) -> Message:
    blocks = [results.get(key) or error_result(call["toolUseId"], otherwise) for key, call in zip(call_keys(calls), calls, strict=True)]
    return {"role": "user", "content": [{"toolResult": block} for block in blocks]}


def unanswered(state: SessionState) -> bool:
    """Whether the view ends in calls without results."""
    last = state.view.last
    return last is not None and calls_tools(last.message)

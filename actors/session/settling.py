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
from ropewalk.actors.turn import How
from ropewalk.actors.view import Entry, rearrangement

__all__ = ["INTERRUPTED", "IN_DOUBT", "NOT_RUN", "TURN_FAILED", "Ending", "harmless", "settle", "unanswered"]

INTERRUPTED = "Tool was interrupted."
IN_DOUBT = "The turn failed before this tool's result was known; it may or may not have had its effect."
NOT_RUN = "The turn failed before this call was looked at; it reached no tool and had no effect."
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
    doubts = ending.how == "failed" or ending.otherwise == IN_DOUBT
    answers, in_doubt = _answers(state, turn, ending, doubts)
    if ending.how == "failed":
        undo, closing = not turn.acted, _closing_failed(state, answers) if turn.acted else []
    else:
        closing = _closing(state, answers, ending.partial)
        undo = ending.how == "cancelled" and not turn.spoke and not closing
    edit = rearrangement(state.view.entries, turn.entries_before(state.view), ending.how) if undo else None
    entries: tuple[Entry, ...] = ()
    if closing:
        entries = tuple(Entry(number, message, turn.turn_id) for number, message in enumerate(closing, state.next_entry))
    aside: tuple[Entry, ...] = ()
    if ending.raw is not None and _is_news(state, ending.raw, closing):
        aside = (Entry(state.next_entry + len(closing), ending.raw, turn.turn_id),)
    outcome = (turn.turn_id, ending.how, ending.stop_reason, ending.error, ending.cycles, ending.usage)
    return Settled(*outcome, edit, entries, aside, ending.reason, turn.in_doubt + in_doubt, ending.request_state)


def harmless(turn: OpenTurn) -> set[str]:
    """The ids of those of the turn's open calls that cannot have reached a tool."""
    return {*(turn.malformed or ()), *turn.strays}


def _answers(state: SessionState, turn: OpenTurn, ending: Ending, doubts: bool) -> tuple[list[Message], tuple[str, ...]]:
    """The message that answers the calls the view ends in, and which of them are answered without anybody knowing what they came to."""
    last = state.view.last
    calls = tool_uses(last.message) if last is not None else []
    if not calls:
        return [], ()
    keyed = list(zip(call_keys(calls), calls, strict=True))
    unknown = [call["toolUseId"] for key, call in keyed if key not in ending.results]
    sure = harmless(turn) if doubts else set()
    otherwise = {call_id: NOT_RUN if call_id in sure else IN_DOUBT if doubts else ending.otherwise for call_id in unknown}
    blocks = [ending.results.get(key) or error_result(call["toolUseId"], otherwise[call["toolUseId"]]) for key, call in keyed]
    in_doubt = tuple(call_id for call_id in unknown if otherwise[call_id] == IN_DOUBT)
    return [{"role": "user", "content": [{"toolResult": block} for block in blocks]}], in_doubt


def _closing(state: SessionState, answers: list[Message], partial: Message | None) -> list[Message]:
    """The messages that close a turn whose work so far is kept."""
    if _answered(state):
        return []
    if answers or partial is None:
        return answers
    calls = [error_result(call["toolUseId"], INTERRUPTED) for call in tool_uses(partial)]
    return [partial, {"role": "user", "content": [{"toolResult": result} for result in calls]}] if calls else [partial]


def _closing_failed(state: SessionState, answers: list[Message]) -> list[Message]:
    return [] if _answered(state) else [*answers, assistant(TURN_FAILED)]


def _answered(state: SessionState) -> bool:
    """Whether the view ends in an answer that calls nothing: then nothing can come after it but a prompt."""
    last = state.view.last
    return last is not None and last.message["role"] == "assistant" and not calls_tools(last.message)


def _is_news(state: SessionState, raw: Message, closing: Sequence[Message]) -> bool:
    """Whether what was streamed is said nowhere in the view."""
    last = state.view.last
    return raw not in closing and (last is None or raw != last.message)


def unanswered(state: SessionState) -> bool:
    """Whether the view ends in calls without results."""
    last = state.view.last
    return last is not None and calls_tools(last.message)

"""Going on with what another process left unfinished: which turns and prompts, from where, and which tool calls may be tried again.

How a turn goes on (`resumption`) or ends (`failed`) is decided without touching anything; `recover`, `cut_off` and `give_up` record what
has to be settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from ropewalk.actors.messages import Block, Message, calls_tools, copy_of, error_result, tool_results, tool_uses
from ropewalk.actors.session.ending import announce_end, end_unbegun
from ropewalk.actors.session.prompt import Prompt
from ropewalk.actors.session.records import Accepted
from ropewalk.actors.session.settling import IN_DOUBT, Ending, refusals, settle
from ropewalk.actors.session.state import OpenTurn, SessionState
from ropewalk.actors.tools import call_keys
from ropewalk.actors.turn import Begin, Progress

if TYPE_CHECKING:
    from ropewalk.actors.session.actor import SessionActor
    from ropewalk.actors.spec import AgentSpec

__all__ = ["DEATHS", "DIED", "Resumption", "cut_off", "failed", "give_up", "last_answer", "recover", "resumption"]

DEATHS = 3
"""In which death of its process a turn is given up: it may well be what kills it."""

DIED = "ProcessDied"
"""What a turn that is not gone on with failed of, in its `Settled` record and in `TurnEnded`."""

DOUBTFUL = "The process ended before this tool's result was known; it may or may not have had its effect."


class Resumption(msgspec.Struct, frozen=True):
    """How a turn goes on: the turn machine's first input, and the results of the open calls that are known or must not be found out."""

    begin: Begin
    results: dict[str, Block] = {}
    doubtful: tuple[tuple[Block, Block], ...] = ()
    """The calls in doubt, each with the result that says so."""


def resumption(state: SessionState, turn: OpenTurn, spec: AgentSpec) -> Resumption:
    """From where the open turn goes on: from the last thing that is recorded of it."""
    _, written, total = turn.usage
    progress = Progress(turn.turn_id, turn.prompt_ids, spec.limits, turn.cycles, 0, 0, written, total, turn.acted)
    last = state.view.last
    if last is None or last.message["role"] == "user":
        return Resumption(Begin(progress, None))
    if not calls_tools(last.message):
        return Resumption(Begin(progress, None, stop_reason=turn.stop_reason))
    calls, malformed = tool_uses(last.message), turn.malformed or {}
    harmless = refusals(turn, calls)
    results = dict(turn.results or {})
    doubtful: list[tuple[Block, Block]] = []
    for key, call in zip(call_keys(calls), calls, strict=True):
        if key not in results and key not in harmless and not may_run_again(spec, call):
            results[key] = doubt = error_result(call["toolUseId"], DOUBTFUL)
            doubtful.append((call, doubt))
    ids = tuple(call["toolUseId"] for call, _ in doubtful)
    return Resumption(Begin(progress, None, tuple(calls), malformed, in_doubt=ids), results, tuple(doubtful))


def may_run_again(spec: AgentSpec, call: Block) -> bool:
    """Whether a call that may have begun can be run all the same, as its tool declares.

    One whose tool is not there now may have reached it in the process that died, which had another version of the spec.
    """
    tool = spec.tools.get(call["name"])
    return tool is not None and tool.replay != "never"


def last_answer(messages: Sequence[Message]) -> Message | None:
    """What an open turn said last, as far as its view still shows it."""
    for message in reversed(messages):
        if message["role"] == "assistant":
            return message
        if not tool_results(message):
            return None
    return None


def recover(actor: SessionActor, here: Sequence[Prompt] = ()) -> list[Prompt]:
    """The prompts that another process accepted and did not come to an end with, in order, each to be handled as if it had just come.

    The first of them may be the running turn's. What nobody owns any more, or has killed its process too often, is settled here.
    Those that are `here` wait in this process and are left where they are.
    """
    state, ours = actor.state, {prompt.prompt_id for prompt in here}
    waiting = [accepted for accepted in (state.waiting or {}).values() if accepted.prompt_id not in ours]
    prompts: list[Prompt] = []
    if state.turn is not None:
        how = _given_up(state.turn, actor.spec)
        if how is None:
            prompts.append(_of_turn(state.turn))
        else:
            give_up(actor, state.turn, how)
    for accepted in waiting:
        if accepted.owned or actor.spec.resume == "fail":
            end_unbegun(actor, accepted.prompt_id, "cancelled" if accepted.owned else "failed")
        else:
            prompts.append(_of_acceptance(accepted))
    return prompts


def _given_up(turn: OpenTurn, spec: AgentSpec) -> Ending | None:
    """How a turn ends that is not gone on with; None when it is."""
    if turn.owned:
        return _cancelled(turn)
    died = turn.died
    if spec.resume != "fail" and died < DEATHS:
        return None
    reason = "its process died" if died <= 1 else f"its process died {died} times while it ran"
    return failed(turn, DIED, reason)


def _cancelled(turn: OpenTurn) -> Ending:
    """How a turn ends that nobody goes on with and nobody waits for: what it did stands, and nobody knows what came of its open calls."""
    return Ending("cancelled", "cancelled", None, turn.cycles, turn.usage, results=turn.results or {}, otherwise=IN_DOUBT)


def failed(turn: OpenTurn, error: str, words: str) -> Ending:
    """How a turn ends that failed of this, by the name of its type, with nobody knowing what came of its open calls."""
    return Ending("failed", None, error, turn.cycles, turn.usage, results=turn.results or {}, otherwise=IN_DOUBT, reason=f"the turn failed: {words}")


def cut_off(actor: SessionActor, prompt: Prompt) -> Message | None:
    """End the turn that was to be gone on with for this prompt, and has not been, as cancelled; what it said last. Does nothing for any other prompt."""
    turn = actor.state.turn
    if turn is None or turn.turn_id != prompt.turn_id:
        return None
    said = last_answer(actor.state.view.messages)
    actor.account_for(turn)
    give_up(actor, turn, _cancelled(turn))
    return said


def give_up(actor: SessionActor, turn: OpenTurn, ending: Ending) -> None:
    """Give an open turn its end without going on with it."""
    body = settle(actor.state, turn, ending)
    actor.writer.write(body)
    announce_end(actor, body, turn.request_state, turn.prompt_ids)


def _of_turn(turn: OpenTurn) -> Prompt:
    prompt = Prompt(turn.prompt_ids[0], turn.messages or [], copy_of(turn.request_state or {}), None, owned=False, key=turn.key)
    prompt.turn_id, prompt.context, prompt.recorded = turn.turn_id, None, True
    return prompt


def _of_acceptance(accepted: Accepted) -> Prompt:
    prompt = Prompt(accepted.prompt_id, accepted.messages, copy_of(accepted.request_state or {}), None, owned=False, key=accepted.key)
    prompt.context, prompt.recorded = None, True
    return prompt

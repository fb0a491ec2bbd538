"""The tool calls of one assistant message: run, told of, and accounted for."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from ropewalk.actors.events import ToolEnded, ToolProgress, ToolStarted
from ropewalk.actors.messages import Block, copy_of
from ropewalk.actors.session.records import Returned
from ropewalk.actors.tools import ToolContext, call_keys, run_tools, settled
from ropewalk.actors.turn import Input, RunTools, ToolsDone
from ropewalk.runtime.supervision import CancelledItself, Failure, attempt_foreign

if TYPE_CHECKING:
    from ropewalk.actors.session.driver import TurnDriver

__all__ = ["run_calls"]


async def run_calls(driver: TurnDriver, effect: RunTools) -> Input:
    """Run the calls to a result each. Results stand in `driver.results` the moment they are in, should the turn be cut off."""
    actor, turn_id, request_state = driver.actor, driver.turn_id, driver.request_state
    publish, wanted = actor.writer.publisher.publish, actor.writer.publisher.wanted
    said_in = actor.state.view.last

    def make_context(tool_use: Block) -> ToolContext:
        # With the entry: a provider may use an id again in a later answer.
        key = f"{actor.cell.id}/{turn_id}/{'' if said_in is None else said_in.id}/{tool_use['toolUseId']}"
        return ToolContext(actor.cell.id, turn_id, request_state, driver.context_object, key, tool_use)

    def started(tool_use: Block) -> Awaitable[None] | None:
        return publish(ToolStarted, turn_id, request_state, copy_of(tool_use) if wanted(ToolStarted) else tool_use)

    def ended(tool_use: Block, result: Block, seconds: float) -> Awaitable[None] | None:
        if any(key not in driver.results for key in keys):  # the last one's goes with the message that holds them all
            kept = next(key for key, call in zip(keys, calls, strict=True) if call is tool_use)
            actor.writer.write(Returned(turn_id, kept, result, driver.changed_state()))
            actor.writer.flush()
        driver.tool_names += (tool_use["name"],)
        actor.ledger.tool(tool_use["name"], result["status"] == "success", seconds)
        if not wanted(ToolEnded):  # copies are for readers, who might change what they are shown
            return publish(ToolEnded, turn_id, request_state, tool_use, result, seconds)
        return publish(ToolEnded, turn_id, request_state, copy_of(tool_use), copy_of(result), seconds)

    def report(tool_use: Block, data: Any) -> Awaitable[None] | None:
        return publish(ToolProgress, turn_id, request_state, copy_of(tool_use), data)

    # A call whose input is no JSON object goes to the executor as the text it was: it answers with what is wrong with it.
    calls = [{**call, "input": effect.malformed[call["toolUseId"]]} if call["toolUseId"] in effect.malformed else call for call in effect.calls]
    keys = call_keys(calls)
    running = run_tools(actor.spec.tools, calls, make_context, outcomes=driver.results, limits=actor.tool_limits, started=started, ended=ended, report=report)
    outcome = await attempt_foreign(running)
    if not isinstance(outcome, Failure):
        return ToolsDone(tuple(outcome))
    if isinstance(outcome.error, CancelledItself):
        return ToolsDone(tuple(settled(calls, driver.results)))  # a tool cancelled the task it was called in
    raise outcome.error

"""The end of a turn: its record written, its events announced, its outcome given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ropewalk.actors.errors import ModelError, TurnFailed
from ropewalk.actors.events import PromptSettled, TurnEnded
from ropewalk.actors.messages import Message, copy_of
from ropewalk.actors.result import AgentResult, Trace
from ropewalk.actors.session.records import Settled, Withdrawn
from ropewalk.actors.session.settling import Ending, settle
from ropewalk.actors.turn import Ready
from ropewalk.runtime.handler import HandlerFault, exit_in
from ropewalk.runtime.supervision import Crashed, Failure, attempt, in_words

if TYPE_CHECKING:
    from ropewalk.actors.session.actor import SessionActor
    from ropewalk.actors.session.driver import TurnDriver
    from ropewalk.runtime.subscription import Subscription

__all__ = ["account_cycle", "announce_end", "conclude", "end_unbegun", "tell"]


def conclude(driver: TurnDriver) -> None:
    """Write the record of the turn's end, once, and announce what follows from it."""
    actor, writer, finish = driver.actor, driver.actor.writer, driver.finish
    turn = writer.state.turn
    if finish is None or turn is None or turn.turn_id != driver.turn_id:
        return  # concluded already, and the runtime was cancelled while the end was being told
    under_way = driver.call.assembly if driver.call is not None else None
    # What the token limit cut off was left out of an answer that is recorded already.
    raw = under_way or (driver.call_to_account.assembly if driver.call_to_account is not None and finish.stop_reason == "max_tokens" else None)
    account_cycle(driver)
    error = None if finish.error is None else type(_root(finish.error)).__name__
    ending = Ending(
        finish.how,
        finish.stop_reason,
        error,
        0 if isinstance(driver.state, Ready) else driver.state.turn.cycle,
        driver.usage,
        None if under_way is None else under_way.partial(),
        None if raw is None else raw.raw(),
        driver.results,
        reason=None if finish.error is None else str(_for_the_asker(finish.error)),
        request_state=driver.changed_state(),
    )
    body = settle(writer.state, turn, ending)
    writer.write(body)
    driver.settled_in = writer.batch
    for entry in body.entries:
        if entry.message["role"] == "assistant":
            driver.last_said = entry.message
    announce_end(actor, body, driver.request_state, turn.prompt_ids)


def announce_end(actor: SessionActor, body: Settled, request_state: dict[str, Any] | None, prompt_ids: tuple[str, ...]) -> None:
    """Have what a turn's end changed, the end, and the settling of its prompts published once they are durable."""
    if body.edit is not None:
        actor.announce_edit(body.edit, body.turn_id, request_state)
    for entry in body.entries:
        actor.announce_entry(entry, request_state)
    actor.writer.announce(TurnEnded, body.turn_id, request_state, body.stop_reason, body.error)
    for prompt_id in prompt_ids:
        actor.writer.announce(PromptSettled, None, None, prompt_id, body.stop_reason or "failed")


def end_unbegun(actor: SessionActor, prompt_id: str, outcome: str, streams: tuple[Subscription, ...] = ()) -> None:
    """Record how a prompt that waited ends without a turn, and have that published once it is durable; `streams` hear of it too."""
    actor.writer.write(Withdrawn(prompt_id, outcome))
    actor.writer.announce_apart(streams, PromptSettled, prompt_id, outcome)


async def tell(driver: TurnDriver) -> None:
    """Make the end durable, publish it, and give the prompt its outcome. Handlers can no longer fail the turn."""
    writer, result = driver.actor.writer, _result(driver)
    driver.result = result
    told: Failure | None = None
    begun = writer.begin_commit()
    if begun is not None:
        try:
            told = await attempt(writer.commit_whole(begun))
        except SystemExit as left:  # a handler's: whoever asked gets it, of a turn that has ended well all the same
            result = result if isinstance(result, BaseException) else left
    if isinstance(told, Failure) and not writer.stands(driver.settled_in):
        raise told.error
    if isinstance(result, BaseException):
        driver.prompt.outcome.fail(result)
    elif result is not None:
        driver.prompt.outcome.settle(result)
    if isinstance(told, Failure):
        raise told.error  # a later write failed: this incarnation is over, though the turn stands


def _result(driver: TurnDriver) -> AgentResult | BaseException | None:
    """What a concluded turn came to, as its asker gets it."""
    finish = driver.finish
    if finish is None:
        return None
    if finish.error is not None:
        return _for_the_asker(finish.error)
    message: Message = copy_of(driver.last_said or {"role": "assistant", "content": []})  # the caller's own, to change as they like
    return AgentResult(finish.stop_reason or "", message, driver.actor.ledger.snapshot(), driver.request_state)


def account_cycle(driver: TurnDriver) -> None:
    """Enter a model call and its tools into the session's accounts, and the turn's."""
    call = driver.call_to_account
    if call is None:
        return
    driver.call_to_account = None
    read, written, total = driver.usage
    usage = call.usage
    driver.usage = (read + usage[0], written + usage[1], total + usage[2])
    clock = driver.actor.cell.runtime.clock
    now, seconds = clock.time(), clock.monotonic() - call.started
    trace = Trace(call.cycle, driver.turn_id, now - seconds, now, driver.tool_names)
    driver.tool_names = ()
    driver.actor.ledger.cycle(trace, usage, call.assembly.latency)


def _root(error: Exception) -> BaseException:
    """What failed in the end: the error of the handler that was added to fail the turn, the bug of the provider, or an exit."""
    if (left := exit_in(error)) is not None:
        return left
    if isinstance(error, HandlerFault | TurnFailed) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error.__cause__ if isinstance(error, Crashed) and error.__cause__ is not None else error


def _for_the_asker(error: Exception) -> BaseException:
    """What `ask` raises: errors of the model and exits as they are, anything else as `TurnFailed` with its cause."""
    root = _root(error)
    if isinstance(root, SystemExit):
        return root
    if isinstance(error, ModelError | TurnFailed):
        return error
    failed = TurnFailed(f"the turn failed: {in_words(root)}")
    failed.__cause__ = root
    return failed

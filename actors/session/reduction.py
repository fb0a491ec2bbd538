"""Reduction as a supervised step of a turn: on a draft, under a deadline, applied as one record or not at all."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ropewalk.actors.conversation import Reduction, RungRefused, SlidingWindowConversationManager, climb, has_policy, manage, remembering
from ropewalk.actors.conversation.manager import policy_of
from ropewalk.actors.errors import ContextWindowOverflow, InvalidConversation
from ropewalk.actors.events import ReductionEnded, ReductionStarted, StepRestarted
from ropewalk.actors.messages import Message, calls_tools, tool_results
from ropewalk.actors.session.records import Edited, Pinned
from ropewalk.actors.session.settling import unanswered
from ropewalk.actors.turn import Input, Reduce, Reduced, ReductionFailed
from ropewalk.actors.view import Edit, View
from ropewalk.runtime.log import log
from ropewalk.runtime.scopes import CancelScopeLeft, guarded
from ropewalk.runtime.supervision import Failure, StepTimeout, attempt, attempt_foreign, in_words, supervise

if TYPE_CHECKING:
    from ropewalk.actors.session.driver import TurnDriver
    from ropewalk.actors.session.state import SessionState

__all__ = ["manage_after_turn", "reduce"]

MANAGER = "manager"
MANAGER_CHANCES = 3
MANAGER_THREADS = 256
MARGIN = 0.9
"""How much of a named limit is aimed at: our count of tokens is an estimate."""


async def reduce(driver: TurnDriver, effect: Reduce) -> Input:
    """Make the view smaller because the model refused its size. What fails costs its own rung only."""
    actor = driver.actor
    view, spec = actor.state.view, actor.spec
    pinned = _pinned(actor.state)
    count = remembering()
    before = sum(map(count, view.messages))
    target = _target(effect, before)
    failures: list[str] = []

    def failed(rung: str, error: Exception) -> None:
        failures.append(f"{rung}: {in_words(error)}"[:300])
        if rung == MANAGER:
            _manager_failed(driver, error)

    async def climbing() -> Reduction | None:
        return await climb(
            view.messages,
            manager=actor.manager,
            ladder=spec.ladder,
            protected=_protected(driver),
            pinned=pinned,
            target=target,
            system_prompt=spec.system_prompt,
            error=ContextWindowOverflow(tokens=effect.tokens, limit=effect.limit),
            skip_manager=driver.manager_failed,
            run_sync=_runner(driver),
            count=count,
            tokens=before,
            failed=failed,
        )

    await _publish(driver, ReductionStarted, "overflow", before, target)
    # What is shipped awaits nothing and is done before a deadline could be noticed: only a user's own code is watched over.
    outcome = await (_within_budget(driver, climbing) if policy_of(actor.manager, "reduce") == "custom" else climbing())
    if isinstance(outcome, Failure):
        failed(MANAGER, outcome.error)  # only somebody else's manager can take that long or break the ladder
        reduction = await _shipped_only(climbing)
    else:
        reduction = outcome
    if reduction is not None:
        edit = view.edit_to(reduction.messages, reduction.rung, actor.state.next_entry, driver.turn_id)
        pins = [place for index, place in reduction.pinned.items() if view.numbers[index] in actor.state.pins]
        actor.writer.write(Edited(edit, _prompt_entry(edit, view, reduction)))
        for number in sorted({view.numbers[place] for place in pins} - actor.state.pins):
            actor.writer.write(Pinned(number))  # what was pinned was joined by others, in an entry of its own
        actor.announce_edit(edit, driver.turn_id, driver.request_state)
    rung, after = (None, before) if reduction is None else (reduction.rung, reduction.tokens_after)
    actor.writer.announce(ReductionEnded, driver.turn_id, driver.request_state, rung, before, after, tuple(failures))
    if reduction is None:
        return ReductionFailed()
    return Reduced()


def _prompt_entry(edit: Edit, view: View, reduction: Reduction) -> int:
    """The number of the entry that holds the prompt once the edit is applied: a digest is put in front of it, in an entry of its own."""
    if not reduction.protected:
        return 0
    prompt = reduction.messages[min(reduction.protected)]
    for placed in edit.inserted:
        if placed.entry.message is prompt:
            return placed.entry.number
    return next(view.numbers[place] for place in range(len(view) - 1, -1, -1) if view.messages[place] is prompt)


async def _within_budget(driver: TurnDriver, climbing: Any) -> Reduction | Failure | None:
    """Climb under what is left of the turn's time for reductions."""
    clock = driver.actor.cell.clock
    started = clock.monotonic()
    outcome = await supervise(climbing, deadline=driver.reduction_left)
    if driver.reduction_left is not None:
        driver.reduction_left = max(0.0, driver.reduction_left - (clock.monotonic() - started))
    return outcome


async def _shipped_only(climbing: Any) -> Reduction | None:
    """The ladder without the manager that used the time up: the shipped rungs take none worth counting."""
    outcome = await attempt(climbing())
    return None if isinstance(outcome, Failure) else outcome


def _target(effect: Reduce, before: int) -> int:
    """How many tokens, by our estimate, the view may have: what the model named, scaled to our count, else a share of what failed."""
    if effect.limit is None:
        return int(before * effect.share)
    scaled = before * effect.limit / effect.tokens if effect.tokens else effect.limit
    # A model that names a limit and refuses all the same gets less each time, or the ladder would stand still.
    return int(min(scaled * MARGIN, before * (1 - MARGIN / 10)) if effect.share >= 0.5 else scaled * effect.share)


def _protected(driver: TurnDriver) -> frozenset[int]:
    """What may not leave the view: the running turn's prompt, and the calls whose results the model has not seen."""
    state = driver.actor.state
    messages, numbers = state.view.messages, state.view.numbers
    turn = state.turn
    last = len(messages) - 1
    kept: set[int] = set()
    if turn is not None:  # it stands near the end
        kept.update(islice((place for place in range(last, -1, -1) if numbers[place] == turn.prompt_number), 1))
    if last >= 1 and tool_results(messages[last]):
        kept |= {last, last - 1}
    return frozenset(kept)


def _pinned(state: SessionState) -> frozenset[int]:
    """Where in the view the pinned messages are, and those that cannot be parted from them: results and their calls."""
    if not state.pins:
        return state.pins
    messages, kept = state.view.messages, set[int]()
    for place, number in enumerate(state.view.numbers):
        if number in state.pins:
            kept.add(place)
            if tool_results(messages[place]):
                kept.add(place - 1)
            if calls_tools(messages[place]) and place + 1 < len(messages):
                kept.add(place + 1)
    return frozenset(kept)


async def manage_after_turn(driver: TurnDriver) -> None:
    """The manager's policy after a finished turn; it never changes how the turn ends."""
    actor = driver.actor
    view = actor.writer.state.view
    # First what every turn is asked, and most go no further: whether the manager has anything to say.
    if not has_policy(actor.manager, len(view)):
        return
    if driver.finish is None or driver.finish.how != "finished" or unanswered(actor.state) or driver.manager_failed:
        return
    if policy_of(actor.manager, "apply") == "custom":
        await actor.writer.commit()  # it may take its time: what was said waits for it no longer than for the journal
    managed: list[Message] | Failure | None = None
    scope = anyio.move_on_after(driver.reduction_left)
    try:
        with guarded(scope):
            managed = await attempt_foreign(
                manage(view.messages, manager=actor.manager, pinned=_pinned(actor.state), system_prompt=actor.spec.system_prompt, run_sync=_runner(driver))
            )
    except CancelScopeLeft as left:
        managed = Failure(left)
    if scope.cancelled_caught:
        _manager_failed(driver, TimeoutError("the manager did not end in time"))
    elif isinstance(managed, Failure):
        _manager_failed(driver, managed.error)
    elif managed is not None:
        edit = view.edit_to(managed, "managed", actor.state.next_entry, driver.turn_id)
        actor.writer.write(Edited(edit))
        actor.announce_edit(edit, driver.turn_id, driver.request_state)


_SAYS_ALL = (RungRefused, InvalidConversation, StepTimeout)
"""What a manager fails by without having raised anything: the way to it leads through this package alone."""


def _manager_failed(driver: TurnDriver, error: Exception) -> None:
    """Count a failure of the spec's own manager: one a turn, and after three in a session the shipped window takes its place."""
    actor = driver.actor
    if driver.manager_failed:
        return
    driver.manager_failed = True
    actor.manager_failures += 1
    actor.writer.announce(StepRestarted, driver.turn_id, driver.request_state, "conversation_manager", actor.manager_failures + 1, type(error).__name__)
    replaced = actor.manager_failures >= MANAGER_CHANCES
    log.warning(
        "conversation_manager_failed",
        session_id=actor.cell.id,
        manager=type(actor.manager).__name__,
        error=in_words(error),
        failures=actor.manager_failures,
        replaced=replaced,
        traceback_of=None if isinstance(error, _SAYS_ALL) else error,
    )
    if replaced:
        actor.manager = SlidingWindowConversationManager()


def _runner(driver: TurnDriver) -> Any:
    """How a user's plain function is run in this runtime: in a thread, or in line where tests want virtual time to hold."""
    runtime = driver.actor.cell.runtime
    inline = runtime.sync_calls == "inline"
    # Not the process's own few threads: managers that hang in theirs must not keep those of tools and of others waiting.
    limiter = runtime.resource(("managers", "threads"), lambda: anyio.CapacityLimiter(MANAGER_THREADS))

    async def run_sync(call: Any) -> Any:
        return call() if inline else await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)

    return run_sync


async def _publish(driver: TurnDriver, kind: Any, *fields: Any) -> None:
    pending = driver.actor.writer.publisher.publish(kind, driver.turn_id, driver.request_state, *fields)
    if pending is not None:
        await pending

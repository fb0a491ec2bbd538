"""Driving the turn machine: carries its effects out, one after the other, until the turn has ended.

A loop, not a recursion: a turn of ten thousand cycles needs no deeper stack than one of one. There is one cancel scope a
turn; whoever may end the turn cancels it, and what was under way is settled afterwards, in one synchronous step.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel

from ropewalk.actors.errors import ModelError
from ropewalk.actors.events import PromptAccepted, ToolEnded
from ropewalk.actors.messages import Block, Message, copy_of, tool_uses
from ropewalk.actors.session.ending import account_cycle, conclude, tell
from ropewalk.actors.session.model_call import ModelCall
from ropewalk.actors.session.prompt import request_state_of
from ropewalk.actors.session.records import Begun, Left, Resumed, Returned, Said
from ropewalk.actors.session.recovery import Resumption, last_answer, resumption
from ropewalk.actors.session.reduction import manage_after_turn, reduce
from ropewalk.actors.session.state import OpenTurn
from ropewalk.actors.session.tool_calls import run_calls
from ropewalk.actors.turn import (
    Begin,
    CallingModel,
    CallModel,
    Cancel,
    Deadline,
    DelayOver,
    Effect,
    Ended,
    Fault,
    Finish,
    Input,
    ModelDone,
    Progress,
    Publish,
    Ready,
    Record,
    Reduce,
    Reducing,
    RunTools,
    State,
    Wait,
    step,
)
from ropewalk.actors.view import Entry
from ropewalk.runtime.errors import RuntimeClosed
from ropewalk.runtime.log import log
from ropewalk.runtime.scopes import CancelScopeLeft, guarded
from ropewalk.runtime.supervision import Exited, Failure, attempt, contain

if TYPE_CHECKING:
    from ropewalk.actors.result import AgentResult
    from ropewalk.actors.session.actor import SessionActor
    from ropewalk.actors.session.prompt import Prompt

__all__ = ["TurnDriver"]

CLOSING_SECONDS = 5.0
"""How long a turn may take to tell of its end when the runtime itself is being cancelled."""


class IllegalEffect(Exception):
    """The turn machine broke its second rule; a bug in Ropewalk."""


class TurnDriver:
    """Works on one turn.

    `call` is the model's answer being streamed (None otherwise), `results` the tool results that are in, `last_said` the
    turn's last assistant message, `usage` the tokens of all its model calls (input, output, total). `result` is what the
    asker gets, known once the turn is concluded and before its end is published.
    """

    __slots__ = (
        "_answer",
        "_begun",
        "_cancelled",
        "_ended",
        "_scope",
        "_silent",
        "actor",
        "call",
        "call_to_account",
        "context_object",
        "finish",
        "last_said",
        "manager_failed",
        "prompt",
        "recorded_state",
        "reduction_left",
        "request_state",
        "result",
        "results",
        "resumption",
        "settled_in",
        "state",
        "tool_names",
        "turn_id",
        "usage",
    )

    def __init__(self, actor: SessionActor, prompt: Prompt) -> None:
        self.actor = actor
        self.prompt = prompt
        self.resumption = None if prompt.turn_id is None else resumption(actor.state, cast(OpenTurn, actor.state.turn), actor.spec)
        self.turn_id = prompt.turn_id = prompt.turn_id or actor.cell.runtime.clock.new_id()
        self.request_state = prompt.request_state
        self.context_object = actor.spec.context if prompt.context_object is None else prompt.context_object
        self.state: State = Ready()
        self.finish: Finish | None = None
        self.settled_in = 0
        self.call: ModelCall | None = None
        self.result: AgentResult | BaseException | None = None
        self.results: dict[str, Block] = {}
        self.last_said: Message | None = None
        self.usage: tuple[int, int, int] = (0, 0, 0)
        self.call_to_account: ModelCall | None = None
        self.tool_names: tuple[str, ...] = ()
        self.manager_failed = False
        self.reduction_left = actor.spec.limits.reduction_seconds
        self.recorded_state: dict[str, Any] | None = None
        self._answer: ModelDone | None = None
        self._begun = False
        self._scope: anyio.CancelScope | None = None
        self._cancelled = False
        self._silent = False
        self._ended: anyio.Event | None = None

    # What others may ask of a running turn.

    @property
    def status(self) -> str:
        """What the turn does now: running or reducing."""
        return "reducing" if type(self.state) is Reducing else "running"

    @property
    def partial_text(self) -> str:
        """The text of the answer being streamed, so far."""
        return self.call.assembly.streamed() if self.call is not None and type(self.state) is CallingModel else ""

    def cancel(self) -> None:
        """End the turn now; what was under way is settled in the turn's own task."""
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def fell_silent(self) -> None:
        """The model has said nothing for too long."""
        self._silent = True
        if self._scope is not None:
            self._scope.cancel()

    async def wait_ended(self) -> None:
        """Return when the turn is settled and its end published."""
        if self.actor.driver is self:
            if self._ended is None:
                self._ended = anyio.Event()
            await self._ended.wait()

    # The turn.

    async def run(self) -> None:
        """Work the turn to its end and give its prompt the outcome. Raises when the journal fails: then nothing was settled."""
        actor = self.actor
        actor.driver = self
        publisher = actor.writer.publisher
        publisher.streams = self.prompt.streams
        seconds = actor.spec.limits.seconds
        backend = actor.cell.runtime.backend
        scope = self._scope = backend.scope() if seconds is None else backend.scope(deadline=backend.now() + seconds)
        try:
            driven: Failure | None = None
            try:
                with guarded(scope):
                    driven = await attempt(self._drive())
            except CancelScopeLeft as left:
                driven = Failure(left)
            except SystemExit as left:
                driven = Failure(Exited(left))
            given = publisher.given
            self._stop(driven)
            await tell(self)
            if publisher.given == given:
                actor.cell.unguarded -= 1  # no handler ran but in the turn's own scope
        except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as ends:
            # The runtime itself is being cancelled, or will be. What was under way is still recorded or settled, and told, within a bound.
            goes_on = self._goes_on_elsewhere
            self._cancelled = True
            why = "an interrupt struck in this turn, and ends the runtime" if isinstance(ends, KeyboardInterrupt) else "the runtime ended before the turn did"
            if goes_on or isinstance(ends, KeyboardInterrupt):
                self.prompt.outcome.fail(RuntimeClosed(f"{why}; it goes on where the session is opened next" if goes_on else why))
            with anyio.move_on_after(CLOSING_SECONDS, shield=True):
                closed = await attempt(self._leave() if goes_on else self._close())
                if isinstance(closed, Failure):
                    self.prompt.outcome.fail(closed.error)
            raise
        finally:
            actor.driver = None
            publisher.streams = ()
            if self._ended is not None:
                self._ended.set()

    @property
    def _goes_on_elsewhere(self) -> bool:
        """Whether the turn, which its runtime's end cuts off, is left to whoever opens the session next: the session owns it, and nobody ended it."""
        return not (self.prompt.owned or self._cancelled or self.finish is not None) and self._begun and self.actor.spec.resume == "continue"

    async def _close(self) -> None:
        self._stop(None)
        await tell(self)

    async def _leave(self) -> None:
        """Record what is known of the open calls, and leave the turn unsettled."""
        writer = self.actor.writer
        recorded = cast(OpenTurn, writer.state.turn).results or {}
        for call, result in self.results.items():
            if call not in recorded:
                writer.write(Returned(self.turn_id, call, result, self.changed_state()))
        writer.write(Left(self.turn_id))
        await writer.commit_whole()

    async def _drive(self) -> None:
        writer, prompt = self.actor.writer, self.prompt
        effects = self._started() if self.resumption is None else self._resumed(self.resumption)
        while self.finish is None:
            # The last effect takes time, and begins once all that was recorded before it is durable.
            last = self._tell_at_once(effects)
            accepted = prompt.accepted
            if accepted is not None and not accepted.settled and not isinstance(await attempt(writer.wait_durable()), Failure):
                accepted.settle(None)  # before anybody is told of it: the sender may be the one who is to make room for that
            committing = writer.begin_commit()
            if committing is not None:
                await committing
            if self._cancelled:
                await anyio.lowlevel.checkpoint_if_cancelled()
            given = await self._begin(last)
            if self._cancelled:
                await anyio.lowlevel.checkpoint_if_cancelled()  # by its own handler or tool, and nothing has waited since
            effects = self._step(given)
        self._tell_at_once(effects)
        await manage_after_turn(self)

    def _started(self) -> tuple[Effect, ...]:
        writer, prompt = self.actor.writer, self.prompt
        if not writer.state.is_waiting(prompt.prompt_id):
            # It found the session idle: the beginning of its turn records its acceptance too.
            writer.announce(PromptAccepted, None, None, prompt.prompt_id)
        return self._step(Begin(Progress(self.turn_id, (prompt.prompt_id,), self.actor.spec.limits), self._opening()))

    def _resumed(self, resumption: Resumption) -> tuple[Effect, ...]:
        """Go on with a turn whose process died. It has begun, and what its calls came to is not found out anew."""
        actor, turn = self.actor, cast(OpenTurn, self.actor.state.turn)
        self._begun = True
        self.usage = turn.usage
        self.recorded_state = turn.request_state
        self.last_said = last_answer(actor.state.view.messages)
        self.results.update(resumption.results)
        actor.account_for(turn)
        actor.writer.write(Resumed(self.turn_id, resumption.begin.in_doubt))
        last = self._tell_at_once(self._step(resumption.begin))
        for call, result in resumption.doubtful:
            actor.ledger.tool(call["name"], False, 0.0)
            actor.writer.announce(ToolEnded, self.turn_id, self.request_state, copy_of(call), copy_of(result), 0.0)
        return (last,)

    def _step(self, given: Input) -> tuple[Effect, ...]:
        self.state, effects = step(self.state, given)
        if type(given) is ModelDone:
            self._answer = given
        last = effects[-1]
        if type(last) is Finish:
            self.finish = last
        return effects

    def _tell_at_once(self, effects: tuple[Effect, ...]) -> Effect:
        """Carry out the effects that take no time; returns the last one, which may."""
        announce = self.actor.writer.announce
        for effect in effects:
            if type(effect) is Publish:
                announce(effect.kind, self.turn_id, self.request_state, *effect.fields)
            elif type(effect) is Record:
                self._record(effect.message)
        return effects[-1]

    def _begin(self, effect: Effect) -> Awaitable[Input]:
        """Begin the effect that takes time; how it ends is the next input."""
        if type(effect) is CallModel:
            cycle, retried = self.state.turn.cycle, self.call_to_account  # type: ignore[union-attr]
            if retried is not None and retried.cycle != cycle:
                account_cycle(self)
                retried = None
            self.call = call = self.call_to_account = ModelCall(self, cycle, retried)
            return call.run()
        if type(effect) is RunTools:
            return run_calls(self, effect)
        if type(effect) is Reduce:
            return reduce(self, effect)
        if type(effect) is Wait:
            return _waited(effect.seconds)
        raise IllegalEffect(f"{effect!r} takes no time and cannot be the last effect of a turn that goes on")

    def _stop(self, driven: Failure | None) -> None:
        """Bring the machine to its end, whatever stopped the turn, and settle it: synchronous, so that nothing comes between."""
        if driven is not None and driven.error is self.actor.writer.broken:
            raise driven.error
        if not isinstance(self.state, Ended):
            self._step(self._what_stopped(driven))
        conclude(self)

    def _what_stopped(self, driven: Failure | None) -> Input:
        if driven is not None:
            return Fault(driven.error)
        if self._cancelled:
            return Cancel()
        if self._silent:
            return Fault(ModelError(f"the model said nothing for {self.silence:g} s"))
        return Deadline()

    @property
    def silence(self) -> float:
        """How many seconds the model may say nothing."""
        return self.actor.spec.limits.stream_idle_seconds or 0.0

    @property
    def heard(self) -> int | None:
        """How many chunks the model has said; None while nobody listens."""
        return self.call.heard if self.call is not None else 0

    # Records.

    def _opening(self) -> Message:
        """The message the turn begins with: the prompt's last. A view that ends in a user message takes the prompt into that one."""
        messages = self.prompt.messages
        last = self.actor.writer.state.view.last
        return joined(last.message, messages[-1]) if len(messages) == 1 and last is not None and last.message["role"] == "user" else messages[-1]

    def _record(self, message: Message) -> None:
        if not self._begun:
            self._begun = True
            self._record_beginning(message)
            return
        writer = self.actor.writer
        entry = Entry(writer.state.next_entry, message, self.turn_id)
        answer = self._answer
        if answer is not None and answer.message is message:
            usage = None if self.call is None else self.call.usage
            strays = tuple(call["toolUseId"] for call in tool_uses(message) if self.actor.spec.tools.get(call["name"]) is None)
            writer.write(Said(entry, usage, answer.stop_reason, answer.malformed, self.changed_state(), strays))
            self.last_said = message
            self.call = self._answer = None
        else:
            writer.write(Said(entry, request_state=self.changed_state()))
        self.actor.announce_entry(entry, self.request_state)
        if self.results:
            self.results.clear()

    def _record_beginning(self, opening: Message) -> None:
        prompt, state = self.prompt, self.actor.writer.state
        last = state.view.last
        joins = last.number if last is not None and last.message["role"] == "user" else 0
        if len(prompt.messages) == 1:
            entries: tuple[Entry, ...] = (Entry(state.next_entry, opening, self.turn_id),)
        else:
            messages = [*prompt.messages[:-1], opening]
            if joins and last is not None:
                messages[0] = joined(last.message, messages[0])
            entries = tuple(Entry(number, message, self.turn_id) for number, message in enumerate(messages, state.next_entry))
        self._write_beginning(entries, joins)
        for place, entry in enumerate(entries):
            self.actor.announce_entry(entry, self.request_state, 0 if place else joins)

    def _write_beginning(self, entries: tuple[Entry, ...], joins: int) -> None:
        writer, prompt, ids = self.actor.writer, self.prompt, (self.prompt.prompt_id,)
        if writer.state.is_waiting(prompt.prompt_id):  # its acceptance says the rest
            self.recorded_state = writer.state.waiting[prompt.prompt_id].request_state  # type: ignore[index]
            writer.write(Begun(self.turn_id, ids, entries, joins))
        else:
            whole = prompt.messages if joins and prompt.key is not None else None
            writer.write(Begun(self.turn_id, ids, entries, joins, prompt.owned, prompt.key, whole, self.changed_state()), prompt.key)

    def changed_state(self) -> dict[str, Any] | None:
        """The request state for a record, None when the records have it as it is. What JSON cannot hold stays as last recorded."""
        state, recorded = self.request_state, self.recorded_state
        if not (state or recorded):
            return None
        copied = contain(request_state_of, state)  # before anything is compared: what a tool put there may fail at that too
        if isinstance(copied, Failure):
            log.warning("request_state_not_recorded", session_id=self.actor.cell.id, turn_id=self.turn_id, error=str(copied.error))
            return None
        if copied == recorded:
            return None
        self.recorded_state = copied
        return copied


async def _waited(seconds: float) -> DelayOver:
    await anyio.sleep(seconds)
    return DelayOver()


def joined(earlier: Message, later: Message) -> Message:
    """Two user messages as one: the tool results of both first, then what else they say."""
    content = [*earlier["content"], *later["content"]]
    return {"role": "user", "content": [block for block in content if "toolResult" in block] + [block for block in content if "toolResult" not in block]}

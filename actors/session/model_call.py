"""One model call: chunks in, deltas out, and in the end an input for the turn machine.

The commonest chunk, a piece of text, has a path of its own: there are twenty or two thousand of them in a turn, and
everything done for each of them is what a turn costs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from ropewalk.actors.errors import ContextWindowOverflow, ModelError, ModelThrottled, TurnFailed
from ropewalk.actors.events import ModelChunk, ReasoningDelta, TextDelta, ToolInputDelta
from ropewalk.actors.messages import copy_of
from ropewalk.actors.session.assembly import Assembly, Piece
from ropewalk.actors.session.watchdog import Watchdog
from ropewalk.actors.turn import BackingOff, CallingModel, Input, ModelDone, ModelFailed, Overflow, Throttled
from ropewalk.runtime.handler import HandlerFault
from ropewalk.runtime.supervision import Backoff, attempt, attempt_foreign, in_words

if TYPE_CHECKING:
    from ropewalk.actors.session.driver import TurnDriver

__all__ = ["ModelCall"]

THROTTLE_BACKOFF = Backoff(first=1.0, factor=2.0, longest=60.0, jitter=0.5)
CLOSE_SECONDS = 1.0
BREATH = 0xFF
"""After how many chunks (256: one less, as a mask) others get to run: a model that never waits must not keep the loop, and can be cancelled here."""
STOP_REASONS = frozenset({"end_turn", "tool_use", "max_tokens", "stop_sequence", "content_filtered", "guardrail_intervened"})


class ModelCall:
    """An answer being streamed.

    `heard` counts its chunks, None while nobody listens because somebody is told of the last one. `retried` is an earlier
    call of the same cycle that came to nothing: then `started` (on the backend's clock) and `usage` are those of both.
    """

    __slots__ = ("_driver", "_spent", "assembly", "cycle", "heard", "started")

    def __init__(self, driver: TurnDriver, cycle: int, retried: ModelCall | None) -> None:
        clock = driver.actor.cell.runtime.clock
        self._driver = driver
        self.assembly = Assembly(clock.new_id)
        self.cycle = cycle
        self.heard: int | None = 0
        self.started: float = clock.monotonic() if retried is None else retried.started
        self._spent = None if retried is None else retried.usage

    @property
    def usage(self) -> tuple[int, int, int]:
        """Input, output and total tokens, as far as the model said."""
        if self._spent is None:
            return self.assembly.usage
        read, written, total = self.assembly.usage
        return read + self._spent[0], written + self._spent[1], total + self._spent[2]

    async def run(self) -> Input:
        """Call the model to the end of its answer."""
        if self._driver.actor.spec.model_concurrency is None:
            outcome = await attempt_foreign(self._consume())
        else:
            async with self._driver.actor.model_limiter:
                outcome = await attempt_foreign(self._consume())
        if outcome is not None:
            return self._failed(outcome.error)
        assembly = self.assembly
        if assembly.stop_reason is None:
            return ModelFailed(ModelError("the model's stream ended without saying that the answer is complete"))
        message, malformed = assembly.message()
        _, written, total = assembly.usage
        # A provider's own stop reason is an end like any other.
        stop_reason = assembly.stop_reason if assembly.stop_reason in STOP_REASONS else "end_turn"
        return ModelDone(message, stop_reason, written, total, malformed)

    async def _consume(self) -> None:
        driver = self._driver
        actor, spec = driver.actor, driver.actor.spec
        serving = getattr(spec.model, "serving", None)
        if serving is not None:
            await actor.cell.runtime.service(spec.model, serving)
        stream = spec.model.stream(actor.writer.state.view.messages, system_prompt=spec.system_prompt, tool_specs=spec.tools.specs)
        watchdog = None if spec.limits.stream_idle_seconds is None else actor.cell.runtime.resources.get(Watchdog) or actor.watchdog
        if watchdog is not None:
            watchdog.watch(driver)
        complete = False
        try:
            await self._take(stream)
            complete = True
        finally:
            if watchdog is not None:
                watchdog.forget(driver)
            close = None if complete else getattr(stream, "aclose", None)
            if close is not None:
                with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                    await attempt(close())

    async def _take(self, stream: AsyncIterator[dict[str, Any]]) -> None:
        driver, assembly, writer = self._driver, self.assembly, self._driver.actor.writer
        publisher, turn_id, request_state = writer.publisher, driver.turn_id, driver.request_state
        publish = publisher.publish
        say = publisher.lane(TextDelta, turn_id, request_state)
        raw = publisher.wanted(ModelChunk)
        parts: list[str] | None = None
        place = heard = 0
        async for chunk in stream:
            self.heard = heard = heard + 1
            if not heard & BREATH:
                await anyio.lowlevel.checkpoint()
            if raw and (pending := publish(ModelChunk, turn_id, request_state, copy_of(chunk))) is not None:
                await self._told(pending)
            if writer.outbox is not None and writer.has_news:
                await self._told(writer.publish_news())
            part = chunk.get("contentBlockDelta") if type(chunk) is dict else None
            if type(part) is dict and len(part) == 1 and type(delta := part.get("delta")) is dict and type(text := delta.get("text")) is str:
                if parts is None:
                    place, parts = assembly.text_lane()
                parts.append(text)
                pending = say(text, place)
            else:
                parts = None
                piece = assembly.feed(chunk)
                pending = None if piece is None else self._publish_piece(piece)
            if pending is not None:
                await self._told(pending)

    async def _told(self, pending: Awaitable[None]) -> None:
        """Wait for those who are being told something. That takes their time, not the model's."""
        heard, self.heard = self.heard, None
        await pending
        await anyio.lowlevel.checkpoint_if_cancelled()  # they may have cancelled the turn, and the model may never wait
        self.heard = heard

    def _publish_piece(self, piece: Piece) -> Any:
        kind, text, place, block = piece
        driver = self._driver
        publish = driver.actor.writer.publisher.publish
        if kind == "tool":
            return publish(ToolInputDelta, driver.turn_id, driver.request_state, block.tool_use_id, block.name, text, place)
        return publish(TextDelta if kind == "text" else ReasoningDelta, driver.turn_id, driver.request_state, text, place)

    def _failed(self, error: Exception) -> Input:
        if isinstance(error, HandlerFault) or error is self._driver.actor.writer.broken:
            raise error
        if isinstance(error, ContextWindowOverflow):
            return Overflow(error.tokens, error.limit)
        if isinstance(error, ModelThrottled) and self.assembly.raw() is None:
            return Throttled(error, self._delay(error))
        if isinstance(error, ModelError):
            return ModelFailed(error)
        name = type(self._driver.actor.spec.model).__name__
        bug = TurnFailed(f"the model {name} raised what is none of the errors a model may raise: {in_words(error)}")
        bug.__cause__ = error
        return ModelFailed(bug)

    def _delay(self, error: ModelThrottled) -> float:
        state = self._driver.state
        attempts = state.turn.attempts if isinstance(state, CallingModel | BackingOff) else 0
        backoff = THROTTLE_BACKOFF.delay(attempts + 1, self._driver.actor.cell.clock.random())
        return max(backoff, error.retry_after or 0.0)

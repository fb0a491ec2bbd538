"""The event types of a session. See `ropewalk.runtime.event.Event` for what each of them has.

Payload fields are named for what they hold. Entries are named by their id (`Entry.id`), so a reader can keep a picture of
the view: `MessageAdded` and `ViewChanged` say all that ever happens to it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self, TypeVar

import msgspec

from ropewalk.actors.messages import Block, Message
from ropewalk.runtime.event import Event, Gap, HandlerFailed, SessionPassivated, StepRestarted

__all__ = [
    "CycleStarted",
    "Event",
    "Gap",
    "HandlerFailed",
    "InsertedEntry",
    "MessageAdded",
    "ModelChunk",
    "ModelRetry",
    "PromptAccepted",
    "PromptSettled",
    "ReasoningDelta",
    "ReductionEnded",
    "ReductionStarted",
    "SessionActivated",
    "SessionPassivated",
    "Snapshot",
    "StepRestarted",
    "TextDelta",
    "ToolEnded",
    "ToolInputDelta",
    "ToolProgress",
    "ToolStarted",
    "TurnEnded",
    "TurnPaused",
    "TurnResumed",
    "TurnStarted",
    "ViewChanged",
]


D = TypeVar("D", bound="_Delta | ToolInputDelta")


class SessionActivated(Event, frozen=True, gc=False):
    """A session came into memory; `entries` messages are in its view."""

    entries: int


class PromptAccepted(Event, frozen=True, gc=False):
    """A user's message was accepted and will get exactly one outcome."""

    prompt_id: str


class PromptSettled(Event, frozen=True, gc=False):
    """A prompt got its outcome: a stop reason, ``withdrawn``, or ``failed``."""

    prompt_id: str
    outcome: str


class TurnStarted(Event, frozen=True, gc=False):
    """Work on one or several prompts begins."""

    prompt_ids: tuple[str, ...]


class CycleStarted(Event, frozen=True, gc=False):
    """A model call is about to be made; `cycle` counts from 1 in each turn."""

    cycle: int


class _Delta(Event, frozen=True, gc=False):
    """A piece of the answer being streamed. `block` is the content block it belongs to, counted from 0 in each message.

    A joined delta stands for all from `first_seq` to `seq`; `first_seq` is None on one that was published so.
    """

    text: str
    block: int
    first_seq: int | None = None

    droppable: ClassVar[bool] = True

    def joined(self, later: Event) -> Self | None:
        return _joined(self, later) if type(later) is type(self) else None


class TextDelta(_Delta, frozen=True, gc=False):
    """A piece of the answer's text."""


class ReasoningDelta(_Delta, frozen=True, gc=False):
    """A piece of the model's reasoning."""


class ToolInputDelta(Event, frozen=True, gc=False):
    """A piece of a tool call's input, as JSON text; joined as pieces of the answer are."""

    tool_use_id: str
    name: str
    text: str
    block: int
    first_seq: int | None = None

    droppable: ClassVar[bool] = True

    def joined(self, later: Event) -> Self | None:
        return _joined(self, later) if type(later) is type(self) else None


def _joined(earlier: D, later: D) -> D | None:
    """Two deltas of one block as one, None when something stands between them."""
    begins = later.seq if later.first_seq is None else later.first_seq
    if later.turn_id != earlier.turn_id or later.epoch != earlier.epoch or later.block != earlier.block or begins != earlier.seq + 1:
        return None
    first = earlier.seq if earlier.first_seq is None else earlier.first_seq
    return msgspec.structs.replace(later, text=earlier.text + later.text, first_seq=first)


class ModelChunk(Event, frozen=True, gc=False):
    """A chunk as the model gave it, before anything is made of it. Unnumbered; built only for those who name this kind."""

    chunk: dict[str, Any]

    droppable: ClassVar[bool] = True
    numbered: ClassVar[bool] = False


class ModelRetry(Event, frozen=True, gc=False):
    """The model is called again after `delay` seconds. `withdrawn` is text already streamed that no longer counts, None when there was none."""

    attempt: int
    delay: float
    error: str
    withdrawn: str | None


class MessageAdded(Event, frozen=True, gc=False):
    """A message joined the end of the view, as entry `entry_id`; `replaces` is the entry it was joined with, which left the view."""

    entry_id: str
    message: Message
    replaces: str | None


class InsertedEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry that came into the view right after entry `after` (None: at the start)."""

    after: str | None
    entry_id: str
    message: Message


class ViewChanged(Event, frozen=True, gc=False):
    """The view was changed other than by a message at its end: first `removed` left it, then `inserted` came in, in order."""

    reason: str
    removed: tuple[str, ...]
    inserted: tuple[InsertedEntry, ...]


class ToolStarted(Event, frozen=True, gc=False):
    """A tool call begins; `tool_use` is the Converse ``{"toolUseId", "name", "input"}``."""

    tool_use: Block


class ToolProgress(Event, frozen=True, gc=False):
    """Something a tool reported before its result."""

    tool_use: Block
    data: Any


class ToolEnded(Event, frozen=True, gc=False):
    """A tool call has its `result`, the Converse ``{"toolUseId", "status", "content"}``, after `seconds`."""

    tool_use: Block
    result: Block
    seconds: float


class ReductionStarted(Event, frozen=True, gc=False):
    """The view is being made smaller, because of `reason`: ``overflow``."""

    reason: str
    tokens_before: int
    target: int


class ReductionEnded(Event, frozen=True, gc=False):
    """A reduction came to an end: `rung` is the last step that was applied, None when the view was left as it was. Tokens are estimates."""

    rung: str | None
    tokens_before: int
    tokens_after: int
    failures: tuple[str, ...]
    """What went wrong with rungs that did not apply, each ``"rung: reason"``."""


class TurnPaused(Event, frozen=True, gc=False):
    """A tool asked a person; the turn holds until it is answered."""

    interrupts: tuple[dict[str, Any], ...]


class TurnResumed(Event, frozen=True, gc=False):
    """A paused turn goes on, or one whose process died. `in_doubt` are the ids of tool calls whose outcome is known to nobody since."""

    in_doubt: tuple[str, ...] = ()


class TurnEnded(Event, frozen=True, gc=False):
    """A turn came to its end; there is exactly one for each. `stop_reason` is None when it failed, then `error` names the type of what failed it."""

    stop_reason: str | None
    error: str | None


class Snapshot(Event, frozen=True, gc=False):
    """A session as it is at `cursor`, for a reader who comes late: every event after it follows.

    `view` holds ``{"id", "message"}`` dicts, `partial` the text of the answer being streamed so far, `status` is idle,
    running, reducing, paused or quarantined.
    """

    view: tuple[dict[str, Any], ...]
    partial: str
    status: str

    numbered: ClassVar[bool] = False

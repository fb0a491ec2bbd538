"""What a tool may know of the call it serves."""

from __future__ import annotations

from typing import Any

import attrs

from ropewalk.actors.messages import Block

__all__ = ["CancelFlag", "ToolContext"]


@attrs.define(eq=False)
class CancelFlag:
    """Whether a call was cancelled: one field, set once by the executor, safe to read from any thread."""

    raised: bool = False


@attrs.define(eq=False)
class ToolContext:
    """One call of a tool, as the tool sees it. Made by the executor; ask for it by annotating a parameter with this class.

    `session_id` names the conversation and `turn_id` its turn (None for a call outside any turn). `request_state` is the
    turn's own dict of JSON values, which the tool may change. `context` is whatever live object the caller handed to the
    turn. `idempotency_key` is the same when a call is replayed. `tool_use` is a copy of the model's
    ``{"toolUseId", "name", "input"}``, the input as the model wrote it.
    """

    session_id: str
    turn_id: str | None
    request_state: dict[str, Any]
    context: Any
    idempotency_key: str
    tool_use: Block
    cancel_flag: CancelFlag = attrs.field(factory=CancelFlag, repr=False)

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this call any more, by cancellation or timeout; a sync tool that works for long asks now and then."""
        return self.cancel_flag.raised

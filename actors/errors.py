"""The errors of conversations: what a model, a tool, a prompt or a history can do wrong."""

from __future__ import annotations

from ropewalk.runtime.errors import RopewalkError

__all__ = [
    "ContextWindowOverflow",
    "DuplicateTool",
    "InvalidConversation",
    "InvalidPrompt",
    "InvalidRequestState",
    "InvalidTool",
    "KeyReused",
    "ModelError",
    "ModelThrottled",
    "NoModel",
    "SessionBusy",
    "TurnFailed",
]


class ModelError(RopewalkError):
    """The model's provider failed; the turn ends failed and its history is settled first."""


class ContextWindowOverflow(ModelError):
    """What the model was shown does not fit its context window.

    `tokens` is what the provider counted in the request and `limit` what would fit, each None where it does not say.
    """

    def __init__(self, message: str = "the request exceeds the model's context window", *, tokens: int | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.tokens = tokens
        self.limit = limit


class ModelThrottled(ModelError):
    """The provider asks for fewer requests; `retry_after` is in seconds, None where it does not say."""

    def __init__(self, message: str = "the model's provider asks to slow down", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoModel(RopewalkError):
    """A turn needs a model and none was named."""


class TurnFailed(RopewalkError):
    """A turn ended because of a bug (of a provider, a handler that may fail turns, or Ropewalk); the cause is chained."""


class SessionBusy(RopewalkError):
    """The session is in the middle of a turn, and what was asked for cannot wait."""


class InvalidPrompt(RopewalkError):
    """A prompt is neither text, nor content blocks, nor messages."""


class KeyReused(RopewalkError):
    """An idempotency key came with another prompt than the one it stands for."""


class InvalidConversation(RopewalkError):
    """A list of messages cannot be made a valid conversation; the text names the message and the rule."""


class InvalidRequestState(RopewalkError):
    """A request state is not a dict of JSON values; the text names the key."""


class InvalidTool(RopewalkError):
    """A tool cannot be made from what was given; the text names the tool, the parameter and the cure."""


class DuplicateTool(RopewalkError):
    """Two tools of one agent have the same name."""

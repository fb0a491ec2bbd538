"""The contract between a session and its model."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from ropewalk.actors.errors import NoModel
from ropewalk.actors.messages import Message
from ropewalk.actors.models.embedded.packages import INSTALL, is_installed
from ropewalk.actors.models.extras import missing_for_openai
from ropewalk.runtime.errors import InvalidOption

__all__ = ["Model", "resolve"]


class Model(Protocol):
    """A provider of answers.

    `context_window` is how many tokens a request may have, None when unknown. A model may also have

    - ``async def count_tokens(messages, *, system_prompt=None, tool_specs=()) -> int``;
    - ``def serving() -> AbstractAsyncContextManager``, for what it needs while it is in use, such as a client or a child
      process: each runtime enters it before its first call of this model and leaves it when its last turn has ended.
    """

    @property
    def context_window(self) -> int | None: ...

    def stream(
        self,
        messages: Sequence[Message],
        *,
        system_prompt: str | None = None,
        tool_specs: Sequence[dict[str, Any]] = (),
        tool_choice: dict[str, Any] | None = None,
        **options: Any,
    ) -> AsyncIterator[dict[str, Any]]:
        """The answer to a conversation, as Converse stream chunks.

        The chunks are dicts with one key each: ``messageStart``, ``contentBlockStart``, ``contentBlockDelta``,
        ``contentBlockStop``, ``messageStop``, ``metadata``; block starts may be missing. `messages` is the session's own
        view and must not be changed. Raises `ContextWindowOverflow`, `ModelThrottled` or `ModelError`; anything else is
        taken for a bug of the provider and reported as one.
        """
        ...


LOCAL = "local"
OWN_MODEL = (
    "an object with an async stream() method of Converse chunks (docs/models.md shows one in thirty lines), "
    "or ropewalk.testing.ScriptedModel([...]) to play a script"
)


def _known_models() -> str:
    """What a model may be, and what the environment lacks for it."""
    embedded = "" if is_installed() else f"; run `{INSTALL}` first"
    missing = missing_for_openai()
    client = f"; run {missing}" if missing else ""
    return f"'{LOCAL}' (the embedded model{embedded}), 'openai:NAME' (any server that speaks OpenAI's chat completions{client}), {OWN_MODEL}"


def _unknown(model: str) -> NoModel:
    """The error for a text that names no model, with what was probably meant."""
    provider, colon, name = model.partition(":")
    if model.strip().lower() == LOCAL or (provider == LOCAL and colon):
        meant = LOCAL
    elif colon and provider.strip().lower() == "openai":
        meant = f"openai:{name.strip()}"
    else:
        meant = "" if colon else f"openai:{model.strip()}"
    did_you = f": did you mean {meant!r:.100}?" if meant else "."
    return NoModel(f"there is no provider for {model!r:.100}{did_you} A model is {_known_models()}")


def resolve(model: object) -> Model:
    """The model that an agent's `model` argument names.

    A string is ``provider:name``: ``openai:NAME`` is `OpenAIModel(NAME)`, ``local`` the embedded model. None takes what
    ``$ROPEWALK_MODEL`` names, else the embedded model where it is installed; the name ``none`` keeps it from being taken.
    Raises `NoModel` when nothing is named, the provider is not part of this version, or it lacks its extra or its key, and
    `InvalidOption` for what is no model.
    """
    if model is None:
        model = os.environ.get("ROPEWALK_MODEL") or None
        if model is None and is_installed():
            model = LOCAL
    if model is None or model == "none":
        raise NoModel(f"no model was named: give model=, or set $ROPEWALK_MODEL. A model is {_known_models()}")
    if isinstance(model, str):
        provider, _, name = model.partition(":")
        if model == LOCAL:
            from ropewalk.actors.models.embedded.model import shared_model

            return shared_model()
        if provider == "openai":
            from ropewalk.actors.models.openai import OpenAIModel

            return OpenAIModel(name)
        raise _unknown(model)
    if not callable(getattr(model, "stream", None)):
        raise InvalidOption(f"{model!r:.200} is not a model: it has no stream() method. A model is {_known_models()}")
    return model  # type: ignore[return-value]

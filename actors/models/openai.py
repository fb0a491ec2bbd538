"""Models behind OpenAI's chat completions: OpenAI's own, and any server that speaks the same, by its `base_url`."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from ropewalk.actors.errors import NoModel
from ropewalk.actors.messages import Message
from ropewalk.actors.models.extras import missing_for_openai
from ropewalk.runtime.clock import Clock
from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.supervision import Failure, contain

if TYPE_CHECKING:
    from ropewalk.actors.models.openai_client import Connection

__all__ = ["OpenAIModel"]

OPENAI = "https://api.openai.com/v1"


class OpenAIModel:
    """A model that a server offers through OpenAI's chat completions. Needs the extra `openai`.

    :param model_id: the model's name, as the server knows it.
    :param base_url: where the server is, None for ``$OPENAI_BASE_URL``, else OpenAI's own; it usually ends in ``/v1``.
    :param api_key: None for ``$OPENAI_API_KEY``. A server that wants no key takes any.
    :param context_window: how many tokens a request may have, None when unknown.
    :param organization: whose account pays, None for ``$OPENAI_ORG_ID``.
    :param project: within that account, None for ``$OPENAI_PROJECT_ID``.
    :param headers: sent with every request.
    :param timeout: seconds of silence after which a request is given up, None for never. (A session looks after silence by
        itself, by its `Limits.stream_idle_seconds`.)
    :param keep_alive: seconds for which a connection is kept for the next request; 0 makes one for each, for servers that close
        them without a word.
    :param params: merged into every request, such as ``{"temperature": 0, "max_completion_tokens": 500}``; None as a value
        takes a key out that a server refuses, such as ``{"stream_options": None}``.

    Models with the same server, key and timeout share their connections in an event loop. The model itself belongs to no
    event loop and may be used in several. Raises `NoModel` without the extra or a key, `InvalidOption` for any other argument
    that will not do.
    """

    def __init__(
        self,
        model_id: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        context_window: int | None = None,
        organization: str | None = None,
        project: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = 600.0,
        keep_alive: float = 30.0,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(model_id, str) or not model_id.strip():
            raise InvalidOption(f"model_id is the name of a model, such as 'gpt-5', not {model_id!r:.200}")
        if context_window is not None and (type(context_window) is not int or context_window < 1):
            raise InvalidOption(f"context_window is a number of tokens above 0, or None, not {context_window!r:.200}")
        if timeout is not None and not (type(timeout) in (int, float) and 0 < timeout < float("inf")):
            raise InvalidOption(f"timeout is a number of seconds above 0, or None, not {timeout!r:.200}")
        if not (type(keep_alive) in (int, float) and 0 <= keep_alive < float("inf")):
            raise InvalidOption(f"keep_alive is a number of seconds, 0 or more, not {keep_alive!r:.200}")
        self.model_id = model_id
        self.context_window = context_window
        self.params = _mapping("params", params)
        if isinstance(fault := contain(msgspec.json.encode, self.params), Failure):
            raise InvalidOption(f"params are JSON values, as the server takes them: {fault.error}")
        self._connection = _connection(base_url, api_key, organization, project, _mapping("headers", headers), timeout, keep_alive)
        self._clock = Clock()

    def __repr__(self) -> str:
        return f"OpenAIModel({self.model_id!r}, base_url={self._connection.base_url!r})"

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        system_prompt: str | None = None,
        tool_specs: Sequence[dict[str, Any]] = (),
        tool_choice: dict[str, Any] | None = None,
        **options: Any,
    ) -> AsyncIterator[dict[str, Any]]:
        """The answer, as Converse chunks; see `Model.stream`. `options` are for other providers, and do nothing here.

        A call whose id the server did not give has an empty ``toolUseId``. ``inputTokens`` are all of the prompt's, those
        read from a cache included.
        """
        from ropewalk.actors.models.openai_answer import Answer
        from ropewalk.actors.models.openai_client import completion_chunks
        from ropewalk.actors.models.openai_request import request_body

        body = request_body(self.model_id, messages, system_prompt=system_prompt, tool_specs=tool_specs, tool_choice=tool_choice, params=self.params)
        answer = Answer(self.model_id)
        chunks = completion_chunks(self._connection, body, model=self.model_id, time=self._clock.time)
        async with aclosing(chunks):
            async for chunk in chunks:
                for made in answer.feed(chunk):
                    yield made
        for made in answer.finish():
            yield made

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Keep the connections to the server open for the calls made in this event loop meanwhile; without it each call opens its own."""
        from ropewalk.actors.models.openai_client import leased_client

        async with leased_client(self._connection):
            yield


def _mapping(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise InvalidOption(f"{name} is a dict, not {given!r:.200}")
    return dict(given or {})


def _is_header(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable()


def _connection(
    base_url: str | None, api_key: str | None, organization: str | None, project: str | None, headers: dict[str, str], timeout: float | None, keep_alive: float
) -> Connection:
    if missing := missing_for_openai():
        raise NoModel(f"models behind OpenAI's API need its official client: run {missing}")
    from ropewalk.actors.models.openai_client import Connection

    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
    api_key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
    if not api_key:
        raise NoModel(f"{base_url} needs an API key: set $OPENAI_API_KEY, or give api_key=; for a server that asks for none any text will do")
    if not _is_header(api_key):
        raise InvalidOption("api_key (or $OPENAI_API_KEY) holds characters that no HTTP header can: is it the key, and all on one line?")
    for name, value in headers.items():
        if not (_is_header(name) and _is_header(value)):
            raise InvalidOption(f"headers are names and values of printable ASCII characters, which {name!r:.100} is not, or its value")
    return Connection(
        base_url=base_url,
        api_key=api_key,
        organization=organization or os.environ.get("OPENAI_ORG_ID") or None,
        project=project or os.environ.get("OPENAI_PROJECT_ID") or None,
        headers=tuple(sorted(headers.items())),
        timeout=timeout,
        keep_alive=keep_alive,
    )

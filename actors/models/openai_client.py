"""The official client, one for each event loop and set of connection settings, and what its errors mean.

This module needs the extra `openai`; nothing imports it before a model is made.
"""

from __future__ import annotations

import ipaddress
import json
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import Any

import anyio
import attrs
import httpx2
import openai
from anyio.lowlevel import RunVar

from ropewalk.actors.errors import ModelError
from ropewalk.actors.models.openai_errors import server_error, stream_error
from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.supervision import Failure, contain

__all__ = ["Connection", "completion_chunks", "leased_client"]

CLOSE_SECONDS = 1.0
CONNECT_SECONDS = 10.0
# As many answers as there are sessions are streamed at once: how many may be is the spec's to say (`model_concurrency`).
KEPT = 100
"""How many connections without a request are kept for the next one."""


@attrs.frozen
class Connection:
    """How a server is reached. Models whose connections are equal share a client.

    `timeout` is how many seconds of silence are too many, None for no limit. `keep_alive` is how many seconds a connection
    without a request is kept.
    """

    base_url: str
    api_key: str = attrs.field(repr=False)
    organization: str | None = None
    project: str | None = None
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    timeout: float | None = 600.0
    keep_alive: float = 30.0

    def __attrs_post_init__(self) -> None:
        try:
            url = httpx2.URL(self.base_url)
        except httpx2.InvalidURL as error:
            raise InvalidOption(f"base_url {self.base_url!r:.200} is no URL: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidOption(f"base_url is where the server is, such as 'http://127.0.0.1:8080/v1', not {self.base_url!r:.200}")
        trusted_certificates()  # read when a model is made, not in the middle of an event loop

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, where no proxy stands between: one named in the environment could not reach it."""
        host = httpx2.URL(self.base_url).host
        address = contain(ipaddress.ip_address, host)
        return host == "localhost" or (not isinstance(address, Failure) and address.is_loopback)

    def client(self) -> openai.AsyncOpenAI:
        """A new client for the running event loop. It retries nothing: the session does, and says so."""
        timeout = httpx2.Timeout(self.timeout, connect=CONNECT_SECONDS)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=KEPT if self.keep_alive else 0, keepalive_expiry=self.keep_alive)
        return openai.AsyncOpenAI(
            api_key=self.api_key,
            base_url=self.base_url,
            organization=self.organization,
            project=self.project,
            default_headers=dict(self.headers),
            timeout=timeout,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, limits=limits, verify=trusted_certificates(), trust_env=not self.is_loopback),
        )


@cache
def trusted_certificates() -> ssl.SSLContext:
    """What connections trust. Reading it takes nearly all the time that making a client does, and it belongs to no event loop."""
    return httpx2.create_ssl_context()


class Lease:
    """A client and how many use it."""

    __slots__ = ("client", "holders")

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self.client = client
        self.holders = 0


_leases: RunVar[dict[Connection, Lease]] = RunVar("ropewalk_openai_clients")


@asynccontextmanager
async def leased_client(connection: Connection) -> AsyncGenerator[openai.AsyncOpenAI]:
    """The running event loop's client for a connection; the first to come makes it, the last to leave closes it."""
    leases = _leases.get({})
    _leases.set(leases)
    lease = leases.get(connection)
    if lease is None:
        lease = leases[connection] = Lease(connection.client())
    lease.holders += 1
    try:
        yield lease.client
    finally:
        lease.holders -= 1
        if not lease.holders:
            del leases[connection]
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await lease.client.close()


async def completion_chunks(connection: Connection, body: Mapping[str, Any], *, model: str, time: Callable[[], float]) -> AsyncGenerator[Any]:
    """The chunks that a server streams for a request, as decoded JSON. Raises `ModelError` and its kin, and nothing else.

    However it is left, the connection of an answer that was not read to its end is closed at once.

    :param time: gives seconds since 1970.
    """
    stream: openai.AsyncStream[object] | None = None
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(leased_client(connection))
        try:
            # Raw chunks: what a server really sent is not forced into the client's classes, whatever it was.
            stream = await client.post("/chat/completions", cast_to=object, body=dict(body), stream=True, stream_cls=openai.AsyncStream[object])
            stack.push_async_callback(_close, stream)
            if "json" in stream.response.headers.get("content-type", ""):
                yield json.loads(await stream.response.aread())  # no stream but an answer in one, or an error despite its status
                return
            async for chunk in stream:
                yield chunk
        except _RAISED as error:
            raise _meaning(error, connection, model, time(), "request" if stream is None else "server's stream") from error


_RAISED = (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError, ValueError, RecursionError)
"""What the client and the library under it raise, and what reading or writing JSON does."""


def _meaning(error: Exception, connection: Connection, model: str, now: float, what: str) -> ModelError:
    """The error of ours that an error of the client's is; `what` was being worked on."""
    if isinstance(error, openai.APIStatusError):
        return server_error(error.status_code, error.body, error.response.headers, model=model, now=now, secret=connection.api_key)
    if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
        return ModelError(f"{model}: {connection.base_url} did not answer in time{_because(error)}; try again, or give the model a longer timeout=")
    if isinstance(error, openai.APIConnectionError | httpx2.HTTPError | httpx2.StreamError):
        return ModelError(f"{model}: the connection to {connection.base_url} failed{_because(error)}; check base_url, or try again")
    if isinstance(error, openai.APIError):
        return stream_error(error.body or error.message, model=model, secret=connection.api_key)
    return ModelError(f"{model}: the {what} is malformed: {type(error).__name__}: {str(error)[:300]}")


async def _close(stream: openai.AsyncStream[object]) -> None:
    with anyio.move_on_after(CLOSE_SECONDS, shield=True):
        await stream.close()


def _because(error: Exception) -> str:
    """What lies behind the client's own words, which say no more than that something failed."""
    cause = error.__cause__ or (None if isinstance(error, openai.APIError) else error)
    if cause is None:
        return ""
    return f" ({type(cause).__name__}: {str(cause)[:200]})" if str(cause) else f" ({type(cause).__name__})"

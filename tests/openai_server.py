"""A server on loopback that speaks OpenAI's chat completions as far as a script says, and breaks off where it says.

It plays one `Played` a request, in order, and runs in the test's own event loop, whichever that is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import attrs
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

__all__ = ["OpenAIServer", "Played", "called", "ended", "openai_server", "refused", "said", "texts"]

END = "data: [DONE]\n\n"


@attrs.frozen
class Played:
    """What is played for one request. A dict among `events` is sent as a chunk, text as it is.

    `then` is what follows: ``done`` ends as servers do, ``end`` without ``[DONE]``, ``die`` cuts the connection in the middle
    of the answer, ``hang`` says nothing more.
    """

    events: Sequence[dict[str, Any] | str] = ()
    then: Literal["done", "end", "die", "hang"] = "done"
    status: int = 200
    headers: dict[str, str] = attrs.field(factory=dict)
    body: Any = None


def said(index: int = 0, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


def called(index: int | None, arguments: str | None = None, name: str | None = None, call_id: str | None = None) -> dict[str, Any]:
    """A chunk with a piece of one tool call; what is None is not in it."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    part = {key: value for key, value in (("index", index), ("id", call_id)) if value is not None}
    return said(tool_calls=[{**part, "function": function}])


def ended(finish_reason: str = "stop", prompt_tokens: int = 5, completion_tokens: int = 2, **usage: Any) -> list[dict[str, Any]]:
    """How a complete answer ends: the reason, then the usage with no choices."""
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": prompt_tokens + completion_tokens}
    return [said(finish_reason=finish_reason), {"object": "chat.completion.chunk", "choices": [], "usage": {**counts, **usage}}]


def texts(*pieces: str) -> Played:
    return Played([said(role="assistant", content=""), *(said(content=piece) for piece in pieces), *ended()])


def refused(status: int, headers: dict[str, str] | None = None, **error: Any) -> Played:
    return Played(status=status, headers=headers or {}, body={"error": error})


class OpenAIServer:
    """A running server. `requests` are the bodies it got, `heads` their header lines; `gone` is set when a client left one hanging."""

    def __init__(self, script: Sequence[Played]) -> None:
        self._script = list(script)
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.connections = 0
        self.open = 0
        self.hanging = anyio.Event()
        self.gone = anyio.Event()

    async def serve(self, socket: SocketStream) -> None:
        self.connections += 1
        self.open += 1
        try:
            async with socket:
                source = BufferedByteReceiveStream(socket)
                while await self._answer(source, socket):
                    pass
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            pass
        finally:
            self.open -= 1

    async def _answer(self, source: BufferedByteReceiveStream, socket: SocketStream) -> bool:
        head = (await source.receive_until(b"\r\n\r\n", 65536)).decode()
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}
        self.heads.append(head)
        self.requests.append(json.loads(await source.receive_exactly(int(fields["content-length"]))))
        played = self._script.pop(0)
        if played.status != 200 or played.body is not None:
            body = played.body if isinstance(played.body, str) else json.dumps(played.body)
            await self._send_head(socket, played, {"content-type": "application/json", "content-length": str(len(body.encode()))})
            await socket.send(body.encode())
            return True
        await self._send_head(socket, played, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
        for event in [*played.events, *([END] if played.then == "done" else [])]:
            line = (event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n").encode("utf-8", "surrogatepass")
            await socket.send(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        if played.then == "die":
            return False
        if played.then == "hang":
            self.hanging.set()
            try:
                await source.receive()
            finally:
                self.gone.set()
        await socket.send(b"0\r\n\r\n")
        return True

    async def _send_head(self, socket: SocketStream, played: Played, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {played.status} Scripted", *(f"{name}: {value}" for name, value in {**headers, **played.headers}.items())]
        await socket.send("\r\n".join([*lines, "", ""]).encode())


@asynccontextmanager
async def openai_server(*script: Played) -> AsyncIterator[OpenAIServer]:
    server = OpenAIServer(script)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        server.url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/v1"
        tasks.start_soon(listener.serve, server.serve)
        yield server
        tasks.cancel_scope.cancel()

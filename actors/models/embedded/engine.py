"""The engine's process, kept alive while a runtime uses it: started, watched, started again with growing waits, ended.

An event loop needs one, however many runtimes it has. So the one that was there first is asked, another starts its process
only when it is itself the first, and one that is to end waits until those who ask it are done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.abc
import attrs
import httpx2
import openai
from anyio.streams.buffered import BufferedByteReceiveStream

from ropewalk.actors.errors import ModelError
from ropewalk.actors.messages import Message
from ropewalk.actors.models.openai import OpenAIModel
from ropewalk.actors.models.openai_errors import server_error
from ropewalk.runtime.clock import Clock
from ropewalk.runtime.log import log
from ropewalk.runtime.supervision import Backoff, Failure, RestartLedger, RestartPolicy, attempt

__all__ = ["Engine", "EngineSettings", "Incarnation"]

START_SECONDS = 120.0
END_SECONDS = 5.0
LEFT_SECONDS = 10.0
"""How long an engine that is to end waits for those who still ask it."""
NOTICED_SECONDS = 1.0
"""How long after a broken connection it may take until it is known that the process died."""
LAST_WORDS_SECONDS = 1.0
TRIES = 2
"""How often a request is made: an engine that dies of it would be killed for ever, and with it everybody else's answers."""
RESTART = RestartPolicy(max_restarts=5, within=60.0, backoff=Backoff(first=0.2, longest=10.0))
BROKEN = (openai.APIConnectionError, httpx2.HTTPError, httpx2.StreamError)
"""What a request fails with when the process dies. Anything else is the answer of one that lives."""
UNKEPT = httpx2.Limits(max_keepalive_connections=0)
"""The engine closes connections without a word, so each request gets its own; on one machine that costs next to nothing."""
QUIET = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
"""Read when the engine is loaded. Without them its threads spin while they wait for one another: ten times slower when all cores are in use."""


@attrs.frozen
class EngineSettings:
    """How the engine is run: `slots` answers at once, each with a `context` of so many tokens; `nice` is how far it steps back for other processes."""

    model: str
    name: str
    slots: int
    context: int
    threads: int
    cache_megabytes: int = 256
    nice: int = 5


@attrs.frozen
class Incarnation:
    """One life of the process: where it listens and what it wants to hear from those who may ask. `pid` is its process id."""

    pid: int
    address: str
    api_key: str = attrs.field(repr=False)
    http: httpx2.AsyncClient = attrs.field(repr=False)


class Engine:
    """Keeps one process alive in the event loop that runs it."""

    def __init__(self, settings: EngineSettings, clock: Clock) -> None:
        self.settings = settings
        self._clock = clock
        self._now: Incarnation | None = None
        self._wanted = anyio.Event()
        self._changed = anyio.Event()
        self._gone = anyio.Event()
        self._death = ""
        self._over: ModelError | None = None
        self._users = 0
        self._left = anyio.Event()
        self._slots = anyio.Semaphore(settings.slots)
        self.choosing = anyio.Lock()
        """Held by whoever asks it a row of questions that have most of their words in common."""

    @property
    def incarnation(self) -> Incarnation | None:
        """The process as it is now, None while there is none."""
        return self._now

    def want(self) -> None:
        """Have the process started, without waiting for it."""
        self._wanted.set()

    @contextmanager
    def used(self) -> Generator[None]:
        """It is not to end while this is open; see `left`."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._left.set()

    async def left(self) -> None:
        """Wait until nobody uses it, within a bound."""
        with anyio.move_on_after(LEFT_SECONDS):
            while self._users:
                self._left = anyio.Event()
                await self._left.wait()

    async def alive(self) -> Incarnation:
        """The process, waited for while it is started, or started again. Raises `ModelError` when it will not be."""
        self.want()
        while self._now is None:
            if self._over is not None:
                raise ModelError(str(self._over)) from self._over
            await self._changed.wait()
        return self._now

    def provider(self, incarnation: Incarnation, params: dict[str, Any]) -> OpenAIModel:
        """The engine's model behind its chat completions."""
        name, window = self.settings.name, self.settings.context
        return OpenAIModel(
            name, base_url=f"{incarnation.address}/v1", api_key=incarnation.api_key, context_window=window, timeout=None, keep_alive=0, params=params
        )

    async def answer(self, messages: Sequence[Message], system_prompt: str | None, params: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The model's answer, as Converse chunks. Where the process dies before there is any of it, the next one is asked, once.

        Who finds all slots taken waits here and not in the engine, whose threads have other questions to answer.
        """
        async with self._slots, aclosing(self._answer(messages, system_prompt, params)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _answer(self, messages: Sequence[Message], system_prompt: str | None, params: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        for tries_left in reversed(range(TRIES)):
            incarnation = await self.alive()
            begun = False
            stream = self.provider(incarnation, params).stream(messages, system_prompt=system_prompt)
            async with aclosing(cast("AsyncGenerator[dict[str, Any]]", stream)) as chunks:
                try:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                    return
                except ModelError as error:
                    failed = error
            await self._raise_unless_to_repeat(failed, incarnation, may_repeat=tries_left > 0 and not begun)

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What one of the engine's own endpoints answers; raises `ModelError` and its kin, as the provider does."""
        for tries_left in reversed(range(TRIES)):
            incarnation = await self.alive()
            try:
                response = await incarnation.http.request(method, path, json=body)
                answer = response.json()
            except (httpx2.HTTPError, ValueError) as error:
                failed = ModelError(f"the embedded model's engine did not answer ({type(error).__name__}: {error})"[:300])
                failed.__cause__ = error
            else:
                if response.status_code != 200:
                    raise server_error(response.status_code, answer, response.headers, model=self.settings.name, now=self._clock.time())
                return answer
            await self._raise_unless_to_repeat(failed, incarnation, may_repeat=tries_left > 0)
        raise AssertionError("the last try neither answered nor failed")

    async def busy_slots(self) -> int:
        """How many answers are being written now."""
        return sum(bool(slot["is_processing"]) for slot in await self.ask("GET", "/slots"))

    async def _raise_unless_to_repeat(self, error: ModelError, incarnation: Incarnation, *, may_repeat: bool) -> None:
        """Raise what a request failed with; a failure because the process died is raised as that, unless the request may be made again."""
        if not isinstance(error.__cause__, BROKEN) or not await self._has_died(incarnation):
            raise error
        if not may_repeat:
            raise ModelError(self._death or "the embedded model's engine has ended") from error

    async def _has_died(self, incarnation: Incarnation) -> bool:
        """Whether what just failed did so because the process is gone, which is noticed a moment later."""
        with anyio.move_on_after(NOTICED_SECONDS):
            while self._now is incarnation:
                await self._gone.wait()
        return self._now is not incarnation

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the process alive until cancelled, from when somebody first asks for it. Raises `ModelError` when it cannot be started, or dies too often."""
        try:
            await self._wanted.wait()
            await self._keep(task_status)
        finally:
            self._now = None
            self._over = self._over or ModelError("the embedded model's engine has ended with the runtime that kept it")
            self._changed.set()
            self._gone.set()

    async def _keep(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        ledger, started = RestartLedger(), False
        while True:
            ended = await attempt(self._live(task_status if not started else anyio.TASK_STATUS_IGNORED))
            if not isinstance(ended, Failure):
                raise AssertionError("the engine's process ended without an error")
            started = started or self._now is not None
            error = ended.error if isinstance(ended.error, ModelError) else ModelError(f"the embedded model's engine failed: {ended.error!r:.300}")
            self._now, self._death = None, str(error)
            self._gone.set()
            self._gone = anyio.Event()
            ledger = ledger.failed(self._clock.monotonic(), RESTART)
            if not started or ledger.exhausted(RESTART):
                self._over = error
                raise error from ended.error
            log.warning("engine_restarting", model=self.settings.name, deaths=len(ledger.times), error=str(error)[:300])
            await anyio.sleep(RESTART.backoff.delay(len(ledger.times), self._clock.random()))

    async def _live(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        api_key = self._clock.new_secret()
        async with self._process() as process, anyio.create_task_group() as tasks, AsyncExitStack() as stack:
            complaints = Complaints()
            tasks.start_soon(complaints.listen, process)
            address = await self._start(process, api_key, complaints)
            headers = {"authorization": f"Bearer {api_key}"}
            http = await stack.enter_async_context(
                # Loopback: there is nothing to encrypt, and no proxy on the way.
                httpx2.AsyncClient(base_url=address, headers=headers, timeout=httpx2.Timeout(None), limits=UNKEPT, verify=False, trust_env=False)
            )
            now = Incarnation(process.pid, address, api_key, http)
            await stack.enter_async_context(self.provider(now, {}).serving())
            self._now = now
            self._changed.set()
            self._changed = anyio.Event()
            task_status.started()
            raise ModelError(await complaints.of_death(await process.wait()))

    @asynccontextmanager
    async def _process(self) -> AsyncGenerator[anyio.abc.Process]:
        # A session of its own: Ctrl-C in the terminal is for the program, which cancels an answer and not the engine.
        process = await anyio.open_process(
            [sys.executable, "-P", str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **{name: value for name, value in QUIET.items() if name not in os.environ}},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            with anyio.move_on_after(END_SECONDS, shield=True):
                await process.wait()
                await process.aclose()

    async def _start(self, process: anyio.abc.Process, api_key: str, complaints: Complaints) -> str:
        settings = {**attrs.asdict(self.settings), "api_key": api_key}
        to, back = cast("anyio.abc.ByteSendStream", process.stdin), cast("anyio.abc.ByteReceiveStream", process.stdout)
        try:
            with anyio.fail_after(START_SECONDS):
                await to.send(json.dumps(settings).encode() + b"\n")
                line = await BufferedByteReceiveStream(back).receive_until(b"\n", 10_000)
        except TimeoutError:
            raise ModelError(f"the embedded model's engine was not ready after {START_SECONDS:g} s") from None
        except (anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise ModelError(await complaints.of_death(await process.wait())) from None
        return str(json.loads(line)["address"])


class Complaints:
    """The last lines that the process says: why it died, when it did."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=20)
        self._heard_all = anyio.Event()

    async def listen(self, process: anyio.abc.Process) -> None:
        """Keep them, and the process' pipe from filling up, until it has ended."""
        rest = ""
        async for piece in cast("anyio.abc.ByteReceiveStream", process.stderr):
            *lines, rest = (rest + piece.decode(errors="replace")).split("\n")
            self._lines.extend(line for line in lines if line.strip())
            rest = rest[-1000:]
        self._heard_all.set()

    async def of_death(self, status: int) -> str:
        """How it ended, in a sentence."""
        with anyio.move_on_after(LAST_WORDS_SECONDS):
            await self._heard_all.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        said = self._lines[-1].strip()[:300] if self._lines else "it said nothing"
        return f"the embedded model's engine {how}: {said}"

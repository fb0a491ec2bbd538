"""What the actors of a runtime share: entered on first use, left after the last actor, in reverse order."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest

from ropewalk import AgentSpec, ModelError, Runtime, RuntimeClosed, TurnFailed
from ropewalk.testing import ScriptedModel

pytestmark = pytest.mark.anyio


class Told:
    """Services that write down what happens to them."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def make(self, name: str) -> Callable[[], AbstractAsyncContextManager[str]]:
        @asynccontextmanager
        async def service() -> AsyncGenerator[str]:
            self.log.append(f"enter {name}")
            await anyio.lowlevel.checkpoint()
            try:
                yield name
            finally:
                self.log.append(f"leave {name}")

        return service


async def test_a_service_is_entered_once_and_left_in_reverse_order() -> None:
    told, first, second = Told(), object(), object()
    got: list[str] = []

    async def use(runtime: Runtime, owner: object, name: str) -> None:
        got.append(await runtime.service(owner, told.make(name)))

    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(use, runtime, first, "first")
        tasks.start_soon(use, runtime, first, "first")
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(use, runtime, second, "second")
    assert got == ["first", "first", "second"]
    assert told.log == ["enter first", "enter second", "leave second", "leave first"]


async def test_it_outlives_the_last_turn() -> None:
    told = Told()

    class Serving(ScriptedModel):
        def serving(self) -> AbstractAsyncContextManager[str]:
            return told.make("model")()

    def answer(messages: object) -> str:
        told.log.append("answer")
        return "Hello."

    model = Serving(answer)
    async with Runtime() as runtime:
        spec = AgentSpec(model=model)
        for name in ("a", "b"):
            session = await runtime.open(name, spec)
            await session.submit("Hi")
        assert "leave model" not in told.log
    assert told.log == ["enter model", "answer", "answer", "leave model"]


async def test_what_keeps_it_from_being_entered_fails_the_turn_and_the_next_turn_tries_again() -> None:
    tries: list[Exception] = [ModelError("the engine is not there"), KeyError("bug")]

    class Shy(ScriptedModel):
        @asynccontextmanager
        async def serving(self) -> AsyncGenerator[None]:
            if tries:
                raise tries.pop(0)
            yield

    async with Runtime() as runtime:
        session = await runtime.open("a", AgentSpec(model=Shy(["Hello."])))
        with pytest.raises(ModelError, match="engine is not there"):
            await session.ask("Hi")
        with pytest.raises(TurnFailed, match="KeyError"):
            await session.ask("Hi")
        assert str(await session.ask("Hi")).strip() == "Hello."


async def test_one_that_ends_by_itself_is_made_anew() -> None:
    owner, told = object(), Told()

    @asynccontextmanager
    async def dying() -> AsyncGenerator[anyio.Event]:
        die = anyio.Event()

        async def wait_and_die() -> None:
            await die.wait()
            raise OSError("gone")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_and_die)
            yield die

    async with Runtime() as runtime:
        (await runtime.service(owner, dying)).set()
        with anyio.fail_after(5):
            while not told.log:  # until it has died, who uses it gets the old one
                await runtime.service(owner, told.make("again"))
                await anyio.lowlevel.checkpoint()
        assert told.log == ["enter again"]


@pytest.mark.parametrize("how", ["entering", "leaving"])
async def test_one_that_hangs_is_cancelled(how: str) -> None:
    cancelled: list[str] = []

    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(how)
            raise

    @asynccontextmanager
    async def hanging() -> AsyncGenerator[None]:
        if how == "entering":
            await hang()
        yield
        await hang()

    async def use(runtime: Runtime) -> None:
        if how == "entering":
            with pytest.raises(RuntimeClosed):
                await runtime.service(cancelled, hanging)
        else:
            await runtime.service(cancelled, hanging)

    async with anyio.create_task_group() as tasks, Runtime(grace=0.01) as runtime:
        tasks.start_soon(use, runtime)
        await anyio.wait_all_tasks_blocked()
    assert cancelled == [how]


async def test_leaving_the_runtime_by_an_exception_leaves_them_at_once() -> None:
    told = Told()

    async def leave() -> None:
        async with Runtime() as runtime:
            await runtime.service(told, told.make("one"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await leave()
    assert told.log == ["enter one", "leave one"]


async def test_nothing_is_started_in_a_runtime_that_is_closed() -> None:
    told = Told()
    async with Runtime() as runtime:
        pass
    with pytest.raises(RuntimeClosed):
        await runtime.service(told, told.make("one"))
    assert told.log == []

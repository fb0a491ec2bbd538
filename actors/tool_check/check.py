"""Requests asked of a model that has tools, each in a conversation of its own, and what it called. No tool is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio
import attrs

from ropewalk.actors.limits import Limits
from ropewalk.actors.models import Model
from ropewalk.actors.spec import AgentSpec
from ropewalk.actors.tools import Tool, ToolContext, ToolRegistry
from ropewalk.runtime.runtime import Runtime
from ropewalk.runtime.supervision import Failure, attempt, contain

__all__ = ["Choice", "Request", "ask_all", "wrong_choices"]

AT_ONCE = 8
"""How many requests are asked at once: a provider that is paid for each may throttle more."""


@attrs.frozen
class Request:
    """What is asked, the name of the tool that should be called (None: none should), and what its input should hold at least."""

    text: str
    tool: str | None
    input: Mapping[str, Any] = attrs.field(factory=dict[str, Any])


@attrs.frozen
class Choice:
    """What a model made of a request: the names and inputs of its calls, what is wrong with an input, and how it failed if it did."""

    request: Request
    called: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    fault: str | None = None
    failure: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether just the right tool was called, with an input that is valid."""
        wanted = [] if self.request.tool is None else [self.request.tool]
        return [name for name, _ in self.called] == wanted and self.fault is None and self.failure is None

    @property
    def is_exact(self) -> bool:
        """Whether its input holds what the request says, too."""
        return self.is_right and all(self.request.input.items() <= given.items() for _, given in self.called)


async def ask_all(model: Model, tools: Iterable[Any], requests: Sequence[Request], told: Callable[[int], None] = lambda done: None) -> list[Choice]:
    """What the model calls for each request, in their order; `told` hears how many are done.

    The tools are not run: the model is told that the call was noted, and the turn ends there.
    """
    registry = ToolRegistry(tools)
    noting = [Tool(one.name, one.description, one.input_schema, _noted) for one in registry]
    spec = AgentSpec(name="tool check", model=model, tools=noting, limits=Limits(cycles=1))
    choices: dict[int, Choice] = {}
    limiter = anyio.CapacityLimiter(AT_ONCE)
    async with Runtime() as runtime, anyio.create_task_group() as tasks:

        async def ask(number: int, request: Request) -> None:
            async with limiter:
                session = await runtime.open(f"request-{number}", spec)
                outcome = await attempt(session.ask(request.text))
                called = _calls(await session.messages())
            fault = next((wrong for name, given in called if (wrong := _fault(registry, name, given)) is not None), None)
            failure = f"{type(outcome.error).__name__}: {outcome.error}" if isinstance(outcome, Failure) else None
            choices[number] = Choice(request, called, fault, failure)
            told(len(choices))

        for number, request in enumerate(requests):
            tasks.start_soon(ask, number, request)
    return [choices[number] for number in range(len(requests))]


def wrong_choices(choices: Sequence[Choice]) -> list[str]:
    """What was wrong, a sentence each."""
    return [f"“{choice.request.text}” should have called {choice.request.tool or 'no tool'}: {_instead(choice)}." for choice in choices if not choice.is_right]


def _instead(choice: Choice) -> str:
    if choice.failure is not None:
        return f"the model failed ({choice.failure})"
    names = ", ".join(name for name, _ in choice.called) or "no tool"
    return f"{names} was called" + (f" with an input that is not valid ({choice.fault})" if choice.fault is not None else "")


async def _noted(tool_input: dict[str, Any], context: ToolContext) -> str:
    return "Noted."


def _calls(messages: Iterable[Any]) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    blocks = (block for message in messages if message["role"] == "assistant" for block in message["content"])
    return tuple((block["toolUse"]["name"], block["toolUse"]["input"]) for block in blocks if "toolUse" in block)


def _fault(registry: ToolRegistry, name: str, given: Mapping[str, Any]) -> str | None:
    """What keeps a tool from taking an input, None when nothing does."""
    called = registry.get(name)
    if called is None:
        return f"there is no tool {name!r}"
    converted = contain(called.convert, dict(given))
    return str(converted.error) if isinstance(converted, Failure) else None

"""The check as a command: the bar while it runs, then the table, and a sentence for each request that went wrong."""

from __future__ import annotations

import importlib.util
import json
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import anyio
import attrs

from ropewalk.actors.models import Model
from ropewalk.actors.terminal.named import find_model, find_tools, name_of_model
from ropewalk.actors.terminal.printable import in_short
from ropewalk.actors.terminal.screen import Screen
from ropewalk.actors.tool_check.check import Choice, Request, ask_all, wrong_choices
from ropewalk.actors.tool_check.requests import REQUESTS, TOOLS
from ropewalk.actors.tools import ToolRegistry
from ropewalk.runtime.errors import InvalidOption

__all__ = ["CheckOptions", "in_words", "run_check", "show_choices"]

NO_TOOL = "none"
REQUEST_WIDTH = 42
INPUT_WIDTH = 34
REQUEST_LONGEST, INPUT_LONGEST = 200, 66


@attrs.frozen(kw_only=True)
class CheckOptions:
    """What is tried.

    :param model: the model's name, see `find_model`; None is what `Agent()` takes.
    :param tools: objects that are tools, as ``MODULE:NAME``; none takes four that are brought along, with eight requests.
    :param expected: the name of the tool that should be called, or ``none``, and the request.
    :param may_miss: how many requests may go wrong without making the check fail.
    :param backend: the event loop.
    """

    model: str | None = None
    tools: tuple[str, ...] = ()
    expected: tuple[tuple[str, str], ...] = ()
    may_miss: int = 0
    backend: Literal["asyncio", "trio"] = "asyncio"


def run_check(options: CheckOptions, screen: Screen | None = None) -> list[str]:
    """Try the model and show the table; returns what went wrong in sentences, none when no more did than may.

    Raises `NoModel`, `InvalidOption` and their kin before anything runs.
    """
    model, screen = find_model(options.model), screen or Screen()
    tools = find_tools(options.tools) if options.tools else ToolRegistry(TOOLS)
    requests = _requests(options, tools)
    fast = options.backend == "asyncio" and importlib.util.find_spec("uvloop") is not None
    loop_options: dict[str, Any] = {"use_uvloop": True} if fast else {}
    choices = anyio.run(_ask, model, tools, requests, screen, backend=options.backend, backend_options=loop_options)
    show_choices(screen, choices)
    screen.say(f"{name_of_model(options.model, model)}: {in_words(choices)}")
    wrong = wrong_choices(choices)
    return wrong if len(wrong) > options.may_miss else []


def _requests(options: CheckOptions, tools: ToolRegistry) -> Sequence[Request]:
    if not options.expected:
        if options.tools:
            raise InvalidOption(f"say what is to be asked, and which tool is to be called for it: --expect {tools.names[0]} 'A REQUEST'")
        return REQUESTS
    for name, _ in options.expected:
        if name != NO_TOOL and tools.get(name) is None:
            raise InvalidOption(f"--expect {name}: there are the tools {', '.join(tools.names)}, and {NO_TOOL} for none of them")
    return [Request(text, None if name == NO_TOOL else name) for name, text in options.expected]


async def _ask(model: Model, tools: ToolRegistry, requests: Sequence[Request], screen: Screen) -> list[Choice]:
    with screen.bar(len(requests), f"{len(requests)} requests are being asked") as bar:
        return await ask_all(model, tools, requests, lambda done: bar.show(done, len(requests), f"{done} of {len(requests)} requests"))


def show_choices(screen: Screen, choices: Sequence[Choice]) -> None:
    """The table: each request, the tool that was called, its input, and whether that is right; ``~`` is the right tool with another input."""
    rows = [(_mark(choice), _wrapped(choice.request.text, REQUEST_WIDTH, REQUEST_LONGEST), *_called(choice)) for choice in choices]
    screen.table(("", "request", "tool called", "input"), rows, right=())


def _mark(choice: Choice) -> str:
    return "✓" if choice.is_exact else "~" if choice.is_right else "✗"


def in_words(choices: Sequence[Choice]) -> str:
    """How many were right."""
    right = sum(choice.is_right for choice in choices)
    told = f"{right} of {len(choices)} requests called the right tool with a valid input"
    if any(choice.request.input for choice in choices):
        exact = sum(choice.is_exact for choice in choices)
        told += f", {exact} of them with the one that was meant" + (" (~ marks the others)" if exact < right else "")
    return f"{told}."


def _called(choice: Choice) -> tuple[str, str]:
    if choice.failure is not None:
        return "-", _wrapped(choice.failure, INPUT_WIDTH, INPUT_LONGEST)
    names = ", ".join(name for name, _ in choice.called) or "-"
    inputs = "; ".join(json.dumps(dict(given), ensure_ascii=False, default=str) for _, given in choice.called)
    return in_short(names, 20), _wrapped(inputs, INPUT_WIDTH, INPUT_LONGEST)


def _wrapped(text: str, width: int, longest: int) -> str:
    return textwrap.fill(in_short(text, longest), width)

"""``ropewalk models check``: what a model calls for which request, without running a tool."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from ropewalk import ModelError, tool
from ropewalk.actors.cli import cli
from ropewalk.actors.terminal.screen import Screen
from ropewalk.actors.tool_check import REQUESTS, TOOLS, Choice, Request, ask_all, in_words, show_choices, wrong_choices
from ropewalk.testing import Reply, ScriptedModel, ToolUse

RAN: list[str] = []


@tool
def knot(rope: str, turns: int = 1) -> str:
    """Tie a knot."""
    RAN.append(rope)
    return "tied"


SCRIPT: dict[str, Any] = {
    "Tie it.": Reply(tool_uses=[ToolUse("knot", {"rope": "red"})]),
    "Tie it twice.": Reply(tool_uses=[ToolUse("knot", {"rope": "red"}), ToolUse("knot", {"rope": "blue"})]),
    "Tie nothing.": Reply(tool_uses=[ToolUse("knot", {"rope": 5})]),
    "Cut it.": Reply(tool_uses=[ToolUse("cut", {})]),
    "Hello!": "Hello!",
    "Break.": ModelError("no more rope"),
}


def model() -> ScriptedModel:
    return ScriptedModel(lambda messages: SCRIPT[messages[-1]["content"][0]["text"]])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("request_", "wrong"),
    [
        (Request("Tie it.", "knot"), None),
        (Request("Hello!", None), None),
        (Request("Tie it twice.", "knot"), "“Tie it twice.” should have called knot: knot, knot was called."),
        (Request("Tie nothing.", "knot"), "knot was called with an input that is not valid (Expected `str`"),
        (Request("Cut it.", "knot"), "cut was called with an input that is not valid (there is no tool 'cut')."),
        (Request("Hello!", "knot"), "“Hello!” should have called knot: no tool was called."),
        (Request("Tie it.", None), "“Tie it.” should have called no tool: knot was called."),
        (Request("Break.", "knot"), "the model failed (ModelError: no more rope)."),
    ],
)
async def test_a_call_is_right_when_the_right_tool_is_called_once_with_a_valid_input(request_: Request, wrong: str | None) -> None:
    RAN.clear()
    [choice] = await ask_all(model(), [knot], [request_])

    assert choice.is_right == (wrong is None)
    assert [wrong is not None and wrong in told for told in wrong_choices([choice])] == ([] if wrong is None else [True])
    assert RAN == []


@pytest.mark.anyio
async def test_requests_are_asked_apart_from_one_another_and_told_in_their_order() -> None:
    asked = [Request("Tie it.", "knot", {"rope": "red"}), Request("Hello!", None), Request("Tie it.", "knot", {"rope": "blue"})] * 7
    done: list[int] = []
    choices = await ask_all(model(), [knot], asked, done.append)

    assert [choice.request for choice in choices] == asked
    assert done == list(range(1, 22))
    assert [choice.is_exact for choice in choices] == [True, True, False] * 7
    assert in_words(choices) == "21 of 21 requests called the right tool with a valid input, 14 of them with the one that was meant (~ marks the others)."


def test_only_what_was_meant_is_ticked() -> None:
    written, asked = io.StringIO(), Request("Tie it.", "knot", {"rope": "red"})
    show_choices(Screen(Console(file=written)), [Choice(asked, (("knot", {"rope": colour}),)) for colour in ("red", "blue")] + [Choice(asked)])

    assert re.findall(r"([✓~✗])  Tie it", written.getvalue()) == ["✓", "~", "✗"]


def test_the_requests_that_are_brought_along_ask_for_each_tool_twice() -> None:
    assert sorted(request.tool or "" for request in REQUESTS) == sorted([one.name for one in TOOLS] * 2)


MINE = """
from ropewalk import tool
from ropewalk.testing import Reply, ScriptedModel, ToolUse

@tool
def price(item: str) -> str:
    "What an item costs."
    raise SystemExit("a tool was run")

model = ScriptedModel(lambda messages: Reply(tool_uses=[ToolUse("price", {"item": "rope"})]))
"""


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--expect", "price", "What does rope cost?"], 0, ["✓  What does rope cost?  price", "1 of 1 requests called the right tool"]),
        (["--expect", "none", "Hello!"], 1, ["✗", "Error: “Hello!” should have called no tool: price was called."]),
        (["--expect", "none", "Hello!", "--may-miss", "1", "--backend", "trio"], 0, ["0 of 1 requests"]),
        ([], 2, ["--expect price 'A REQUEST'"]),
        (["--expect", "cost", "What?"], 2, ["--expect cost: there are the tools price, and none for none of them"]),
    ],
)
def test_a_users_own_tools_are_tried_from_the_command_line(
    arguments: list[str], status: int, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checked_mine.py").write_text(MINE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    result = CliRunner().invoke(cli, ["models", "check", "--model", "checked_mine:model", "--tool", "checked_mine:price", *arguments])

    assert result.exit_code == status, result.output
    for line in told:
        assert line in result.output

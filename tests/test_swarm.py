"""The swarm: what its table says is what its turns took, and what failed is told."""

from __future__ import annotations

import io
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from ropewalk import ModelError
from ropewalk.actors.cli import cli
from ropewalk.actors.messages import Message, text_of
from ropewalk.actors.swarm import Swarm, SwarmOptions, TurnTaken, run_swarm
from ropewalk.actors.swarm.swarm import problems_of, rows_of
from ropewalk.actors.swarm.talks import PROMPTS
from ropewalk.actors.terminal.screen import Screen
from ropewalk.testing import Reply, ScriptedModel

BACKENDS: Sequence[Literal["asyncio", "trio"]] = ("asyncio", "trio")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that ``--model swarm_models:NAME`` finds its models in."""
    module = ModuleType("swarm_models")
    monkeypatch.setitem(sys.modules, "swarm_models", module)
    return module


def named(models: ModuleType, model: Any) -> str:
    models.model = model  # type: ignore[attr-defined]
    return "swarm_models:model"


def answering() -> ScriptedModel:
    return ScriptedModel(lambda messages: Reply(text=["An ", "answer ", "to ", text_of(messages[-1])], usage={"inputTokens": 3, "outputTokens": 7}))


def failing_once_in(count: int) -> ScriptedModel:
    numbers = itertools.count(1)

    def answer(messages: Sequence[Message]) -> Any:
        if next(numbers) % count:
            return "Well."
        return ModelError("the provider is \x1b[31mclosed") if next(numbers) % 2 else RuntimeError("a bug")

    return ScriptedModel(answer)


def swarm(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["swarm", *arguments])


def table_of(output: str) -> dict[str, str]:
    """The table's rows."""
    rows = re.findall(r"^ +(\S.*?) {2,}([\d,.]+|-) *$", output, re.MULTILINE)
    return dict(rows)


def number(shown: str) -> float:
    return float(shown.replace(",", ""))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_figures_agree_with_one_another(backend: Literal["asyncio", "trio"], models: ModuleType) -> None:
    shown = io.StringIO()
    options = SwarmOptions(sessions=12, turns=3, model=named(models, answering()), backend=backend)
    ran, problems = run_swarm(options, Screen(Console(file=shown)))
    table = table_of(shown.getvalue())

    assert problems == []
    assert {name: len(turns) for name, turns in ran.taken.items()} == dict.fromkeys(range(12), 3)
    assert all(turn.first_text is not None and 0 <= turn.first_text <= turn.seconds <= ran.seconds for turn in ran.all_taken)
    assert (table["sessions at once"], table["turns"], table["turns that failed"]) == ("12", "36", "0")
    assert number(table["turns a second"]) == pytest.approx(36 / ran.seconds, rel=0.01)
    assert number(table["tokens a second"]) == pytest.approx(36 * 7 / ran.seconds, rel=0.01)
    assert number(table["turn p50, ms"]) <= number(table["turn p99, ms"]) <= ran.seconds * 1000 + 0.1
    assert number(table["first text p50, ms"]) <= number(table["turn p50, ms"])
    assert number(table["CPU per turn, µs"]) == pytest.approx(ran.cpu / 36 * 1e6, abs=1)
    assert 1000 < number(table["bytes per idle session"]) < 100_000


def test_every_session_asks_its_own_questions(models: ModuleType) -> None:
    model = answering()
    run_swarm(SwarmOptions(sessions=len(PROMPTS), turns=2, model=named(models, model)), Screen(Console(file=io.StringIO())))

    first = [text_of(request.messages[0]) for request in model.requests if len(request.messages) == 1]
    assert sorted(first) == sorted(PROMPTS)
    assert len(model.requests) == 2 * len(PROMPTS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_failed_turns_are_counted_told_and_the_status(backend: str, models: ModuleType) -> None:
    result = swarm("--sessions", "10", "--turns", "2", "--model", named(models, failing_once_in(5)), "--backend", backend)
    table = table_of(result.output)
    failed = int(table["turns that failed"])

    assert result.exit_code == 1
    assert failed == int(table.get("ModelError", "0")) + int(table.get("TurnFailed", "0")) > 0
    assert f"{failed} of 20 turns failed:" in result.output
    assert re.search(r"\d+ × (ModelError, such as: the provider is \\x1b\[31mclosed|TurnFailed, such as: .*a bug)", result.output)
    assert "\x1b" not in result.output


def test_where_every_turn_fails_there_is_still_a_table(models: ModuleType) -> None:
    result = swarm("--sessions", "3", "--turns", "1", "--model", named(models, ScriptedModel(lambda messages: ModelError("closed"))))
    table = table_of(result.output)

    assert result.exit_code == 1
    assert "3 of 3 turns failed:\n3 × ModelError, such as: closed" in result.output
    assert {table[name] for name in ("turns a second", "turn p50, ms", "first text p99, ms", "tokens a second", "bytes per idle session")} == {"-"}


def test_a_swarm_that_went_well_has_status_0_and_no_bar_in_a_pipe(models: ModuleType) -> None:
    result = swarm("--sessions", "2", "--turns", "1", "--model", named(models, answering()), "--model-concurrency", "1")

    assert result.exit_code == 0
    assert "━" not in result.output
    assert result.output.count("swarm_models:model") == 1


def test_at_a_terminal_there_is_a_bar(models: ModuleType) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100, legacy_windows=False)
    run_swarm(SwarmOptions(sessions=2, turns=1, model=named(models, answering())), Screen(console))

    assert "2 sessions are being opened" in shown.getvalue()


def test_a_swarm_without_a_model_is_a_sentence_and_status_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROPEWALK_MODEL", "none")
    result = swarm("--sessions", "2")

    assert result.exit_code == 2
    assert "no model was named" in result.output


def test_a_table_is_made_of_what_was_measured_alone() -> None:
    ran = Swarm(sessions=2, turns=2, seconds=2.0, cpu=0.004, output_tokens=0)
    ran.taken = {
        0: [TurnTaken(seconds=0.1, first_text=0.05), TurnTaken(seconds=0.3, first_text=None)],
        1: [TurnTaken(seconds=0.2, first_text=0.01), TurnTaken(seconds=9.0, first_text=8.0, failure="ModelError", words="no\nway")],
    }

    assert rows_of(ran, None) == [
        ("sessions at once", "2"),
        ("turns", "4"),
        ("turns that failed", "1"),
        ("  ModelError", "1"),
        ("seconds", "2.00"),
        ("turns a second", "1.5"),
        ("turn p50, ms", "200.0"),
        ("turn p99, ms", "300.0"),
        ("first text p50, ms", "10.0"),
        ("first text p99, ms", "50.0"),
        ("tokens a second", "-"),
        ("CPU per turn, µs", "1,000"),
        ("bytes per idle session", "-"),
    ]
    assert problems_of(ran) == ["1 of 4 turns failed:", "1 × ModelError, such as: no way"]


def test_the_command_is_run_from_the_folder_it_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_of_this_folder.py").write_text("from ropewalk.testing import ScriptedModel\nmodel = ScriptedModel(lambda messages: 'Hi')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    assert swarm("--sessions", "1", "--turns", "1", "--model", "model_of_this_folder:model").exit_code == 0

"""The benchmarks run: each row, at a size where its figures mean nothing. How fast anything is, is asked by `make bench` only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = (
    "text",
    "window",
    "tool",
    "1000",
    "5000",
    "paced",
    "history",
    "ageing",
    "idle",
    "passive",
    "crowd",
    "recovery",
    "cold",
    "wakes",
    "durable",
    "growth",
    "reduction",
    "opening",
    "troubles",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The benchmarks in a process of their own, as ``make bench`` starts them: they freeze the collector and trace every byte."""
    return subprocess.run([sys.executable, "-P", "-W", "error", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of every row at toy size on the two backends that are always there wrote as JSON."""
    file = tmp_path_factory.mktemp("figures") / "figures.json"
    before = [path.read_bytes() for path in written()]
    done = run("--toy", "--backend", "asyncio", "--backend", "trio", "--json", str(file))

    assert done.returncode == 0, done.stderr
    assert [path.read_bytes() for path in written()] == before, "a run that is not full leaves the published figures alone"

    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def written() -> list[Path]:
    return [path for path in (ROOT / "benchmarks" / "README.md", ROOT / "benchmarks" / "figures.json") if path.exists()]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_runs(row: str, figures: dict[str, Any]) -> None:
    lines = [line for line in figures["lines"] if line["row"] == row]

    assert {line["backend"] for line in lines} == ({"asyncio"} if row in ("idle", "passive", "crowd", "recovery", "wakes", "growth") else {"asyncio", "trio"})
    assert all(isinstance(line["handler"], float | int) for line in lines)


def test_no_row_is_left_out(figures: dict[str, Any]) -> None:
    assert list(dict.fromkeys(line["row"] for line in figures["lines"])) == list(ROWS)


def test_closing_leaves_no_task(figures: dict[str, Any]) -> None:
    assert [line["handler"] for line in figures["lines"] if line["what"].startswith("tasks left")] == [0, 0]


def test_an_unknown_row_is_refused_by_name() -> None:
    done = run("--row", "nonsense")

    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "troubles" in done.stderr

"""The tour and the command line: what a person sees, in a terminal and in a pipe, and what they are told when something is not right."""

from __future__ import annotations

import importlib.metadata
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner
from rich.console import Console

from ropewalk import Runtime
from ropewalk.actors.cli import cli
from ropewalk.actors.session.records import Accepted, Begun, Opened, Resumed, Settled
from ropewalk.actors.terminal.figures import percentile
from ropewalk.actors.terminal.screen import WIDTH, Screen, source_of
from ropewalk.actors.tour import TourOptions, run_tour
from ropewalk.actors.tour.conversations import find_examples
from ropewalk.actors.tour.crowd import Crowd, Talk, follow, make_spec, wrong_talks
from ropewalk.actors.tour.steps import STEPS, Print, Step, show_step
from ropewalk.actors.tour.survival import Count, Life, count
from ropewalk.runtime.journal import Record

ROOT = Path(__file__).resolve().parent.parent
SETS = ("base", "long_context", "miss_func", "miss_param")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

TICKETS = """
class TicketAPI:
    opened_by_all = 0

    def _load_scenario(self, scenario, long_context=False):
        self.tickets = []

    def open_ticket(self, title):
        self.tickets.append(title)
        type(self).opened_by_all += 1
        return {{"id": {number}}}
"""
OWN, SHARED = "len(self.tickets)", "self.opened_by_all"


def write_rows(path: Path, *rows: dict[str, Any]) -> None:
    """Write one JSON value a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def write_package(folder: Path, number: str) -> Path:
    """A folder like the leaderboard's package: two conversations a set, each with two turns and one call."""
    data, source = folder / "bfcl_eval/data", folder / "bfcl_eval/eval_checker/multi_turn_eval/func_source_code/ticket_api.py"
    source.parent.mkdir(parents=True)
    source.write_text(TICKETS.format(number=number), encoding="utf-8")
    parameters = {"type": "dict", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    write_rows(data / "multi_turn_func_doc/ticket_api.json", {"name": "open_ticket", "description": "Opens one.", "parameters": parameters})
    for name in SETS:
        ids = [f"{name}-{number}" for number in range(2)]
        question = [[{"role": "user", "content": "Something is wrong."}], [{"role": "user", "content": "My screen is dark."}]]
        file = f"BFCL_v4_multi_turn_{name}.json"
        write_rows(data / file, *({"id": one, "question": question, "initial_config": {}, "involved_classes": ["TicketAPI"]} for one in ids))
        write_rows(data / "possible_answer" / file, *({"id": one, "ground_truth": [[], ["open_ticket(title='Dark')"]]} for one in ids))
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose tools keep to themselves."""
    return write_package(tmp_path_factory.mktemp("package"), OWN)


def small(**options: Any) -> TourOptions:
    """A tour that takes a second."""
    return attrs.evolve(TourOptions(sessions=10, pace=0.001, model=False), **options)


def ropewalk(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """What ``python -m ropewalk`` does in a pipe."""
    return subprocess.run([sys.executable, "-m", "ropewalk", *arguments], capture_output=True, text=True, timeout=60, encoding="utf-8", **options)


@pytest.fixture(scope="module")
def piped(package: Path) -> subprocess.CompletedProcess[str]:
    """The tour at a small scale, in a pipe; the part with the embedded model is in `test_tour_embedded`."""
    return ropewalk("tour", "--skip-model", "--sessions", "10", "--pace", "0.001", "--limit", "1", "--folder", str(package))


def test_the_tour_ends_well_and_says_so(piped: subprocess.CompletedProcess[str]) -> None:
    assert (piped.returncode, piped.stderr) == (0, "")
    assert "All is as it should be" in piped.stdout.splitlines()[-1]


def test_in_a_pipe_there_are_plain_lines_only(piped: subprocess.CompletedProcess[str]) -> None:
    assert "\x1b" not in piped.stdout
    assert "\r" not in piped.stdout
    assert "━" not in piped.stdout
    assert max(map(len, piped.stdout.splitlines())) <= WIDTH


@pytest.mark.parametrize("step", STEPS, ids=lambda step: str(step.title))
def test_every_step_is_shown_with_its_code_and_what_came_out(piped: subprocess.CompletedProcess[str], step: Step) -> None:
    assert f"  {step.title}. " in piped.stdout
    assert "\n".join(f"  │ {line}" for line in source_of(step.run).splitlines()) in piped.stdout
    assert "\n".join(f"  → {line}" for line in step.prints) in piped.stdout


@pytest.mark.parametrize(
    "line",
    [
        r"no\s+model\s+is\s+asked,\s+and\s+no\s+key\s+is\s+needed",
        r"the model refuses 9,\d+ tokens, 2,500 fit",
        r"session\.status is 'reducing'; another prompt is taken, 1 waits",
        r"given up: manager: StepTimeout",
        r"ReductionEnded: rung 'clip', 9,\d+ → 1,\d+ tokens",
        r"TurnEnded, end_turn: Was the rope sound\? I have read 1,\d+ tokens",
        r"TurnEnded, end_turn: And the wind\? I have read 1,\d+ tokens",
        r"\n +messages accepted before the kill +40 *\n",
        r"\n +answered before it +2\d *\n",
        r"\n +recovered, and answered by the next process +[12]\d *\n",
        r"\n +answered twice +0 *\n +lost +0 *\n",
        r"\n +made twice +0 *\n",
        r"\n +tool calls in doubt, as the model was told +\d+ *\n",
        r"Every accepted message was answered once",
        r"calls open_ticket|→ Something is wrong\.",
        r"\n +all +4 +8 +4 +4 ",
        r"All 4 sessions ended exactly like the same calls made by hand",
        r"10 sessions opened in .* 200 pieces heard",
        r"All 10 readers heard their own answer",
        r"\n +sessions at once +4 +10 *\n",
        r"\n +turns +8 +10 *\n",
        r"\n +turns a second +[\d,]+ +[\d,]+ *\n",
        r"\n +latency p99, ms +[\d,]+ +[\d,]+ *\n",
        r"\n +bytes per idle session +[\d,]+ +[\d,]+ *\n",
        r"make test",
        r"This part took \d+\.\d s\.",
    ],
)
def test_the_tour_shows(piped: subprocess.CompletedProcess[str], line: str) -> None:
    assert re.search(line, piped.stdout)


def test_missing_conversations_are_a_plain_sentence_and_the_rest_goes_on(tmp_path: Path) -> None:
    result = ropewalk("tour", "--skip-model", "--sessions", "3", "--pace", "0", "--folder", str(tmp_path))

    assert result.returncode == 1
    assert result.stderr == f"Error: The real conversations are missing: there are no conversations in {tmp_path}; `make conversations` gets them.\n"
    assert "All 3 readers heard their own answer" in result.stdout
    assert "Not all is as it should be" in result.stdout
    assert "Traceback" not in result.stdout


def test_without_the_examples_the_tour_says_where_they_are(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src" / "ropewalk", tmp_path / "ropewalk", ignore=shutil.ignore_patterns("__pycache__"))

    result = ropewalk("tour", "--skip-model", "--sessions", "3", "--pace", "0", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})

    assert result.returncode == 1
    assert "run `make run` in a checkout of it" in result.stderr
    assert "All 3 readers heard their own answer" in result.stdout


def test_a_checkout_that_one_stands_in_has_the_examples(tmp_path: Path, package: Path) -> None:
    shutil.copytree(ROOT / "src" / "ropewalk", tmp_path / "ropewalk", ignore=shutil.ignore_patterns("__pycache__"))
    arguments = ("tour", "--skip-model", "--sessions", "3", "--pace", "0", "--limit", "1", "--folder", str(package))

    result = ropewalk(*arguments, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"})

    assert (result.returncode, result.stderr) == (0, "")


def test_the_examples_of_this_checkout_are_found() -> None:
    assert find_examples() == ROOT / "examples"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_tour_runs_on_both_backends(backend: Any, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tour(small(backend=backend, folder=package)) == []
    assert f"with {backend}" in capsys.readouterr().out


def test_in_a_terminal_there_is_colour_and_a_bar_and_no_line_is_wider_than_it(package: Path) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=140, color_system="standard", highlight=False)

    assert run_tour(small(folder=package, pace=0.01), Screen(console)) == []

    shown = written.getvalue()
    lines = ESCAPE.sub("", shown).replace("\r", "\n").splitlines()
    assert "\x1b[32m" in shown
    assert re.search(r"\d+ sessions streaming", shown)
    assert max(map(len, lines)) <= WIDTH


def test_conversations_may_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tour(small(conversations=False)) == []

    shown = capsys.readouterr().out
    assert "Real conversations" not in shown
    assert "4. A crowd" in shown


def test_a_conversation_that_came_out_wrong_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = run_tour(small(folder=write_package(tmp_path / "package", SHARED)))

    assert "Conversation base-0 came out wrong: message 4" in problems[0]
    assert problems[-1] == "So did 5 more conversations."
    assert "Not all is as it should be" in capsys.readouterr().out


def prints_something(print: Print) -> None:
    """Prints two lines."""
    print("one", 1)
    print("two")


def breaks(print: Print) -> None:
    """Gets as far as one line."""
    print("one", 1)
    raise ValueError("no more rope")


@pytest.mark.parametrize(
    ("run", "prints", "wrong"),
    [
        (prints_something, ("one 1", "two"), None),
        (prints_something, ("one 1", "three"), "came out wrong: 'three' is not in what it printed"),
        (prints_something, ("one 1",), "it printed 2 lines instead of 1"),
        (breaks, ("one 1",), "failed: ValueError: no more rope"),
    ],
)
def test_a_step_is_compared_with_what_it_should_print(run: Any, prints: tuple[str, ...], wrong: str | None) -> None:
    written = io.StringIO()
    problems = show_step(Step("Splicing", "Two ends.", run, prints), Screen(Console(file=written)))

    assert "  → one 1" in written.getvalue()
    if wrong is None:
        assert problems == []
    else:
        assert [wrong in problem and "Splicing" in problem for problem in problems] == [True]


@pytest.mark.anyio
async def test_a_session_of_the_crowd_that_lost_something_is_found_out() -> None:
    async with Runtime() as runtime:
        spec, crowd = make_spec(pace=0.0), Crowd()
        talks = [Talk(number, await runtime.open(f"crowd-{number}", spec)) for number in range(3)]
        for talk in talks:
            talk.text = await follow(talk.session, talk.prompt, crowd)
            talk.messages = await talk.session.messages()

        assert wrong_talks(talks) == []
        talks[1].text = talks[2].text
        assert "Of 3 sessions of the crowd 1 came out wrong; session crowd-1" in wrong_talks(talks)[0]
        talks[1].text, talks[1].messages = talks[1].messages[1]["content"][0]["text"], talks[1].messages[:1]
        assert "crowd-1" in wrong_talks(talks)[0]
        talks[0].failure = "ModelError: gone"
        assert "2 came out wrong; session crowd-0 for one: ModelError: gone" in wrong_talks(talks)[0]


def ended(turn_id: str) -> Settled:
    """A turn's end."""
    return Settled(turn_id, "finished", "end_turn", None, 1, (0, 0, 0))


def test_what_a_killed_process_left_is_counted_and_what_must_not_be_is_found() -> None:
    log = [
        Record(1, 1, Opened("clerk")),
        Record(2, 1, Begun("t1", ("p1",), (), key="k1")),
        Record(3, 1, Accepted("p2", [], False, "k2")),
        Record(4, 1, ended("t1")),
        Record(5, 1, Begun("t2", ("p2",), ())),
        Record(6, 2, Resumed("t2", ("a",))),
        Record(7, 2, ended("t2")),
        Record(8, 2, Begun("t3", ("p3",), (), key="k3")),
        Record(9, 2, ended("t3")),
    ]
    payments = [("t1/a", 1), ("t2/a", 2)]
    lives = [Life(accepted={"k1", "k2"}, answers={"k1": {"Paid 1."}}), Life(answers={"k1": {"Paid 1."}, "k2": {"Paid 2."}, "k3": {"-"}})]
    right = Count(accepted=2, answered=1, recovered=1, in_doubt=1, payments=2)

    assert count([log], payments, lives) == right
    assert right.wrong() == []
    for found, wrong in (
        (count([log], [*payments, payments[0]], lives), "1 payments were made twice."),
        (count([log], payments, [*lives, Life(answers={"k1": {"Paid 9."}})]), "1 messages were answered twice."),
        (count([[*log, Record(10, 2, Begun("t4", ("p1",), ())), Record(11, 2, ended("t4"))]], payments, lives), "1 messages were answered twice."),
        (count([log[:6]], payments, lives), "1 accepted messages were lost."),
        (count([log], payments, [*lives, Life(accepted={"k4"})]), "1 accepted messages were lost."),
        (count([log], payments, lives[:1]), "2 accepted messages were lost."),
        (count([log[:4]], payments, lives), "The process was not killed in the middle: of 2 messages 1 were answered before."),
    ):
        assert wrong in found.wrong()


def test_a_process_that_fails_by_itself_is_named_with_what_it_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")

    assert run_tour(small(conversations=False)) == [
        "The part “survival” broke off: ChildProcessError: the process that was to be killed ended with status 1: it said nothing."
    ]
    assert "All 10 readers heard their own answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "share", "found"),
    [([], 0.5, 0.0), ([3.0], 0.99, 3.0), ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0), ([float(number) for number in range(1, 101)], 0.99, 99.0)],
)
def test_a_percentile_is_the_value_that_this_share_does_not_exceed(values: list[float], share: float, found: float) -> None:
    assert percentile(values, share) == found


@pytest.mark.parametrize("command", [["--version"], ["-m", "ropewalk", "--version"]])
def test_the_version_is_the_installed_one(command: list[str]) -> None:
    right = f"ropewalk {importlib.metadata.version('ropewalk')}\n"
    if command[0] == "-m":
        assert ropewalk("--version").stdout == right
    else:
        assert CliRunner().invoke(cli, command, prog_name="ropewalk").output == right


@pytest.mark.parametrize(("patience", "lines"), [(0.0, ["… it begins", "… half of it"]), (math.inf, [])])
def test_a_pipe_that_has_waited_for_long_is_told_how_far_things_are(patience: float, lines: list[str]) -> None:
    written = io.StringIO()
    with Screen(Console(file=written), patience=patience).bar(2, "it begins") as bar:
        bar.show(1, 2, "half of it")

    assert [line.strip() for line in written.getvalue().splitlines()] == lines


def test_without_a_command_there_is_help() -> None:
    result = ropewalk()

    assert "Usage: ropewalk" in result.stdout + result.stderr
    assert "tour" in result.stdout + result.stderr


@pytest.mark.parametrize("group", [[], ["models"]], ids=["ropewalk", "ropewalk models"])
def test_the_help_says_what_each_command_does_in_whole_sentences(group: list[str]) -> None:
    shown = CliRunner().invoke(cli, [*group, "--help"], terminal_width=80).output.partition("Commands:\n")[2].splitlines()

    assert shown
    assert all(re.fullmatch(r"  [a-z]+ {2,}\S.*[^.]\.", line) for line in shown), shown


@pytest.mark.parametrize("options", [["--sessions", "0"], ["--backend", "threads"], ["--limit", "none"], ["--pace", "-1"], ["--no-such"]])
def test_what_the_tour_cannot_do_is_said_plainly(options: list[str]) -> None:
    result = CliRunner().invoke(cli, ["tour", *options])

    assert result.exit_code == 2
    assert "Error: " in result.output


def test_the_command_fails_with_the_sentences(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["tour", "--skip-model", "--sessions", "2", "--pace", "0", "--folder", str(tmp_path)])

    assert result.exit_code == 1
    assert "Error: The real conversations are missing" in result.output

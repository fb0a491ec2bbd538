"""The chat: at a terminal as a person has it, in a pipe, and its parts, each in itself."""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ropewalk import ModelError, TurnFailed
from ropewalk.actors.chat.commands import COMMANDS, show_history, status_rows
from ropewalk.actors.chat.notes import Note, call_in_short, duration, failure_in_words, note_of, result_in_short
from ropewalk.actors.chat.page import PlainPage, TerminalPage
from ropewalk.actors.chat.tools import calculate
from ropewalk.actors.cli import cli
from ropewalk.actors.events import Gap, ModelRetry, ReasoningDelta, ReductionEnded, ReductionStarted, TextDelta, ToolEnded, ToolStarted, TurnEnded
from ropewalk.actors.messages import assistant, user
from ropewalk.actors.session.handle import SessionStatistics
from ropewalk.actors.terminal.markdown import Blocks, settled_length
from ropewalk.actors.terminal.printable import in_short, printable
from ropewalk.runtime.mailbox import Mailbox
from ropewalk.runtime.supervision import Failure, contain
from terminal import PseudoTerminal, screen_after

TESTS = Path(__file__).resolve().parent
COMMAND = ("-m", "ropewalk", "chat", "--model", "chatty:model")
ANY: dict[str, Any] = {"session_id": "s", "epoch": 1, "seq": 1, "at": 0.0, "turn_id": "t", "request_state": {}}


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "ROPEWALK_MODEL", "ROPEWALK_BACKEND", "COLUMNS", "LINES")}
    return {**kept, "PYTHONPATH": str(TESTS), "TERM": "xterm-256color", "LANG": "C.UTF-8", **more}


def piped(prompts: str | bytes, *options: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    given = prompts.encode() if isinstance(prompts, str) else prompts
    return subprocess.run([sys.executable, *COMMAND, *options], input=given, capture_output=True, env=environment(**more), timeout=60)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """What the model waits for in the middle of an answer."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def at_terminal(fifo: Path) -> Iterator[PseudoTerminal]:
    with PseudoTerminal(*COMMAND, "--tool", "chatty:measure", env=environment(CHATTY_FIFO=str(fifo))) as terminal:
        terminal.wait_for("\n> ")
        yield terminal


# At a terminal.


def test_an_answer_is_shown_while_it_is_streamed(at_terminal: PseudoTerminal, fifo: Path) -> None:
    at_terminal.type("wait\n")
    at_terminal.wait_for("The first half")
    shown = at_terminal.raw

    with fifo.open("wb", buffering=0) as signalled:
        signalled.write(b"go")
        at_terminal.wait_for("The first half and the second.")

    at_terminal.wait_for("\n> ")
    assert "second" not in shown
    at_terminal.type("/quit\n")
    assert at_terminal.wait_for_end() == 0


def test_ctrl_c_ends_the_answer_and_the_chat_goes_on(at_terminal: PseudoTerminal) -> None:
    at_terminal.type("forever\n")
    at_terminal.wait_for("The first half")
    assert not at_terminal.echoes()
    at_terminal.type("\x03")
    at_terminal.wait_for("(cancelled)")
    at_terminal.wait_for("\n> ")
    at_terminal.type("again\n")
    at_terminal.wait_for("You said: again")
    at_terminal.wait_for("\n> ")
    at_terminal.type("/history\n")

    history = at_terminal.wait_for("You said: again")
    assert [line for line in history.splitlines() if line and "history" not in line][:3] == ["> forever", "The first half", "> again"]
    at_terminal.wait_for("\n> ")
    at_terminal.type("\x04")
    assert at_terminal.wait_for_end() == 0


def test_ctrl_c_at_the_prompt_says_how_to_leave(at_terminal: PseudoTerminal) -> None:
    # Python notices a signal between drawing its prompt and waiting for a key with the end of the line, so that follows.
    at_terminal.type("\x03\n")
    at_terminal.wait_for("/quit or Ctrl-D leaves")
    at_terminal.type("/quit\n")

    assert at_terminal.wait_for_end() == 0
    assert "Traceback" not in at_terminal.raw


def test_tools_are_shown_with_what_came_of_them(at_terminal: PseudoTerminal) -> None:
    at_terminal.type("measure it\n")

    came = at_terminal.wait_for("The tools said:")
    assert re.search(r"✓ measure\(thing='rope'\) → rope is 3 m long \(\d+ ms\)", came)
    assert re.search(r"✗ measure\(thing='nothing'\) → .*nothing has no length \(\d+ ms\)", came)


def test_commands_are_for_the_chat_and_not_for_the_model(at_terminal: PseudoTerminal) -> None:
    for line, expected in {
        "/status": "tokens    none reported",
        "/tools": "measure       How long a thing is.",
        "/history": "Nothing has been said.",
        "/nonsense": "There is no command /nonsense",
        "/new": "A new conversation",
        "/help": "/history  what the model is shown of the conversation",
    }.items():
        at_terminal.type(f"{line}\n")
        at_terminal.wait_for(expected)
        at_terminal.wait_for("\n> ")
    at_terminal.type("hello\n")
    at_terminal.wait_for("You said: hello")
    at_terminal.wait_for("\n> ")
    at_terminal.type("/status\n")

    assert "messages  2" in at_terminal.wait_for("written)")
    at_terminal.wait_for("\n> ")
    at_terminal.type("/quit\n")
    assert at_terminal.wait_for_end() == 0


def test_what_the_model_says_does_not_steer_the_terminal(at_terminal: PseudoTerminal) -> None:
    at_terminal.type("hostile\n")
    at_terminal.wait_for(r"\x9b2J")
    at_terminal.wait_for("\n> ")
    at_terminal.type("break it\n")
    at_terminal.wait_for("on Sundays")

    assert r"red \x1b[31m title \x1b]0;gotcha\x07 back \x08 end" in at_terminal.raw
    assert "\x1b[31m title" not in at_terminal.raw
    assert "\x1b]0;" not in at_terminal.raw
    assert r"closed\x1b[2J on" in at_terminal.raw


def test_several_lines_that_are_pasted_are_one_prompt(at_terminal: PseudoTerminal) -> None:
    at_terminal.type("\x1b[200~one\ntwo\x1b[201~\n")

    at_terminal.wait_for("You said: one two")


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=lambda setting: next(iter(setting)))
def test_a_simple_terminal_gets_plain_text(setting: dict[str, str], fifo: Path) -> None:
    with PseudoTerminal(*COMMAND, env=environment(CHATTY_FIFO=str(fifo), **setting)) as terminal:
        terminal.wait_for("> ")
        terminal.type("wait\n")
        terminal.wait_for("The first *half*")
        terminal.type("\x03")
        terminal.wait_for("(cancelled)")
        terminal.wait_for("> ")
        terminal.type("/quit\n")

        assert terminal.wait_for_end() == 0
    assert set(re.findall(r"\x1b\[[^A-Za-z]*[A-Za-z]", terminal.raw)) <= {"\x1b[?2004h", "\x1b[?2004l"}


# In a pipe.


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_in_a_pipe_only_the_answers_come_out_with_an_empty_line_between_them(backend: str) -> None:
    run = piped("measure it\n\nhello\n", "--tool", "chatty:measure", ROPEWALK_BACKEND=backend)

    assert (run.returncode, run.stdout.decode()) == (
        0,
        "Let me see.\nThe tools said: rope is 3 m long; Error: nothing has no length\n\n**You** said: hello\n",
    )
    said = run.stderr.decode().splitlines()
    assert (said[0], said[-1]) == ("> measure it", "> hello")
    assert any("measure(thing='rope') → rope is 3 m long" in line for line in said)


def test_a_failed_prompt_is_told_the_next_is_asked_and_the_status_says_it() -> None:
    run = piped("break it\nhello", "--no-tools")

    assert (run.returncode, run.stdout) == (1, b"\n**You** said: hello\n")
    assert run.stderr.decode() == "> break it\n✗ ModelError: the provider is closed\\x1b[2J on Sundays\n> hello\n"


def test_commands_work_in_a_pipe_and_quit_ends_it() -> None:
    run = piped("/tools\n/quit\nhello\n")

    assert (run.returncode, run.stderr) == (0, b"")
    assert [line.split()[0] for line in run.stdout.decode().splitlines()] == ["calculator", "current_time"]


def test_a_tool_of_ones_own_takes_the_place_of_a_built_in_one() -> None:
    assert b"17 * 23 is 42" in piped("sum it\n", "--tool", "chatty:own_calculator").stdout
    assert b"391" in piped("sum it\n").stdout


def test_bytes_that_are_no_text_are_asked_all_the_same() -> None:
    run = piped(b"\xff\xfe odd\n")

    assert (run.returncode, run.stdout.decode().strip()) == (0, "**You** said: \ufffd\ufffd odd")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_standard_stream_that_is_closed_is_an_empty_one(closed: str) -> None:
    command = shlex.join([sys.executable, *COMMAND])
    ended = subprocess.run(["sh", "-c", f"{command} {closed}"], input=b"hi\nbreak\nhi\n", capture_output=True, env=environment(), timeout=60)

    assert b"Traceback" not in ended.stderr
    assert ended.returncode == (0 if "<" in closed else 1)  # with a prompt that failed among those that were asked
    assert ended.stdout.count(b"**You** said: hi") == (2 if closed == "2>&-" else 0)


def test_ctrl_c_ends_a_pipe() -> None:
    with subprocess.Popen([sys.executable, *COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        run.stdin.write(b"forever\n")
        run.stdin.flush()
        assert run.stdout.read(10) == b"The first "
        run.send_signal(signal.SIGINT)
        _, told = run.communicate(timeout=60)

    assert run.returncode == 1
    assert b"(cancelled)" in told
    assert b"Traceback" not in told


# What is asked for wrongly.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no model was named"),
        (["--model", "openai:"], "is the name of a model"),
        (["--model", "no_such_module:model"], "the module no_such_module cannot be imported"),
        (["--model", "chatty:nothing"], "there is no nothing in chatty"),
        (["--model", "chatty:no_model"], "7 is not a model"),
        (["--model", "chatty:Chatty"], "name an object with a stream() method"),
        (["--model", "chatty:model", "--tool", "chatty:answer"], "decorate it with @tool"),
        (["--model", "chatty:model", "--tool", "chatty"], "name a module and an object in it"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_status_2(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROPEWALK_MODEL", "none")
    result = CliRunner().invoke(cli, ["chat", *arguments], input="hello\n")

    assert result.exit_code == 2
    assert said in result.output
    assert "hello" not in result.output


# Its parts.


def started(name: str, given: Any) -> dict[str, Any]:
    return {"toolUseId": "1", "name": name, "input": given}


def ended(*content: dict[str, Any], status: str = "success") -> ToolEnded:
    return ToolEnded(**ANY, tool_use=started("look", {"at": 1}), result={"toolUseId": "1", "status": status, "content": list(content)}, seconds=0.0123)


@pytest.mark.parametrize(
    ("event", "note"),
    [
        (ToolStarted(**ANY, tool_use=started("look", {"at": "a\nb", "n": 2})), Note("going", r"look(at='a\nb', n=2) …")),
        (ended({"text": "two\nlines"}), Note("good", "look(at=1) → two lines (12 ms)")),
        (ended({"json": {"a": 1}}, {"image": {}}), Note("good", "look(at=1) → {'a': 1} [image] (12 ms)")),
        (ended(), Note("good", "look(at=1) → nothing (12 ms)")),
        (ended({"text": "\x1b[2J"}, status="error"), Note("bad", r"look(at=1) → \x1b[2J (12 ms)")),
        (
            ReductionEnded(**ANY, rung="window", tokens_before=9000, tokens_after=1000, failures=()),
            Note("good", "the conversation was made smaller (window): 9,000 → 1,000 tokens or so"),
        ),
        (
            ReductionEnded(**ANY, rung=None, tokens_before=9, tokens_after=9, failures=("window: no",)),
            Note("bad", "the conversation could not be made smaller: window: no"),
        ),
        (ModelRetry(**ANY, attempt=2, delay=1.5, error="busy", withdrawn=None), Note("plain", "the model is asked again in 1.5 s: busy")),
        (TurnEnded(**ANY, stop_reason="max_tokens", error=None), Note("plain", "(max_tokens)")),
        (TurnEnded(**ANY, stop_reason="end_turn", error=None), None),
        (TurnEnded(**ANY, stop_reason=None, error="ModelError"), None),
        (TextDelta(**ANY, text="x", block=0), None),
    ],
)
def test_an_event_is_a_line_or_nothing(event: Any, note: Note | None) -> None:
    assert note_of(event) == note


def test_the_start_of_a_reduction_and_a_gap_have_a_line() -> None:
    assert "12,000 tokens" in getattr(note_of(ReductionStarted(**ANY, reason="overflow", tokens_before=12000, target=1)), "text", "")
    assert "/history" in getattr(note_of(Gap(**ANY, dropped=3)), "text", "")


def test_long_things_are_short() -> None:
    assert len(call_in_short(started("look", {"at": "x" * 1000}))) < 80
    assert len(result_in_short({"content": [{"text": "word " * 1000}]})) <= 100


@pytest.mark.parametrize(("spent", "words"), [(0.0, "0 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (59.94, "59.9 s"), (59.96, "59 s"), (125.0, "2 min 5 s")])
def test_durations_are_told_as_people_read_them(spent: float, words: str) -> None:
    assert duration(spent) == words


def test_a_failure_is_one_sentence_with_its_cause() -> None:
    error = TurnFailed("it broke\nbadly")
    error.__cause__ = KeyError("x")

    assert failure_in_words(error) == "TurnFailed: it broke badly (KeyError: 'x')"
    assert failure_in_words(ModelError("")) == "ModelError: no reason was given"


def test_a_status_without_tokens_says_so() -> None:
    statistics = SessionStatistics("idle", 4, 2, 2, 0, 0, 0, 0, Mailbox(1, "reject").statistics())

    assert dict(status_rows("m", "s", statistics))["tokens"] == "none reported"


def test_a_history_is_shown_as_it_was_held() -> None:
    out = io.StringIO()
    call = {"toolUse": started("look", {})}
    result = {"toolResult": {"toolUseId": "1", "status": "error", "content": [{"text": "no"}]}}
    show_history([user("hi"), assistant("Let me see.", call), user(result), assistant("No."), user({"image": {}})], PlainPage(out, out))

    assert out.getvalue().splitlines() == ["> hi", "Let me see.", "✗ look() → no", "No.", "[image]"]


@given(st.text())
def test_printable_text_steers_nothing_and_loses_only_carriage_returns(text: str) -> None:
    shown = printable(text)

    assert all(letter == "\n" or letter.isprintable() or ord(letter) > 0x9F for letter in shown)
    assert printable(shown) == shown
    assert shown.replace("\\x", "").count("\n") == text.count("\n")


@given(st.text(), st.integers(5, 200))
def test_what_is_said_in_short_is_one_short_line(text: str, width: int) -> None:
    assert len(in_short(text, width)) <= width
    assert "\n" not in in_short(text, width)


# The calculator.

NUMBERS = st.integers(-1000, 1000).map(str)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"),
    max_leaves=10,
)


@given(EXPRESSIONS)
def test_the_calculator_calculates_as_python_does(expression: str) -> None:
    if len(expression) <= 300:
        assert calculate(expression) == eval(compile(ast.parse(expression, mode="eval"), "", "eval"))


@pytest.mark.parametrize(
    ("expression", "value"), [("7 / 2", 3.5), ("-7 // 2", -4), ("2 ** 10 % 7", 2), ("sqrt(16) + abs(-1)", 5), ("round(pi, 2)", 3.14), ("max(1, 2)", 2)]
)
def test_the_calculator_knows(expression: str, value: float) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        *("", "1 +", "__import__('os')", "().__class__", "9 ** 9 ** 9", "10 ** 10001 ** 2", "'a' * 1000", "True", "x", "1 / 0", "(-1) ** 0.5"),
        *("sqrt(-1)", "1or 2", "[1]", "abs", "round(1, ndigits=2)", "min()", "-" * 300 + "1", "1.0 ** 'a'", "1j", "\0", "1" * 299 + "+1", "9" * 299 + "**9"),
    ],
)
def test_the_calculator_refuses_what_is_no_sum(expression: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        calculate(expression)


@given(st.text(alphabet="0123456789.+-*/%() ,epi'\"ab", max_size=40))
def test_the_calculator_gives_a_number_or_a_reason(expression: str) -> None:
    outcome = contain(calculate, expression)

    assert isinstance(outcome.error if isinstance(outcome, Failure) else outcome, int | float | ValueError)


@pytest.mark.parametrize("expression", ["-" * 298 + "1", "(" * 140 + "1" + ")" * 140, "1+" * 149 + "1", "1**" * 99 + "1"])
def test_the_calculator_is_not_too_deep_for_long_sums(expression: str) -> None:
    assert isinstance(calculate(expression), int)


# Markdown as it is streamed.

LINES = st.sampled_from(
    [
        *("words and *more* words", "## heading", "- item", "  - nested", "1. first", "```python", "```", "    code", "> quoted", "", "", "---"),
        *("| a | b |", "|---|---|", "| 1 | 2 |", "<b>bold</b>", "List<int> & co", "`tick", "**strong", "***", "===", "\ttab", "a  ", "\\", "word " * 40),
    ]
)
MARKDOWN = st.lists(LINES, max_size=12).map("\n".join)
ROWS, COLUMNS = 12, 60


def page() -> tuple[TerminalPage, io.StringIO]:
    out = io.StringIO()
    return TerminalPage(Console(file=out, force_terminal=True, width=COLUMNS, height=ROWS, highlight=False, color_system=None, legacy_windows=False)), out


@given(MARKDOWN)
def test_settled_blocks_are_a_start_that_only_grows(text: str) -> None:
    lengths = [settled_length(text[:end]) for end in range(len(text) + 1)]

    assert all(0 <= length <= end for end, length in enumerate(lengths))


@given(st.data(), MARKDOWN)
def test_an_answer_streamed_in_any_pieces_ends_as_it_is_drawn_whole(data: st.DataObject, text: str) -> None:
    shown, out = page()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    shown.begin()
    for begins, ends in zip([0, *cuts], [*cuts, len(text)], strict=True):
        if begins < ends:
            shown.show(TextDelta(**ANY, text=text[begins:ends], block=0))
        if data.draw(st.booleans()):
            shown.draw()
    shown.end()

    whole = io.StringIO()
    Console(file=whole, force_terminal=True, width=COLUMNS, color_system=None).print(Blocks(text))
    expected = [line.rstrip() for line in screen_after(whole.getvalue(), 10_000)]
    assert "\n".join(screen_after(out.getvalue(), ROWS)).strip("\n") == "\n".join(expected).strip("\n")


@given(MARKDOWN)
def test_no_word_of_an_answer_is_lost(text: str) -> None:
    shown, out = page()
    shown.answer(text)

    # Fences name a language, and an odd backslash is an escape: neither is said.
    for word in re.findall(r"words|heading|item|first|quoted|tick|strong|bold|int", text):
        assert word in out.getvalue()


def test_a_turn_leaves_its_lines_in_order_and_nothing_of_what_moved() -> None:
    shown, out = page()
    look = started("look", {"at": 1})
    shown.begin()
    shown.show(ReasoningDelta(**ANY, text="I think.", block=0))
    shown.draw()
    shown.show(TextDelta(**ANY, text="Let me *see*.", block=1))
    shown.show(ToolStarted(**ANY, tool_use=look))
    shown.draw()
    assert "· look(at=1) …" in screen_after(out.getvalue(), ROWS)
    shown.show(ended({"text": "3 m"}))
    shown.show(TextDelta(**ANY, text="It is **3 m**.", block=0))
    shown.end()

    assert screen_after(out.getvalue(), ROWS) == ["", "I think.", "", "Let me see.", "", "✓ look(at=1) → 3 m (12 ms)", "", "It is 3 m.", ""]


def test_an_answer_longer_than_the_screen_scrolls_and_leaves_no_hole() -> None:
    shown, out = page()
    code = [f"line {number}" for number in range(3 * ROWS)]
    shown.begin()
    for line in ["```", *code, "```", "", "The end."]:
        shown.show(TextDelta(**ANY, text=f"{line}\n", block=0))
        shown.draw()
    shown.end()

    assert screen_after(out.getvalue(), ROWS) == ["", *(f"  {line}" for line in code), "", "The end.", ""]


def test_withdrawn_text_that_still_moved_is_gone() -> None:
    shown, out = page()
    shown.begin()
    shown.show(TextDelta(**ANY, text="Wrong", block=0))
    shown.draw()
    shown.show(ModelRetry(**ANY, attempt=2, delay=0.0, error="busy", withdrawn="Wrong"))
    shown.show(TextDelta(**ANY, text="Right", block=0))
    shown.end()

    assert "Wrong" not in "\n".join(screen_after(out.getvalue(), ROWS))


def test_every_command_is_helped_with() -> None:
    assert all(name.startswith("/") and about for name, (about, _) in COMMANDS.items())

"""The examples do what their table says, run as a person runs them."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from flask.testing import FlaskClient
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import flask_app
import test_your_agent
from ropewalk import Agent
from ropewalk.testing import ScriptedModel
from terminal import PseudoTerminal

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TESTED_ELSEWHERE = {"bank_account.py", "conversations.py", "conversation_data.py"}
REAL_MODEL = re.compile(r'# The models? plays? (a script|scripts) here\. Leave model= out, or give it "openai:NAME", to talk to a real one\.')
SCREEN = 77
"""Lines of a large terminal; most examples need half of it."""


def environment(**more: str) -> dict[str, str]:
    """Of somebody with a terminal 80 columns wide, and no model."""
    return {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", **more}


def run(name: str, *arguments: str, folder: Path | None = None) -> str:
    """What an example prints; it must end well and have nothing to complain of."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, env=environment(), cwd=folder, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@contextlib.contextmanager
def serving(name: str) -> Iterator[str]:
    """An example as a server on a port of its own: the address."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(PORT="0")) as server:
        assert server.stderr is not None
        try:
            said = ""
            while (found := re.search(r"unning on (http://127\.0\.0\.1:\d+)", said)) is None:
                line = server.stderr.readline()
                assert line, said
                said += line
            drain = threading.Thread(target=server.stderr.read)  # what it logs must not fill the pipe
            drain.start()
            yield found[1]
        finally:
            server.terminate()
            server.wait()
        drain.join()


# All of them ----------------------------------------------------------------------------------------------------------


def test_the_table_and_these_tests_know_every_example() -> None:
    there = {file.name for file in EXAMPLES.glob("*.py")}
    listed = set(re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    tests = Path(__file__).read_text(encoding="utf-8")
    named = {name for name in there if f'("{name}"' in tests}

    assert listed == there
    assert named | TESTED_ELSEWHERE == there


@pytest.mark.parametrize("name", sorted(file.name for file in EXAMPLES.glob("*.py") if file.name not in TESTED_ELSEWHERE))
def test_an_example_fits_on_a_screen_stands_alone_and_says_how_to_run_it(name: str) -> None:
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    tree = ast.parse(source)
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert f"`python examples/{name}`" in (ast.get_docstring(tree) or "")
    assert source.count("\n") <= SCREEN
    assert not imported & {file.stem for file in EXAMPLES.glob("*.py")}
    assert len(REAL_MODEL.findall(source)) == (0 if "SessionMachine" in source else 1)


# Each of them ---------------------------------------------------------------------------------------------------------


def test_a_conversation_begins_with_messages_goes_on_and_is_taken_back() -> None:
    before, after = run("conversation_history.py").split("taken back")

    assert "Who am I?\n assistant: You are Ada" in before
    assert "Who am I?" not in after
    assert after.endswith(" assistant: Rope is made in a ropewalk, Ada.\n")


def test_managers_bound_what_the_model_is_shown() -> None:
    window, nothing, default, refused = re.split(r"\n(?=\w)", run("managers.py"))

    assert re.findall(r"shown (\d+)\. +(\d+) messages", window) == [("1", "2"), ("3", "4"), ("5", "4"), ("5", "4"), ("5", "4")]
    assert re.findall(r"shown (\d+)\. +(\d+) messages", nothing)[-1] == ("9", "10")
    assert re.search(r"refused: it was about \d+ tokens; manager made it \d+\)\n +The last one +I was shown 3", default)
    assert re.search(r"nothing made it smaller\)\n +The last one +\(context_overflow\) +4 messages", refused)


def test_a_manager_of_ones_own_keeps_minutes() -> None:
    printed = run("custom_manager.py")

    assert re.search(r"the model refused about \d+ tokens; the manager made them \d+", printed)
    assert "So far I asked:\n            - What is hemp?\n            - Who makes rope?\n            - How long is a ropewalk?" in printed
    assert printed.endswith("user: And where?\n assistant: I was shown 5.\n")


def test_a_prompt_outlives_its_process_and_is_paid_for_once() -> None:
    first, second, third = re.findall(r"The \w+ process:\n((?:  .*\n)+)", run("survives.py"))

    assert first == "  unfinished work in 0 sessions\n  accepted\n  the payment is made, and the process is killed\n"
    assert second == "  unfinished work in 1 sessions\n  accepted, and already answered\n  Done: paid 12.\n  1 payment, in 4 messages\n"
    assert third == second.replace("work in 1", "work in 0")


def test_a_tool_changes_the_shelf_on_and_off_the_record() -> None:
    printed = run("tools_and_direct_calls.py")

    assert "the shelf has {'rope': 1, 'tar': 1}" in printed
    assert "error: Error: only 1 of 'tar' left" in printed
    assert printed.count(" assistant  calls take") == 3
    assert printed.endswith(" assistant  agent.take was called\n")


def test_request_state_lives_for_one_turn() -> None:
    given, first, second = run("request_state.py").splitlines()

    assert given.endswith("{'currency': 'EUR'}")
    assert first.endswith("{'currency': 'EUR', 'pieces': 9, 'looked_up': ['rope']}")
    assert second.endswith("{'pieces': 3}")


def test_an_answer_is_stopped_and_the_next_question_goes_on_from_it() -> None:
    left, shorter, stopped, *messages = run("stop_and_ask_again.py").splitlines()

    assert re.fullmatch(r"left: +cancelled, heard '(Rope is made in a ropewalk, .*)'", left)
    assert shorter.endswith("In a ropewalk.")
    assert stopped.endswith("True cancelled")
    assert [line.split(":")[0].strip() for line in messages] == ["user", "assistant"] * 3
    assert messages[1].split(": ", 1)[1] in "Rope is made in a ropewalk, a lane as long as the rope is to be."
    assert messages[5].split(": ", 1)[1].startswith("Hemp")


def test_agents_are_kept_between_requests() -> None:
    printed = run("keep_the_agent.py")

    assert "500 requests of 50 people were answered by 16 threads" in printed
    assert "has 20 messages. It said last: That was your question number 10." in printed
    assert "it says: That was your question number 11." in printed
    assert "11 calls of the model, 77 tokens" in printed


def test_a_conversation_goes_through_a_file() -> None:
    saved, _, restored, shown = run("save_and_restore.py").splitlines()

    assert json.loads(saved)["system_prompt"] == "You are an old sailor. 🌊"
    assert "Good morning, I am Zoë 🌞" in saved
    assert restored.endswith("You are Zoë, who says good morning. 🌞")
    assert shown == "The model was shown 3 messages, after 'You are an old sailor. 🌊'"


@pytest.mark.parametrize("sessions", [pytest.param("2000", id="2000"), pytest.param("10000", id="10000", marks=pytest.mark.long)])
def test_thousands_of_sessions_get_their_own_answers(sessions: str) -> None:
    printed = run("ten_thousand.py", sessions)

    assert printed.startswith(f"{int(sessions):,} sessions had {2 * int(sessions):,} turns, and each got its own answers.\n")
    assert re.search(r"^ +\d+ kB of memory a session", printed, re.MULTILINE)


def test_the_live_view_shows_how_each_conversation_goes() -> None:
    with PseudoTerminal(str(EXAMPLES / "terminal_view.py"), env=environment(TERM="xterm-256color"), columns=100) as terminal:
        for seen in ("answers", "calls measure", "failed: ModelError", "cancelled", "It is 365 m long."):
            terminal.wait_for(seen)
        assert terminal.wait_for_end() == 0


def test_the_live_view_leaves_a_table_in_a_pipe() -> None:
    rows = re.findall(r"│ (\w+) +│ (\S.*?) +│ (.*?) +│", run("terminal_view.py"))

    assert [row[:2] for row in rows] == [("Ada", "end_turn"), ("Bob", "end_turn"), ("Cy", "cancelled"), ("Dee", "failed: ModelError")]
    assert rows[1][2] == "Let me measure it. It is 365 m long."


# A property test ------------------------------------------------------------------------------------------------------


def test_the_laws_of_the_property_test_hold(tmp_path: Path) -> None:
    assert "2 passed" in run("test_your_agent.py", folder=tmp_path)


def test_the_property_test_finds_both_planted_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_your_agent, "BUG", True)
    quick = settings(phases=[Phase.generate], max_examples=500, stateful_step_count=20)

    with pytest.raises(AssertionError, match="assert"):
        test_your_agent.test_not_a_cent_is_lost()
    with pytest.raises(AssertionError, match="calls"):
        run_state_machine_as_test(test_your_agent.YourAgent, settings=quick)


# Flask ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def visitors() -> Iterator[dict[str, Agent]]:
    flask_app.agents.clear()
    yield flask_app.agents
    flask_app.agents.clear()


def prompt(browser: FlaskClient, text: str) -> Any:
    return browser.post("/chat", data={"prompt": text})


def test_flask_visitors_have_conversations_of_their_own() -> None:
    ada, bob = run("flask_app.py", "--try").splitlines()

    assert ada == "Ada was told: You began with 'I am Ada.' Their history has 6 messages."
    assert bob == "Bob was told: You began with 'I am Bob.' Their history has 6 messages."


def test_flask_prompts_of_one_visitor_that_come_at_once_wait_for_each_other(visitors: dict[str, Agent]) -> None:
    browser = flask_app.app.test_client()
    prompt(browser, "first")
    cookie = browser.get_cookie("session")
    assert cookie is not None

    def again(number: int) -> int:
        tab = flask_app.app.test_client()
        tab.set_cookie("session", cookie.value)
        return int(prompt(tab, f"prompt {number}").status_code)

    with ThreadPoolExecutor(8) as tabs:
        codes = list(tabs.map(again, range(8)))

    history = browser.get("/history").get_json()
    assert codes == [200] * 8
    assert len(visitors) == 1
    assert [message["role"] for message in history] == ["user", "assistant"] * 9
    assert sorted(message["content"][0]["text"] for message in history[2::2]) == [f"prompt {number}" for number in range(8)]


def test_flask_says_what_went_wrong_and_goes_on(visitors: dict[str, Agent], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flask_app, "model", ScriptedModel([RuntimeError("a bug of the provider"), "here"]))
    browser = flask_app.app.test_client()

    failed, well = prompt(browser, "one"), prompt(browser, "two")

    assert (failed.status_code, well.status_code) == (502, 200)
    assert "try again" in failed.get_json()["error"]
    assert well.get_json() == {"answer": "here", "stop_reason": "end_turn"}


def test_flask_serves() -> None:
    with serving("flask_app.py") as address, httpx2.Client(base_url=address) as browser:
        browser.post("/chat", data={"prompt": "I am Ada."})
        answer = browser.post("/chat", data={"prompt": "Who am I?"}).json()

    assert answer == {"answer": "You began with 'I am Ada.'", "stop_reason": "end_turn"}


# FastAPI --------------------------------------------------------------------------------------------------------------


def sent(stream: httpx2.Response) -> Iterator[tuple[str, Any]]:
    """The name and the data of each server-sent event."""
    name = ""
    for line in stream.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def texts(history: Any) -> list[str]:
    return [message["content"][0]["text"] for message in history["messages"]]


@pytest.fixture(scope="module")
def chat() -> Iterator[httpx2.Client]:
    with serving("fastapi_app.py") as address, httpx2.Client(base_url=address, timeout=30) as client:
        yield client


LONG = "word " * 600


def test_fastapi_shows_a_turn_as_server_sent_events() -> None:
    *events, history = run("fastapi_app.py", "--try").rstrip().split("\n\n")

    assert [event.splitlines()[0] for event in events] == ["event: TextDelta"] * 5 + ["event: TurnEnded"]
    assert json.loads(events[0].splitlines()[1].removeprefix("data: "))["text"] == "You "
    assert events[0].splitlines()[2] == "id: 1:6"
    assert texts(ast.literal_eval(history)) == ["I am Ada.", "You said: I am Ada."]


def test_fastapi_stops_a_turn_and_keeps_what_was_said(chat: httpx2.Client) -> None:
    with chat.stream("POST", "/chat/stopped", json={"prompt": LONG}) as stream:
        events = sent(stream)
        heard = [data["text"] for _, data in (next(events), next(events))]
        stopped = chat.post("/chat/stopped/stop").json()
        rest = list(events)

    heard += [data["text"] for name, data in rest if name == "TextDelta"]
    assert stopped == {"stopped": True}
    assert (rest[-1][0], rest[-1][1]["stop_reason"]) == ("TurnEnded", "cancelled")
    assert texts(chat.get("/chat/stopped").json()) == [LONG, "".join(heard)]
    assert chat.post("/chat/stopped/stop").json() == {"stopped": False}


@pytest.mark.parametrize(("on_leave", "status"), [("continue", "running"), ("cancel", "idle")])
def test_fastapi_a_reader_who_goes_away_leaves_the_turn_or_takes_it_along(chat: httpx2.Client, on_leave: str, status: str) -> None:
    with chat.stream("POST", f"/chat/{on_leave}", params={"on_leave": on_leave}, json={"prompt": LONG}) as stream:
        next(sent(stream))
    # The server takes a moment to see that the connection is gone; the next prompt waits for what becomes of the turn.
    with chat.stream("POST", f"/chat/{on_leave}", json={"prompt": "Still there?"}) as second:
        if on_leave == "continue":
            assert chat.get(f"/chat/{on_leave}").json()["status"] == status
            assert chat.post(f"/chat/{on_leave}/stop").json() == {"stopped": True}
        answer = "".join(data["text"] for name, data in sent(second) if name == "TextDelta")

    history = chat.get(f"/chat/{on_leave}").json()
    assert answer == "You said: Still there?"
    assert history["status"] == "idle"
    assert len(history["messages"]) == 4
    assert len(texts(history)[1]) < len(LONG)


def test_fastapi_refuses_in_its_own_words(chat: httpx2.Client) -> None:
    assert "does not start with a dot" in chat.get("/chat/.hidden").json()["detail"]
    assert list(sent(chat.post("/chat/ada", json={"prompt": ""}))) == [("Failed", "InvalidPrompt")]
    assert chat.post("/chat/ada", params={"on_leave": "wait"}, json={"prompt": "Hi"}).status_code == 422

"""`ropewalk sessions`: what it shows and does, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner, Result

from ropewalk import Runtime, SlidingWindowConversationManager, SQLiteJournal
from ropewalk.actors.cli import cli
from ropewalk.testing import Reply, ToolUse
from talk import agent

REPLIES = [Reply(text="Let me look.", tool_uses=[ToolUse("echo", {"text": "rain"})]), "It rains.\n\nTake a coat.", "two", "three"]


async def talk(path: str) -> None:
    """Two sessions at rest, and one whose turn was not ended: as it is in a copy made meanwhile."""
    async with Runtime(SQLiteJournal(f"{path}-live")) as runtime:
        weather = await runtime.open("weather", agent(REPLIES, name="assistant", conversation_manager=SlidingWindowConversationManager(4)))
        await weather.ask("What is the weather? " + "And tell me all that you know about it. " * 4)
        await weather.pin("e1")
        await weather.ask("and\x1b[31m now?")
        await weather.ask("bye")
        await runtime.open("a.b:c@d-1", agent([], name="a very long name of an agent"))
        busy = await runtime.open("busy", agent([Reply(text="never", delay=600)]))
        turn, _ = await busy.submit("hi"), await busy.submit("there?")
        await SQLiteJournal.back_up(runtime.journal, path)  # type: ignore[arg-type]
        await turn.cancel()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("made") / "made.db"
    anyio.run(talk, str(path))
    return path.read_bytes()


@pytest.fixture
def path(made: bytes, tmp_path: Path) -> Iterator[str]:
    """A journal with three sessions, where the commands look for one."""
    journal = tmp_path / "sessions.db"
    journal.write_bytes(made)
    os.environ["ROPEWALK_JOURNAL"] = str(journal)
    yield str(journal)
    del os.environ["ROPEWALK_JOURNAL"]


def run(*arguments: str, typed: str = "") -> Result:
    result = CliRunner().invoke(cli, ["sessions", *arguments], input=typed, env={"COLUMNS": "80"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_list(path: str) -> None:
    result = run("list")
    lines = result.stdout.splitlines()
    assert lines[0] == "last used         messages  state       agent           session"
    assert [line[18:] for line in lines[1:]] == [
        "       0  at rest     a very long n…  a.b:c@d-1",
        "       1  unfinished  agent           busy",
        "       8  at rest     assistant       weather",
    ]
    assert max(map(len, lines)) <= 80


def test_a_transcript(path: str) -> None:
    assert run("show", "weather").stdout == (
        "e1 user (pinned)\n"
        "  What is the weather? And tell me all that you know about it. And tell me all\n"
        "  that you know about it. And tell me all that you know about it. And tell me\n"
        "  all that you know about it.\n"
        "e2 assistant (left the view: managed)\n"
        "  Let me look.\n"
        "  calls echo(text='rain')\n"
        "e3 user (left the view: managed)\n"
        "  result of echo: rain\n"
        "e4 assistant\n"
        "  It rains.\n"
        "\n"
        "  Take a coat.\n"
        "e5 user (left the view: managed)\n"
        "  and\\x1b[31m now?\n"
        "e6 assistant (left the view: managed)\n"
        "  two\n"
        "e7 user\n"
        "  bye\n"
        "e8 assistant\n"
        "  three\n"
    )


def test_out_and_in_again(path: str, tmp_path: Path) -> None:
    file = str(tmp_path / "weather.jsonl")
    assert run("export", "weather", file).stderr == f"weather is in {file}.\n"
    assert run("export", "weather").stdout == Path(file).read_text()
    assert run("export", "weather", file).stderr == f"Error: there is a file {file} already; name one that is not there yet\n"
    assert run("import", file).stderr == "Error: there is a session 'weather' already; give the import another id\n"
    assert run("import", file, "--as", "copy").stdout == f"copy is in {path}.\n"
    assert run("import", "--as", "other", typed=Path(file).read_text()).exit_code == 0
    assert run("show", "copy").stdout == run("show", "weather").stdout == run("show", "other").stdout
    torn = Path(file).read_text()[:-30]
    assert "is torn" in run("import", "--as", "torn", typed=torn).stderr
    assert run("import", file + "x").stderr == f"Error: {file}x: No such file or directory\n"
    assert not Path(tmp_path / "nobody").exists()
    assert run("export", "nobody", str(tmp_path / "nobody")).exit_code == 2
    assert not Path(tmp_path / "nobody").exists()


def test_a_fork(path: str) -> None:
    assert run("fork", "weather", "rain", "--at", "e4").stdout == "rain goes on from weather.\n"
    assert run("show", "rain").stdout.endswith("  Take a coat.\n")
    assert run("fork", "weather", "sun").exit_code == 0
    assert run("fork", "weather", "sun").exit_code == 2
    assert run("fork", "weather", "snow", "--at", "e2").stderr == ("Error: no turn ended with entry 'e2', so nothing can be forked there; e4 would do\n")
    assert run("delete", "weather", "--yes").exit_code == 0
    assert run("show", "sun").stdout.endswith("e8 assistant\n  three\n")


def test_deleting_asks_first(path: str) -> None:
    assert run("delete", "weather", typed="n\n").exit_code == 1
    assert run("delete", "weather", typed="y\n").stdout.endswith("weather is deleted.\n")
    assert run("delete", "weather", "--yes").stderr == "Error: there is no session 'weather' to delete\n"
    assert b"coat" not in Path(path).read_bytes()
    assert "weather" not in run("list").stdout


@pytest.mark.parametrize("command", [["list"], ["check"], ["show", "x"], ["export", "x"], ["import"], ["delete", "x", "--yes"]])
def test_no_journal_is_made(command: list[str], tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.db")
    result = run(*command, "--journal", missing)
    assert (result.exit_code, result.stderr) == (2, f"Error: there is no journal {missing}\n")
    assert not Path(missing).exists()
    other = tmp_path / "notes.txt"
    other.write_text("These are no sessions. " * 50)
    result = run(*command, "--journal", str(other))
    assert result.exit_code == 2
    assert "is no SQLite database" in result.stderr
    result = run(*command, "--journal", str(tmp_path))
    assert "is a folder" in result.stderr


def test_a_session_of_a_living_program_is_not_deleted(path: str) -> None:
    async def live() -> Result:
        async with Runtime(path) as runtime:
            await runtime.open("mine", agent([]))
            return await anyio.to_thread.run_sync(lambda: run("delete", "mine", "--yes"))

    result = anyio.run(live)
    assert result.exit_code == 2
    assert "'mine' is owned by another" in result.stderr


def test_the_check_finds_what_is_damaged_and_what_is_newer(path: str) -> None:
    result = run("check")
    assert result.stdout == "3 sessions with 19 records looked at.\nAll of it is sound.\n"
    spoil(path, b"Take a coat", b"Take a goat")
    result = run("check")
    assert result.exit_code == 1
    assert "weather" in result.stderr
    assert "damaged" in run("list").stdout
    assert run("show", "weather").exit_code == 2
    assert run("show", "busy").exit_code == 0


def spoil(path: str, old: bytes, new: bytes) -> None:
    """Change bytes of a record behind SQLite's back."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = Path(path).read_bytes()
    assert old in data
    Path(path).write_bytes(data.replace(old, new))


def test_an_export_of_a_newer_ropewalk(path: str) -> None:
    lines = run("export", "weather").stdout.splitlines(keepends=True)
    newer = json.dumps({**json.loads(lines[0]), "version": 2}) + "\n"
    result = run("import", "--as", "new", typed="".join([newer, *lines[1:]]))
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: it is an export of version 2, and this Ropewalk reads version 1; use the Ropewalk that wrote it\n",
    )

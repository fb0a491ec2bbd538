"""The journal in a file: what is said when it cannot be opened, processes that are killed, disks that fill, and the runtime around it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from journal_harnesses import MemoryHarness, SQLiteHarness
from ropewalk import (
    Agent,
    AgentSpec,
    Fenced,
    InvalidOption,
    JournalDamaged,
    JournalUnavailable,
    Runtime,
    SessionElsewhere,
    SQLiteJournal,
    TextDelta,
    UnknownRecord,
    UnknownSession,
)
from ropewalk.runtime.journal import Claim
from ropewalk.runtime.journal.sqlite.file import APPLICATION, SCHEMA
from ropewalk.runtime.supervision import unwrap
from ropewalk.testing import Reply, ScriptedModel

HERE = Path(__file__).parent
KILLS = {"short": 3, "slice": 5, "long": 200}[os.environ.get("ROPEWALK_BUDGET", "short")]


@asynccontextmanager
async def opened(journal: SQLiteJournal) -> AsyncGenerator[SQLiteJournal]:
    await journal.open()
    try:
        async with anyio.create_task_group() as tasks:
            keeper = journal.keeper()
            tasks.start_soon(keeper.run)
            try:
                yield journal
            finally:
                keeper.stop()
    except BaseExceptionGroup as group:
        raise unwrap(group) from None
    finally:
        await journal.close()


async def written(journal: SQLiteJournal, actor_id: str, claim: Claim, *bodies: Any) -> None:
    commit = journal.append(actor_id, claim.epoch, claim.last + 1, bodies)
    assert commit is not None
    await commit.wait()


def spec(**options: Any) -> AgentSpec:
    return AgentSpec(name="assistant", model=ScriptedModel(lambda messages: f"answer {len(messages)}"), **options)


# A runtime on a file ---------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_conversation_goes_on_in_the_next_runtime_on_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    picture = {"image": {"format": "png", "source": {"bytes": b"\x00\xff"}}}
    async with Runtime(path, specs=[spec()]) as runtime:
        session = await runtime.open("me", spec())
        assert str(await session.ask([{"text": "Hi"}, picture])) == "answer 1"
    async with Runtime(str(path), specs=[spec()]) as runtime:
        session = await runtime.open("me", spec(), create=False)
        assert str(await session.ask("And now?")) == "answer 3"
        assert (await session.messages())[0]["content"] == [{"text": "Hi"}, picture]
        assert [entry.message["role"] async for entry in session.transcript()] == ["user", "assistant"] * 2
        with pytest.raises(UnknownSession):
            await runtime.open("nobody", spec(), create=False)
        assert [info.id async for info in runtime.list_sessions()] == ["me"]
        assert runtime.statistics().journal.actors == 1
        assert await runtime.journal.check() == []  # type: ignore[attr-defined]
    assert os.listdir(tmp_path) == ["sessions.db"], "closing leaves the one file"


@pytest.mark.anyio
async def test_a_turn_that_ends_because_its_runtime_is_cancelled_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    model = ScriptedModel([Reply(text="one two three four", delay=0.02)] * 2)
    with anyio.CancelScope() as scope:
        async with Runtime(path) as runtime:
            runtime.add_handler(lambda event: scope.cancel(), kinds={TextDelta})
            session = await runtime.open("me", AgentSpec(model=model))
            await session.submit("Hi")
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    async with opened(SQLiteJournal(path)) as journal:
        assert [record.tag for record in await journal.read("me")][-1] == "Settled"


def test_an_agent_on_a_file_goes_on_in_the_next_agent(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with Agent(model=spec().model, session_id="me", journal=path, callback_handler=None) as agent:
        assert str(agent("Hi")) == "answer 1"
    with Agent(model=spec().model, session_id="me", journal=str(path), callback_handler=None) as agent:
        assert str(agent("Hi")) == "answer 3"
        other = Agent(model=spec().model, session_id="me", journal=path, callback_handler=None)
        with pytest.raises(SessionElsewhere):
            other("Hi")
    assert str(other("Hi")) == "answer 5"
    del other
    gc.collect()  # an agent that is dropped owns nothing
    with Agent(model=spec().model, session_id="me", journal=path, callback_handler=None) as agent:
        assert len(agent.messages) == 6


def test_a_turn_that_the_end_of_the_event_loop_cuts_off_is_kept(tmp_path: Path) -> None:
    model = ScriptedModel([Reply(text="never said", delay=60), "fine"])
    agent = Agent(model=model, session_id="me", journal=tmp_path / "chat.db", callback_handler=None)

    async def main() -> None:
        left = asyncio.ensure_future(agent.invoke_async("Hi"))
        while not model.requests:  # noqa: ASYNC110 - the model has no event to wait for
            await asyncio.sleep(0)
        assert not left.done()

    asyncio.run(main())
    with agent:
        assert str(agent("Again")) == "fine"
    anyio.run(tagged, tmp_path / "chat.db", ["Opened", "Begun", "Settled", "Begun", "Said", "Settled"])


async def tagged(path: Path, tags: list[str]) -> None:
    async with opened(SQLiteJournal(path)) as journal:
        assert [record.tag for record in await journal.read("me")] == tags


@pytest.mark.anyio
async def test_many_claims_and_commits_share_a_transaction(tmp_path: Path) -> None:
    async with opened(SQLiteJournal(tmp_path / "sessions.db")) as journal:

        async def live(actor_id: str) -> None:
            await written(journal, actor_id, await journal.claim(actor_id, "kit"), "a", "b")

        async with anyio.create_task_group() as tasks:
            for number in range(500):
                tasks.start_soon(live, f"actor-{number}")
        counts = journal.statistics()
        assert (counts.actors, counts.records, counts.appends) == (500, 1000, 500)
        assert counts.commits < 20
        assert counts.largest_group > 100
        assert counts.fsyncs <= counts.commits
        assert counts.bytes_on_disk > 0


@pytest.mark.anyio
async def test_claims_alone_wait_for_no_disk(tmp_path: Path) -> None:
    async with opened(SQLiteJournal(tmp_path / "sessions.db")) as journal:
        for number in range(20):
            await journal.claim(f"actor-{number}")
        assert journal.statistics().fsyncs == 0
        claim = await journal.claim("a")
        commit = journal.append("a", claim.epoch, 1, [1], "os")
        assert commit is not None
        await commit.wait()
        assert journal.statistics().fsyncs == 0
        assert journal.append("a", claim.epoch, 2, [2], "memory") is None
        await journal.release("a", claim.epoch)
        assert [record.body for record in await journal.read("a")] == [1, 2]


async def test_whoever_waits_may_leave_and_the_write_is_made(tmp_path: Path) -> None:
    async with opened(SQLiteJournal(tmp_path / "sessions.db")) as journal:
        claim = await journal.claim("a")
        commit = journal.append("a", claim.epoch, 1, ["one"])
        assert commit is not None
        with anyio.CancelScope() as scope:
            scope.cancel()
            await commit.wait()
        for _ in range(2):
            await commit.wait()
        assert [record.body for record in await journal.read("a")] == ["one"]


@pytest.mark.anyio
async def test_who_rests_is_looked_at_once_when_unfinished_work_is_looked_for_and_never_again(tmp_path: Path) -> None:
    harness = SQLiteHarness()
    async with anyio.create_task_group() as tasks:
        lost = harness.journal()
        await lost.open()
        keeper = lost.keeper()
        tasks.start_soon(keeper.run)
        for number in range(40):
            claim = await lost.claim(f"actor-{number:02}")
            commit = lost.append(f"actor-{number:02}", claim.epoch, 1, ["asked"], unfinished=number % 10 == 0)
            assert commit is not None
            await commit.wait()
            if number % 20 >= 10:
                await lost.release(f"actor-{number:02}", claim.epoch)
        harness.kill(lost)
        tasks.cancel_scope.cancel()
        keeper.stop()
    left = ["actor-00", "actor-10", "actor-20", "actor-30"]

    def held() -> int:
        with contextlib.closing(sqlite3.connect(harness.path)) as connection:
            counted: int = connection.execute("SELECT count(*) FROM actors INDEXED BY held WHERE owner IS NOT NULL").fetchone()[0]
            return counted

    assert held() == 22
    async with opened(harness.journal()) as journal:
        assert [known.id for known in await journal.unfinished(limit=3)] == left[:3]
        assert [known.id for known in await journal.unfinished("actor-20")] == left[3:]
        await journal.claim("a")  # in the transaction after
    assert held() == len(left)
    async with opened(harness.journal()) as journal:
        assert [known.id for known in await journal.unfinished()] == left
    harness.dispose()


@pytest.mark.anyio
async def test_without_a_keeper_it_says_so(tmp_path: Path) -> None:
    journal = SQLiteJournal(tmp_path / "sessions.db")
    await journal.open()
    with pytest.raises(JournalUnavailable, match="nothing writes to"):
        await journal.claim("a")
    await journal.close()
    with pytest.raises(JournalUnavailable, match="is not open"):
        await journal.read("a")


# What cannot be opened -------------------------------------------------------------------------------------------------


def foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cats (name TEXT)")


def newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")


def early(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute("PRAGMA user_version = 1")


def corrupt(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute("CREATE TABLE owners (name TEXT)")
    path.write_bytes(path.read_bytes()[:100] + b"\xa5" * (path.stat().st_size - 100))


def locked(path: Path) -> Callable[[], None]:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    return connection.close


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (lambda path: path.mkdir(), JournalUnavailable, "is a folder; a journal is a file"),
        (lambda path: path.write_text("Dear diary, this is no database at all. " * 40), JournalUnavailable, "is no SQLite database"),
        (foreign, JournalUnavailable, "another program's"),
        (newer, JournalUnavailable, f"version {SCHEMA + 1}, and this Ropewalk reads up to version {SCHEMA}"),
        (early, JournalUnavailable, "version 1, from before the first release"),
        (corrupt, JournalDamaged, "is damaged"),
        (locked, JournalUnavailable, "is locked by another program"),
    ],
    ids=["folder", "no database", "foreign", "newer", "early", "corrupt", "locked"],
)
async def test_what_is_no_journal_is_refused_in_words(spoil: Callable[[Path], Any], error: type[Exception], text: str, tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    undo = spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(error, match=text) as raised:
        async with Runtime(SQLiteJournal(path, timeout=0.05)):
            pass
    assert type(raised.value) is error
    assert str(path) in str(raised.value)
    assert before is None or path.read_bytes() == before, "a file of somebody else's is left as it is"
    if callable(undo):
        undo()


@pytest.mark.anyio
async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalUnavailable, match=r"there is no folder .*missing") as raised:
        await SQLiteJournal(tmp_path / "missing" / "sessions.db").open()
    assert raised.value.__cause__ is None, "SQLite's own words would say less"
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("options", [{"path": ""}, {"path": 5}, {"path": ":memory:"}, {"path": "a", "durability": "paper"}, {"path": "a", "timeout": -1}])
def test_what_makes_no_sense_is_refused_at_the_door(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        SQLiteJournal(**options)


# Processes -------------------------------------------------------------------------------------------------------------


def start(path: Path, actor_id: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-P", str(HERE / "journal_writer.py"), str(path), actor_id, *options], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def acknowledged(process: subprocess.Popen[str], at_least: int) -> int:
    """The last record the process was told is durable, once there are so many."""
    assert process.stdout is not None
    for line in process.stdout:
        what, _, number = line.partition(" ")
        assert what in ("claimed", "durable"), line
        if what == "durable" and int(number) >= at_least:
            return int(number)
    raise AssertionError("the process ended by itself")


async def test_what_a_killed_process_was_told_is_there_and_its_actors_are_free_at_once(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    path, draw = tmp_path / "sessions.db", random.Random()
    last = 0
    for _ in range(KILLS):
        process = start(path, "me")
        processes.append(process)
        told = acknowledged(process, last + draw.randint(1, 60))
        async with opened(SQLiteJournal(path)) as journal:
            with pytest.raises(SessionElsewhere):
                await journal.claim("me")
            await written(journal, "other", await journal.claim("other"), "beside it")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        told = max([told, *(int(line.split()[1]) for line in process.stdout if line.endswith("\n"))])
        async with opened(SQLiteJournal(path)) as journal:
            claim = await journal.claim("me")
            assert claim.last >= told
            bodies = [record.body for record in await journal.read("me")]
            assert [body["number"] for body in bodies] == list(range(1, claim.last + 1))
            assert bodies[-1]["ends"] == claim.last, "a batch is torn"
            assert await journal.check() == []
            last = claim.last
    assert [name for name in os.listdir(tmp_path) if "-owner-" in name] == [], "what the dead left is taken away"


def test_a_folder_that_cannot_be_written(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    folder.chmod(0o555)
    for parent in (folder, *folder.parents):
        if os.access(parent, os.R_OK | os.X_OK) and parent.stat().st_uid == os.getuid() and parent not in (Path("/"), Path("/tmp")):
            parent.chmod(parent.stat().st_mode | 0o055)
    options = ("--user", "65534") if os.getuid() == 0 else ()
    process = start(folder / "sessions.db", "me", *options)
    processes.append(process)
    said, _ = process.communicate(timeout=30)
    assert said.startswith("JournalUnavailable")
    assert "have to be writable by this user" in said


def test_a_disk_that_takes_no_more_fails_the_write_and_keeps_what_it_took(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    process = start(tmp_path / "sessions.db", "me", "--limit", "400000")
    processes.append(process)
    said, _ = process.communicate(timeout=60)
    *lines, failed = said.splitlines()
    assert failed.startswith("JournalUnavailable"), said[-500:]
    told = int(lines[-1].split()[1])

    async def look() -> None:
        async with opened(SQLiteJournal(tmp_path / "sessions.db")) as journal:
            claim = await journal.claim("me")
            assert claim.last == told
            await written(journal, "me", claim, "there is room again")
            assert await journal.check() == []

    anyio.run(look)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_leaves_its_parents_journal_alone(tmp_path: Path) -> None:
    program = f"""
import os, anyio
from ropewalk import JournalUnavailable, SQLiteJournal
async def main():
    journal = SQLiteJournal({str(tmp_path / "sessions.db")!r})
    await journal.open()
    child = os.fork()
    if not child:
        try:
            journal._store.read(lambda connection: None)
        except JournalUnavailable as error:
            os._exit(0 if "after a fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    other = SQLiteJournal({str(tmp_path / "sessions.db")!r})
    await other.open()
    from ropewalk.runtime.journal.owners import is_alive
    assert is_alive(journal.path, journal._store._owner), "the parent's lock went with the child"
    await other.close()
    await journal.close()
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


# Disks that fail in the middle -----------------------------------------------------------------------------------------


class FailingConnection(sqlite3.Connection):
    """Fails the statement that `fails` says."""

    fails: Callable[[str], bool] = staticmethod(lambda statement: False)

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        self._look(statement)
        return super().execute(statement, *arguments)

    def executemany(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        self._look(statement)
        return super().executemany(statement, *arguments)

    def _look(self, statement: str) -> None:
        if self.fails(statement):
            raise sqlite3.OperationalError("disk I/O error")


@pytest.mark.anyio
async def test_whichever_statement_fails_nothing_acknowledged_is_lost_and_the_next_claim_goes_on() -> None:
    """The k-th statement of a life fails, for every k until none does."""
    harness = SQLiteHarness()
    for k in range(1, 200):
        count, failed = 0, False

        def fails(statement: str, k: int = k) -> bool:
            nonlocal count, failed
            count += 1
            failed = failed or count == k
            return count == k

        def connect(*arguments: Any, fails: Callable[[str], bool] = fails, **named: Any) -> sqlite3.Connection:
            connection = sqlite3.connect(*arguments, factory=FailingConnection, **named)
            connection.fails = fails
            return connection

        path = harness.folder / f"sessions-{k}.db"
        told: list[str] = []
        for attempt in range(3):
            with contextlib.suppress(JournalUnavailable, Fenced):
                async with opened(SQLiteJournal(path, connecting=connect)) as journal:
                    claim = await journal.claim("a")
                    found = [record.body for record in await journal.read("a")]
                    assert found[: len(told)] == told, f"statement {k} failed, and what was durable was lost"
                    for number in range(2):
                        await written(journal, "a", Claim(claim.epoch, claim.last + number), body := f"{attempt}-{number}")
                        told = [*found, body]
                        found = told
        async with opened(SQLiteJournal(path)) as journal:
            found = [record.body for record in await journal.read("a")]
            assert found[: len(told)] == told
            assert await journal.check() == []
        if not failed:
            break
    assert k > 10
    harness.dispose()


# Looking after a file --------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_backup_is_made_while_it_is_written_to_and_is_a_journal_of_its_own(tmp_path: Path) -> None:
    async with opened(SQLiteJournal(tmp_path / "sessions.db")) as journal:
        claim = await journal.claim("a")
        await written(journal, "a", claim, 1, 2)
        await journal.back_up(tmp_path / "backup.db")
        with pytest.raises(InvalidOption, match="there is a file"):
            await journal.back_up(tmp_path / "backup.db")
        async with opened(SQLiteJournal(tmp_path / "backup.db")) as copy:
            assert (await copy.claim("a")).last == 2, "an owner of the one is none of the other"
            assert await copy.check() == []


@pytest.mark.anyio
async def test_a_check_names_what_is_spoilt() -> None:
    harness = SQLiteHarness()
    async with opened(harness.journal()) as journal:
        await written(journal, "a", await journal.claim("a"), {"batch": 1}, {"batch": 2})
        harness.damage("a", 2, "flip")
        assert await journal.check() == ["record 2 of 'a' is not what was written"]
    harness.dispose()


@pytest.mark.anyio
async def test_what_forks_share_is_checked_when_its_actor_is_gone() -> None:
    harness = SQLiteHarness()
    async with opened(harness.journal()) as journal:
        await written(journal, "a", await journal.claim("a"), *[{"said": "x" * 99}] * 5)
        await journal.fork("a", 3, "b")
        await journal.fork("b", 2, "c")
        harness.damage("a", 3, "flip")
        assert await journal.delete("a")
        assert await journal.check() == ["record 3 of the past that forks of log 1 share is not what was written"]
        with pytest.raises(JournalDamaged, match="record 3 of 'b' is not what was written"):
            await journal.read("b")
        assert await journal.relatives("c") == ["b"]
        assert await journal.delete("b")
        assert await journal.check() == []
        assert (journal.statistics().actors, journal.statistics().records) == (1, 2)
        await journal.compact()
        assert [record.number for record in await journal.read("c")] == [1, 2]
        assert await journal.check() == []
    harness.dispose()


@pytest.mark.anyio
@pytest.mark.parametrize("make", [SQLiteHarness, MemoryHarness])
async def test_a_log_may_have_any_number_of_ancestors(make: Any) -> None:
    harness = make()
    journal = harness.journal()
    async with opened(journal) if isinstance(journal, SQLiteJournal) else contextlib.nullcontext():
        last = await journal.claim("actor-0")
        journal.append("actor-0", last.epoch, 1, [0])
        for number in range(1, 1200):
            await journal.fork(f"actor-{number - 1}", number, f"actor-{number}")
            claim = await journal.claim(f"actor-{number}")
            assert claim.last == number
            journal.append(f"actor-{number}", claim.epoch, number + 1, [number])
        await journal.fork("actor-1199", 1200, "youngest")
        assert [record.body for record in await journal.read("youngest")] == list(range(1200))
        assert len(await journal.relatives("actor-600")) == 1200
        for number in range(1200):
            assert await journal.delete(f"actor-{number}")
        assert [record.body for record in await journal.read("youngest", 1190)] == list(range(1190, 1200))
        assert (journal.statistics().actors, journal.statistics().records) == (1, 1200)
        assert await journal.delete("youngest")
        assert (journal.statistics().actors, journal.statistics().records) == (0, 0)
    harness.dispose()


@pytest.mark.anyio
async def test_a_redaction_that_a_reader_of_old_states_keeps_from_ending_says_so(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    async with opened(SQLiteJournal(path, timeout=0.05)) as journal:
        claim = await journal.claim("a")
        await written(journal, "a", claim, "secret words")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM blobs").fetchone()
            with pytest.raises(JournalUnavailable, match="its write-ahead log still holds it"):
                await journal.redact("a", claim.epoch, {1: ""}, 2, ["redacted"])
        claim = await journal.claim("a")
        assert [record.body for record in await journal.read("a")] == ["", "redacted"]
        await journal.redact("a", claim.epoch, {}, 3, [])
        assert not any(b"secret" in file.read_bytes() for file in map(tmp_path.joinpath, os.listdir(tmp_path)))


@pytest.mark.anyio
async def test_compacting_gives_back_the_room_of_what_was_deleted(tmp_path: Path) -> None:
    async with opened(SQLiteJournal(tmp_path / "sessions.db")) as journal:
        for actor_id in ("a", "b"):
            await written(journal, actor_id, await journal.claim(actor_id), *["x" * 10_000] * 50)
        await journal.delete("a")
        before = journal.statistics().bytes_on_disk
        await journal.compact()
        assert journal.statistics().bytes_on_disk < before * 0.7
        assert len(await journal.read("b")) == 50
        assert await journal.check() == []


@pytest.mark.anyio
async def test_a_record_of_a_newer_ropewalk_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    async with Runtime(path) as runtime:
        await (await runtime.open("me", spec())).ask("Hi")
    async with opened(SQLiteJournal(path)) as journal:
        claim = await journal.claim("me")
        await written(journal, "me", claim, {"type": "Dreamt"})
    async with Runtime(path) as runtime:
        with pytest.raises(UnknownRecord, match=rf"record {claim.last + 1} of 'me' cannot be read: it is a 'dict', and this Ropewalk reads Accepted, Added"):
            await runtime.open("me", spec())
        session = await runtime.open("you", spec())
        assert str(await session.ask("Hi")) == "answer 1", "other sessions go on"

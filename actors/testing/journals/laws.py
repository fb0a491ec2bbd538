"""Laws about what happens at the same time, and about what goes wrong outside."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import attrs
from hypothesis import strategies as st

from ropewalk.actors.testing.journals.harness import Damage, JournalHarness, Writer, owner, write
from ropewalk.runtime.errors import Fenced, JournalDamaged, JournalUnavailable
from ropewalk.runtime.journal import Commit, Journal, KnownActor, Snapshot

__all__ = ["LAWS", "Law", "listed"]


@attrs.frozen
class Law:
    """A law: its name, the function that holds one plan against it, how plans are drawn, and the harness' methods it needs."""

    name: str
    hold: Callable[[JournalHarness, Any], Awaitable[None]]
    plans: st.SearchStrategy[Any]
    needs: tuple[str, ...] = ()


async def listed(pages: Callable[[str, int], Awaitable[Sequence[KnownActor]]], limit: int = 2) -> list[str]:
    """The ids of all actors that `Journal.actors`, or `Journal.unfinished`, gives page after page."""
    found: list[str] = []
    while page := await pages(found[-1] if found else "", limit):
        assert len(page) <= limit, "a page is longer than was asked for"
        found += [actor.id for actor in page]
    return found


def _batch(number: int, size: int) -> list[Any]:
    return [{"batch": number, "part": part, "of": size} for part in range(size)]


def _whole_batches(bodies: list[Any]) -> int:
    """How many batches these bodies are; they must be whole and in order."""
    number, place = 0, 0
    while place < len(bodies):
        size = bodies[place]["of"]
        assert bodies[place : place + size] == _batch(number, size), f"batch {number} is torn or out of order"
        number, place = number + 1, place + size
    return number


async def hold_at_once(harness: JournalHarness, plan: list[list[tuple[int, bool]]]) -> None:
    """Actors that write at the same time each have their batches whole and in order, at every moment anybody reads."""
    done = anyio.Event()
    told = [0] * len(plan)

    async def life(journal: Journal, which: int) -> None:
        writer = Writer(journal, f"actor-{which}", await journal.claim(f"actor-{which}", "kit"))
        commits: list[tuple[int, Commit | None]] = []
        for number, (size, waits) in enumerate(plan[which]):
            commits.append((number, writer.append(_batch(number, size))))
            if waits:
                await _wait(commits, which)
        await _wait(commits, which)

    async def _wait(commits: list[tuple[int, Commit | None]], which: int) -> None:
        for number, commit in commits:
            if commit is not None:
                await commit.wait()
            told[which] = number + 1
        commits.clear()

    async def watch(journal: Journal) -> None:
        while not done.is_set():
            for which in range(len(plan)):
                promised = told[which]
                found = _whole_batches([record.body for record in await journal.read(f"actor-{which}")])
                assert found >= promised, "what was said to be durable cannot be read"
            await anyio.lowlevel.checkpoint()

    async with owner(harness) as journal, anyio.create_task_group() as readers:
        readers.start_soon(watch, journal)
        async with anyio.create_task_group() as actors:
            for which in range(len(plan)):
                actors.start_soon(life, journal, which)
        done.set()
    async with owner(harness) as journal:
        for which, batches in enumerate(plan):
            assert _whole_batches([record.body for record in await journal.read(f"actor-{which}")]) == len(batches)


async def hold_two_writers(harness: JournalHarness, plan: list[tuple[int, bool]]) -> None:
    """Of two that write one log at the same time only the one that claimed last is heard, whatever was under way when it did."""
    async with owner(harness) as journal:
        expected: list[Any] = []
        older: Writer | None = None
        for number, (size, overtakes) in enumerate(plan):
            late = [{"late": number}]
            if older is not None and overtakes:
                # The claim is asked for first, and while it is under way the older one goes on writing.
                newer, refused = await _overtaken(journal, older, late)
                if refused is None:
                    expected += late
            else:
                newer = Writer(journal, "a", await journal.claim("a", "kit"))
                if older is not None:
                    assert isinstance(await write(older, late), Fenced), "somebody wrote whose epoch is over"
            assert newer.last == len(expected), "a claim is wrong about the last record"
            bodies = _batch(number, size)
            assert await write(newer, bodies) is None
            expected += bodies
            older = newer
            assert [record.body for record in await journal.read("a")] == expected, "the log holds what a fenced writer wrote, or not what its owner did"


async def _overtaken(journal: Journal, older: Writer, late: list[Any]) -> tuple[Writer, Exception | None]:
    made: list[Writer] = []
    refused: list[Exception | None] = []

    async def claim() -> None:
        made.append(Writer(journal, "a", await journal.claim("a", "kit")))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(claim)
        await anyio.lowlevel.checkpoint()
        refused.append(await write(older, late))
    return made[0], refused[0]


async def hold_paging(harness: JournalHarness, plan: tuple[list[str], list[str], list[tuple[str, bool]], int]) -> None:
    """Pages list each actor that is there all the while exactly once, in order, whatever comes and goes between them."""
    stay, leave, changes, size = plan
    async with owner(harness) as journal:
        for actor_id in {*stay, *leave}:
            assert await write(Writer(journal, actor_id, await journal.claim(actor_id, "kit")), [1]) is None
        found: list[str] = []
        waiting = list(changes)
        while page := await journal.actors(found[-1] if found else "", size):
            found += [actor.id for actor in page]
            if waiting:
                actor_id, comes = waiting.pop()
                if actor_id not in stay and comes:
                    claim = await journal.claim(actor_id, "kit")
                    assert await write(Writer(journal, actor_id, claim), [1]) is None
                elif actor_id not in stay:
                    await journal.delete(actor_id)
        assert found == sorted(set(found)), "a page repeats what an earlier one had, or is out of order"
        assert set(stay) <= set(found), "an actor that was there all the while was left out"
        assert set(found) <= {*stay, *leave, *(actor_id for actor_id, _ in changes)}


async def hold_values(harness: JournalHarness, plan: list[Any]) -> None:
    """What a body holds comes back as it went: any JSON, bytes at any depth, also for an owner that comes later."""
    async with owner(harness) as journal:
        writer = Writer(journal, "a", await journal.claim("a", "kit"))
        assert await write(writer, plan) is None
        await journal.save_snapshot("a", writer.epoch, Snapshot(writer.last, plan))
    async with owner(harness) as journal:
        assert [record.body for record in await journal.read("a")] == plan, "a body came back changed"
        assert await journal.snapshot("a") == Snapshot(len(plan), plan), "a snapshot came back changed"


async def hold_damage(harness: JournalHarness, plan: tuple[int, int, Damage]) -> None:
    """A record that was changed, torn or lost is found by whoever reads it, and named; other actors are read as ever."""
    size, place, how = plan
    number = place % size + 1
    async with owner(harness) as journal:
        for actor_id in ("a", "b"):
            assert await write(Writer(journal, actor_id, await journal.claim(actor_id, "kit")), _batch(0, size)) is None
        await journal.fork("a", size, "fork")
    harness.damage("a", number, how)
    async with owner(harness) as journal:
        for actor_id in ("a", "fork"):
            try:
                await journal.read(actor_id)
            except JournalDamaged as error:
                assert f"record {number} of {actor_id!r}" in str(error), "the error does not name the record"
            else:
                raise AssertionError("a record that was spoilt was read as if nothing were wrong")
        assert _whole_batches([record.body for record in await journal.read("b")]) == 1


async def hold_full(harness: JournalHarness, plan: list[tuple[int, int]]) -> None:
    """When there is no room, writes fail with `JournalUnavailable`, what was durable stays, and when there is room again it goes on."""
    async with owner(harness) as journal:
        kept: dict[str, list[Any]] = {"a": [], "b": []}
        for number, (before, size) in enumerate(plan):
            for actor_id, expected in kept.items():
                writer = Writer(journal, actor_id, await journal.claim(actor_id, "kit"))
                for body in _batch(number, before):
                    assert await write(writer, [body]) is None, "a write failed though there was room"
                    expected.append(body)
                with harness.full():
                    await _fill(writer, size, expected)
            for actor_id, expected in kept.items():
                assert [record.body for record in await journal.read(actor_id)] == expected, "what was durable was lost, or what failed was kept"
    async with owner(harness) as journal:
        for actor_id, expected in kept.items():
            assert [record.body for record in await journal.read(actor_id)] == expected


async def _fill(writer: Writer, size: int, expected: list[Any]) -> None:
    """Write until it fails, as it must; what was said to be durable until then is expected to be."""
    for number in range(200):
        body = {"filling": number, "with": "x" * size * 1000}
        refused = await write(writer, [body])
        if refused is not None:
            assert isinstance(refused, JournalUnavailable), f"a full store is told of as {refused!r}"
            assert isinstance(await write(writer, [body]), JournalUnavailable), "a log went on after one of its writes was lost"
            return
        expected.append(body)
    raise AssertionError("the store was full, and nothing failed")


async def hold_kill(harness: JournalHarness, plan: list[list[tuple[int, bool]]]) -> None:
    """When a process is lost, what it was told is durable is there, batches are whole with all that goes with them, and its actors can be claimed at once."""
    told = 0
    written = 0
    forks: dict[str, int] = {}
    for life in plan:
        journal = harness.journal()
        await journal.open()
        async with anyio.create_task_group() as tasks:
            keeper = journal.keeper()
            if keeper is not None:
                tasks.start_soon(keeper.run)
            try:
                writer = Writer(journal, "a", await journal.claim("a", "kit"))
                found = _whole_batches([record.body for record in await journal.read("a")])
                assert told <= found <= written, "what was durable was lost with its process" if found < told else "there is more than was written"
                told = written = found
                assert await listed(journal.unfinished) == ["a"] * (found > 0 and _is_unfinished(found - 1)), "unfinished work was lost with its process"
                for batch in range(found + 1):
                    assert (await journal.labelled("a", f"batch-{batch}") is not None) == (batch < found), "a label was lost, or is there without its record"
                for fork, number in forks.items():
                    shared = await journal.read(fork)
                    assert not shared or list(shared) == list(await journal.read("a", limit=number)), "half a fork was left by its process"
                for size, waits in life:
                    commit = writer.append(_batch(written, size), unfinished=_is_unfinished(written), label=f"batch-{written}")
                    written += 1
                    if waits or commit is None:
                        if commit is not None:
                            await commit.wait()
                        told = written
                if writer.last:
                    forks[f"fork-{len(forks)}"] = writer.last
                    tasks.start_soon(_fork, journal, f"fork-{len(forks) - 1}", writer.last)
                    for _ in life:
                        await anyio.lowlevel.checkpoint()
            finally:
                harness.kill(journal)
                tasks.cancel_scope.cancel()
                if keeper is not None:
                    keeper.stop()


async def _fork(journal: Journal, new_id: str, number: int) -> None:
    """Fork while the process is lost, or just before."""
    with contextlib.suppress(JournalUnavailable):
        await journal.fork("a", number, new_id)


def _is_unfinished(batch: int) -> bool:
    return batch % 3 > 0


async def hold_gone(harness: JournalHarness, plan: tuple[list[int], list[bool], bool, bool]) -> None:
    """What was redacted or deleted is nowhere in the store, not in snapshots, not where something was moved from."""
    sizes, goes, deletes, neighbour_goes = plan
    secrets = [f"secret-{number:04d}-" * max(1, size // 12) for number, size in enumerate(sizes)]
    async with owner(harness) as journal:
        writers = {actor_id: Writer(journal, actor_id, await journal.claim(actor_id, "kit")) for actor_id in ("a", "b")}
        for number, secret in enumerate(secrets):
            assert await write(writers["a"], [{"text": secret}], label=f"label of {secret[:12]}") is None
            assert await write(writers["b"], [{"text": f"stays-{number}-" * max(1, sizes[number] // 8)}]) is None
        await journal.save_snapshot("a", writers["a"].epoch, Snapshot(writers["a"].last, {"texts": secrets}))
        if neighbour_goes:  # what lay beside it moves together
            assert await journal.delete("b")
        gone = [number for number, redacted in enumerate(goes[: len(secrets)]) if redacted]
        before = harness.contents()
        assert all(secret[:12].encode() in before for secret in secrets), "the harness does not show what the store holds"
        if gone:
            changes = {number + 1: {"text": ""} for number in gone}
            await journal.redact("a", writers["a"].epoch, changes, writers["a"].last + 1, [{"redacted": len(gone)}])
            _must_be_gone(harness, [secrets[number] for number in gone])
            stays = [secret for number, secret in enumerate(secrets) if number not in gone]
            assert [record.body["text"] for record in await journal.read("a", limit=len(secrets)) if record.body["text"]] == stays
            assert await journal.labelled("a", f"label of {secrets[gone[-1]][:12]}") == gone[-1] + 1, "a label went with the text of its record"
        if deletes:
            assert await journal.delete("a")
            _must_be_gone(harness, secrets)
        assert len(await journal.read("b")) == (0 if neighbour_goes else len(secrets))


async def hold_past_gone(harness: JournalHarness, plan: tuple[list[int], list[tuple[int, int]], list[int], int | None]) -> None:
    """Records that forks share stay as long as one of those that have them, and no longer: then they are nowhere in the store."""
    sizes, forks, order, redacted = plan
    texts: dict[str, list[str]] = {"a": [f"secret-a-{number:02d}-" * size for number, size in enumerate(sizes)]}
    async with owner(harness) as journal:
        writer = Writer(journal, "a", await journal.claim("a", "kit"))
        for text in texts["a"]:
            assert await write(writer, [{"text": text}]) is None
        for number, (which, at) in enumerate(forks):
            source = sorted(texts)[which % len(texts)]
            shared = texts[source][: at % len(texts[source]) + 1]
            new, text = f"fork-{number}", f"secret-{number}-99-" * 9
            await journal.fork(source, len(shared), new)
            writer = Writer(journal, new, await journal.claim(new))
            assert await write(writer, [{"text": text}]) is None
            await journal.save_snapshot(new, writer.epoch, Snapshot(writer.last, {"texts": [*shared, text]}))
            texts[new] = [*shared, text]
        if redacted is not None:
            text = texts[writer.actor_id][redacted % writer.last]
            await journal.redact(writer.actor_id, writer.epoch, {redacted % writer.last + 1: {"text": ""}}, writer.last + 1, [])
            texts = {actor_id: ["" if other == text else other for other in said] for actor_id, said in texts.items()}
            _must_be_gone(harness, [text])
        ever = {text for said in texts.values() for text in said if text}
        for which in order:
            if texts:
                gone = sorted(texts)[which % len(texts)]
                del texts[gone]
                assert await journal.delete(gone)
            left = {text for said in texts.values() for text in said}
            _must_be_gone(harness, [text for text in ever if text not in left])
            for actor_id, said in texts.items():
                assert [record.body["text"] for record in await journal.read(actor_id)] == said, "what a fork shares went with somebody else"


def _must_be_gone(harness: JournalHarness, secrets: list[str]) -> None:
    contents = harness.contents()
    left = [secret[:12] for secret in secrets if secret[:12].encode() in contents]
    assert not left, f"{left[0]!r} is still in the store"


_names = st.text("abc", min_size=1, max_size=3)
_leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8) | st.binary(max_size=8)
_values = st.recursive(_leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=10)
_changes = st.lists(st.tuples(_names, st.booleans()), max_size=6)
_lives = st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=5)
_damages: list[Damage] = ["flip", "tear", "lose"]

LAWS = (
    Law("at_once", hold_at_once, st.lists(_lives, min_size=1, max_size=6)),
    Law("two_writers", hold_two_writers, st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=2, max_size=5)),
    Law(
        "paging",
        hold_paging,
        st.tuples(
            st.lists(_names, max_size=6, unique=True), st.lists(_names, max_size=4), st.lists(st.tuples(_names, st.booleans()), max_size=6), st.integers(1, 3)
        ),
    ),
    Law("values", hold_values, st.lists(_values, min_size=1, max_size=3)),
    Law("damage", hold_damage, st.tuples(st.integers(1, 5), st.integers(0, 9), st.sampled_from(_damages)), ("damage",)),
    Law("full", hold_full, st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), min_size=1, max_size=3), ("full",)),
    Law("kill", hold_kill, st.lists(_lives, min_size=2, max_size=4), ("kill",)),
    Law(
        "gone",
        hold_gone,
        st.tuples(
            st.lists(st.integers(12, 900) | st.integers(12, 9000), min_size=1, max_size=16),
            st.lists(st.booleans(), min_size=16, max_size=16),
            st.booleans(),
            st.booleans(),
        ),
        ("contents",),
    ),
    Law(
        "past_gone",
        hold_past_gone,
        st.tuples(
            st.lists(st.integers(1, 60), min_size=1, max_size=5),
            st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4),
            st.lists(st.integers(0, 9), max_size=5),
            st.none() | st.integers(0, 9),
        ),
        ("contents",),
    ),
)

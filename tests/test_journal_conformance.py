"""Every journal that comes with Ropewalk keeps what `Journal` promises, and the kit that says so catches those that do not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import anyio
import pytest
from hypothesis import Phase, settings

from journal_harnesses import MemoryHarness, SQLiteHarness
from ropewalk import Fenced, JournalUnavailable, MemoryJournal
from ropewalk.runtime.journal import Claim, Codec, Commit, KnownActor, Record, Snapshot
from ropewalk.runtime.journal.sqlite.store import Store
from ropewalk.testing import Damage, JournalHarness, check_journal

BACKENDS = ["asyncio", "trio"]
EXAMPLES = {"short": 25, "slice": 60, "long": 500}[os.environ.get("ROPEWALK_BUDGET", "short")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_journal_in_memory(backend: str) -> None:
    shown = check_journal(MemoryHarness, examples=EXAMPLES, backend=backend)

    assert shown.skipped == ("damage",)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_journal_in_a_file(backend: str) -> None:
    shown = check_journal(SQLiteHarness, examples=EXAMPLES, backend=backend)

    assert shown.skipped == ()


def test_a_law_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="life, families, at_once"):
        check_journal(MemoryHarness, only="gravity")


# Journals that break one promise each.


class IgnoresEpochs(MemoryJournal):
    """Takes records of everybody who ever claimed."""

    def _owned(self, actor_id: str, epoch: int) -> Any:
        if actor_id not in self._logs:
            raise Fenced(actor_id)
        return self._logs[actor_id]

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any], durability: Any = None, **more: Any) -> Commit | None:
        return super().append(actor_id, epoch, len(self._owned(actor_id, epoch).bodies) + 1, bodies, **more)


class LetsAnOldEpochOvertake(MemoryJournal):
    """A claim takes a moment, and what the older writer says meanwhile comes in after it."""

    async def claim(self, actor_id: str, kind: str = "", codec: Codec | None = None) -> Claim:
        claim = await super().claim(actor_id, kind, codec)
        log, before = self._logs[actor_id], claim.epoch - 1
        log.epoch = before
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        log.epoch = claim.epoch
        return claim


class Steals(MemoryJournal):
    """Gives an actor to whoever asks last."""

    def _refuse_elsewhere(self, actor_id: str, log: Any) -> None:
        pass


class NeverReleases(MemoryJournal):
    """Keeps what it claimed."""

    async def release(self, actor_id: str, epoch: int) -> None:
        pass


class Reorders(MemoryJournal):
    """Writes a batch from its end."""

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any], durability: Any = None, **more: Any) -> Commit | None:
        return super().append(actor_id, epoch, first, bodies[::-1], **more)


class TearsBatches(MemoryJournal):
    """Writes the records of a batch one after the other, with a look around in between."""

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any], durability: Any = None, **more: Any) -> Commit | None:
        super().append(actor_id, epoch, first, bodies[:1], **more)
        return Rest(self, actor_id, bodies[1:])


class Rest:
    def __init__(self, journal: MemoryJournal, actor_id: str, bodies: Sequence[Any]) -> None:
        self._log, self._bodies = journal._logs[actor_id], bodies

    async def wait(self) -> None:
        await anyio.lowlevel.checkpoint()
        self._log.bodies.extend(self._bodies)
        self._bodies = ()


class CountsTwice(MemoryJournal):
    """Begins its epochs anew for an actor that comes back."""

    async def delete(self, actor_id: str) -> bool:
        found = await super().delete(actor_id)
        self._logs.floor = 0
        return found


class RedactsNothing(MemoryJournal):
    """Forgets to replace what is to be replaced."""

    async def redact(self, actor_id: str, epoch: int, replaced: Mapping[int, Any], first: int, bodies: Sequence[Any], **more: Any) -> None:
        await super().redact(actor_id, epoch, {}, first, bodies, **more)


class KeepsTheSnapshot(MemoryJournal):
    """Redacts the records and leaves the text in the snapshot."""

    async def redact(self, actor_id: str, epoch: int, replaced: Mapping[int, Any], first: int, bodies: Sequence[Any], **more: Any) -> None:
        snapshot = self._logs[actor_id].snapshot
        await super().redact(actor_id, epoch, replaced, first, bodies, **more)
        self._logs[actor_id].snapshot = snapshot


class LeavesTextBehind(MemoryJournal):
    """Shows nothing of what was redacted, and has it still."""

    async def redact(self, actor_id: str, epoch: int, replaced: Mapping[int, Any], first: int, bodies: Sequence[Any], **more: Any) -> None:
        vars(self._logs).setdefault("left", []).extend(self._logs[actor_id].bodies[number - 1] for number in replaced)
        await super().redact(actor_id, epoch, replaced, first, bodies, **more)


class PagesByPlace(MemoryJournal):
    """Goes on from how many it has listed, not from where it was."""

    listed = 0

    async def actors(self, after: str = "", limit: int = 1000) -> Sequence[KnownActor]:
        self.listed = 0 if after == "" else self.listed
        everybody = await super().actors("", 10**6)
        page = list(islice(everybody, self.listed, self.listed + limit))
        self.listed += len(page)
        return page


class ForgetsBytes(MemoryJournal):
    """Keeps bytes as text."""

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any], durability: Any = None, **more: Any) -> Commit | None:
        return super().append(actor_id, epoch, first, [body.decode("latin1") if isinstance(body, bytes) else body for body in bodies], **more)


class GoesOnWhenFull(MemoryJournal):
    """Throws away what it has no room for, and says nothing."""

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any], durability: Any = None, **more: Any) -> Commit | None:
        try:
            commit = super().append(actor_id, epoch, first, bodies, **more)
        except JournalUnavailable:
            return None
        return commit if commit is None or self._logs[actor_id].broken is False else None


class ForgetfulSnapshots(MemoryJournal):
    """Keeps the first snapshot for ever."""

    async def save_snapshot(self, actor_id: str, epoch: int, snapshot: Snapshot) -> None:
        kept = self._logs[actor_id].snapshot if actor_id in self._logs else None
        await super().save_snapshot(actor_id, epoch, kept or snapshot)


class OverreadsLimits(MemoryJournal):
    """Reads one more than it was asked for."""

    async def read(self, actor_id: str, after: int = 0, limit: int | None = None, *, codec: Codec | None = None) -> Sequence[Record]:
        return await super().read(actor_id, after, None if limit is None else limit + 1)


class ForgetsWork(MemoryJournal):
    """Takes an actor's work for done when its owner gives it up."""

    async def release(self, actor_id: str, epoch: int) -> None:
        await super().release(actor_id, epoch)
        if actor_id in self._logs and self._logs[actor_id].owner is None:
            self._logs[actor_id].unfinished = False


class ForgetsLabels(MemoryJournal):
    """Knows a label only as long as its owner has the actor."""

    async def claim(self, actor_id: str, kind: str = "", codec: Codec | None = None) -> Claim:
        claim = await super().claim(actor_id, kind, codec)
        self._logs[actor_id].labels = None
        return claim


class MovesLabels(MemoryJournal):
    """Has a label stand for whatever had it last."""

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any], durability: Any = None, **more: Any) -> Commit | None:
        if more.get("labels") and actor_id in self._logs:
            self._logs[actor_id].labels = None
        return super().append(actor_id, epoch, first, bodies, durability, **more)


class SharesLabels(MemoryJournal):
    """Finds a label in whatever log has it."""

    async def labelled(self, actor_id: str, label: str) -> int | None:
        found = [await super(SharesLabels, self).labelled(known.id, label) for known in await self.actors()]
        return next((number for number in found if number is not None), None)


class KeepsLabels(MemoryJournal):
    """Keeps the text of a label where the log's text is."""

    def append(self, actor_id: str, epoch: int, first: int, bodies: Sequence[Any], durability: Any = None, **more: Any) -> Commit | None:
        vars(self._logs).setdefault("labels", []).append(more.get("labels"))
        return super().append(actor_id, epoch, first, bodies, durability, **more)


class CopiesThePast(MemoryJournal):
    """Gives a fork records of its own, which a redaction does not reach."""

    async def fork(self, source_id: str, number: int, new_id: str, kind: str = "") -> KnownActor:
        known = await super().fork(source_id, number, new_id, kind)
        log = self._logs[new_id]
        for record in log.records(0, number):
            log.add(record.number, record.epoch, [record.body], False)
        assert log.kin is not None
        assert log.kin.past is not None
        assert log.kin.past.kin is not None
        log.kin.past.kin.forks.remove(log)
        log.kin = None
        return known


class ForksOverAnother(MemoryJournal):
    """Puts a fork in the place of what is there."""

    async def fork(self, source_id: str, number: int, new_id: str, kind: str = "") -> KnownActor:
        taken = self._logs.get(new_id)
        if taken is not None and new_id != source_id and await self.read(source_id, number - 1):
            self._logs.forget(new_id)
        return await super().fork(source_id, number, new_id, kind)


class InheritsLabels(MemoryJournal):
    """Finds in a fork what was labelled in its source."""

    async def fork(self, source_id: str, number: int, new_id: str, kind: str = "") -> KnownActor:
        known = await super().fork(source_id, number, new_id, kind)
        self._logs[new_id].labels = self._logs[source_id].labels
        return known


class InheritsTheSnapshot(MemoryJournal):
    """Takes the source's snapshot for the fork's."""

    async def fork(self, source_id: str, number: int, new_id: str, kind: str = "") -> KnownActor:
        known = await super().fork(source_id, number, new_id, kind)
        self._logs[new_id].snapshot = self._logs[source_id].snapshot
        return known


class DeletesThePast(MemoryJournal):
    """Deletes an actor's records, whoever shares them."""

    async def delete(self, actor_id: str) -> bool:
        log = self._logs.get(actor_id)
        found = await super().delete(actor_id)
        if log is not None:
            log.bodies.clear()
        return found


class LeavesThePast(MemoryJournal):
    """Keeps all records of an actor that was deleted when forks share one of them."""

    async def delete(self, actor_id: str) -> bool:
        log = self._logs.get(actor_id)
        bodies = [] if log is None else list(log.bodies)
        found = await super().delete(actor_id)
        if log in self._logs.left:
            log.bodies[:] = bodies
        return found


class RedactsElsewhere(MemoryJournal):
    """Changes what another living owner has, too."""

    async def redact(self, actor_id: str, epoch: int, replaced: Mapping[int, Any], first: int, bodies: Sequence[Any], **more: Any) -> None:
        owners = {log: log.owner for log in self._logs.values()}
        if epoch == self._logs[actor_id].epoch and owners[self._logs[actor_id]] is self:
            for log in owners:
                log.owner = self
        try:
            await super().redact(actor_id, epoch, replaced, first, bodies, **more)
        finally:
            for log, holder in owners.items():
                log.owner = holder


class KeepsRelativesSnapshots(MemoryJournal):
    """Redacts a shared record, and leaves its text in the snapshots of the others."""

    async def redact(self, actor_id: str, epoch: int, replaced: Mapping[int, Any], first: int, bodies: Sequence[Any], **more: Any) -> None:
        snapshots = {other: log.snapshot for other, log in self._logs.items() if other != actor_id}
        await super().redact(actor_id, epoch, replaced, first, bodies, **more)
        for other, snapshot in snapshots.items():
            self._logs[other].snapshot = snapshot


class ForksInParts(MemoryJournal):
    """Makes a fork shorter than it is to be, and then long enough."""

    async def fork(self, source_id: str, number: int, new_id: str, kind: str = "") -> KnownActor:
        known = await super().fork(source_id, number, new_id, kind)
        kin = self._logs[new_id].kin
        assert kin is not None
        kin.begins -= 1
        await anyio.lowlevel.checkpoint()
        kin.begins += 1
        return known


class HidesRelatives(MemoryJournal):
    """Knows of those forked from an actor, not of those it was forked from."""

    async def relatives(self, actor_id: str) -> Sequence[str]:
        log = self._logs.get(actor_id)
        return [] if log is None or log.past is not None else await super().relatives(actor_id)


class OffersWorkInHand(MemoryJournal):
    """Lists what another living owner is at."""

    async def unfinished(self, after: str = "", limit: int = 1000) -> Sequence[KnownActor]:
        return self._page(after, limit, lambda log: log.unfinished)


class RedactsWork(MemoryJournal):
    """Forgets the work that a redaction leaves under way."""

    async def redact(self, actor_id: str, epoch: int, replaced: Mapping[int, Any], first: int, bodies: Sequence[Any], **more: Any) -> None:
        await super().redact(actor_id, epoch, replaced, first, bodies)


BROKEN: list[tuple[type[MemoryJournal], str]] = [
    (IgnoresEpochs, "life"),
    (IgnoresEpochs, "two_writers"),
    (LetsAnOldEpochOvertake, "two_writers"),
    (Steals, "life"),
    (NeverReleases, "life"),
    (Reorders, "life"),
    (Reorders, "at_once"),
    (TearsBatches, "at_once"),
    (CountsTwice, "life"),
    (RedactsNothing, "life"),
    (KeepsTheSnapshot, "life"),
    (KeepsTheSnapshot, "gone"),
    (LeavesTextBehind, "gone"),
    (PagesByPlace, "paging"),
    (ForgetsBytes, "values"),
    (GoesOnWhenFull, "full"),
    (ForgetfulSnapshots, "life"),
    (OverreadsLimits, "life"),
    (ForgetsWork, "life"),
    (CopiesThePast, "families"),
    (ForksOverAnother, "families"),
    (InheritsLabels, "families"),
    (InheritsTheSnapshot, "families"),
    (DeletesThePast, "families"),
    (DeletesThePast, "past_gone"),
    (LeavesThePast, "past_gone"),
    (RedactsElsewhere, "families"),
    (KeepsRelativesSnapshots, "families"),
    (KeepsRelativesSnapshots, "past_gone"),
    (ForksInParts, "kill"),
    (HidesRelatives, "families"),
    (ForgetsLabels, "life"),
    (MovesLabels, "life"),
    (SharesLabels, "life"),
    (KeepsLabels, "gone"),
    (OffersWorkInHand, "life"),
    (RedactsWork, "life"),
]


def caught(harness: type[JournalHarness], law: str) -> str:
    """What the kit says about a journal that must not pass."""
    settings.register_profile("caught", settings.get_profile("default"), phases=[Phase.generate])  # that it is caught is enough
    before = settings.get_current_profile_name()
    settings.load_profile("caught")
    try:
        with pytest.raises(BaseException) as raised:  # noqa: PT011 - whatever it is, the note says which law it breaks
            check_journal(harness, examples=300, only=law)
    finally:
        settings.load_profile(before)
    notes: list[str] = getattr(raised.value, "__notes__", [])
    return "\n".join(notes)


@pytest.mark.parametrize(("kind", "law"), BROKEN, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_a_broken_journal_is_caught(kind: type[MemoryJournal], law: str) -> None:
    class Broken(MemoryHarness):
        def contents(self) -> bytes:
            return super().contents() + repr(vars(self._store._logs)).encode()

    Broken.kind = kind

    assert f"the law that is broken: {law}" in caught(Broken, law)


def test_a_journal_that_acknowledges_before_it_keeps_is_caught_when_its_process_is_lost() -> None:
    class Hasty(MemoryHarness):
        def kill(self, journal: Any) -> None:
            super().kill(journal)
            for log in self._store._logs.values():
                del log.bodies[-1:]

    assert "the law that is broken: kill" in caught(Hasty, "kill")


def test_a_journal_that_has_no_checksums_is_caught() -> None:
    class Trusting(MemoryHarness):
        def damage(self, actor_id: str, number: int, how: Damage) -> None:
            bodies = self._store._logs[actor_id].bodies
            if how == "lose":
                del bodies[number - 1]
            else:
                bodies[number - 1] = {**bodies[number - 1], "part": -1}

    assert "the law that is broken: damage" in caught(Trusting, "damage")


def test_a_file_whose_freed_pages_keep_their_text_is_caught() -> None:
    class Careless(SQLiteHarness):
        def _connect(self, *arguments: Any, **named: Any) -> Any:
            return Unwiped(super()._connect(*arguments, **named))

    class Unwiped:
        def __init__(self, connection: Any) -> None:
            self._connection = connection

        def execute(self, statement: str, *arguments: Any) -> Any:
            return self._connection.execute(statement.replace("secure_delete = ON", "secure_delete = OFF"), *arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

    assert "the law that is broken: gone" in caught(Careless, "gone")


def test_a_file_whose_write_ahead_log_keeps_its_text_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "_overwrite", lambda *arguments: None)

    assert "the law that is broken: gone" in caught(SQLiteHarness, "gone")

"""The great law: whatever two owners do with a few actors, one thing after the other, a list of records for each actor tells what comes of it."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import strategies as st

from ropewalk.actors.testing.journals.harness import JournalHarness, Owner, Writer, owner, owners, write
from ropewalk.actors.testing.journals.laws import Law, listed
from ropewalk.runtime.errors import Fenced, InvalidOption, SessionElsewhere, SessionExists, UnknownSession
from ropewalk.runtime.journal import Journal, Record, Snapshot

__all__ = ["FAMILIES", "LIFE"]

ACTORS = ("a", "b", "c")
OWNERS = 2
LABELS = ("one", "another")

_actors, _owners, _anyone = st.sampled_from([*ACTORS, "a", "b"]), st.integers(0, OWNERS - 1), st.sampled_from([0, 0, 0, 1, 1, 2, 5])  # newest first
_steps = st.one_of(
    st.tuples(st.just("claim"), _owners, _actors),
    st.tuples(st.just("append"), _anyone, st.integers(0, 3), st.booleans(), st.just("")),
    st.tuples(st.just("append"), _anyone, st.integers(1, 3), st.booleans(), st.just("")),
    st.tuples(st.just("append"), _anyone, st.integers(1, 3), st.booleans(), st.sampled_from(LABELS)),
    st.tuples(st.just("stray"), _anyone, st.sampled_from([-1, 1, 5])),
    st.tuples(st.just("read"), _owners, _actors, st.integers(0, 3), st.none() | st.integers(0, 3)),
    st.tuples(st.just("keep"), _anyone),
    st.tuples(st.just("append and keep"), _anyone),
    st.tuples(st.just("release"), _anyone),
    st.tuples(st.just("redact"), _anyone, st.integers(1, 3), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("keep and redact"), _anyone, st.integers(1, 3)),
    st.tuples(st.just("look for work"), _owners),
    st.tuples(st.just("fork"), _owners, _actors, st.sampled_from([1, 2, 2, 3, 4]), _actors),
    st.tuples(st.just("delete"), _owners, _actors),
    st.tuples(st.just("come back"), _owners),
)


_family_steps = st.one_of(
    st.tuples(st.just("fork"), _owners, _actors, st.sampled_from([1, 1, 2, 2, 3, 4, 5]), _actors),
    st.tuples(st.just("fork and claim"), _anyone, st.integers(1, 3), _actors, _owners),
    st.tuples(st.just("fork and claim"), _anyone, st.integers(1, 3), _actors, _owners),
    st.tuples(st.just("append"), _anyone, st.integers(1, 3), st.booleans(), st.sampled_from(["", *LABELS])),
    st.tuples(st.just("redact"), _anyone, st.integers(1, 3), st.integers(0, 1), st.booleans()),
    st.tuples(st.just("keep"), _anyone),
    st.tuples(st.just("claim"), _owners, _actors),
    st.tuples(st.just("release"), _anyone),
    st.tuples(st.just("delete"), _owners, _actors),
    st.tuples(st.just("come back"), _owners),
)


@attrs.define(eq=False)
class _Kept:
    """A record, in each log that has it: forks share it."""

    record: Record


class _Life:
    """The model, the owners and everybody who ever claimed something."""

    def __init__(self, owners: list[Owner]) -> None:
        self.owners = owners
        self.logs: dict[str, list[_Kept]] = {actor_id: [] for actor_id in ACTORS}
        self.unfinished: set[str] = set()
        self.labels: dict[tuple[str, str], int] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.epochs: dict[str, int] = dict.fromkeys(ACTORS, 0)
        self.current: dict[str, Writer | None] = dict.fromkeys(ACTORS)
        self.writers: list[Writer] = []
        self.said = 0

    def bodies(self, count: int) -> list[Any]:
        self.said += count
        return [{"said": self.said - number} for number in range(count, 0, -1)]

    def records(self, actor_id: str) -> list[Record]:
        return [kept.record for kept in self.logs[actor_id]]

    def sharing(self, shared: list[_Kept]) -> list[str]:
        return [actor_id for actor_id, log in self.logs.items() if any(kept in shared for kept in log)]

    def is_elsewhere(self, actor_id: str, journal: Journal) -> bool:
        holder = self.current[actor_id]
        return holder is not None and holder.journal is not journal

    @property
    def journals(self) -> list[Journal]:
        return [one.journal for one in self.owners]

    def writer(self, number: int) -> Writer | None:
        return self.writers[-1 - number % len(self.writers)] if self.writers else None

    def may_write(self, writer: Writer) -> bool:
        return self.current[writer.actor_id] is writer

    async def step(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("claim", int(by), str(actor_id)):
                await self.claim(self.journals[by], actor_id)
            case ("read", int(by), str(actor_id), int(after), limit):
                found = await self.journals[by].read(actor_id, after, limit)
                assert list(found) == self.records(actor_id)[after:][:limit], "a reading is not what was written"
            case ("delete", int(by), str(actor_id)):
                await self.delete(self.journals[by], actor_id)
            case ("fork", int(by), str(source), int(number), str(new)):
                await self.fork(self.journals[by], source, number, new)
            case ("fork and claim", int(number), int(which), str(new), int(by)):
                writer = self.writer(number)
                if writer is not None:
                    await self.fork(writer.journal, writer.actor_id, which, new)
                    await self.claim(self.journals[by], new)
                    await self.keep(self.writers[-1])
            case ("look for work", int(by)):
                await self.look_for_work(self.journals[by])
            case ("come back", int(by)):
                await self.come_back(by)
            case ("append and keep", int(number)):
                await self.step(("append", number, 1, False, ""))
                await self.step(("keep", number))
            case ("keep and redact", int(number), int(which)):
                await self.step(("keep", number))
                await self.step(("redact", number, which, 1, True))
            case (what, int(number), *rest):
                writer = self.writer(number)
                if writer is not None:
                    await getattr(self, what)(writer, *rest)
            case _:
                raise TypeError(f"there is no step {step!r}")

    async def claim(self, journal: Journal, actor_id: str) -> None:
        holder = self.current[actor_id]
        try:
            claim = await journal.claim(actor_id, "kit")
        except SessionElsewhere:
            assert holder is not None and holder.journal is not journal, "a claim was refused though no other owner has the actor"
            return
        assert holder is None or holder.journal is journal, "an actor was claimed that another living owner has"
        assert claim.last == len(self.logs[actor_id]), "a claim is wrong about the last record"
        assert claim.epoch > self.epochs[actor_id], "an epoch was given twice"
        assert all(claim.epoch > record.epoch for record in self.records(actor_id)), "a record is of a later epoch than its log's newest claim"
        self.epochs[actor_id] = claim.epoch
        self.current[actor_id] = writer = Writer(journal, actor_id, claim)
        self.writers.append(writer)

    async def append(self, writer: Writer, count: int, unfinished: bool, label: str) -> None:
        bodies = self.bodies(count)
        first = writer.last + 1
        refused = await write(writer, bodies, unfinished=unfinished, label=label)
        if self.may_write(writer):
            assert refused is None, f"a write was refused: {refused}"
            self.added(writer, first, bodies, unfinished)
            if label:
                self.labels.setdefault((writer.actor_id, label), first)
        elif bodies:
            writer.last -= len(bodies)
            assert isinstance(refused, Fenced), "somebody wrote whose epoch is over"

    def added(self, writer: Writer, first: int, bodies: list[Any], unfinished: bool) -> None:
        self.logs[writer.actor_id] += [_Kept(Record(number, writer.epoch, body)) for number, body in enumerate(bodies, first)]
        if bodies:
            (self.unfinished.add if unfinished else self.unfinished.discard)(writer.actor_id)

    async def look_for_work(self, journal: Journal) -> None:
        holders = {actor_id: self.current[actor_id] for actor_id in sorted(self.unfinished)}
        free = [actor_id for actor_id, holder in holders.items() if holder is None or holder.journal is journal]
        for _ in range(2):  # looking changes nothing
            assert await listed(journal.unfinished) == free, "the list of unfinished work is wrong"

    async def stray(self, writer: Writer, off: int) -> None:
        last = writer.last
        assert isinstance(await write(writer, self.bodies(1), off), Fenced), "a record was taken that does not follow the last one"
        writer.last = last
        await self.claim_again(writer)

    async def claim_again(self, writer: Writer) -> None:
        """After a write that was refused the incarnation is over, and the next one claims."""
        if self.may_write(writer):
            await self.claim(writer.journal, writer.actor_id)

    async def keep(self, writer: Writer) -> None:
        if not writer.last:
            return  # an actor without records is forgotten when nobody owns it, and there is nothing to be a snapshot of
        snapshot = Snapshot(writer.last, {"state": self.said})
        try:
            await writer.journal.save_snapshot(writer.actor_id, writer.epoch, snapshot)
        except Fenced:
            assert not self.may_write(writer), "a snapshot was refused"
        else:
            assert self.may_write(writer), "somebody kept a snapshot whose epoch is over"
            self.snapshots[writer.actor_id] = snapshot
            await self.look_at_snapshot(writer.journal, writer.actor_id)

    async def look_at_snapshot(self, journal: Journal, actor_id: str) -> None:
        """Right after what changed it: by the end another may have taken the place of one that should be gone."""
        assert await journal.snapshot(actor_id) == self.snapshots.get(actor_id), f"the snapshot of {actor_id!r} is not the newest"

    async def release(self, writer: Writer) -> None:
        await writer.journal.release(writer.actor_id, writer.epoch)
        if self.may_write(writer):
            self.current[writer.actor_id] = None

    async def redact(self, writer: Writer, number: int, count: int, unfinished: bool) -> None:
        log = self.logs[writer.actor_id]
        if not 0 < number <= len(log) or number > writer.last:
            return
        sharers = {writer.actor_id, *self.sharing([log[number - 1]])}
        bodies = self.bodies(count)
        try:
            await writer.journal.redact(writer.actor_id, writer.epoch, {number: {"gone": True}}, writer.last + 1, bodies, unfinished=unfinished)
        except SessionElsewhere:
            assert any(self.is_elsewhere(sharer, writer.journal) for sharer in sharers), "a redaction was refused though no other owner has a relative"
            return  # and the claim goes on
        except Fenced:
            assert not self.may_write(writer), "a redaction was refused"
            return
        assert self.may_write(writer), "somebody redacted whose epoch is over"
        assert not any(self.is_elsewhere(sharer, writer.journal) for sharer in sharers), "a record was redacted that an actor of another living owner shares"
        log[number - 1].record = Record(number, log[number - 1].record.epoch, {"gone": True})
        self.added(writer, writer.last + 1, bodies, unfinished)
        writer.last += count
        for sharer in sorted(sharers):
            self.snapshots.pop(sharer, None)
            await self.look_at_snapshot(writer.journal, sharer)

    async def fork(self, journal: Journal, source: str, number: int, new: str) -> None:
        reasons = {
            UnknownSession: not self.logs[source],
            InvalidOption: number > len(self.logs[source]),
            SessionElsewhere: self.is_elsewhere(new, journal),
            SessionExists: bool(self.logs[new]) or self.current[new] is not None,
        }
        try:
            known = await journal.fork(source, number, new)
        except (UnknownSession, InvalidOption, SessionElsewhere, SessionExists) as error:
            assert reasons[type(error)], f"a fork was refused for no reason: {error!r}"
            return
        assert not any(reasons.values()), "a log was forked that must not be"
        assert (known.id, known.kind, known.last) == (new, "kit", number), "what is said of a fork is wrong"
        self.logs[new] = self.logs[source][:number]
        await self.look_at_snapshot(journal, new)

    async def delete(self, journal: Journal, actor_id: str) -> None:
        holder = self.current[actor_id]
        try:
            found = await journal.delete(actor_id)
        except SessionElsewhere:
            assert holder is not None and holder.journal is not journal, "a deletion was refused though no other owner has the actor"
            return
        assert holder is None or holder.journal is journal, "an actor was deleted that another living owner has"
        assert found == bool(self.logs[actor_id]), "a deletion is wrong about whether there was anything"
        self.logs[actor_id] = []
        self.unfinished.discard(actor_id)
        self.labels = {of: number for of, number in self.labels.items() if of[0] != actor_id}
        self.snapshots.pop(actor_id, None)
        self.current[actor_id] = None

    async def come_back(self, by: int) -> None:
        """An owner closes, and another comes in its place."""
        gone = self.journals[by]
        await self.owners[by].leave()
        self.writers = [writer for writer in self.writers if writer.journal is not gone]
        for actor_id, writer in self.current.items():
            if writer is not None and writer.journal is gone:
                self.current[actor_id] = None
        self.owners[by] = self.owners[by].next()
        await self.owners[by].come()

    async def compare(self, journal: Journal) -> None:
        for actor_id, log in self.logs.items():
            assert list(await journal.read(actor_id)) == self.records(actor_id), f"the log of {actor_id!r} is not what was written"
            for after in range(3):
                assert list(await journal.read(actor_id, after, 2)) == self.records(actor_id)[after : after + 2], "a part of a log is not what was written"
            assert list(await journal.relatives(actor_id)) == [other for other in self.sharing(log) if other != actor_id], "the relatives are wrong"
            assert await journal.snapshot(actor_id) == self.snapshots.get(actor_id), f"the snapshot of {actor_id!r} is not the newest"
            for label in LABELS:
                assert await journal.labelled(actor_id, label) == self.labels.get((actor_id, label)), "a label is not where it was put first"
            found = await journal.find(actor_id)
            assert (None if found is None else (found.id, found.kind, found.last)) == ((actor_id, "kit", len(log)) if log else None)
        await self.look_for_work(journal)
        assert await listed(journal.actors) == [actor_id for actor_id in ACTORS if self.logs[actor_id]], "the list is not of those that have records"


async def hold_life(harness: JournalHarness, plan: list[tuple[Any, ...]]) -> None:
    """Order, whole batches, one writer, owners, work, labels, snapshots, forks, redaction, deletion: a reading is what the model says, and stays so."""
    async with owners(harness, OWNERS) as here:
        life = _Life(here)
        for step in plan:
            await life.step(step)
        await life.compare(life.journals[0])
    life.current = dict.fromkeys(ACTORS)
    async with owner(harness) as journal:
        await life.compare(journal)
        counts, kept = journal.statistics(), {kept for log in life.logs.values() for kept in log}
        assert (counts.actors, counts.records) == (sum(map(bool, life.logs.values())), len(kept)), "the count of actors or of records is wrong"


_begun = [("claim", 0, "a"), ("append", 0, 3, False, "one"), ("keep", 0)]

FAMILIES = Law("families", hold_life, st.lists(_family_steps, min_size=4, max_size=16).map(lambda steps: [*_begun, *steps]), ())
LIFE = Law("life", hold_life, st.lists(_steps, min_size=12, max_size=30), ())

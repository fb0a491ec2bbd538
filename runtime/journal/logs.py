"""The logs of a journal in memory, and the families that forks make of them: a fork has its own records and, for those before, the log they are in."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import attrs

from ropewalk.runtime.journal.interface import Record, Snapshot

if TYPE_CHECKING:
    from ropewalk.runtime.journal.memory import MemoryJournal

__all__ = ["Log", "Logs"]


@attrs.define(eq=False)
class Kin:
    """A log's place in a family: it goes on from record `begins` of `past`, and `forks` go on from it; `id` is its actor's, None when that is deleted."""

    id: str | None
    past: Log | None = None
    begins: int = 0
    forks: list[Log] = attrs.Factory(list)


class Log:
    """One actor's records, `bodies`, after those that it shares with the log it was forked from."""

    __slots__ = ("bodies", "broken", "epoch", "kin", "kind", "labels", "owner", "snapshot", "spans", "unfinished")

    def __init__(self, kind: str, epoch: int) -> None:
        self.kind = kind
        self.owner: MemoryJournal | None = None
        self.bodies: list[Any] = []
        self.spans = array("Q")  # the first record number and the epoch of each claim that wrote, one after the other
        self.epoch = epoch
        self.broken = False
        self.unfinished = False
        self.labels: dict[bytes, int] | None = None  # the digest of each label and its record
        self.snapshot: Snapshot | None = None
        self.kin: Kin | None = None

    @property
    def begins(self) -> int:
        """The number after which its own records begin."""
        return self.kin.begins if self.kin is not None else 0

    @property
    def last(self) -> int:
        """The number of the last record, 0 when there is none."""
        return self.begins + len(self.bodies)

    @property
    def past(self) -> Log | None:
        """The log it goes on from."""
        return self.kin.past if self.kin is not None else None

    def add(self, first: int, epoch: int, bodies: Sequence[Any], unfinished: bool) -> None:
        """Records at the end."""
        if not bodies:
            return
        self.unfinished = unfinished
        if not self.spans or self.spans[-1] != epoch:
            self.spans.extend((first, epoch))
        self.bodies.extend(bodies)

    def records(self, after: int, last: int) -> list[Record]:
        """The records above `after` up to `last`, shared ones first."""
        line: list[tuple[Log, int]] = []
        log: Log | None = self
        while log is not None and after < last:
            line.append((log, last))
            last = min(last, log.begins)
            log = log.past
        return [record for log, last in reversed(line) for record in log._own(after, last)]

    def _own(self, after: int, last: int) -> list[Record]:
        begins, records = self.begins, list[Record]()
        ends = [*self.spans[2::2], self.last + 1]
        for start, epoch, end in zip(self.spans[::2], self.spans[1::2], ends, strict=False):  # without spans there is an end too many
            first, end = max(start, after + 1), min(end, last + 1)
            own = self.bodies[first - begins - 1 : max(first, end) - begins - 1]
            records += [Record(number, epoch, body, type(body).__name__) for number, body in enumerate(own, first)]
        return records

    def holder(self, number: int) -> Log:
        """The log that has this record as its own."""
        log = self
        while number <= log.begins and log.past is not None:
            log = log.past
        return log

    def replace(self, number: int, body: Any) -> None:
        """Another body for one of its own records."""
        self.bodies[number - self.begins - 1] = body

    def sharing(self, number: int) -> list[Log]:
        """Every log that has this record of its own, and whose actor is not deleted; itself too."""
        if self.kin is None:
            return [self]
        found = [self, *(fork for fork in self.kin.forks if fork.begins >= number)]
        for fork in islice(found, 1, None):  # which grows meanwhile: who goes on from a fork has all that it shares
            found += fork.kin.forks if fork.kin is not None else ()
        return [log for log in found if log.kin is not None and log.kin.id is not None]


class Logs(dict[str, Log]):
    """All logs, by id. `floor` is the highest epoch of any that was deleted: an id that comes back is written under higher ones.

    `left` are logs whose actors are deleted and whose first records forks go on from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.floor = 0
        self.left: set[Log] = set()
        self._order: list[str] | None = None

    def new(self, actor_id: str, kind: str) -> Log:
        """A log of no records."""
        self._order = None
        log = self[actor_id] = Log(kind, self.floor)
        return log

    def fork(self, source_id: str, number: int, new_id: str, kind: str) -> Log:
        """A log that goes on from a record of another one."""
        source = self[source_id]
        log = self.new(new_id, kind or source.kind)
        log.epoch = max(log.epoch, source.epoch)  # no record here is of a later epoch than those that follow
        holder = source.holder(number)
        if holder.kin is None:
            holder.kin = Kin(source_id)
        log.kin = Kin(new_id, holder, number)
        holder.kin.forks.append(log)
        return log

    def forget(self, actor_id: str) -> None:
        """Be rid of a log, but for the records that forks of it go on from."""
        self._order = None
        log = self.pop(actor_id)
        self.floor = max(self.floor, log.epoch)
        log.owner = log.snapshot = log.labels = None
        log.unfinished = False
        if log.kin is not None:
            log.kin.id = None
            self._trim(log, log.kin)

    def _trim(self, log: Log, kin: Kin) -> None:
        while not kin.forks:
            log.bodies.clear()
            self.left.discard(log)
            if kin.past is None or kin.past.kin is None:
                return
            kin.past.kin.forks.remove(log)
            if kin.past not in self.left:
                return
            log, kin = kin.past, kin.past.kin
        del log.bodies[max(fork.begins for fork in kin.forks) - kin.begins :]
        self.left.add(log)

    def relatives(self, actor_id: str) -> list[str]:
        """The ids of the others in the family, in order: all forks share at least the first record of its oldest log."""
        first: Log | None = self.get(actor_id)
        while first is not None and first.past is not None:
            first = first.past
        return [] if first is None else sorted(log.kin.id for log in first.sharing(0) if log.kin is not None and log.kin.id not in (None, actor_id))

    def after(self, actor_id: str) -> Sequence[str]:
        """The ids that come after this one, in order."""
        if self._order is None:
            self._order = sorted(self)
        return self._order[bisect_right(self._order, actor_id) :]

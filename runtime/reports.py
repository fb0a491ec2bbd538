"""What a runtime tells of itself, as frozen records."""

from __future__ import annotations

from typing import Literal

import attrs

from ropewalk.runtime.channel import ChannelStatistics
from ropewalk.runtime.journal import JournalStatistics

__all__ = ["RuntimeStatistics", "SessionInfo", "ShutdownReport"]


@attrs.frozen
class RuntimeStatistics:
    """What a runtime holds now: actors `known`, `resident` (in memory), `busy`, `quarantined`; and its channel's and journal's own.

    Known are those in memory and those somebody holds a handle of; the journal counts the others. `restarts` and
    `passivations` are how often any actor has failed, or was let go from memory, since the runtime was opened.
    """

    known: int
    resident: int
    busy: int
    quarantined: int
    restarts: int
    passivations: int
    events: ChannelStatistics
    journal: JournalStatistics


@attrs.frozen
class SessionInfo:
    """One known session: its `status` is idle, busy, quarantined, or passivated when it is in the journal only.

    One in the journal whose runtime is gone in the middle of its work is unfinished, or unclaimed where no spec of this runtime names its kind.
    """

    id: str
    kind: str | None
    status: Literal["idle", "busy", "quarantined", "passivated", "unfinished", "unclaimed"]
    waiting: int


@attrs.frozen
class ShutdownReport:
    """How closing went: the ids of the actors that did not finish within their grace and were cancelled, those that began last first."""

    cancelled: tuple[str, ...] = ()

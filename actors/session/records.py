"""What a session writes into its journal. The state of a session is the fold of these and nothing else."""

from __future__ import annotations

from itertools import count
from typing import TypeAlias

import msgspec

from ropewalk.actors.messages import Message
from ropewalk.actors.view import Edit, Entry

__all__ = ["Accepted", "Added", "Begun", "Body", "Edited", "Opened", "Pinned", "Redacted", "Said", "Settled", "Withdrawn"]


class Opened(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A session came to be, as one of the spec named, with these messages in its view: its entries 1, 2, ..."""

    spec: str
    messages: tuple[Message, ...] = ()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The messages as the entries that they are."""
        return tuple(map(Entry, count(1), self.messages))


class Accepted(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A prompt was accepted and waits: from here on it gets one outcome. `owned`: somebody waits for it, and it ends when they leave."""

    prompt_id: str
    messages: list[Message]
    owned: bool


class Begun(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A turn began with these prompts; `entries` join the view, and the first of them replaces entry `joins` (0: none).

    A prompt that found the session idle is accepted by this record, and has none of its own. `owned` is as it is there.
    """

    turn_id: str
    prompt_ids: tuple[str, ...]
    entries: tuple[Entry, ...]
    joins: int = 0
    owned: bool = True


class Said(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The model's answer, or the results of its calls, joined the view."""

    entry: Entry


class Edited(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The view was changed: a reduction, the manager's policy, a caller's own edit.

    `prompt` is the entry that holds the running turn's prompt from now on; 0: the one that did.
    """

    edit: Edit
    prompt: int = 0


class Added(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Messages that belong to no turn joined the view: a recorded direct tool call."""

    entries: tuple[Entry, ...]


class Pinned(msgspec.Struct, frozen=True, tag=True, gc=False):
    """An entry may not be taken out of the view by reductions any more, or (`pinned` is False) may again."""

    number: int
    pinned: bool = True


class Redacted(msgspec.Struct, frozen=True, tag=True, gc=False):
    """What an entry said was taken out of the records before this one: they hold its blocks without their words. Nothing else changed."""

    number: int


class Settled(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A turn ended. First `edit` (a rollback) is applied, then `entries` close the view; `aside` was said but never came into it."""

    turn_id: str
    how: str
    stop_reason: str | None
    error: str | None
    cycles: int
    usage: tuple[int, int, int]
    edit: Edit | None = None
    entries: tuple[Entry, ...] = ()
    aside: tuple[Entry, ...] = ()


class Withdrawn(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A waiting prompt got its outcome without a turn."""

    prompt_id: str
    outcome: str


Body: TypeAlias = Opened | Accepted | Begun | Said | Edited | Added | Pinned | Redacted | Settled | Withdrawn

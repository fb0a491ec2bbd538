"""What a session writes into its journal. The state of a session is the fold of these and nothing else.

`request_state` in a record is the state as it was then, None where it is what the turn's records before it say.
"""

from __future__ import annotations

from itertools import count
from typing import Any, TypeAlias

import msgspec

from ropewalk.actors.messages import Block, Message
from ropewalk.actors.view import Edit, Entry

__all__ = [
    "Accepted",
    "Added",
    "Begun",
    "Body",
    "Edited",
    "Kept",
    "Left",
    "Opened",
    "Pinned",
    "Redacted",
    "Resumed",
    "Returned",
    "Said",
    "Settled",
    "Usage",
    "Withdrawn",
]

Usage: TypeAlias = tuple[int, int, int]
"""Input, output and total tokens."""


class Opened(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """A session came to be, as one of the spec named, with these messages in its view: its entries 1, 2, ..."""

    spec: str
    messages: tuple[Message, ...] = ()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The messages as the entries that they are."""
        return tuple(map(Entry, count(1), self.messages))


class Accepted(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """A prompt was accepted and waits: from here on it gets one outcome.

    `owned`: somebody waits for it, and it ends when they leave. `key` is the idempotency key it came with.
    """

    prompt_id: str
    messages: list[Message]
    owned: bool
    key: str | None = None
    request_state: dict[str, Any] | None = None


class Begun(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """A turn began with these prompts; `entries` join the view, and the first of them replaces entry `joins` (0: none).

    A prompt that found the session idle is accepted by this record, and has none of its own: `owned` and `key` are as they
    are there, and `messages` are the prompt's where the first of the entries holds more than that.
    """

    turn_id: str
    prompt_ids: tuple[str, ...]
    entries: tuple[Entry, ...]
    joins: int = 0
    owned: bool = True
    key: str | None = None
    messages: list[Message] | None = None
    request_state: dict[str, Any] | None = None


class Said(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """The model's answer, or the results of its calls, joined the view.

    An answer that calls tools is the intent to call them: it is durable before the first of them runs. `usage` is what the
    answer took, `stop_reason` how it ended; `malformed` holds the raw input of calls whose input is no JSON object, by id;
    `strays` are calls of tools that there were not.
    """

    entry: Entry
    usage: Usage | None = None
    stop_reason: str = "end_turn"
    malformed: dict[str, str] = {}
    request_state: dict[str, Any] | None = None
    strays: tuple[str, ...] = ()


class Returned(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """A tool call came to this result while others of the same answer still ran. `call` is its id, or what it is kept under where an id came twice."""

    turn_id: str
    call: str
    result: Block
    request_state: dict[str, Any] | None = None


class Resumed(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """The process died during a turn, and another one goes on with it. `in_doubt` are calls whose outcome nobody knows and nobody may try again."""

    turn_id: str
    in_doubt: tuple[str, ...] = ()


class Left(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """The runtime closed during a turn, which is left to whoever opens the session next: no death of a process."""

    turn_id: str


class Edited(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """The view was changed: a reduction, the manager's policy, a caller's own edit.

    `prompt` is the entry that holds the running turn's prompt from now on; 0: the one that did.
    """

    edit: Edit
    prompt: int = 0


class Added(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """Messages that belong to no turn joined the view: a recorded direct tool call."""

    entries: tuple[Entry, ...]


class Pinned(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """An entry may not be taken out of the view by reductions any more, or (`pinned` is False) may again."""

    number: int
    pinned: bool = True


class Redacted(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """What an entry said was taken out of the records before this one: they hold its blocks without their words. Nothing else changed."""

    number: int


class Settled(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """A turn ended. First `edit` (a rollback) is applied, then `entries` close the view; `aside` was said but never came into it.

    `reason` is the text of what failed it; `in_doubt` are calls that were answered here without anybody knowing their outcome.
    """

    turn_id: str
    how: str
    stop_reason: str | None
    error: str | None
    cycles: int
    usage: Usage
    edit: Edit | None = None
    entries: tuple[Entry, ...] = ()
    aside: tuple[Entry, ...] = ()
    reason: str | None = None
    in_doubt: tuple[str, ...] = ()
    request_state: dict[str, Any] | None = None


class Withdrawn(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """A waiting prompt got its outcome without a turn."""

    prompt_id: str
    outcome: str


class Kept(msgspec.Struct, frozen=True, tag=True, gc=False, omit_defaults=True):
    """No record but a snapshot: what a session's records came to between two turns.

    The view's messages have the entry numbers from `first` on, or else `numbers`.
    """

    spec: str
    messages: tuple[Message, ...]
    next_entry: int
    turns: int
    cycles: int
    usage: Usage
    first: int = 1
    numbers: tuple[int, ...] | None = None
    waiting: tuple[Accepted, ...] = ()
    in_doubt: tuple[str, ...] = ()
    pins: tuple[int, ...] = ()


Body: TypeAlias = Opened | Accepted | Begun | Said | Returned | Resumed | Left | Edited | Added | Pinned | Redacted | Settled | Withdrawn | Kept

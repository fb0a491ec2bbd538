"""The runtime's errors: few, flat, each named for what it means to the caller.

Everything Ropewalk raises on purpose derives from `RopewalkError`. Errors about conversations (models, tools, messages)
stand in `ropewalk.actors.errors`; the ones here would make sense for any actor.
"""

from __future__ import annotations

__all__ = [
    "DuplicateKind",
    "Fenced",
    "InvalidHandler",
    "InvalidOption",
    "InvalidSessionId",
    "JournalDamaged",
    "JournalUnavailable",
    "MailboxFull",
    "Quarantined",
    "Refused",
    "RopewalkError",
    "RuntimeClosed",
    "SessionElsewhere",
    "SessionExists",
    "SlowReader",
    "UnknownRecord",
    "UnknownSession",
    "WouldDeadlock",
]


class RopewalkError(Exception):
    """The base of every error Ropewalk raises on purpose."""


class InvalidSessionId(RopewalkError):
    """The id is not 1 to 200 characters of ``A-Z a-z 0-9 . _ : @ -``, or starts with a dot."""


class InvalidOption(RopewalkError):
    """An argument is outside what it may be; the text names it, the value, and the values that would do."""


class InvalidHandler(RopewalkError):
    """What was given as a handler cannot be called with an event."""


class DuplicateKind(RopewalkError):
    """Two different actor kinds (specs) were given to one runtime under one name."""


class UnknownSession(RopewalkError):
    """No session of this id exists, and the caller asked not to create one."""


class SessionExists(RopewalkError):
    """The session exists already, and what was asked for needs a new one."""


class MailboxFull(RopewalkError):
    """The session's mailbox is at its bound; the message was not accepted and nothing was lost."""


class WouldDeadlock(RopewalkError):
    """Code waits for the very work it is part of."""


class Refused(RopewalkError):
    """An actor turns one message down and goes on as it was; its asker gets this error."""


class Quarantined(RopewalkError):
    """The actor failed more often than its restart policy allows; its journal is kept, it takes no work."""


class RuntimeClosed(RopewalkError):
    """The runtime is not open here: not entered yet, closing, closed, or open in the event loop of another thread."""


class JournalUnavailable(RopewalkError):
    """The journal refused a write or a read; the incarnation was dropped and the next message tries again."""


class JournalDamaged(JournalUnavailable):
    """What the journal holds is not what was written: a record was changed, torn or lost. The text names it."""


class UnknownRecord(JournalUnavailable):
    """A record is of a sort or a version that this Ropewalk does not read. The text says which, and what it reads."""


class Fenced(RopewalkError):
    """Somebody with a newer epoch owns the session; nothing of this writer was committed."""


class SessionElsewhere(Fenced):
    """The session is owned by another runtime that is alive."""


class SlowReader(RopewalkError):
    """A subscription fell behind further than its policy allows and was disconnected."""

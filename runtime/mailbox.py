"""The bounded queue in front of an actor: two lanes, control before ordinary.

A plain data structure that never waits: deciding whether a message is taken is synchronous, so a sender knows at once.
An idle mailbox holds no queue at all, because a process has far more idle actors than busy ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, Literal, TypeAlias, TypeVar

import attrs

from ropewalk.runtime.errors import InvalidOption, MailboxFull

__all__ = ["Mailbox", "MailboxStatistics", "Overflow"]

M = TypeVar("M")

Overflow: TypeAlias = Literal["reject", "drop_oldest"]
"""What a full lane does with one message more: refuse it (`MailboxFull`), or hand the oldest back to the sender as lost."""


@attrs.frozen
class MailboxStatistics:
    """What a mailbox has seen, both lanes together: how many messages were `accepted`, `refused`, `dropped` for later ones, `withdrawn` so far.

    `waiting` and `waiting_control` are there now, at most `bound` ordinary ones; whatever else was accepted has been handed out.
    """

    waiting: int
    waiting_control: int
    bound: int
    accepted: int
    refused: int
    dropped: int
    withdrawn: int


class Mailbox(Generic[M]):
    """A bounded two-lane queue. Messages of a lane leave in the order they came; the control lane leaves first.

    :param bound: how many ordinary messages may wait, at least 1.
    :param overflow: what happens to one more.
    :param control_bound: how many control messages may wait; one more is always refused.
    """

    __slots__ = ("_accepted", "_control", "_dropped", "_ordinary", "_refused", "_withdrawn", "bound", "control_bound", "overflow")

    def __init__(self, bound: int, overflow: Overflow, control_bound: int = 16) -> None:
        for name, value in (("bound", bound), ("control_bound", control_bound)):
            if type(value) is not int or value < 1:
                raise InvalidOption(f"a mailbox's {name} is a whole number of at least 1, not {value!r}")
        if overflow not in ("reject", "drop_oldest"):
            raise InvalidOption(f"a mailbox's overflow is 'reject' or 'drop_oldest', not {overflow!r}")
        self.bound = bound
        self.overflow = overflow
        self.control_bound = control_bound
        self._ordinary: deque[M] | None = None
        self._control: deque[M] | None = None
        self._accepted = self._refused = self._dropped = self._withdrawn = 0

    def __len__(self) -> int:
        return (len(self._ordinary) if self._ordinary else 0) + (len(self._control) if self._control else 0)

    def put(self, message: M) -> M | None:
        """Take an ordinary message. Returns the message it pushed out, if any; raises `MailboxFull` when it is refused."""
        lane = self._ordinary
        if lane is None:
            lane = self._ordinary = deque()
        lost = None
        if len(lane) >= self.bound:
            if self.overflow == "reject":
                self._refused += 1
                raise MailboxFull(f"{len(lane)} messages wait already, which is the mailbox's bound; send again when some have been handled")
            lost = lane.popleft()
            self._dropped += 1
        lane.append(message)
        self._accepted += 1
        return lost

    def put_first(self, messages: Iterable[M]) -> None:
        """Take ordinary messages, in this order before all that wait: they were accepted earlier, elsewhere, so the bound does not count."""
        earlier = list(messages)
        if earlier:
            self._ordinary = deque((*earlier, *(self._ordinary or ())))
            self._accepted += len(earlier)

    def put_control(self, message: M) -> None:
        """Take a message that is handled before every ordinary one; raises `MailboxFull`."""
        lane = self._control
        if lane is None:
            lane = self._control = deque()
        if len(lane) >= self.control_bound:
            self._refused += 1
            raise MailboxFull(f"{len(lane)} control messages wait already, which is the bound; send again when some have been handled")
        lane.append(message)
        self._accepted += 1

    def take(self) -> M | None:
        """The next message to handle, None when there is none."""
        if self._control is not None:
            message = self._control.popleft()
            if not self._control:
                self._control = None
            return message
        if self._ordinary is not None:
            message = self._ordinary.popleft()
            if not self._ordinary:
                self._ordinary = None
            return message
        return None

    def withdraw(self, message: M) -> bool:
        """Take back a message that still waits; False when it is not here (any more)."""
        for lane in (self._ordinary, self._control):
            if lane is not None and _remove(lane, message):
                self._withdrawn += 1
                self._ordinary = self._ordinary or None
                self._control = self._control or None
                return True
        return False

    def waiting(self) -> tuple[M, ...]:
        """The messages that wait, in the order they will be handled."""
        return (*(self._control or ()), *(self._ordinary or ()))

    def statistics(self) -> MailboxStatistics:
        """A frozen record of what the mailbox holds and has seen."""
        return MailboxStatistics(
            waiting=len(self._ordinary or ()),
            waiting_control=len(self._control or ()),
            bound=self.bound,
            accepted=self._accepted,
            refused=self._refused,
            dropped=self._dropped,
            withdrawn=self._withdrawn,
        )


def _remove(lane: deque[M], message: M) -> bool:
    """Take this very message, not one that equals it, out of a lane."""
    for place, waiting in enumerate(lane):
        if waiting is message:
            del lane[place]
            return True
    return False

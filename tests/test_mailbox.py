"""The mailbox against a model: two lists, a bound each, and a count of everything that ever happened to a message."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ropewalk.runtime.errors import InvalidOption, MailboxFull
from ropewalk.runtime.mailbox import Mailbox, MailboxStatistics


class Message:
    """Equal to every other: a mailbox goes by identity."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message)

    def __hash__(self) -> int:
        return 1


class MailboxMachine(RuleBasedStateMachine):
    """Everything a mailbox can be asked, in any order."""

    @initialize(bound=st.integers(1, 4), control_bound=st.integers(1, 3), overflow=st.sampled_from(["reject", "drop_oldest"]))
    def make(self, bound: Any, control_bound: Any, overflow: Any) -> None:
        self.mailbox: Mailbox[Message] = Mailbox(bound, overflow, control_bound)
        self.ordinary: list[Message] = []
        self.control: list[Message] = []
        self.gone: list[Message] = []
        self.accepted = self.refused = self.dropped = self.withdrawn = self.taken = 0

    @rule()
    def put(self) -> None:
        message = Message()
        if len(self.ordinary) < self.mailbox.bound:
            assert self.mailbox.put(message) is None
        elif self.mailbox.overflow == "reject":
            with pytest.raises(MailboxFull, match=f"{self.mailbox.bound} messages wait"):
                self.mailbox.put(message)
            self.refused += 1
            return
        else:
            oldest = self.ordinary.pop(0)
            assert self.mailbox.put(message) is oldest
            self.gone.append(oldest)
            self.dropped += 1
        self.ordinary.append(message)
        self.accepted += 1

    @rule()
    def put_control(self) -> None:
        message = Message()
        if len(self.control) < self.mailbox.control_bound:
            self.mailbox.put_control(message)
            self.control.append(message)
            self.accepted += 1
        else:
            with pytest.raises(MailboxFull, match="control"):
                self.mailbox.put_control(message)
            self.refused += 1

    @rule()
    def take(self) -> None:
        expected = self.control.pop(0) if self.control else self.ordinary.pop(0) if self.ordinary else None
        assert self.mailbox.take() is expected
        if expected is not None:
            self.gone.append(expected)
            self.taken += 1

    @precondition(lambda self: self.ordinary or self.control)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from([lane for lane in (self.ordinary, self.control) if lane]))
        place = data.draw(st.integers(0, len(lane) - 1))
        message = lane.pop(place)
        assert self.mailbox.withdraw(message)
        self.gone.append(message)
        self.withdrawn += 1

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def withdraw_too_late(self, data: st.DataObject) -> None:
        assert not self.mailbox.withdraw(data.draw(st.sampled_from(self.gone)))

    @rule()
    def withdraw_a_stranger(self) -> None:
        assert not self.mailbox.withdraw(Message())

    @invariant()
    def waits_in_order(self) -> None:
        expected = [*self.control, *self.ordinary]
        waiting = self.mailbox.waiting()
        assert len(waiting) == len(self.mailbox) == len(expected)
        assert all(one is other for one, other in zip(waiting, expected, strict=True))

    @invariant()
    def keeps_its_bounds(self) -> None:
        assert len(self.ordinary) <= self.mailbox.bound
        assert len(self.control) <= self.mailbox.control_bound

    @invariant()
    def statistics_add_up(self) -> None:
        statistics = self.mailbox.statistics()
        assert statistics == MailboxStatistics(
            waiting=len(self.ordinary),
            waiting_control=len(self.control),
            bound=self.mailbox.bound,
            accepted=self.accepted,
            refused=self.refused,
            dropped=self.dropped,
            withdrawn=self.withdrawn,
        )
        waiting = statistics.waiting + statistics.waiting_control
        assert statistics.accepted == self.taken + statistics.dropped + statistics.withdrawn + waiting


TestMailbox = MailboxMachine.TestCase


def test_an_idle_mailbox_is_small() -> None:
    """A process has far more idle actors than busy ones, so an empty mailbox holds no queue, also after use."""
    mailbox: Mailbox[Message] = Mailbox(64, "reject")

    def queues() -> list[object]:
        return [value for name in Mailbox.__slots__ if isinstance(value := getattr(mailbox, name), (list, dict)) or hasattr(value, "popleft")]

    assert queues() == []
    message = Message()
    mailbox.put(message)
    mailbox.put_control(Message())
    mailbox.withdraw(message)
    mailbox.take()

    assert queues() == []


@pytest.mark.parametrize("bound", [0, -1, 1.5, "64", None, True])
def test_a_bound_is_a_whole_number_of_at_least_one(bound: Any) -> None:
    with pytest.raises(InvalidOption, match="bound is a whole number of at least 1"):
        Mailbox(bound, "reject")
    with pytest.raises(InvalidOption, match="control_bound is a whole number of at least 1"):
        Mailbox(1, "reject", bound)


def test_an_unknown_overflow_is_refused() -> None:
    with pytest.raises(InvalidOption, match="'reject' or 'drop_oldest', not 'explode'"):
        Mailbox(1, "explode")  # type: ignore[arg-type]


def test_a_mailbox_has_no_default_bound() -> None:
    with pytest.raises(TypeError):
        Mailbox()  # type: ignore[call-arg]

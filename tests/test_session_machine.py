"""The laws of a session under random users, models and faults: the shipped machine, run on the shipped agent."""

from __future__ import annotations

import pytest
import trio
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from ropewalk.testing import SessionMachine

TestSessions = SessionMachine.TestCase


def test_a_law_that_fails_in_the_end_is_reported_and_leaves_no_run_behind() -> None:
    class NobodyAsks(SessionMachine):
        def check_events(self) -> None:
            super().check_events()
            assert not self.asked, "somebody asked"

    with pytest.raises(AssertionError, match="somebody asked"):
        run_state_machine_as_test(NobodyAsks, settings=settings(phases=[Phase.generate, Phase.shrink], max_examples=50))

    trio.run(trio.sleep, 0)

"""Laws for a tool and a handler of your own, tried with random inputs, random users, a random model, and all that goes wrong.

Run it with `python examples/test_your_agent.py`, or with pytest; with BUG=1 two bugs are planted, found, and made small.
"""

import os
import sys

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk import AgentSpec, Event, ToolEnded, ToolStarted, TurnEnded, TurnStarted, tool
from ropewalk.testing import Reply, SessionMachine, ToolUse, arule

BUG = "BUG" in os.environ


def shares(cents: int, people: int) -> list[int]:
    """A bill in parts that differ by at most a cent."""
    each, rest = divmod(cents, people)
    return [each + (number < rest and not BUG) for number in range(people)]


@tool
async def split(cents: int, people: int) -> list[int]:
    """Split a bill."""
    await anyio.sleep(1)  # the till is slow
    return shares(cents, people)


def count_calls(event: Event) -> None:
    """A handler: counts the tool calls of each turn in its request state."""
    if isinstance(event, ToolEnded if BUG else ToolStarted) and event.request_state is not None:
        event.request_state["calls"] = event.request_state.get("calls", 0) + 1


@given(cents=st.integers(0, 10**6), people=st.integers(1, 50))
def test_not_a_cent_is_lost(cents: int, people: int) -> None:
    parts = shares(cents, people)

    assert sum(parts) == cents
    assert max(parts) - min(parts) <= 1


class YourAgent(SessionMachine):
    """Two sessions of your agent: asked, streamed, left, cancelled, with a model and a journal that fail now and then."""

    def make_spec(self) -> AgentSpec:
        return AgentSpec(name="yours", model=self.model(), tools=[split], handlers=[count_calls])

    @arule(cents=st.integers(0, 99), people=st.integers(1, 5), patience=st.sampled_from([0.5, 5.0]))
    async def somebody_has_a_bill_split(self, cents: int, people: int, patience: float) -> None:
        await self.send(0, "Split it.", [Reply(tool_uses=[ToolUse("split", {"cents": cents, "people": people})])], patience)

    def check_events(self) -> None:
        """In the end: the handler has counted every call of every turn, however the turn ended, unless the journal failed in it."""
        super().check_events()
        for end in (event for event in self.events if isinstance(event, TurnEnded)):
            turn = [event for event in self.events if (event.turn_id, event.epoch) == (end.turn_id, end.epoch)]
            if isinstance(turn[0], TurnStarted):
                assert (end.request_state or {}).get("calls", 0) == sum(isinstance(event, ToolStarted) for event in turn)


TestYourAgent = YourAgent.TestCase
TestYourAgent.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)

if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", __file__])

"""The example that uses the runtime alone: money moves, one account breaks, and it all adds up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import bank_account
from bank_account import OPENING, AccountKind, Deposit, Jam, Jammed, Report, Withdraw, run_bank
from probe import cancelled_at_any_step
from ropewalk.actors.testing.loop import in_trio
from ropewalk.runtime.errors import Refused
from ropewalk.runtime.runtime import Runtime


async def run_quietly(accounts: int, transfers: int, seed: int = 1) -> Report:
    with structlog.testing.capture_logs():
        return await run_bank(accounts, transfers, seed)


@pytest.mark.anyio
async def test_a_thousand_accounts_lose_nothing_though_one_of_them_breaks() -> None:
    report = await run_quietly(1000, 5000)

    assert report.balanced
    assert report.journal == 1000 * OPENING
    assert report.moved + report.refused + report.returned == 5000
    assert report.quarantined == ("account-13",)
    assert report.restarts == 4
    assert report.events == 2 * (report.moved + report.returned)
    assert report.moved > 2000


@given(st.integers(2, 6), st.integers(0, 60), st.integers(0, 2**32), st.random_module())
@in_trio
async def test_the_money_adds_up_whoever_runs_first(accounts: Any, transfers: Any, seed: Any, schedule: Any) -> None:
    report = await run_quietly(accounts, transfers, seed)

    assert report.balanced
    assert report.moved + report.refused + report.returned == transfers


@pytest.mark.anyio
async def test_an_account_refuses_an_overdraft_and_survives_a_crash() -> None:
    with structlog.testing.capture_logs():
        async with Runtime() as runtime:
            account = await runtime.open("ann", AccountKind())
            with pytest.raises(Refused, match="holds 100 pence, not 101"):
                await account.ask(Withdraw(101))
            assert await account.ask(Deposit(50)) == 150
            with pytest.raises(Jammed):
                await account.ask(Jam())
            assert await account.ask(Withdraw(150)) == 0


async def test_a_transfer_that_is_cancelled_at_any_step_leaves_money_in_one_place_only(autojump_clock: trio.testing.MockClock) -> None:
    """A transfer is two messages, so it may stop half way; but each of them happens whole or not at all."""
    number = 0
    totals = set[int]()
    while True:
        number += 1
        async with Runtime(seed=1) as runtime:
            source, target = await runtime.open("a", AccountKind()), await runtime.open("b", AccountKind())
            with cancelled_at_any_step(number) as scope:
                await bank_account.transfer(source, target, 30, Report(2))
            held = (await source.ask(Deposit(0)), await target.ask(Deposit(0)))
        assert held in {(100, 100), (70, 100), (70, 130)}
        totals.add(sum(held))
        if not scope.cancelled_caught:
            break

    assert held == (70, 130)


def test_it_says_so_when_money_is_missing() -> None:
    assert not Report(1, journal=OPENING - 1, reader=OPENING).balanced
    assert not Report(1, journal=OPENING, reader=OPENING + 1).balanced


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_command_prints_a_table_and_its_status_tells(backend: Any) -> None:
    command = [sys.executable, bank_account.__file__, "--accounts", "20", "--transfers", "200", "--backend", backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "80"}, cwd=Path(bank_account.__file__).parent)

    assert (done.returncode, done.stderr) == (0, "")
    assert "Not a penny was lost." in done.stdout
    assert "account-13" in done.stdout
    assert "2,000" in done.stdout

"""The runtime alone, with an actor that knows nothing of models: a thousand bank accounts, and one that breaks.

An account is what its journal says. Money moves between all of them at once, overdrafts are refused, one account crashes
until it is quarantined, a reader follows every change, and in the end not a penny is missing.

    python examples/bank_account.py [--accounts N] [--transfers N] [--backend trio|asyncio]
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import AsyncIterable
from typing import Any

import anyio
import attrs
import click
import structlog
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ropewalk.runtime.cell import Cell
from ropewalk.runtime.envelope import Envelope
from ropewalk.runtime.errors import Quarantined, Refused
from ropewalk.runtime.event import Event
from ropewalk.runtime.journaled import Journaled
from ropewalk.runtime.ref import ActorRef
from ropewalk.runtime.runtime import Runtime
from ropewalk.runtime.supervision import Backoff, RestartPolicy

__all__ = ["AccountKind", "Deposit", "Jam", "Jammed", "Report", "Withdraw", "run_bank"]

OPENING, TELLERS = 100, 500


@attrs.frozen
class Deposit:
    """Message and record: `pence` come in."""

    pence: int


@attrs.frozen
class Withdraw:
    """Message and record: `pence` go out; refused when there are not so many."""

    pence: int


class Jam:
    """A message no account survives."""


class Jammed(Exception):
    """What an account raises on `Jam`."""


class Changed(Event, frozen=True, gc=False):
    """An account holds `pence` now, `change` more than before."""

    change: int
    pence: int


def fold(pence: int, record: Deposit | Withdraw) -> int:
    return pence + record.pence if isinstance(record, Deposit) else pence - record.pence


class Account:
    """One incarnation: handles a message at a time. All it knows is in its journal, so nothing is lost with it."""

    def __init__(self, cell: Cell, book: Journaled[int]) -> None:
        self.cell, self.book = cell, book

    async def receive(self, envelope: Envelope) -> int:
        message, before = envelope.body, self.book.state
        if isinstance(message, Jam):
            raise Jammed(f"{self.cell.id} is stuck")
        if isinstance(message, Withdraw) and message.pence > before:
            raise Refused(f"{self.cell.id} holds {before} pence, not {message.pence}")
        after = await self.book.write(message)
        await self.cell.publish(Changed, after - before, after)
        return after

    def snapshot(self) -> Changed:
        return self.cell.publisher.as_of_now(Changed, None, None, 0, self.book.state)


class AccountKind:
    """How the runtime makes an account from its journal, and what whoever opens one gets."""

    name, mailbox = "account", 512

    async def activate(self, cell: Cell, *, create: bool, **seed: Any) -> Account:
        book = await Journaled.recover(cell, fold, 0, create=create)
        if not book.records:
            await book.write(Deposit(OPENING))
        return Account(cell, book)

    def handle(self, cell: Cell) -> ActorRef:
        return ActorRef(cell)


@attrs.define
class Report:
    """What happened. `journal` and `reader` are the pence there are in the end: by the records, and by the events a reader saw."""

    accounts: int
    moved: int = 0
    refused: int = 0
    returned: int = 0
    restarts: int = 0
    quarantined: tuple[str, ...] = ()
    events: int = 0
    journal: int = 0
    reader: int = 0

    @property
    def balanced(self) -> bool:
        """Whether no money was lost or made."""
        return self.journal == self.reader == self.accounts * OPENING


async def transfer(source: ActorRef, target: ActorRef, pence: int, report: Report) -> None:
    try:
        await source.ask(Withdraw(pence))
    except (Refused, Quarantined):
        report.refused += 1
        return
    try:
        await target.ask(Deposit(pence))
        report.moved += 1
    except Quarantined:
        await source.ask(Deposit(pence))
        report.returned += 1


async def teller(refs: list[ActorRef], transfers: int, runtime: Runtime, report: Report) -> None:
    draw = runtime.clock.random
    for _ in range(transfers):
        source = int(draw() * len(refs))
        target = (source + 1 + int(draw() * (len(refs) - 1))) % len(refs)  # any other
        await transfer(refs[source], refs[target], 1 + int(draw() * OPENING), report)


async def break_down(account: ActorRef) -> None:
    while account.status != "quarantined":
        with contextlib.suppress(Jammed, Quarantined):
            await account.ask(Jam())


async def read(events: AsyncIterable[Any], report: Report) -> None:
    async for event in events:
        report.events += 1
        report.reader += event.change


async def run_bank(accounts: int = 1000, transfers: int = 5000, seed: int = 1) -> Report:
    """Open the accounts, move money between them all at once, and count it."""
    report = Report(accounts, reader=accounts * OPENING)
    policy = RestartPolicy(max_restarts=3, within=30, backoff=Backoff(first=0.01))
    async with anyio.create_task_group() as readers, Runtime(seed=seed, restart=policy) as runtime:
        kind = AccountKind()
        refs = [await runtime.open(f"account-{number}", kind) for number in range(accounts)]
        async with runtime.events.subscribe(kinds={Changed}, sessions="account-*", buffer=4096, overflow="disconnect") as events:
            readers.start_soon(read, events, report)
            async with anyio.create_task_group() as tellers:
                tellers.start_soon(break_down, refs[13 % accounts])
                staff = min(TELLERS, transfers)
                for number in range(staff):
                    tellers.start_soon(teller, refs, transfers // staff + (number < transfers % staff), runtime, report)
        async for info in runtime.list_sessions():
            report.journal += sum(fold(0, record.body) for record in await runtime.journal.read(info.id))
            report.quarantined += (info.id,) if info.status == "quarantined" else ()
        report.restarts = runtime.statistics().restarts
    return report


@click.command()
@click.option("--accounts", default=1000, type=click.IntRange(2))
@click.option("--transfers", default=5000, type=click.IntRange(0))
@click.option("--backend", default="asyncio", type=click.Choice(["asyncio", "trio"]))
def main(accounts: int, transfers: int, backend: str) -> None:
    """Move money between many accounts at once and count it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # the crashes are meant
    report = anyio.run(run_bank, accounts, transfers, backend=backend)
    table = Table(box=SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("accounts, each an actor", f"{report.accounts:,}")
    table.add_row(f"transfers made, {TELLERS} at a time", f"{report.moved:,}")
    table.add_row("refused: not so much there, or broken", f"{report.refused:,}")
    table.add_row("given back: the other account is broken", f"{report.returned:,}")
    table.add_row("crashes", f"{report.restarts:,}")
    table.add_row("broken, so quarantined", ", ".join(report.quarantined))
    table.add_row("changes the reader saw", f"{report.events:,}")
    table.add_row("pence at first", f"{report.accounts * OPENING:,}")
    table.add_row("pence in the journals", f"{report.journal:,}")
    table.add_row("pence by the reader's count", f"{report.reader:,}")
    console = Console()
    console.print(table)
    console.print("Not a penny was lost." if report.balanced else "[bold red]The money does not add up.[/]")
    sys.exit(not report.balanced)


if __name__ == "__main__":
    main()

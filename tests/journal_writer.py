"""A process that writes to a journal until it is killed: tells on its standard output what it was told is durable.

python journal_writer.py PATH ACTOR [--limit BYTES] [--user NUMBER]
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Any

import anyio

from ropewalk import JournalUnavailable, SessionElsewhere, SQLiteJournal


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def write(journal: SQLiteJournal, actor_id: str) -> None:
    try:
        await journal.open()
        async with anyio.create_task_group() as tasks:
            keeper = journal.keeper()
            tasks.start_soon(keeper.run)
            try:
                await write_on(journal, actor_id)
            finally:
                keeper.stop()
    except* (JournalUnavailable, SessionElsewhere) as group:
        error: Any = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        tell(f"{type(error).__name__}: {error}")


async def run(path: str, actor_id: str, user: int) -> None:
    journal = SQLiteJournal(path)
    if user != os.getuid():  # only now: somebody else may not be able to read the modules of whoever installed them
        os.setgid(user)
        os.setuid(user)
    await write(journal, actor_id)


async def write_on(journal: SQLiteJournal, actor_id: str) -> None:
    claim = await journal.claim(actor_id, "killed")
    tell(f"claimed {claim.last}")
    last = claim.last
    while True:
        size = 1 + last % 3
        commit = journal.append(actor_id, claim.epoch, last + 1, [{"number": last + 1 + part, "ends": last + size, "text": "x" * 300} for part in range(size)])
        last += size
        if commit is not None:
            await commit.wait()
        tell(f"durable {last}")


if __name__ == "__main__":
    path, actor_id, *options = sys.argv[1:]
    named = dict(zip(options[::2], options[1::2], strict=True))
    if "--limit" in named:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(named["--limit"]), resource.RLIM_INFINITY))
    anyio.run(run, path, actor_id, int(named.get("--user", os.getuid())))

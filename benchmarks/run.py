"""The driver: which rows, on which backends, how large, and where the figures go."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog

from backends import BACKENDS
from report import Measured, merged, plain, read_json, table, write_json, write_readme
from rows import ROWS, Size

__all__ = ["main"]

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; a full run writes the figures of its rows into the README as they come."""
    given = _parser().parse_args(arguments)
    size: Size = "toy" if given.toy else "quick" if given.quick else "full"
    names, backends = given.row or list(ROWS), given.backend or list(BACKENDS)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        # What is logged is put together as it would be; only the terminal is spared it.
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(nowhere))
        measured = run(names, backends, size, write=given.write or size == "full")
        structlog.reset_defaults()
    print(f"\n{table(measured)}")
    if given.json:
        write_json(Path(given.json), measured)
    return 0


def run(names: Sequence[str], backends: Sequence[str], size: Size, *, write: bool) -> list[Measured]:
    """The lines of these rows on these backends, each told as it comes, and written where the others stand once its row is done."""
    measured: list[Measured] = []
    for name in names:
        for backend in backends:
            if backend in ROWS[name].backends:
                lines = BACKENDS[backend].run(partial(ROWS[name].measure, BACKENDS[backend], size))
                for line in lines:
                    measured.append(Measured(name, backend, size, line))
                    print(plain(measured[-1]), flush=True)
        if write:
            published = merged(read_json(HERE / "figures.json"), [one for one in measured if one.row == name], list(ROWS))
            write_json(HERE / "figures.json", published)
            write_readme(HERE / "README.md", published)
    return measured


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description="What a turn costs in Ropewalk, beside bare loops in the same run.")
    parser.add_argument("--row", action="append", choices=ROWS, help="only this row; may be given several times")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this backend; may be given several times")
    parser.add_argument("--quick", action="store_true", help="about a minute, and figures to match")
    parser.add_argument("--toy", action="store_true", help="the smallest there is, to see that every row runs; its figures mean nothing")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--write", action="store_true", help="write the figures into the README, though the run is a quick one")
    return parser

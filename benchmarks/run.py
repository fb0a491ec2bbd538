"""The driver: which rows, on which backends, how large, and where the figures go."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog

from backends import BACKENDS
from report import Measured, plain, table, write_json, write_readme
from rows import ROWS, Size

__all__ = ["main"]

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; a full run of every row on every backend writes its figures beside this file."""
    given = _parser().parse_args(arguments)
    size: Size = "toy" if given.toy else "quick" if given.quick else "full"
    names, backends = given.row or list(ROWS), given.backend or list(BACKENDS)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        # What is logged is put together as it would be; only the terminal is spared it.
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(nowhere))
        measured = run(names, backends, size)
        structlog.reset_defaults()
    print(f"\n{table(measured)}")
    if given.json:
        write_json(Path(given.json), measured)
    if given.write or (size == "full" and not given.row and not given.backend):
        write_json(HERE / "figures.json", measured)
        write_readme(HERE / "README.md", measured)
    return 0


def run(names: Sequence[str], backends: Sequence[str], size: Size) -> list[Measured]:
    """The lines of these rows on these backends, each told as it comes."""
    measured: list[Measured] = []
    for name in names:
        for backend in backends:
            if backend in ROWS[name].backends:
                lines = BACKENDS[backend].run(partial(ROWS[name].measure, BACKENDS[backend], size))
                for line in lines:
                    measured.append(Measured(name, backend, line))
                    print(plain(measured[-1]), flush=True)
    return measured


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description="What a turn costs in Ropewalk, beside bare loops in the same run.")
    parser.add_argument("--row", action="append", choices=ROWS, help="only this row; may be given several times")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this backend; may be given several times")
    parser.add_argument("--quick", action="store_true", help="about a minute, and figures to match")
    parser.add_argument("--toy", action="store_true", help="the smallest there is, to see that every row runs; its figures mean nothing")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--write", action="store_true", help="write the README's table even after a partial run")
    return parser

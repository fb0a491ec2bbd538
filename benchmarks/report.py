"""The figures as a table: for the terminal, as JSON, and between two marks of the README, where a new run replaces them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from rows import ROWS, Line, Size

__all__ = ["Measured", "machine", "merged", "plain", "read_json", "table", "write_json", "write_readme"]

BEGIN, END = "<!-- figures: written by a run, not by hand -->", "<!-- end of the figures -->"
LIBRARIES = ("anyio", "attrs", "msgspec", "trio", "uvloop")
HELD = {True: "held", False: "**missed**", None: "–"}


@attrs.frozen
class Measured:
    """A line as it came out on one backend, in the row of this name, in a run of this size."""

    row: str
    backend: str
    size: Size
    line: Line


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES if _installed(name)}
    return {"processor": _processor(), "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(), **versions}


def _installed(name: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=name))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{names[0] if names else platform.processor() or 'unknown'}, {os.cpu_count()} cores"


def _figure(value: float | None, unit: str = "") -> str:
    if value is None:
        return "–"
    digits = 0 if unit == "bytes" or value >= 100 or value == int(value) else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _pair(values: tuple[float | None, float | None]) -> str:
    shown = [_figure(value) for value in values]
    while len(shown) > 1 and shown[-1] == "–":
        shown.pop()
    return "; ".join(shown)


def _promise(line: Line) -> str:
    return "–" if line.promised == (None, None) else f"≤ {_pair(line.promised)} {line.terms}"


def _compared(line: Line) -> str:
    return "–" if line.compared == (None, None) else f"{_pair(line.compared)} {line.terms}"


def _cells(measured: Measured) -> list[str]:
    line = measured.line
    unit = f" ({line.unit})" if line.unit else ""
    figures = [_figure(value, line.unit) for value in (line.bare, line.handler, line.stream)]
    quick = "" if measured.size == "full" else f" [{measured.size}]"
    return [f"{line.what}{unit}{quick}", measured.backend, *figures, _compared(line), _promise(line), HELD[line.held]]


HEADER = ["what", "on", "bare", "handler", "stream", "that is (handler; stream)", "promised", ""]


def table(measured: Sequence[Measured]) -> str:
    """The lines as a Markdown table."""
    lines = [HEADER, ["---"] * 2 + ["---:"] * 3 + ["---"] * 3, *map(_cells, measured)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain(measured: Measured) -> str:
    """One line for the terminal."""
    what, backend, floor, handler, stream, compared, promised, held = _cells(measured)
    return f"{backend:8} {what}: bare {floor}, handler {handler}, stream {stream}: {compared} (promised {promised}: {held.strip('*')})"


def merged(kept: Sequence[Measured], fresh: Sequence[Measured], order: Sequence[str]) -> list[Measured]:
    """The lines with every row that was measured again on a backend in place of its old lines, rows in this order."""
    again = {(one.row, one.backend) for one in fresh}
    lines = [*(one for one in kept if (one.row, one.backend) not in again and one.row in order), *fresh]
    return sorted(lines, key=lambda one: order.index(one.row))


def read_json(path: Path) -> list[Measured]:
    """The lines a run wrote, none when there is no such file."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    names = [field.name for field in attrs.fields(Line)]
    return [Measured(line["row"], line["backend"], line["size"], Line(**{name: _tupled(line[name]) for name in names})) for line in found["lines"]]


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def write_json(path: Path, measured: Sequence[Measured]) -> None:
    """Every figure, for programs."""
    lines = [{"row": one.row, "backend": one.backend, "size": one.size, **attrs.asdict(one.line), "held": one.line.held} for one in measured]
    path.write_text(json.dumps({"machine": machine(), "lines": lines}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_readme(path: Path, measured: Sequence[Measured]) -> None:
    """Put the figures between the README's marks."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    missed = sum(one.line.held is False for one in measured)
    judged = sum(one.line.held is not None for one in measured)
    about = ", ".join(f"{name} {value}" if name not in ("processor", "system") else value for name, value in machine().items())
    absent = [row.title for row in ROWS.values() if row.name not in {one.row for one in measured}]
    notes = [f"Taken on: {about}.", f"Of {judged} lines with a promise {judged - missed} held, {missed} missed it."]
    if any(one.size != "full" for one in measured):
        notes.append("Lines marked [quick] come from a run with few repetitions, and are rough.")
    if absent:
        notes.append(f"Not measured yet: {'; '.join(absent)}.")
    figures = f"{' '.join(notes)}\n\n{table(measured)}"
    path.write_text(f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}", encoding="utf-8")

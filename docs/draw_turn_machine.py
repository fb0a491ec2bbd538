"""Draw `turn-machine.md` from the table the turn machine runs by: ``python docs/draw_turn_machine.py``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from ropewalk.actors import turn

PAGE = Path(__file__).with_name("turn-machine.md")

OPENING = """\
# The turn machine

<!-- Drawn from TRANSITIONS in actors/turn.py by docs/draw_turn_machine.py; change the table, then draw again. -->

A turn is one prompt worked to its end: one or more cycles of a model call and the tools it asked for. All that can happen
in it is one pure function, `step(state, input) -> (state, effects)` in `actors/turn.py`. It awaits nothing and reads no
clock; whoever drives it carries the effects out in order, and how the last of them ends is the next input. An input that
stands in no row below is a bug of the driver (`IllegalInput`) and changes nothing. Every turn that begins ends by exactly
one `Finish`.
"""


def document() -> str:
    """The page's whole text."""
    return "\n".join([OPENING, *_diagram(), "", *_table(), "", *_words("Inputs", turn.Input), "", *_words("Effects", turn.Effect), ""])


def _diagram() -> Iterator[str]:
    yield "## Diagram"
    yield ""
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    [*] --> Ready"
    for state, inputs in turn.TRANSITIONS.items():
        causes: dict[type[Any], list[str]] = {}
        for given, followings in inputs.items():
            for following in followings:
                causes.setdefault(following, []).append(given.__name__)
        for following, names in causes.items():
            yield f"    {state.__name__} --> {following.__name__}: {', '.join(names)}"
    yield "    Ended --> [*]"
    yield "```"


def _table() -> Iterator[str]:
    yield "## States"
    yield ""
    yield "| state | what it means | leaves on |"
    yield "|---|---|---|"
    for state, inputs in turn.TRANSITIONS.items():
        leaves = [f"{given.__name__} → {' / '.join(following.__name__ for following in followings)}" for given, followings in inputs.items()]
        yield f"| {state.__name__} | {_meaning(state)} | {'<br>'.join(leaves) or '—'} |"


def _words(title: str, union: Any) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield f"| {title.lower().removesuffix('s')} | what it means |"
    yield "|---|---|"
    for kind in get_args(union):
        yield f"| {kind.__name__} | {_meaning(kind)} |"


def _meaning(kind: type[Any]) -> str:
    return " ".join((inspect.getdoc(kind) or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")

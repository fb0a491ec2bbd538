"""What a docstring says of a tool, and what it says of each parameter."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from ropewalk.runtime.supervision import Failure, contain

__all__ = ["parameter_texts", "without_parameters"]

_GOOGLE = re.compile(r"(Args|Arguments|Parameters|Params)\s*:\s*")
_NUMPY = re.compile(r"(Other )?Parameters\s*")
_RULE = re.compile(r"-{3,}\s*")
_FIELD = re.compile(r":(param|parameter|arg|argument|key|keyword|type)\s[^:]*:")


def parameter_texts(docstring: str) -> dict[str, str]:
    """The description of each parameter a Google, NumPy or reST docstring describes, on one line."""
    import docstring_parser  # here, because only programs with tools need it

    parsed = contain(docstring_parser.parse, docstring)
    if isinstance(parsed, Failure):
        return {}
    return {parameter.arg_name: " ".join(parameter.description.split()) for parameter in parsed.params if parameter.description}


def without_parameters(docstring: str) -> str:
    """The whole docstring, tidied, but for the sections and fields that describe parameters."""
    lines = inspect.cleandoc(docstring).splitlines()
    kept: list[str] = []
    position = 0
    while position < len(lines):
        end = _section_end(lines, position)
        if end == position:
            kept.append(lines[position])
            end += 1
        position = end
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _section_end(lines: Sequence[str], start: int) -> int:
    """Where the description of parameters that begins on this line ends; `start` itself when none begins here."""
    if _GOOGLE.fullmatch(lines[start]):
        return _indented(lines, start + 1, blank=True)
    if _NUMPY.fullmatch(lines[start]) and _underlined(lines, start):
        return next((line for line in range(start + 2, len(lines)) if lines[line].strip() and _underlined(lines, line)), len(lines))
    if _FIELD.match(lines[start]):
        return _indented(lines, start + 1, blank=False)
    return start


def _underlined(lines: Sequence[str], line: int) -> bool:
    return line + 1 < len(lines) and _RULE.fullmatch(lines[line + 1]) is not None


def _indented(lines: Sequence[str], start: int, *, blank: bool) -> int:
    """The first line from `start` on that is not indented; blank lines go along where `blank` says so."""
    for line in range(start, len(lines)):
        if not (lines[line][:1].isspace() or (blank and not lines[line])):
            return line
    return len(lines)

"""Foreign text that is shown: what a model, a tool or an error says may not steer the terminal it is shown on."""

from __future__ import annotations

__all__ = ["in_short", "printable"]

_CODES = [*range(0x20), *range(0x7F, 0xA0)]
_ESCAPED: dict[int, str | None] = {code: f"\\x{code:02x}" for code in _CODES}
_ESCAPED.update({ord("\n"): "\n", ord("\t"): "    ", ord("\r"): None})


def printable(text: str) -> str:
    r"""The text with each control character as it is written in Python, such as ``\x1b``.

    Newlines stay, tabs are four spaces, carriage returns are left out. Half a surrogate pair is a question mark.
    """
    return text.translate(_ESCAPED).encode("utf-8", "replace").decode("utf-8")


def in_short(text: str, width: int) -> str:
    """The text on one printable line of at most `width` characters."""
    line = " ".join(printable(text[: 8 * width]).split())
    return line if len(line) <= width and len(text) <= 8 * width else f"{line[: width - 1]}…"

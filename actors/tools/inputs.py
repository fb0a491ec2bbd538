"""The input of a call, as the text a model wrote: read where it is a JSON object, else what is wrong with it."""

from __future__ import annotations

from typing import Any

import msgspec

from ropewalk.actors.messages import Block
from ropewalk.actors.tools.results import unreadable_input_result
from ropewalk.actors.validity import INPUT_DEPTH, deeper_than
from ropewalk.runtime.supervision import Failure, contain

__all__ = ["read_input", "unreadable_result"]


def read_input(text: str) -> dict[str, Any]:
    """The input a JSON text says; raises what is wrong with it. What is nested so deep that no history can hold it is none."""
    try:
        read: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any]) if text.strip() else {}
    except RecursionError:
        read, too_deep = {}, True
    else:
        too_deep = text.count("[") + text.count("{") > INPUT_DEPTH and deeper_than(INPUT_DEPTH, read)
    if too_deep:
        raise ValueError(f"nested deeper than {INPUT_DEPTH} levels")
    return read


def unreadable_result(tool_use_id: str, text: str) -> Block | None:
    """The error result of a call whose input is this text; None for a text that can be read."""
    read = contain(read_input, text)
    return unreadable_input_result(tool_use_id, text, str(read.error)) if isinstance(read, Failure) else None

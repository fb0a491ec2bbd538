"""How far a turn may go."""

from __future__ import annotations

from typing import Any

import attrs

from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.seconds import is_seconds

__all__ = ["Limits"]


def _count(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise InvalidOption(f"Limits.{attribute.name} is a whole number of at least 1, or None for no limit, not {value!r}")


def _seconds(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (is_seconds(value) and value > 0):
        raise InvalidOption(f"Limits.{attribute.name} is a number of seconds above 0, or None for no limit, not {value!r:.100}")


@attrs.frozen
class Limits:
    """Bounds of one turn; None is no bound. A turn that reaches one ends with a stop reason, not an error.

    :param cycles: model calls (``limit_cycles``).
    :param output_tokens: tokens the model wrote (``limit_output_tokens``), looked at before each model call.
    :param total_tokens: tokens read and written (``limit_total_tokens``), likewise.
    :param seconds: the whole turn (``limit_seconds``); also ends a running model call or tool.
    :param stream_idle_seconds: how long a model may say nothing before the call counts as failed.
    :param reduction_seconds: all reductions of the turn together.
    """

    cycles: int | None = attrs.field(default=100, validator=_count)
    output_tokens: int | None = attrs.field(default=None, validator=_count)
    total_tokens: int | None = attrs.field(default=None, validator=_count)
    seconds: float | None = attrs.field(default=None, validator=_seconds)
    stream_idle_seconds: float | None = attrs.field(default=120, validator=_seconds)
    reduction_seconds: float | None = attrs.field(default=60, validator=_seconds)

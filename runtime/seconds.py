"""What may be given as a number of seconds."""

from __future__ import annotations

import math
import sys
from typing import TypeGuard

__all__ = ["is_seconds"]


def is_seconds(value: object) -> TypeGuard[float]:
    """Whether a value is a number that a deadline can be reckoned with: 0 or more, infinity too, and not too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= sys.float_info.max or value == math.inf

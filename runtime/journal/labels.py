"""Labels of records as a journal keeps them: as digests, since text must be able to vanish."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from ropewalk.runtime.errors import InvalidOption

__all__ = ["digest_of", "digests_of"]

DIGEST_BYTES = 16


def digest_of(label: str) -> bytes:
    """What is kept of a label. Raises `InvalidOption` for what is none."""
    if not isinstance(label, str) or not label:
        raise InvalidOption(f"a record's label is a text that is not empty, not {label!r:.200}")
    return blake2b(label.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def digests_of(labels: Mapping[str, int] | None, first: int, count: int) -> tuple[tuple[bytes, int], ...]:
    """What is kept of the labels of `count` records from `first` on. Raises `InvalidOption` for one of another record."""
    if not labels:
        return ()
    for label, number in labels.items():
        if type(number) is not int or not first <= number < first + count:
            raise InvalidOption(f"a label is of a record that is appended with it, {first} to {first + count - 1}; {label!r:.200} is of {number!r:.200}")
    return tuple((digest_of(label), number) for label, number in labels.items())

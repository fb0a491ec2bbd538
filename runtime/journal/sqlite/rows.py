"""A record as it lies in an SQLite journal: one blob that holds all of it, with a checksum over all it is and where it belongs.

One blob, because of what must be able to vanish. SQLite overwrites a deleted row, but when rows leave a page it moves their
neighbours about and leaves copies of them in the gaps. So text is only ever added at the end of one table and overwritten in
place by a blob of the same length; what is deleted, moved and sorted are numbers. A blob may be longer than its record: the rest is padding.

The checksum is over the number of the log, not over the actor's id: forks read the record too, and go on reading it when its actor is deleted.
"""

from __future__ import annotations

import struct
import zlib
from typing import TypeAlias

from ropewalk.runtime.journal.codec import Encoded

__all__ = ["HEAD_BYTES", "Unpacked", "at_of", "blank", "is_unfinished", "packed", "padded", "slot_size", "unpacked"]

_HEAD = struct.Struct("<I?IIdHBI")
"""Checksum, whether work is unfinished after it, number, epoch, at, version, length of the tag, length of the body."""

HEAD_BYTES = _HEAD.size

_SMALLEST_SLOT = 512

Unpacked: TypeAlias = tuple[int, int, float, bool, Encoded]
"""A record: its number, epoch, time, whether work is unfinished after it, and body."""


def packed(log: int, number: int, epoch: int, at: float, unfinished: bool, kept: Encoded) -> bytes:
    """The record as a blob."""
    tag = kept.tag.encode()
    rest = _HEAD.pack(0, unfinished, number, epoch, at, kept.version, len(tag), len(kept.data))[4:] + tag + kept.data
    return zlib.crc32(rest, zlib.crc32(log.to_bytes(8, "little"))).to_bytes(4, "little") + rest


def unpacked(log: int, number: int | None, blob: object) -> Unpacked | None:
    """The record in a blob, None when it is not what was written in this log under this number (None: under any)."""
    if not isinstance(blob, bytes) or len(blob) < _HEAD.size:
        return None
    checksum, unfinished, written, epoch, at, version, tag_length, body_length = _HEAD.unpack_from(blob)
    tag_ends = _HEAD.size + tag_length
    ends = tag_ends + body_length
    if ends > len(blob) or (number is not None and number != written) or zlib.crc32(blob[4:ends], zlib.crc32(log.to_bytes(8, "little"))) != checksum:
        return None
    return written, epoch, at, unfinished, Encoded(blob[_HEAD.size : tag_ends].decode(), version, blob[tag_ends:ends])


def at_of(head: bytes | None) -> float | None:
    """The time in a blob that begins so, None where it is torn or lost."""
    at: float | None = _HEAD.unpack_from(head)[4] if head is not None and len(head) >= HEAD_BYTES else None
    return at


def is_unfinished(head: bytes | None) -> bool:
    """Whether work is unfinished after the record in a blob that begins so; where it is torn or lost, somebody has to look."""
    unfinished: bool = _HEAD.unpack_from(head)[1] if head is not None and len(head) >= HEAD_BYTES else True
    return unfinished


def padded(blob: bytes, length: int) -> bytes | None:
    """The blob made as long as this, None when it is longer."""
    return blob.ljust(length, b" ") if len(blob) <= length else None


def blank(length: int) -> bytes:
    """What is written over a blob of this length that is to be gone."""
    return bytes(length)


def slot_size(length: int) -> int:
    """How much room a blob of this length gets that others will be written over: one of few sizes, so that it fits elsewhere too."""
    size = _SMALLEST_SLOT
    while size < length:
        size *= 2
    return size

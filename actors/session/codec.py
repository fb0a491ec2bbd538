"""How a session's records are kept outside this process."""

from __future__ import annotations

from ropewalk.actors.session.records import Body
from ropewalk.runtime.journal.codec import StructCodec

__all__ = ["RECORDS"]

RECORDS = StructCodec(Body, version=1)
"""Its version grows, with an upgrade from the last one, when an older Ropewalk would misread what a newer one writes; a field it may ignore needs neither."""

"""`ropewalk.testing`: the kit for testing your own tools, handlers, managers and models.

The parts that need hypothesis are brought in on first use: `strategies`, `SessionMachine`, `TrioLoop`, `VirtualClock`.
"""

from __future__ import annotations

from typing import Any

from ropewalk.actors.testing import Reply as Reply
from ropewalk.actors.testing import Request as Request
from ropewalk.actors.testing import Script as Script
from ropewalk.actors.testing import ScriptedModel as ScriptedModel
from ropewalk.actors.testing import ToolUse as ToolUse

_LATER = {
    "SessionMachine": "ropewalk.actors.testing.machine",
    "TrioStateMachine": "ropewalk.actors.testing.loop",
    "TrioLoop": "ropewalk.actors.testing.loop",
    "cancelled_at_step": "ropewalk.actors.testing.loop",
    "ainitialize": "ropewalk.actors.testing.loop",
    "ainvariant": "ropewalk.actors.testing.loop",
    "arule": "ropewalk.actors.testing.loop",
    "in_trio": "ropewalk.actors.testing.loop",
    "VirtualClock": "ropewalk.actors.testing.clock",
    "EventFold": "ropewalk.actors.testing.fold",
}

__all__ = ["Reply", "Request", "Script", "ScriptedModel", "ToolUse"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "strategies":
        return import_module("ropewalk.actors.testing.strategies")
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'ropewalk.testing' has no attribute {name!r}")

"""`ropewalk.testing`: the kit for testing your own tools, handlers, managers and models.

The parts that need hypothesis are brought in on first use: `strategies`, `SessionMachine`, `TrioLoop`, `VirtualClock`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ropewalk.actors.testing import Reply as Reply
from ropewalk.actors.testing import Request as Request
from ropewalk.actors.testing import Script as Script
from ropewalk.actors.testing import ScriptedModel as ScriptedModel
from ropewalk.actors.testing import ToolUse as ToolUse

if TYPE_CHECKING:
    from ropewalk.actors.testing import strategies as strategies
    from ropewalk.actors.testing.chunks import chunk_streams as chunk_streams
    from ropewalk.actors.testing.clock import VirtualClock as VirtualClock
    from ropewalk.actors.testing.fold import EventFold as EventFold
    from ropewalk.actors.testing.journals import Conformance as Conformance
    from ropewalk.actors.testing.journals import Damage as Damage
    from ropewalk.actors.testing.journals import JournalHarness as JournalHarness
    from ropewalk.actors.testing.journals import check_journal as check_journal
    from ropewalk.actors.testing.loop import TrioLoop as TrioLoop
    from ropewalk.actors.testing.loop import TrioStateMachine as TrioStateMachine
    from ropewalk.actors.testing.loop import ainitialize as ainitialize
    from ropewalk.actors.testing.loop import ainvariant as ainvariant
    from ropewalk.actors.testing.loop import arule as arule
    from ropewalk.actors.testing.loop import cancelled_at_step as cancelled_at_step
    from ropewalk.actors.testing.loop import in_trio as in_trio
    from ropewalk.actors.testing.machine import SessionMachine as SessionMachine
    from ropewalk.actors.testing.scripts import model_scripts as model_scripts
    from ropewalk.actors.testing.scripts import turn_inputs as turn_inputs

_LATER = {
    "chunk_streams": "ropewalk.actors.testing.chunks",
    "model_scripts": "ropewalk.actors.testing.scripts",
    "turn_inputs": "ropewalk.actors.testing.scripts",
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
    "Conformance": "ropewalk.actors.testing.journals",
    "Damage": "ropewalk.actors.testing.journals",
    "JournalHarness": "ropewalk.actors.testing.journals",
    "check_journal": "ropewalk.actors.testing.journals",
}

__all__ = ["Reply", "Request", "Script", "ScriptedModel", "ToolUse"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "strategies":
        return import_module("ropewalk.actors.testing.strategies")
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'ropewalk.testing' has no attribute {name!r}")

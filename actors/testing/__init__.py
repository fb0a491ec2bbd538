"""The property-testing kit: a model that plays scripts, strategies, and a state machine over sessions.

The parts that need hypothesis (`strategies`, `machine`, `loop`) are imported by their own names, so that a script can be
played without it.
"""

from ropewalk.actors.testing.scripted import Reply, Request, Script, ScriptedModel, ToolUse

__all__ = ["Reply", "Request", "Script", "ScriptedModel", "ToolUse"]

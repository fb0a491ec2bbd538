"""``ropewalk models check``: which tool a model calls for which request, and whether that is the right one. Nothing here is imported by the library."""

from ropewalk.actors.tool_check.check import Choice, Request, ask_all, wrong_choices
from ropewalk.actors.tool_check.command import CheckOptions, in_words, run_check, show_choices
from ropewalk.actors.tool_check.requests import REQUESTS, TOOLS

__all__ = ["REQUESTS", "TOOLS", "CheckOptions", "Choice", "Request", "ask_all", "in_words", "run_check", "show_choices", "wrong_choices"]

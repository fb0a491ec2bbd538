"""A callback handler that shows a turn on the terminal as it happens."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["PrintingCallbackHandler"]


class PrintingCallbackHandler:
    """Prints text and reasoning as they are streamed, and names each tool the model calls; an agent's default handler.

    On a terminal the last line of a turn is ended, for whatever comes next; elsewhere what is printed is the model's text and no more.

    :param verbose_tool_use: whether tool calls are named, as ``Tool #1: calculator`` on a line of its own.

    `tool_count` is how many tool calls were seen so far, over all turns.
    """

    def __init__(self, verbose_tool_use: bool = True) -> None:
        self.verbose_tool_use = verbose_tool_use
        self.tool_count = 0
        self._in_line = False

    def __call__(self, **event: Any) -> None:
        """Print what one callback event has to show; most have nothing."""
        text = event.get("reasoningText") or event.get("data")
        if text:
            print(text, end="", flush=True)
            self._in_line = not text.endswith("\n")
        elif self._in_line and ("result" in event or "force_stop" in event):
            self._in_line = False
            if getattr(sys.stdout, "isatty", bool)():
                print(flush=True)
        started = event.get("event", {}).get("contentBlockStart", {}).get("start", {})
        if "toolUse" in started:
            self.tool_count += 1
            if self.verbose_tool_use:
                print(f"\nTool #{self.tool_count}: {started['toolUse']['name']}", flush=True)
                self._in_line = False

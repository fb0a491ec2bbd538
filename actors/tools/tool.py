"""A tool: what a model is told of it, and what is called when the model asks.

A `Tool` is a frozen value that any number of sessions share. `Tool(...)` makes one from parts, for tools that come as data;
the decorator makes one from a function and derives from this class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import attrs

from ropewalk.actors.errors import InvalidTool
from ropewalk.actors.tools.context import ToolContext
from ropewalk.actors.tools.jsonschema import check_input, checked_schema
from ropewalk.actors.tools.kinds import Kind, kind_of

__all__ = ["Errors", "Replay", "Tool", "ToolCall", "is_tool_name"]

Errors: TypeAlias = Literal["full", "type"]
Replay: TypeAlias = Literal["never", "safe", "key"]
ToolCall: TypeAlias = Callable[[dict[str, Any], ToolContext], Any]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def is_tool_name(name: object) -> bool:
    """Whether a name is one that every provider accepts: 1 to 64 letters, digits, hyphens and underscores."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


@attrs.frozen(eq=False)
class Tool:
    """A tool made from parts. Raises `InvalidTool` for parts that cannot be one.

    :param name: 1 to 64 characters of ``a-z A-Z 0-9 _ -``.
    :param description: what the model reads to decide whether to call it.
    :param input_schema: JSON schema of an object, as a plain dict; the tool keeps a copy.
    :param call: ``call(input, context)``, a sync, async or async generator function. A generator's last item is the result.
    :param timeout: seconds one call may take, waiting for its turn included; None is no limit.
    :param replay: whether recovery may run a call again whose outcome is unknown: `never`, because it is `safe` to, or with the same idempotency `key`.
    :param concurrency: how many calls of this tool may run at once in one runtime; None is no limit.
    :param errors: what a model is shown of an exception: `full`, or its `type` only.
    """

    name: str
    description: str
    input_schema: dict[str, Any] = attrs.field(repr=False)
    call: ToolCall = attrs.field(repr=False)
    timeout: float | None = attrs.field(default=None, kw_only=True)
    replay: Replay = attrs.field(default="never", kw_only=True)
    concurrency: int | None = attrs.field(default=None, kw_only=True)
    errors: Errors = attrs.field(default="full", kw_only=True)
    kind: Kind = attrs.field(init=False)
    """How it is run: `sync` functions in a worker thread, `async` ones and generators in the loop."""
    spec: dict[str, Any] = attrs.field(init=False, repr=False)
    """The Converse tool spec, ``{"name", "description", "inputSchema": {"json": schema}}``; to be read only."""

    def __attrs_post_init__(self) -> None:
        _check_words(self.name, self.description)
        _check_options(self)
        if not callable(self.call):
            raise InvalidTool(f"tool {self.name!r}: `call` is a {type(self.call).__name__}; give a function of (input, context)")
        schema = checked_schema(self.name, self.input_schema)
        object.__setattr__(self, "input_schema", schema)
        object.__setattr__(self, "kind", kind_of(self.name, self._implementation()))
        object.__setattr__(self, "spec", {"name": self.name, "description": self.description, "inputSchema": {"json": schema}})

    def convert(self, tool_input: dict[str, Any]) -> dict[str, Any]:
        """The input as `call` takes it.

        Raises `msgspec.ValidationError`, which names the key, where the schema refuses it: a required key that is missing, a
        top-level value of another type, an unknown key where ``additionalProperties`` is false. Tools made by the decorator
        check and convert to the depth of their annotations.
        """
        check_input(self.input_schema, tool_input)
        return tool_input

    def _implementation(self) -> Callable[..., Any]:
        return self.call


def _check_words(name: object, description: object) -> None:
    if not is_tool_name(name):
        raise InvalidTool(f"tool {name!r}: a name is 1 to 64 characters of a-z A-Z 0-9 _ -")
    if not isinstance(description, str) or not description.strip():
        raise InvalidTool(f"tool {name!r}: the description is {description!r}; say in words what the tool does")


def _check_options(tool: Tool) -> None:
    if tool.timeout is not None and not (type(tool.timeout) in (int, float) and 0 < tool.timeout < math.inf):
        raise _option(tool, "timeout", "a number of seconds above 0, or None")
    if tool.concurrency is not None and not (type(tool.concurrency) is int and tool.concurrency > 0):
        raise _option(tool, "concurrency", "a whole number above 0, or None")
    if tool.replay not in ("never", "safe", "key"):
        raise _option(tool, "replay", '"never", "safe" or "key"')
    if tool.errors not in ("full", "type"):
        raise _option(tool, "errors", '"full" or "type"')


def _option(tool: Tool, option: str, allowed: str) -> InvalidTool:
    return InvalidTool(f"tool {tool.name!r}: {option} is {getattr(tool, option)!r}; it may be {allowed}")

"""The tools of one agent, by name; frozen once made, so any number of sessions share it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

import attrs

from ropewalk.actors.errors import DuplicateTool, InvalidTool
from ropewalk.actors.tools.decorator import FunctionTool
from ropewalk.actors.tools.tool import Tool

__all__ = ["ToolRegistry"]


def _python_name(name: str) -> str:
    return name.replace("-", "_")


def _is_group(item: Any) -> TypeGuard[Iterable[Any]]:
    return isinstance(item, Iterable) and not isinstance(item, str | bytes | Mapping)


def _flat(item: Any) -> Iterator[Tool]:
    if isinstance(item, Tool):
        if isinstance(item, FunctionTool) and item.binding is not None:
            raise InvalidTool(f"tool {item.name!r} is a method; give it from an object, `object.{item.name}`")
        yield item
    elif _is_group(item):
        for inner in item:
            yield from _flat(inner)
    elif callable(item):
        name = getattr(item, "__name__", type(item).__name__)
        raise InvalidTool(f"{name!r} is a plain callable; decorate it with @tool, or write tool({name})")
    else:
        raise InvalidTool(f"{item!r} is not a tool; give functions decorated with @tool, or Tool(name, description, input_schema, call)")


def _distinct(tools: Iterable[Any]) -> tuple[Tool, ...]:
    """The tools of all groups, flat; raises where two could not be told apart from Python."""
    known: dict[str, Tool] = {}
    for tool in _flat(tools):
        other = known.get(_python_name(tool.name))
        if other is not None:
            raise DuplicateTool(f"two tools are named {other.name!r} and {tool.name!r}; names must differ by more than - and _")
        known[_python_name(tool.name)] = tool
    return tuple(known.values())


@attrs.frozen(eq=False)
class ToolRegistry:
    """Tools in the order they were given; nested lists, other iterables and registries are flattened.

    Raises `InvalidTool` for anything else, and `DuplicateTool` for two tools whose names are equal or differ only by ``-``
    and ``_``: from Python both would be called by one name.
    """

    tools: tuple[Tool, ...] = attrs.field(default=(), converter=_distinct, repr=False)
    names: tuple[str, ...] = attrs.field(init=False)
    specs: tuple[dict[str, Any], ...] = attrs.field(init=False, repr=False)
    """The Converse tool specs, in order; to be read only."""
    _by_name: dict[str, Tool] = attrs.field(init=False, repr=False)
    _by_python_name: dict[str, Tool] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(tool.name for tool in self.tools))
        object.__setattr__(self, "specs", tuple(tool.spec for tool in self.tools))
        object.__setattr__(self, "_by_name", {tool.name: tool for tool in self.tools})
        object.__setattr__(self, "_by_python_name", {_python_name(tool.name): tool for tool in self.tools})

    def get(self, name: str) -> Tool | None:
        """The tool of exactly this name."""
        return self._by_name.get(name)

    def find(self, python_name: str) -> Tool | None:
        """The tool of this name, where an underscore also stands for a hyphen."""
        return self._by_python_name.get(_python_name(python_name))

    def __iter__(self) -> Iterator[Tool]:
        return iter(self.tools)

    def __len__(self) -> int:
        return len(self.tools)

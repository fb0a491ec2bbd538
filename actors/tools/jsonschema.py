"""JSON schema as tools need it: is this dict plausibly the schema of an object, and does an input fit its top level?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any

import msgspec

from ropewalk.actors.errors import InvalidTool
from ropewalk.actors.validity import is_dict, is_list
from ropewalk.runtime.supervision import Failure, contain

__all__ = ["check_input", "checked_schema"]

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
    "null": (NoneType,),
}


def checked_schema(tool_name: str, schema: object) -> dict[str, Any]:
    """A copy of a tool's input schema. Raises `InvalidTool`, which names the place, when it cannot be the schema of an object."""
    encoded = contain(msgspec.json.encode, schema)
    if isinstance(encoded, Failure):
        raise InvalidTool(f"tool {tool_name!r}: the input schema is not JSON: {encoded.error}")
    copied: Any = msgspec.json.decode(encoded)
    if not is_dict(copied):
        raise InvalidTool(f'tool {tool_name!r}: the input schema is a {type(schema).__name__}; write {{"type": "object", "properties": {{...}}}}')
    if copied.get("type") != "object":
        raise InvalidTool(f'tool {tool_name!r}: the input schema has type {copied.get("type")!r}; a tool takes an "object"')
    for fault in _faults(copied, "input schema"):
        raise InvalidTool(f"tool {tool_name!r}: {fault}")
    return copied


def _faults(schema: Any, place: str) -> Iterator[str]:
    """What is wrong with a schema and those within it, each with its place."""
    if isinstance(schema, bool):
        return
    if not is_dict(schema):
        yield f"{place} is {schema!r}; it may be a dict"
        return
    named = schema.get("type", [])
    for name in named if is_list(named) else [named]:
        if not isinstance(name, str) or name not in _TYPES:
            yield f"{place} has type {name!r}; JSON schema knows {', '.join(_TYPES)}"
    properties = schema.get("properties", {})
    if not is_dict(properties):
        yield f"{place}: properties is {properties!r}; it may be a dict of schemas"
        return
    required = schema.get("required", [])
    if not is_list(required) or not all(isinstance(name, str) for name in required):
        yield f"{place}: required is {required!r}; it may be a list of names"
    for name, inner in properties.items():
        yield from _faults(inner, f"{place}: property {name!r}")
    if "items" in schema:
        yield from _faults(schema["items"], f"{place}: items")


def check_input(schema: Mapping[str, Any], tool_input: Mapping[str, Any]) -> None:
    """Hold an input against the top level of a schema; raises `msgspec.ValidationError`, which names the key."""
    for name in schema.get("required", ()):
        if name not in tool_input:
            raise msgspec.ValidationError(f"Object missing required field `{name}`")
    properties: Mapping[str, Any] = schema.get("properties", {})
    for name, value in tool_input.items():
        described = properties.get(name)
        if described is None:
            if schema.get("additionalProperties") is False:
                raise msgspec.ValidationError(f"Object contains unknown field `{name}`")
        elif is_dict(described) and "type" in described:
            _check_type(name, value, described["type"])


def _check_type(name: str, value: object, allowed: str | list[str]) -> None:
    names = [allowed] if isinstance(allowed, str) else allowed
    if not any(_is_a(value, type_name) for type_name in names):
        raise msgspec.ValidationError(f"Expected `{' | '.join(names)}`, got `{_json_type(value)}` - at `$.{name}`")


def _is_a(value: object, type_name: str) -> bool:
    if isinstance(value, bool):
        return type_name == "boolean"
    if type_name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[type_name])


def _json_type(value: object) -> str:
    return next((name for name in _TYPES if _is_a(value, name)), type(value).__name__)

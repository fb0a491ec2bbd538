"""From a signature to what a model may send: the schema it is shown and the type its input is converted to."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, NotRequired, Optional, TypedDict, Union, get_args, get_origin, get_type_hints

import attrs
import msgspec

from ropewalk.actors.errors import InvalidTool
from ropewalk.actors.tools.context import ToolContext
from ropewalk.actors.tools.kinds import underlying
from ropewalk.actors.validity import is_dict, is_list
from ropewalk.runtime.supervision import Failure, contain

__all__ = ["Signature", "read_signature"]

_SUPPORTED = (
    "str, int, float, bool, list, dict, tuple, set, Literal, Enum, Optional, datetime, UUID, Decimal, Any, "
    "a dataclass, an attrs class, a TypedDict or a msgspec.Struct"
)


@attrs.frozen
class Signature:
    """A function's parameters, as a model and as msgspec see them."""

    input_schema: dict[str, Any]
    """A self-contained JSON schema of an object."""
    arguments: Any
    """The TypedDict that `msgspec.convert` turns a model's input into; its keys are the keyword arguments."""
    context_names: tuple[str, ...]
    """The parameters that take the `ToolContext`."""
    needs_binding: bool
    """Whether the first parameter is the `self` or `cls` of an object still to come."""


@attrs.frozen
class _Parameter:
    name: str
    annotation: Any
    default: Any
    """`inspect.Parameter.empty` where the model has to give one."""
    described: str | None

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def read_signature(tool_name: str, function: Callable[..., Any], texts: Mapping[str, str]) -> Signature:
    """What a function takes from a model. `texts` describes parameters that their annotations don't describe.

    Raises `InvalidTool`, which names the tool, the parameter and the cure, for a parameter a model cannot be asked for.
    """
    declared = list(inspect.signature(function).parameters.values())
    needs_binding = bool(declared) and declared[0].name in ("self", "cls")
    fixed = _fixed_by_partial(function)
    parameters: list[_Parameter] = []
    context_names: list[str] = []
    for parameter in declared[needs_binding:]:
        if parameter.name in fixed:
            continue
        annotation = _resolved(tool_name, parameter, function)
        if _takes_context(annotation):
            context_names.append(parameter.name)
        else:
            parameters.append(_Parameter(parameter.name, annotation, parameter.default, texts.get(parameter.name)))
    return Signature(_schema_of(tool_name, parameters), _arguments_of(parameters), tuple(context_names), needs_binding)


def _fixed_by_partial(function: Callable[..., Any]) -> set[str]:
    fixed: set[str] = set()
    while isinstance(function, functools.partial):
        fixed.update(function.keywords)
        function = function.func
    return fixed


# Annotations ----------------------------------------------------------------------------------------------------------


def _resolved(tool_name: str, parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    """A parameter's annotation as a type, whether it was written as one or as a string."""
    where = f"tool {tool_name!r}: parameter"
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        raise InvalidTool(f"{where} '*{parameter.name}' cannot be described to a model; take one list, `{parameter.name}: list[str]`")
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        raise InvalidTool(f"{where} '**{parameter.name}' cannot be described to a model; name each one, or take `{parameter.name}: dict[str, Any]`")
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise InvalidTool(f"{where} {parameter.name!r} is positional-only, and a model gives names; remove the `/`")
    if parameter.annotation is inspect.Parameter.empty:
        raise InvalidTool(f"{where} {parameter.name!r} has no annotation; write `{parameter.name}: {_likely_type(parameter.default)}`")
    known = getattr(underlying(function), "__globals__", {})
    # A module may import the context for its type checker only, where the name is not there to be found.
    fallback = {} if "ToolContext" in known else {"ToolContext": ToolContext}
    hints = contain(_hint, parameter.annotation, known, fallback)
    if isinstance(hints, Failure):
        raise InvalidTool(f"{where} {parameter.name!r}: the annotation {parameter.annotation!r} means nothing here ({hints.error}); define it in the module")
    return hints


def _hint(annotation: Any, known: dict[str, Any], fallback: dict[str, Any]) -> Any:
    def annotated() -> None: ...

    annotated.__annotations__ = {"hint": annotation}
    return get_type_hints(annotated, known, fallback, include_extras=True)["hint"]


def _likely_type(default: object) -> str:
    return type(default).__name__ if type(default) in (str, int, float, bool, list, dict) else "str"


def _takes_context(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return any(_takes_context(inner) for inner in get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, ToolContext)


def _annotated_text(annotation: Any) -> str | None:
    """What an annotation says of its parameter: a string in `Annotated`, or the description of something in it."""
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        texts = [extra if isinstance(extra, str) else getattr(extra, "description", None) for extra in extras]
        return next((text for text in texts if isinstance(text, str)), None) or _annotated_text(inner)
    if get_origin(annotation) in (Union, UnionType):
        return next((text for arm in get_args(annotation) if (text := _annotated_text(arm))), None)
    return None


# Types and schemas ----------------------------------------------------------------------------------------------------


def _admitted(parameter: _Parameter) -> Any:
    """The type of a parameter; a default of None admits null, whether or not the annotation says so."""
    if parameter.default is not None or _admits_none(parameter.annotation):
        return parameter.annotation
    optional: Any = Optional
    return optional[parameter.annotation]


def _admits_none(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _admits_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return any(_admits_none(arm) for arm in get_args(annotation))
    return annotation in (Any, None, NoneType)


def _arguments_of(parameters: Iterable[_Parameter]) -> Any:
    # Keys may be missing rather than have defaults, so that the function's own defaults hold, whatever they are.
    build: Any = TypedDict
    missing: Any = NotRequired
    return build("Arguments", {each.name: _admitted(each) if each.required else missing[_admitted(each)] for each in parameters})


def _schema_of(tool_name: str, parameters: list[_Parameter]) -> dict[str, Any]:
    for each in parameters:
        _check_supported(tool_name, each)
    schemas, components = msgspec.json.schema_components([_admitted(each) for each in parameters], ref_template="#/$defs/{name}")
    properties = {each.name: _property(each, _untitled(schema)) for each, schema in zip(parameters, schemas, strict=True)}
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": [each.name for each in parameters if each.required]}
    if components:
        schema["$defs"] = {name: _untitled(component) for name, component in components.items()}
    return schema


def _check_supported(tool_name: str, parameter: _Parameter) -> None:
    # The decoder refuses unions that the schema would let pass.
    for build in (lambda: msgspec.json.schema_components([_admitted(parameter)]), lambda: msgspec.json.Decoder(_admitted(parameter))):
        built = contain(build)
        if isinstance(built, Failure):
            reason = str(built.error).splitlines()[-1]
            raise InvalidTool(f"tool {tool_name!r}: parameter {parameter.name!r} has a type a model cannot send ({reason}); use {_SUPPORTED}")


def _property(parameter: _Parameter, schema: dict[str, Any]) -> dict[str, Any]:
    text = _annotated_text(parameter.annotation) or parameter.described or f"Parameter {parameter.name}"
    if parameter.required:
        return {**schema, "description": text}
    schema = _without_null(schema)
    default = contain(lambda: msgspec.json.decode(msgspec.json.encode(parameter.default)))
    shown = {} if isinstance(default, Failure) else {"default": default}
    return {**schema, "description": text, **shown}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of T for that of T or null: what may be left out need not be offered as null too."""
    arms = schema.get("anyOf", [])
    if len(arms) != 2 or arms[1] != {"type": "null"}:
        return schema
    return {**{key: part for key, part in schema.items() if key != "anyOf"}, **arms[0]}


def _untitled(schema: Any) -> Any:
    """A schema without the titles that repeat names; a property that is called "title" stays."""
    if not is_dict(schema):
        return schema
    return {key: _untitled_part(key, part) for key, part in schema.items() if key != "title"}


def _untitled_part(key: str, part: Any) -> Any:
    if key == "properties" and is_dict(part):
        return {name: _untitled(inner) for name, inner in part.items()}
    if key in ("anyOf", "prefixItems") and is_list(part):
        return [_untitled(inner) for inner in part]
    return _untitled(part) if key in ("items", "additionalProperties") else part

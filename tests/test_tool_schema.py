"""What a tool looks like to a model, and what it takes to be one."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import json
from datetime import UTC, datetime
from decimal import Decimal
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Optional, TypedDict
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.actors.errors import DuplicateTool, InvalidTool
from ropewalk.actors.tools import FunctionTool, Tool, ToolContext, ToolLimits, ToolRegistry, run_tool, tool
from ropewalk.runtime.errors import InvalidOption

if TYPE_CHECKING:
    from somewhere_only_the_checker_knows import Unheard  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

    from ropewalk.actors.messages import Block


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


@dataclasses.dataclass
class Point:
    """A place on the map."""

    x: int
    title: str = "here"


@attrs.frozen
class Box:
    width: int
    height: int = 2


class Person(TypedDict):
    name: str
    age: NotRequired[int]


class Tree(msgspec.Struct):
    leaf: int
    branches: list[Tree] = []


def context_of(tool_use: Block) -> ToolContext:
    return ToolContext("session", "turn", {}, None, "key", tool_use)


async def called(made: Tool, tool_input: dict[str, Any]) -> Block:
    use = {"toolUseId": "t", "name": made.name, "input": tool_input}
    return await run_tool(ToolRegistry([made]), use, context_of, limits=ToolLimits(threads=None))


def schema_of(function: Any) -> dict[str, Any]:
    schema: dict[str, Any] = tool(function).spec["inputSchema"]["json"]
    return schema


def property_of(annotation: Any, default: Any = inspect.Parameter.empty) -> dict[str, Any]:
    """The schema of one parameter, without its description."""

    def function(**_: Any) -> None: ...

    taken = tool(name="probe")(_with_parameter(function, annotation, default))
    shown: dict[str, Any] = dict(taken.input_schema["properties"]["it"])
    assert shown.pop("description") == "Parameter it"
    return shown


def _with_parameter(function: Any, annotation: Any, default: Any) -> Any:
    parameter = inspect.Parameter("it", inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
    function.__signature__ = inspect.Signature([parameter])
    return function


# What a model is shown ------------------------------------------------------------------------------------------------


def test_a_spec_comes_from_signature_annotations_and_docstring() -> None:
    @tool
    def price(item: Annotated[str, "what to buy"], count: int = 1, note: str | None = None) -> str:
        """Look up a price.

        It is the one of today.

        Args:
            item: not this text, the annotation has one
            count: how many
                of them

        Returns:
            The price as text.
        """
        return f"{item}: {count} {note}"

    assert price.spec == {
        "name": "price",
        "description": "Look up a price.\n\nIt is the one of today.\n\nReturns:\n    The price as text.",
        "inputSchema": {
            "json": {
                "type": "object",
                "properties": {
                    "item": {"type": "string", "description": "what to buy"},
                    "count": {"type": "integer", "description": "how many of them", "default": 1},
                    "note": {"type": "string", "description": "Parameter note", "default": None},
                },
                "required": ["item"],
            }
        },
    }
    assert price.spec is price.spec


@pytest.mark.parametrize(
    "docstring",
    [
        "Add up.\n\nArgs:\n    a: the first\n\n        of two\n    b (int): the second\n\nReturns:\n    The sum.",
        "Add up.\n\nParameters\n----------\na : int\n    the first\n    of two\nb : int\n    the second\n\nReturns\n-------\nint\n    The sum.",
        "Add up.\n\n:param a: the first\n    of two\n:param int b: the second\n:type a: int\n:returns: The sum.",
    ],
    ids=["google", "numpy", "rest"],
)
def test_each_docstring_style_gives_parameters_their_words_and_keeps_the_rest(docstring: str) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    add.__doc__ = docstring
    made = tool(add)

    assert {name: shown["description"] for name, shown in made.input_schema["properties"].items()} == {"a": "the first of two", "b": "the second"}
    assert made.description.startswith("Add up.")
    assert "The sum." in made.description
    assert "the first" not in made.description
    assert "the second" not in made.description
    assert "Parameters" not in made.description
    assert "Args" not in made.description


def test_without_a_docstring_the_name_is_the_description_and_options_replace_both() -> None:
    def ping() -> str:
        return "pong"

    assert tool(ping).description == "ping"
    made = tool(name="hello-there", description="Says hello.")(ping)
    assert (made.name, made.description) == ("hello-there", "Says hello.")
    assert made.input_schema == {"type": "object", "properties": {}, "required": []}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (str, {"type": "string"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (list, {"type": "array"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (set[str], {"type": "array", "items": {"type": "string"}, "uniqueItems": True}),
        (Literal["a", "b"], {"enum": ["a", "b"]}),
        (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}),  # noqa: UP045 - both spellings are read
        (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
        (Annotated[int, msgspec.Meta(ge=1)], {"type": "integer", "minimum": 1}),
        (UUID, {"type": "string", "format": "uuid"}),
        (Any, {}),
    ],
)
def test_types_become_json_schema(annotation: Any, expected: dict[str, Any]) -> None:
    assert property_of(annotation) == expected


@pytest.mark.parametrize(
    ("annotation", "default", "expected"),
    [
        (Optional[int], None, {"type": "integer", "default": None}),  # noqa: UP045
        (int | None, 5, {"type": "integer", "default": 5}),
        (str, None, {"type": "string", "default": None}),
        (Annotated[int | None, msgspec.Meta(description="Parameter it")], None, {"type": "integer", "default": None}),
        (int | str | None, None, {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}], "default": None}),
        (Any, object(), {}),
        (set[int], {3}, {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "default": [3]}),
    ],
)
def test_what_may_be_left_out_shows_its_default_and_not_null(annotation: Any, default: Any, expected: dict[str, Any]) -> None:
    assert property_of(annotation, default) == expected


def test_nested_types_are_defined_beside_the_properties_without_titles() -> None:
    def draw(point: Point, colour: Colour = Colour.RED, tree: Tree | None = None) -> None: ...

    schema = schema_of(draw)

    assert schema["properties"]["point"] == {"$ref": "#/$defs/Point", "description": "Parameter point"}
    assert schema["properties"]["colour"] == {"$ref": "#/$defs/Colour", "description": "Parameter colour", "default": "red"}
    assert schema["$defs"]["Point"] == {
        "description": "A place on the map.",
        "type": "object",
        "properties": {"x": {"type": "integer"}, "title": {"type": "string", "default": "here"}},
        "required": ["x"],
    }
    assert schema["$defs"]["Tree"]["properties"]["branches"]["items"] == {"$ref": "#/$defs/Tree"}
    assert "title" not in schema["$defs"]["Tree"]


@pytest.mark.parametrize(
    "words",
    [
        Optional[Annotated[int, "so many"]],  # noqa: UP045
        Annotated[int | None, "so many"],
        Annotated[int, msgspec.Meta(description="so many")],
    ],
)
def test_words_are_found_wherever_annotated_stands(words: Any) -> None:
    def take(count: Any = None) -> None: ...

    take.__annotations__["count"] = words

    assert schema_of(take)["properties"]["count"]["description"] == "so many"


def test_the_context_is_not_shown_however_it_is_annotated() -> None:
    def plain(context: ToolContext, item: str) -> None: ...
    def optional(item: str, context: Optional[ToolContext] = None) -> None: ...  # noqa: UP045
    def union(item: str, *, context: ToolContext | None = None) -> None: ...
    def annotated(item: str, context: Annotated[ToolContext, "the call"]) -> None: ...

    for function in (plain, optional, union, annotated):
        assert list(schema_of(function)["properties"]) == ["item"]
        assert schema_of(function)["required"] == ["item"]


def test_the_context_is_found_where_only_the_checker_imports_it() -> None:
    module: dict[str, Any] = {}
    exec("def look(item: 'str', context: 'ToolContext | None' = None) -> 'str': ...", module)

    assert list(schema_of(module["look"])["properties"]) == ["item"]


# What is converted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "given_value", "expected"),
    [
        (int, "3", 3),
        (int, 3.0, 3),
        (float, 3, 3.0),
        (bool, "true", True),
        (list[int], ["1", 2], [1, 2]),
        (tuple[int, str], [1, "a"], (1, "a")),
        (set[int], [1, 1, 2], {1, 2}),
        (dict[int, str], {"1": "a"}, {1: "a"}),
        (Literal["a", "b"], "b", "b"),
        (Colour, "green", Colour.GREEN),
        (int | None, None, None),
        (Point, {"x": "4"}, Point(4)),
        (list[Box], [{"width": 1}], [Box(1, 2)]),
        (Person, {"name": "Ann"}, {"name": "Ann"}),
        (Tree, {"leaf": 1, "branches": [{"leaf": 2}]}, Tree(1, [Tree(2)])),
        (datetime, "2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (UUID, "12345678123456781234567812345678", UUID("12345678123456781234567812345678")),
        (Decimal, "1.50", Decimal("1.50")),
        (Any, {"a": [1]}, {"a": [1]}),
        (None, None, None),
    ],
)
async def test_inputs_are_converted_before_the_call(annotation: Any, given_value: Any, expected: Any) -> None:
    seen: list[Any] = []

    def take(it: Any) -> str:
        seen.append(it)
        return "ok"

    take.__annotations__["it"] = annotation
    result = await called(tool(take), {"it": given_value, "more": "is ignored"})

    assert result["status"] == "success"
    assert seen == [expected]
    assert type(seen[0]) is type(expected)


LEAVES: Any = st.sampled_from([int, str, bool, Colour, Literal["a", "b"]])
WRAPPERS: Any = st.sampled_from([lambda kind: GenericAlias(list, (kind,)), lambda kind: GenericAlias(dict, (str, kind)), lambda kind: kind | None])
ANNOTATIONS: Any = st.recursive(LEAVES, lambda inner: st.builds(lambda wrap, annotation: wrap(annotation), WRAPPERS, inner), max_leaves=4)


@given(data=st.data(), annotation=ANNOTATIONS)
def test_law_what_fits_an_annotation_arrives_as_it_was(data: st.DataObject, annotation: Any) -> None:
    value = data.draw(st.from_type(annotation))

    def take(it: Any) -> Any:
        return it

    take.__annotations__["it"] = annotation
    made = tool(take)
    sent = json.loads(json.dumps(msgspec.to_builtins(value)))

    assert made.call(made.convert({"it": sent}), context_of({})) == value
    assert json.loads(json.dumps(made.spec)) == made.spec


async def test_defaults_are_the_functions_own() -> None:
    kept: list[int] = []

    @tool
    def collect(item: int, into: list[int] = kept, *, marker: Any = object) -> bool:
        into.append(item)
        return marker is object

    result = await called(collect, {"item": 1})

    assert result["content"] == [{"text": "true"}]
    assert kept == [1]


# What refuses to be a tool --------------------------------------------------------------------------------------------


def unannotated(item, count=2) -> None: ...  # type: ignore[no-untyped-def]
def unannotated_count(item: str, count=2) -> None: ...  # type: ignore[no-untyped-def]
def variadic(*items: str) -> None: ...
def keywords(**items: str) -> None: ...
def positional(item: str, /) -> None: ...
def unsupported(item: complex) -> None: ...
def two_shapes(item: Point | Box) -> None: ...
def unheard(item: Unheard) -> None: ...
def generator(item: str) -> Any:
    yield item


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (unannotated, "tool 'unannotated': parameter 'item' has no annotation; write `item: str`"),
        (unannotated_count, "tool 'unannotated_count': parameter 'count' has no annotation; write `count: int`"),
        (variadic, "tool 'variadic': parameter '\\*items' .* take one list, `items: list"),
        (keywords, "tool 'keywords': parameter '\\*\\*items' .* name each one"),
        (positional, "tool 'positional': parameter 'item' is positional-only, .* remove the `/`"),
        (unsupported, "tool 'unsupported': parameter 'item' has a type a model cannot send .*complex.*; use str, int"),
        (two_shapes, "tool 'two_shapes': parameter 'item' has a type a model cannot send .*more than one dataclass"),
        (unheard, "tool 'unheard': parameter 'item': the annotation 'Unheard' means nothing here"),
        (generator, "tool 'generator': a sync generator cannot be a tool; write `async def`"),
        (lambda: None, "tool '<lambda>': a name is 1 to 64 characters"),
        (functools.partial(unsupported, item=1j), "has no name of its own; write tool\\(name=...\\)"),
        (Point, "is not a function; write @tool above a function"),
        ("price", "'price' is not a function"),
    ],
)
def test_a_function_that_cannot_be_a_tool_says_why_and_what_would_do(function: Any, text: str) -> None:
    with pytest.raises(InvalidTool, match=text):
        tool(function)


def test_a_tool_is_decorated_once() -> None:
    @tool
    def ping() -> None: ...

    with pytest.raises(InvalidTool, match="'ping' is a tool already"):
        tool(ping)


def parts(**changes: Any) -> Tool:
    given_parts: dict[str, Any] = {
        "name": "part",
        "description": "A tool from parts.",
        "input_schema": {"type": "object", "properties": {}},
        "call": lambda tool_input, context: "ok",
    }
    return Tool(**{**given_parts, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "no spaces"}, "tool 'no spaces': a name is 1 to 64"),
        ({"name": "x" * 65}, "a name is 1 to 64"),
        ({"name": "newline\n"}, "a name is 1 to 64"),
        ({"name": 3}, "tool 3: a name"),
        ({"description": " "}, "tool 'part': the description is ' '"),
        ({"call": "call"}, "`call` is a str; give a function"),
        ({"timeout": 0}, "timeout is 0; it may be a number of seconds above 0"),
        ({"timeout": True}, "timeout is True"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"replay": "always"}, 'replay is \'always\'; it may be "never", "safe" or "key"'),
        ({"concurrency": 0}, "concurrency is 0; it may be a whole number"),
        ({"concurrency": 2.0}, "concurrency is 2.0"),
        ({"errors": "none"}, "errors is 'none'"),
        ({"input_schema": []}, "the input schema is a list"),
        ({"input_schema": {"x": object()}}, "the input schema is not JSON"),
        ({"input_schema": {"properties": {}}}, 'has type None; a tool takes an "object"'),
        ({"input_schema": {"type": "dict"}}, "has type 'dict'"),
        ({"input_schema": {"type": "object", "properties": []}}, "properties is \\[\\]"),
        ({"input_schema": {"type": "object", "properties": {"a": {"type": "float"}}}}, "property 'a' has type 'float'; JSON schema knows string"),
        ({"input_schema": {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "int"}}}}}, "property 'a': items has type 'int'"),
        ({"input_schema": {"type": "object", "properties": {"a": {"type": ["string", 3]}}}}, "property 'a' has type 3"),
        ({"input_schema": {"type": "object", "properties": {"a": "string"}}}, "property 'a' is 'string'; it may be a dict"),
        ({"input_schema": {"type": "object", "required": "a"}}, "required is 'a'; it may be a list"),
    ],
)
def test_parts_that_are_no_tool_say_what_is_wrong(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidTool, match=text):
        parts(**changes)


def test_a_tool_is_frozen_and_keeps_its_own_schema() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}, "b": True}}
    made = parts(input_schema=schema, timeout=2, replay="key", concurrency=3, errors="type")
    schema["properties"]["a"]["type"] = "integer"

    assert made.spec["inputSchema"]["json"] == {"type": "object", "properties": {"a": {"type": "string"}, "b": True}}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.name = "other"  # type: ignore[misc]


DATA_SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "share": {"type": "number"},
        "either": {"type": ["string", "null"]},
        "any": {},
        "flag": {"type": "boolean"},
    },
    "required": ["text"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("tool_input", "problem"),
    [
        ({"text": "a"}, None),
        ({"text": "a", "count": 2.0, "share": 1, "either": None, "any": [1], "flag": False}, None),
        ({}, "Object missing required field `text`"),
        ({"text": "a", "more": 1}, "Object contains unknown field `more`"),
        ({"text": 1}, "Expected `string`, got `integer` - at `$.text`"),
        ({"text": "a", "count": True}, "Expected `integer`, got `boolean` - at `$.count`"),
        ({"text": "a", "count": 1.5}, "Expected `integer`, got `number` - at `$.count`"),
        ({"text": "a", "either": {}}, "Expected `string | null`, got `object` - at `$.either`"),
        ({"text": "a", "flag": [1]}, "Expected `boolean`, got `array` - at `$.flag`"),
    ],
)
async def test_inputs_of_tools_from_parts_are_held_against_the_top_of_their_schema(tool_input: dict[str, Any], problem: str | None) -> None:
    result = await called(parts(input_schema=DATA_SCHEMA), tool_input)

    expected = "ok" if problem is None else f"Error: Validation failed for input parameters: {problem}"
    assert result["content"] == [{"text": expected}]


# What a tool is made from ---------------------------------------------------------------------------------------------


class Desk:
    """An office with tools of its own."""

    def __init__(self, drawer: str) -> None:
        self.drawer = drawer

    @tool
    def find(self, item: str) -> str:
        """Find something."""
        return f"{item} in {self.drawer}"

    @tool
    @classmethod
    def kind(cls, polite: bool) -> str:
        return f"{cls.__name__} {polite}"

    @tool
    @staticmethod
    def ring(times: int) -> str:
        return "ring" * times


async def test_methods_are_tools_of_their_object() -> None:
    desk = Desk("top")

    assert list(desk.find.input_schema["properties"]) == ["item"]
    assert desk.find("pen") == "pen in top"
    assert (await called(desk.find, {"item": "pen"}))["content"] == [{"text": "pen in top"}]
    assert (await called(Desk("low").find, {"item": "pen"}))["content"] == [{"text": "pen in low"}]
    assert (await called(Desk.kind, {"polite": True}))["content"] == [{"text": "Desk True"}]
    assert (await called(Desk.ring, {"times": 2}))["content"] == [{"text": "ringring"}]
    with pytest.raises(InvalidTool, match="tool 'find' is a method; give it from an object"):
        ToolRegistry([Desk.find])


class Caller:
    async def __call__(self, item: str) -> str:
        """Call for something."""
        return f"called {item}"

    def method(self, item: str) -> str:
        return f"method {item}"


async def generated(item: str) -> Any:
    yield item


def test_the_kind_is_found_however_the_callable_is_wrapped() -> None:
    async def fetch(item: str, where: str = "here") -> str:
        return item + where

    assert tool(fetch).kind == "async"
    assert tool(name="p")(functools.partial(fetch, where="there")).kind == "async"
    assert tool(name="c")(Caller()).kind == "async"
    assert tool(Caller().method).kind == "sync"
    assert tool(generated).kind == "generator"
    assert parts(call=functools.partial(functools.partial(generated))).kind == "generator"
    assert parts(call=lambda tool_input, context: None).kind == "sync"


async def test_partials_objects_and_bound_methods_are_described_and_called() -> None:
    async def fetch(item: str, where: Any = None) -> str:
        """Fetch it."""
        return f"{item} {where}"

    fixed = tool(name="fixed")(functools.partial(fetch, where=object))
    caller = tool(name="caller")(Caller())

    assert list(fixed.input_schema["properties"]) == ["item"]
    assert (fixed.description, caller.description) == ("Fetch it.", "Call for something.")
    assert (await called(fixed, {"item": "a"}))["content"] == [{"text": f"a {object}"}]
    assert (await called(caller, {"item": "a"}))["content"] == [{"text": "called a"}]
    assert (await called(tool(Caller().method), {"item": "a"}))["content"] == [{"text": "method a"}]


def test_a_decorated_function_stays_a_function() -> None:
    @tool
    def price(item: str, count: int = 1) -> str:
        return item * count

    assert price("x", count=2) == "xx"
    assert price.__name__ == "price"
    assert list(inspect.signature(price).parameters) == ["item", "count"]
    assert isinstance(price, FunctionTool)


# Registries -----------------------------------------------------------------------------------------------------------


def test_a_registry_keeps_order_flattens_and_finds() -> None:
    first, second, third = parts(name="get-first"), parts(name="second"), parts(name="third_one")
    registry = ToolRegistry([first, [(second,), iter([third])]])

    assert registry.names == ("get-first", "second", "third_one")
    assert registry.specs == (first.spec, second.spec, third.spec)
    assert registry.get("second") is second
    assert registry.get("get_first") is None
    assert registry.find("get_first") is first
    assert registry.find("third_one") is third
    assert registry.find("nope") is None
    assert list(ToolRegistry([registry])) == [first, second, third]
    assert len(ToolRegistry()) == 0


@pytest.mark.parametrize(("first", "second"), [("same", "same"), ("a-b", "a_b"), ("a_b_c", "a-b-c")])
def test_names_that_are_equal_but_for_hyphens_collide(first: str, second: str) -> None:
    with pytest.raises(DuplicateTool, match=f"{first!r} and {second!r}"):
        ToolRegistry([parts(name=first), parts(name=second)])


def plain_function() -> None: ...


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (plain_function, "'plain_function' is a plain callable; decorate it with @tool, or write tool\\(plain_function\\)"),
        ("calculator", "'calculator' is not a tool; give functions decorated"),
        ({"name": "x"}, "is not a tool"),
        (None, "None is not a tool"),
        ([[3]], "3 is not a tool"),
    ],
)
def test_what_is_no_tool_is_refused_with_the_cure(item: Any, text: str) -> None:
    with pytest.raises(InvalidTool, match=text):
        ToolRegistry([item])


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "many"])
def test_limits_are_whole_numbers(threads: Any) -> None:
    with pytest.raises(InvalidOption, match=r"ToolLimits\.threads is a whole number above 0"):
        ToolLimits(threads=threads)

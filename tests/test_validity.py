"""Validity and the door: what a conversation is, and what becomes of a list that is almost one."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.actors.errors import InvalidConversation
from ropewalk.actors.messages import Message, assistant, tool_results, tool_uses, user
from ropewalk.actors.testing.strategies import nearly_valid_conversations, valid_conversations
from ropewalk.actors.validity import BLANK, INTERRUPTED, MAX_DEPTH, check, copied, door, is_open, is_valid, unanswered, unanswered_among


def use(tool_use_id: str = "a", **given: Any) -> dict[str, Any]:
    return {"toolUse": {"toolUseId": tool_use_id, "name": "search", "input": given}}


def result(tool_use_id: str = "a", text: str = "found", status: str = "success") -> dict[str, Any]:
    return {"toolResult": {"toolUseId": tool_use_id, "status": status, "content": [{"text": text}]}}


def verdict(judge: Callable[..., list[str]], *arguments: Any) -> list[str] | str:
    """The calls that are left unanswered, or what is wrong."""
    try:
        return judge(*arguments)
    except InvalidConversation as error:
        return str(error)


_LEAVES = st.none() | st.integers() | st.sampled_from(["user", "assistant", "x"])
INTERRUPTED_A = result("a", INTERRUPTED, "error")


class TestCheck:
    @pytest.mark.parametrize(
        "messages",
        [
            [],
            [user("hi")],
            [user("hi"), assistant("hello")],
            [user("hi"), assistant("let me see", use()), user(result()), assistant("done")],
            [user("hi"), assistant(use("a"), use("b")), user(result("b"), result("a"))],
            [user("hi"), assistant(use()), user(result(), "and now?"), assistant("this")],
            [user("hi"), assistant(use()), user("first words, then", result())],
            [user("hi"), assistant(use()), user(result()), assistant(use()), user(result())],
            [user({"image": {"format": "png", "source": {"bytes": b"1"}}}), assistant({"somethingNew": {"of": ["a", "provider", 1.5, None, True]}})],
            [user("hi"), assistant(use()), user({"toolResult": {"toolUseId": "a", "content": []}})],
        ],
    )
    def test_lets_a_valid_conversation_pass(self, messages: list[Message]) -> None:
        check(messages)

        assert is_valid(messages)
        assert not is_open(messages)

    @pytest.mark.parametrize(
        ("messages", "fault"),
        [
            ([assistant("hello")], "message 0: a conversation starts with a user message"),
            ([user("a"), user("b")], "message 1: the roles of neighbours differ"),
            ([user("a"), assistant("b"), assistant("c")], "message 2: the roles of neighbours differ"),
            ([user()], "message 0: the content is a list of at least one block"),
            ([user("a"), assistant()], "message 1: the content"),
            ([{"role": "user", "content": "text"}], "message 0: the content"),
            ([{"role": "user"}], "message 0: the content is missing"),
            ([{"role": "user", "content": [{"text": "a"}], "metadata": {}}], "message 0: has the keys 'role' and 'content' and no others"),
            ([{"role": "system", "content": [{"text": "a"}]}], "message 0: the role is 'user' or 'assistant'"),
            ([{"role": ["user"], "content": [{"text": "a"}]}], "message 0: the role is 'user' or 'assistant'"),
            (["hi"], "message 0: a message is a dict, not str"),
            ([user({"text": "a", "cachePoint": {}})], "message 0: a block is a dict with one key"),
            ([user({})], "message 0: a block is a dict with one key"),
            ([user({"text": None})], "message 0: a text block holds a string"),
            ([{"role": "user", "content": [{3: "a"}]}], "message 0: the key of a block is a string"),
            ([user(use())], "message 0: toolUse blocks belong to the other role"),
            ([user("a"), assistant(result())], "message 1: toolResult blocks belong to the other role"),
            ([user("a"), assistant({"toolUse": {"toolUseId": "a", "input": {}}})], "message 1: a toolUse is a dict with"),
            ([user("a"), assistant({"toolUse": {"toolUseId": "a", "name": "x"}})], "message 1: a toolUse is a dict with"),
            ([user({"toolResult": {"toolUseId": 3, "content": []}})], "message 0: a toolResult is a dict with"),
            ([user({"toolResult": {"toolUseId": "a", "content": "x"}})], "message 0: a toolResult is a dict with"),
            ([user(result(status="failed"))], "message 0: the status of a toolResult is 'success' or 'error'"),
            ([user({"toolResult": {"toolUseId": "a", "content": ["x"]}})], "message 0: an item of a toolResult is a dict with one key"),
            ([user({"toolResult": {"toolUseId": "a", "content": [{"text": 3}]}})], "message 0: an item of a toolResult is a dict with one key"),
            ([user("a"), assistant(use(when={1, 2}))], "message 1: set is not a JSON value"),
            ([user("a"), assistant(use(much=math.inf))], "message 1: inf is not a JSON number"),
            ([user("a"), assistant(use(map={1: 2}))], "message 1: the keys of a dict are strings"),
            ([user("a"), assistant(use()), user(result("b"))], "message 2: the toolResult 'b' answers no toolUse of the message before"),
            ([user("a"), assistant("b"), user(result())], "message 2: the toolResult 'a' answers no toolUse"),
            ([user("a"), assistant(use("a"), use("b")), user(result("a"))], "message 2: the toolUse 'b' of the message before has no toolResult"),
            ([user("a"), assistant(use()), user("b")], "message 2: the toolUse 'a' of the message before has no toolResult"),
            ([user("a"), assistant(use()), user(result(), result())], "message 2: a toolUse of the message before has more than one toolResult"),
            ([user("a"), assistant(use(), use())], "message 1: two toolUse blocks have one id"),
            ([user("a"), assistant(use())], "message 1: the toolUse 'a' has no toolResult in a next message"),
        ],
    )
    def test_names_the_message_and_the_rule(self, messages: list[Any], fault: str) -> None:
        with pytest.raises(InvalidConversation) as caught:
            check(messages)

        assert str(caught.value).startswith(fault)
        assert not is_valid(messages)

    @pytest.mark.parametrize("messages", [None, "hi", {"role": "user"}, 3, iter([])])
    def test_wants_a_list(self, messages: Any) -> None:
        for function in (check, door, copied):
            with pytest.raises(InvalidConversation, match="a conversation is a list of messages, not"):
                function(messages)

    def test_open_is_valid_but_for_the_last_calls(self) -> None:
        assert is_open([user("a"), assistant(use())])
        assert not is_valid([user("a"), assistant(use())])
        assert not is_open([user("a"), assistant("b")])
        assert not is_open([user("a"), assistant(use()), user("b"), assistant(use())])
        assert not is_open([])

    @given(valid_conversations())
    def test_drawn_valid_conversations_are(self, messages: list[Message]) -> None:
        check(messages)

    @given(valid_conversations(open=True))
    def test_drawn_open_conversations_are(self, messages: list[Message]) -> None:
        assert is_open(messages)

    @given(valid_conversations(open=True) | valid_conversations(), nearly_valid_conversations(), st.data())
    def test_what_is_known_to_be_well_formed_is_judged_as_if_it_were_not(self, known: list[Message], others: list[Any], data: st.DataObject) -> None:
        """A part of a conversation, parts in another order, and what came from elsewhere among them: the same calls, or the same fault."""
        start = data.draw(st.integers(0, len(known)))
        mixed = data.draw(st.just(known[start:]) | st.lists(st.sampled_from([*known, *others] or [user("a")]), max_size=6))

        assert verdict(unanswered_among, mixed, known) == verdict(unanswered, mixed)

    @given(valid_conversations())
    def test_survives_json(self, messages: list[Message]) -> None:
        check(json.loads(json.dumps(messages, default=lambda data: data.hex())))


class TestDoor:
    @pytest.mark.parametrize(
        ("outside", "inside"),
        [
            ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], [user("hi"), assistant("hello")]),
            ([{"role": "user", "content": [{"text": "hi"}], "tracking_id": "1", "metadata": {}}], [user("hi")]),
            ([user("a"), user("b")], [user("a", "b")]),
            ([user("a"), assistant("b"), assistant("c")], [user("a"), assistant("b", "c")]),
            ([user("a"), assistant()], [user("a"), assistant(BLANK)]),
            ([user("a"), {"role": "assistant", "content": ""}], [user("a"), assistant(BLANK)]),
            ([user("a"), assistant(), assistant("b")], [user("a"), assistant("b")]),
            ([user("a"), assistant("b"), user()], [user("a"), assistant("b")]),
            ([user("a"), assistant("b"), user(), assistant("c")], [user("a"), assistant("b", "c")]),
            ([user(), user("a")], [user("a")]),
            ([user()], []),
            ([], []),
        ],
    )
    def test_brings_into_form(self, outside: list[Any], inside: list[Message]) -> None:
        assert inside == door(outside)

    @pytest.mark.parametrize(
        ("outside", "inside"),
        [
            # missing results
            ([user("x"), assistant(use())], [user("x"), assistant(use()), user(INTERRUPTED_A)]),
            ([user("x"), assistant(use()), user("y")], [user("x"), assistant(use()), user(INTERRUPTED_A, "y")]),
            ([user("x"), assistant(use()), assistant("y")], [user("x"), assistant(use(), "y"), user(INTERRUPTED_A)]),
            ([user("x"), assistant(use()), user(), assistant("y")], [user("x"), assistant(use()), user(INTERRUPTED_A), assistant("y")]),
            ([user("x"), assistant(use("b"), use("a")), user(result("b"))], [user("x"), assistant(use("b"), use("a")), user(result("b"), INTERRUPTED_A)]),
            # orphaned results
            ([user("x"), assistant("y"), user(result())], [user("x"), assistant("y")]),
            ([user("x"), assistant("y"), user(result(), "z")], [user("x"), assistant("y"), user("z")]),
            ([user("x"), assistant("y"), user(result()), assistant("z")], [user("x"), assistant("y", "z")]),
            ([user(result()), user("x")], [user("x")]),
            ([user("x"), assistant("y", result())], [user("x"), assistant("y")]),
            ([user("x"), assistant(use("a")), user(result("b"), result("a"))], [user("x"), assistant(use("a")), user(result("a"))]),
            # results that came in pieces, or after the user went on
            (
                [user("x"), assistant(use("a"), use("b")), user(result("b")), user(result("a"))],
                [user("x"), assistant(use("a"), use("b")), user(result("b"), result("a"))],
            ),
            ([user("x"), assistant(use()), user("y"), user(result())], [user("x"), assistant(use()), user(result(), "y")]),
            # duplicates
            ([user("x"), assistant(use()), user(result("a", "1"), result("a", "2"))], [user("x"), assistant(use()), user(result("a", "1"))]),
            ([user("x"), assistant(use(), use()), user(result())], [user("x"), assistant(use()), user(result())]),
            ([user("x"), assistant(use()), assistant(use()), user(result())], [user("x"), assistant(use()), user(result())]),
        ],
    )
    def test_answers_every_call_once(self, outside: list[Any], inside: list[Message]) -> None:
        assert inside == door(outside)

    @pytest.mark.parametrize(
        ("outside", "fault"),
        [
            ([assistant("hello"), user("hi")], "message 0: a conversation starts with a user message"),
            ([user(result()), assistant("hello")], "message 1: a conversation starts with a user message"),
            ([user(), assistant("hello")], "message 1: a conversation starts with a user message"),
            ([user("hi"), None], "message 1: a message is a dict"),
            ([user("hi"), {"role": "tool", "content": []}], "message 1: the role is"),
            ([{"role": "user", "content": None}], "message 0: the content is a list of blocks, or a string"),
            ([{"role": "user", "content": ({"text": "hi"},)}], "message 0: the content is a list of blocks, or a string"),
            ([user({"text": "a", "image": {}})], "message 0: a block is a dict with one key"),
            ([user(use())], "message 0: toolUse blocks belong to the other role"),
        ],
    )
    def test_refuses_what_it_cannot_repair(self, outside: list[Any], fault: str) -> None:
        with pytest.raises(InvalidConversation) as caught:
            door(outside)

        assert str(caught.value).startswith(fault)

    def test_results_stand_before_words_only_where_something_was_joined(self) -> None:
        kept = [user("x"), assistant(use()), user("words", result())]
        joined = [*kept, user("more")]

        assert kept == door(kept)
        assert user(result(), "words", "more") == door(joined)[-1]

    @pytest.mark.parametrize("depth", [MAX_DEPTH - 4, MAX_DEPTH * 100])
    def test_depth_has_a_bound(self, depth: int) -> None:
        deep: Any = "leaf"
        for _ in range(depth):
            deep = [deep]
        messages = [user("x"), assistant(use(deep=deep))]

        if depth < MAX_DEPTH:
            assert door(messages) == door(copied(messages))
        else:
            for function in (check, door, copied):
                with pytest.raises(InvalidConversation, match="message 1: nested deeper than 100 levels"):
                    function(messages)

    def test_a_cycle_is_refused(self) -> None:
        around: dict[str, Any] = {}
        around["again"] = around

        for function in (check, door, copied):
            with pytest.raises(InvalidConversation, match="nested deeper"):
                function([user("x"), assistant(use(**around))])

    @given(valid_conversations())
    def test_valid_lists_come_back_as_they_are(self, messages: list[Message]) -> None:
        inside = door(messages)

        assert len(inside) == len(messages)
        assert all(message is other for message, other in zip(inside, messages, strict=True))

    @given(valid_conversations(open=True))
    def test_open_lists_get_answers(self, messages: list[Message]) -> None:
        *kept, last = door(messages)

        assert all(message is other for message, other in zip(kept, messages, strict=True))
        assert [use["toolUseId"] for use in tool_uses(kept[-1])] == [answer["toolUseId"] for answer in tool_results(last)]
        assert all(answer["status"] == "error" for answer in tool_results(last))

    @given(nearly_valid_conversations())
    def test_what_comes_in_is_valid_and_stays(self, outside: list[Any]) -> None:
        before = copy.deepcopy(outside)
        try:
            inside = door(outside)
        except InvalidConversation:
            inside = []

        check(inside)
        again = door(inside)
        assert all(message is other for message, other in zip(again, inside, strict=True))
        assert outside == before

    @given(nearly_valid_conversations())
    def test_what_stands_before_the_first_fault_stays_the_same_objects(self, outside: list[Any]) -> None:
        try:
            inside = door(outside)
        except InvalidConversation:
            return

        sound = max(length for length in range(len(outside) + 1) if is_valid(outside[:length]) or is_open(outside[:length]))
        untouched = max(sound - 1, 0)  # the last sound message may have been joined or answered
        assert all(message is other for message, other in zip(inside[:untouched], outside[:untouched], strict=True))

    @given(nearly_valid_conversations())
    def test_no_words_are_lost(self, outside: list[Any]) -> None:
        try:
            inside = door(outside)
        except InvalidConversation:
            return

        def words(messages: list[Any]) -> list[str]:
            contents: list[Any] = [message["content"] for message in messages]
            contents = [[{"text": content}] if isinstance(content, str) else content for content in contents]
            return [block["text"] for content in contents for block in content if "text" in block and block["text"] not in ("", BLANK)]

        assert words(outside) == words(inside)

    @given(st.recursive(_LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner)))
    def test_raises_nothing_else(self, outside: Any) -> None:
        for function in (check, door):
            with contextlib.suppress(InvalidConversation):
                function(outside)


class TestCopied:
    @given(nearly_valid_conversations())
    def test_is_equal_and_shares_no_dict_or_list(self, messages: list[Any]) -> None:
        copies = copied(messages)

        assert copies == messages
        assert not _containers(copies) & _containers(messages)

    def test_keeps_bytes_and_turns_tuples_into_lists(self) -> None:
        data = b"png"
        [copy] = copied([user({"image": {"format": "png", "source": {"bytes": data}}, "sizes": (1, 2)})])

        assert copy["content"][0]["image"]["source"]["bytes"] is data
        assert copy["content"][0]["sizes"] == [1, 2]


def _containers(value: Any) -> set[int]:
    if isinstance(value, dict):
        return {id(value)}.union(*map(_containers, value.values()))
    if isinstance(value, list):
        return {id(value)}.union(*map(_containers, value))
    return set()

"""The reduction ladder: what each rung does and never does, and a climb with managers that misbehave in every way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.actors.conversation import (
    RUNGS,
    ConversationManager,
    NullConversationManager,
    Reduction,
    RungRefused,
    SlidingWindowConversationManager,
    climb,
    estimate,
    estimate_all,
)
from ropewalk.actors.conversation.digests import own_words
from ropewalk.actors.errors import ContextWindowOverflow, InvalidConversation
from ropewalk.actors.messages import Message, assistant, text_of, tool_results, tool_uses, user
from ropewalk.actors.testing.strategies import valid_conversations
from ropewalk.actors.validity import check, is_open, is_valid
from ropewalk.runtime.errors import InvalidOption

LADDER = ("clip", "drop_bodies", "window", "digest")


def use(tool_use_id: str = "a", name: str = "search") -> dict[str, Any]:
    return {"toolUse": {"toolUseId": tool_use_id, "name": name, "input": {}}}


def result(tool_use_id: str = "a", text: str = "found") -> dict[str, Any]:
    return {"toolResult": {"toolUseId": tool_use_id, "status": "success", "content": [{"text": text}]}}


def holding(*items: dict[str, Any]) -> Message:
    return user({"toolResult": {"toolUseId": "a", "status": "success", "content": list(items)}})


def plain(exchanges: int, size: int = 10) -> list[Message]:
    """So many exchanges of words, each message of 10 tokens or so."""
    return [message for number in range(exchanges) for message in (user(f"q{number} ".ljust(4 * size, "x")), assistant(f"a{number} ".ljust(4 * size, "y")))]


def same(messages: Sequence[Message], others: Sequence[Message]) -> bool:
    return len(messages) == len(others) and all(message is other for message, other in zip(messages, others, strict=True))


def reduce(rung: str, messages: list[Message], *protected: int, target: int = 0) -> list[Message]:
    return RUNGS[rung](messages, frozenset(protected), target, estimate)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Message], frozenset[int]]:
    """A view before a model call, or one with open calls, and what of it is protected: a turn's own, or anything."""
    messages = draw(valid_conversations(1, 14) | valid_conversations(2, 14, open=True))
    if draw(st.booleans()):
        return messages, frozenset(draw(st.lists(st.integers(0, len(messages) - 1), max_size=4)))
    prompts = [index for index, message in enumerate(messages) if message["role"] == "user" and own_words(message)]
    protected = {draw(st.sampled_from(prompts))}
    if tool_results(messages[-1]):
        protected |= {len(messages) - 2, len(messages) - 1}
    return messages, frozenset(protected)


def assert_kept(messages: list[Message], protected: frozenset[int], reduced: list[Message]) -> None:
    """The words of protected prompts stand in order, and protected calls and results are there with the same partners."""
    words = [block for message in reduced for block in own_words(message) if message["role"] == "user"]
    wanted = [block for index in sorted(protected) for block in own_words(messages[index]) if messages[index]["role"] == "user"]
    rest = iter(words)
    assert all(any(block is other for other in rest) for block in wanted)
    called = [call for message in reduced for call in tool_uses(message)]
    for index in protected:
        assert all(any(call is other for other in called) for call in tool_uses(messages[index]))


# --- laws of all rungs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", LADDER)
class TestEveryRung:
    @given(situation=situations(), target=st.integers(-1, 4000))
    def test_keeps_the_conversation_and_the_protected_and_frees_what_it_can(
        self, rung: str, situation: tuple[list[Message], frozenset[int]], target: int
    ) -> None:
        messages, protected = situation
        before = copy.deepcopy(messages)
        reduced = reduce(rung, messages, *protected, target=target)

        assert messages == before
        check(reduced) if is_valid(messages) else self._assert_open(reduced)
        assert_kept(messages, protected, reduced)
        assert estimate_all(reduced) <= estimate_all(messages)
        if estimate_all(messages) <= target:
            assert same(reduced, messages)

    def _assert_open(self, messages: list[Message]) -> None:
        assert is_open(messages)

    @given(situation=situations())
    def test_unchanged_messages_are_the_same_objects(self, rung: str, situation: tuple[list[Message], frozenset[int]]) -> None:
        messages, protected = situation
        for message in reduce(rung, messages, *protected):
            twins = [other for other in messages if other == message]
            assert not twins or any(message is twin for twin in twins) or not tool_results(message)

    @given(situation=situations(), target=st.integers(0, 200))
    def test_doing_it_again_ends(self, rung: str, situation: tuple[list[Message], frozenset[int]], target: int) -> None:
        messages, protected = situation
        if rung in ("clip", "drop_bodies"):
            once = reduce(rung, messages, *protected, target=target)
            assert same(reduce(rung, once, *protected, target=target), once)

    def test_nothing_stays_nothing(self, rung: str) -> None:
        assert reduce(rung, []) == []


# --- clip ------------------------------------------------------------------------------------------------------------


class TestClip:
    def test_keeps_both_ends_and_says_how_much_is_missing(self) -> None:
        text = "a" * 200 + "b" * 1000 + "c" * 200
        [_, _, clipped] = reduce("clip", [user("go"), assistant(use()), holding({"text": text})])

        assert clipped == holding({"text": "a" * 200 + "...\n\n... [truncated: 1000 chars removed] ...\n\n..." + "c" * 200})

    def test_short_results_and_other_texts_stay(self) -> None:
        messages = [user("x" * 5000), assistant("y" * 5000, use()), holding({"text": "z" * 400}, {"json": {"n": 1}})]

        assert same(reduce("clip", messages), messages)

    def test_json_images_and_documents_become_words(self) -> None:
        image = {"image": {"format": "png", "source": {"bytes": b"12345"}}}
        document = {"document": {"format": "pdf", "name": "report", "source": {"bytes": b"1" * 9000}}}
        elsewhere = {"document": {"format": "pdf", "name": "report", "source": {"location": {"type": "s3", "uri": "s3://x"}}}}
        messages = [user("go"), assistant(use()), holding(image, document, elsewhere, {"video": None}, {"json": {"rows": ["é"] * 300}})]
        [_, _, clipped] = reduce("clip", messages)
        notes = [item["text"] for item in tool_results(clipped)[0]["content"]]

        assert notes[:4] == ["[image: png, 5 bytes]", "[document: pdf, report, 9000 bytes]", "[document: pdf, report]", "[video]"]
        assert notes[4].startswith('{"rows": ["é", ')
        assert "chars removed" in notes[4]

    def test_bytes_in_json_become_a_note(self) -> None:
        [_, _, clipped] = reduce("clip", [user("go"), assistant(use()), holding({"json": [b"123", "x" * 1000]})])

        assert text_of({"content": tool_results(clipped)[0]["content"]}).startswith('["[3 bytes]", "xxx')

    def test_keeps_id_and_status(self) -> None:
        messages = [user("go"), assistant(use()), user({"toolResult": {"status": "error", "content": [{"text": "x" * 900}], "toolUseId": "a"}})]
        [answer] = tool_results(reduce("clip", messages)[2])

        assert (answer["toolUseId"], answer["status"]) == ("a", "error")

    def test_a_large_new_result_goes_before_a_small_old_one(self) -> None:
        messages = [user("go"), assistant(use("a")), user(result("a", "x" * 700)), assistant(use("b")), user(result("b", "y" * 50_000)), assistant("done")]
        reduced = reduce("clip", messages, target=400)

        assert same(reduced[:4], messages[:4])
        assert estimate_all(reduced) <= 400

    def test_of_equals_the_older_goes_first_and_only_until_the_target_is_met(self) -> None:
        results = [user(result("a", letter * 4000)) for letter in "xyz"]
        messages = [user("go"), *[message for answer in results for message in (assistant(use()), answer)], assistant("done")]
        reduced = reduce("clip", messages, target=2500)

        assert [message is other for message, other in zip(reduced, messages, strict=True)] == [True, True, False, True, True, True, True, True]

    def test_unread_results_come_last(self) -> None:
        messages = [user("go"), assistant(use("a")), user(result("a", "x" * 1000)), assistant(use("b")), user(result("b", "y" * 50_000))]
        reduced = reduce("clip", messages, 0, 3, 4, target=12_650)

        assert reduced[2] is not messages[2]
        assert reduced[4] is messages[4]
        assert reduce("clip", messages, 0, 3, 4)[4] is not messages[4]

    def test_of_parallel_results_only_the_needed_are_clipped(self) -> None:
        messages = [user("go"), assistant(use("a"), use("b")), user(result("a", "x" * 4000), result("b", "y" * 8000))]
        [first, second] = tool_results(reduce("clip", messages, target=1500)[2])

        assert first == tool_results(messages[2])[0]
        assert second != tool_results(messages[2])[1]


class TestDropBodies:
    def test_leaves_a_word_for_a_body(self) -> None:
        messages = [user("go"), assistant(use()), user(result("a", "x" * 100)), assistant("done")]

        assert reduce("drop_bodies", messages)[2] == user(result("a", "[result dropped]"))

    def test_oldest_first_and_never_the_unread(self) -> None:
        answers = [user(result("a", "x" * 400)) for _ in range(3)]
        messages = [user("go"), *[message for answer in answers for message in (assistant(use()), answer)]]

        assert [message is other for message, other in zip(reduce("drop_bodies", messages, 0, 5, 6, target=240), messages, strict=True)].index(False) == 2
        reduced = reduce("drop_bodies", messages, 0, 5, 6)
        assert [reduced[index] is messages[index] for index in (2, 4, 6)] == [False, False, True]


class TestWindow:
    def test_drops_whole_exchanges_from_the_oldest_and_no_more_than_needed(self) -> None:
        messages = plain(5)

        assert same(reduce("window", messages, target=60), messages[4:])
        assert same(reduce("window", messages, target=59), messages[6:])

    def test_keeps_the_last_exchange(self) -> None:
        messages = plain(5)

        assert same(reduce("window", messages), messages[8:])

    def test_then_drops_pairs_of_the_last_exchange(self) -> None:
        pairs = [message for number in range(5) for message in (assistant(use(str(number))), user(result(str(number))))]
        messages = [*plain(2), user("go"), *pairs]
        total = estimate_all(messages[4:])

        assert same(reduce("window", messages, 4, 13, 14, target=total - 1), [messages[4], *messages[7:]])
        assert same(reduce("window", messages, 4, 13, 14), [messages[4], *messages[13:]])

    def test_a_prompt_that_joined_results_keeps_its_words(self) -> None:
        messages = [user("old"), assistant(use()), user(result("a", "x" * 400), "new", {"cachePoint": {}})]

        assert reduce("window", messages, 2) == [user("new", {"cachePoint": {}})]

    def test_goes_round_what_is_protected(self) -> None:
        messages = plain(5)

        assert same(reduce("window", messages, 2, 8), [*messages[2:4], *messages[8:]])

    def test_a_protected_call_keeps_the_message_with_its_results_whole(self) -> None:
        messages = [user("old"), assistant(use()), user(result(), "joined"), assistant("x"), user("new"), assistant("y")]

        assert same(reduce("window", messages, 1), [*messages[:4], *messages[4:]])


class TestDigest:
    def test_says_who_said_what_and_which_tools_were_called(self) -> None:
        messages = [
            user("find me a flight", {"image": {"format": "png", "source": {"bytes": b"x" * 1_000_000}}}),
            assistant("on it", use("a", "search"), use("b", "weather")),
            user(result("a", "LH 400\n\nat noon"), {"toolResult": {"toolUseId": "b", "status": "error", "content": [{"json": {}}]}}),
            assistant("z" * 1000),
            user("and back?"),
        ]
        digested = reduce("digest", messages, 4, target=1000)

        assert digested[0]["content"][1] is messages[4]["content"][0]
        assert text_of({"content": digested[0]["content"][:1]}).split("\n") == [
            "[digest of 4 earlier messages]",
            "user: find me a flight [image]",
            "assistant: on it",
            "assistant called search, weather",
            "tool success: LH 400 at noon",
            "tool error: [json]",
            "assistant: " + "z" * 146 + "...",
        ]

    def test_is_bounded_and_keeps_the_first_line_and_the_last(self) -> None:
        messages = [*plain(200, size=40), user("now")]
        [digested] = reduce("digest", messages, 400, target=100_000 // 40)
        text = digested["content"][0]["text"]

        assert len(text) <= 2000
        assert text.split("\n")[1].startswith("user: q0")
        assert text.split("\n")[2] == "..."
        assert text.split("\n")[-1].startswith("assistant: a199")

    @pytest.mark.parametrize("target", [0, 10, 100, 500])
    def test_takes_a_small_part_of_a_small_target(self, target: int) -> None:
        [digested] = reduce("digest", [*plain(200), user("now")], 400, target=target)

        assert len(digested["content"][0]["text"]) <= max(target, 40)

    def test_carries_an_earlier_digest_on(self) -> None:
        once = reduce("digest", [*plain(20), user("now")], 40, target=300)
        twice = reduce("digest", [*once, assistant("w" * 400), user("then")], 2, target=100)
        pairs = [message for _ in range(2) for message in (assistant("w" * 400, use()), user(result("a", "v" * 400)))]
        again = reduce("digest", [*once, *pairs], 0, 3, 4, target=200)

        assert [len(message["content"]) for message in (once[0], twice[0], again[0])] == [2, 2, 2]
        assert twice[0]["content"][0]["text"].startswith("[digest of 42 earlier messages]\nuser: q0")
        assert again[0]["content"][0]["text"].startswith("[digest of 42 earlier messages]\nuser: q0")
        assert twice[0]["content"][1:] == [{"text": "then"}]
        assert again[0]["content"][1:] == [{"text": "now"}]

    def test_without_a_user_message_left_the_digest_is_one(self) -> None:
        messages = [*plain(10), user("go"), assistant(use())]

        assert [message["role"] for message in reduce("digest", messages)] == ["user", "assistant"]
        assert [message["role"] for message in reduce("digest", plain(10))] == ["user"]

    def test_what_is_too_little_to_digest_stays(self) -> None:
        messages = [user("a"), assistant("b"), user("c")]

        assert same(reduce("digest", messages, 2), messages)


# --- the climb -------------------------------------------------------------------------------------------------------


async def inline(call: Callable[[], Any]) -> Any:
    return call()


@attrs.frozen
class Climb:
    """A climb that is over: what came of it, and what failed."""

    reduction: Reduction | None
    failed: list[tuple[str, Exception]]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.failed]


async def go(
    messages: list[Message],
    manager: ConversationManager,
    *protected: int,
    target: int = 0,
    ladder: Sequence[str] = LADDER,
    skip_manager: bool = False,
    error: Exception | None = None,
) -> Climb:
    failed: list[tuple[str, Exception]] = []
    reduction = await climb(
        messages,
        manager=manager,
        ladder=ladder,
        protected=frozenset(protected),
        target=target,
        system_prompt=None,
        error=error,
        skip_manager=skip_manager,
        run_sync=inline,
        failed=lambda name, error: failed.append((name, error)),
    )
    return Climb(reduction, failed)


class Reducing(ConversationManager):
    """Does to the messages what it is given."""

    def __init__(self, what: Callable[[list[Any]], Any]) -> None:
        self.what = what

    def reduce_context(self, messages: Any, /, e: Exception | None = None) -> Any:
        return self.what(messages)


def _fail(messages: list[Any]) -> None:
    messages.clear()
    raise ZeroDivisionError("in the manager")


def _longer(messages: list[Any]) -> None:
    messages.insert(0, assistant("more " * 100))
    messages.insert(0, user("more " * 100))


async def _fail_later(messages: list[Any]) -> None:
    await anyio.lowlevel.checkpoint()
    raise ExceptionGroup("several", [ValueError("of one")])


def _edit_shared(messages: list[Any]) -> None:
    """Empties the blocks it was shown, and leaves a list without a user message at the start."""
    for message in messages:
        message["content"].clear()
    del messages[0]


ADVERSARIES: dict[str, Callable[[list[Any]], Any]] = {
    "raises": _fail,
    "raises later": _fail_later,
    "does nothing": lambda messages: None,
    "empties": lambda messages: messages.clear(),
    "makes it longer": _longer,
    "drops the prompt": lambda messages: messages.__delitem__(slice(-2, None)),
    "starts with an answer": lambda messages: messages.__delitem__(0),
    "leaves nonsense": lambda messages: messages.__setitem__(slice(None), [None, 3]),
    "leaves other words": lambda messages: messages.__setitem__(slice(None), [user("hello")]),
    "edits what it was shown": _edit_shared,
    "answers itself": lambda messages: messages.__setitem__(slice(None), [messages[-1], assistant("ok")]),
}


class TestClimb:
    async def test_the_shipped_window_clips_first(self) -> None:
        messages = [user("old"), assistant(use()), user(result("a", "x" * 40_000)), assistant("done"), user("now")]
        climbed = await go(messages, SlidingWindowConversationManager(), 4, target=200)

        assert climbed.failed == []
        assert climbed.reduction is not None
        assert (climbed.reduction.rung, climbed.reduction.tokens_before) == ("manager", estimate_all(messages))
        assert climbed.reduction.tokens_after == estimate_all(climbed.reduction.messages) <= 200
        assert len(climbed.reduction.messages) == 5

    async def test_the_shipped_window_may_leave_results_whole(self) -> None:
        messages = [user("old"), assistant(use()), user(result("a", "x" * 40_000)), assistant("done"), user("now")]
        climbed = await go(messages, SlidingWindowConversationManager(should_truncate_results=False), 4, target=200)

        assert climbed.reduction is not None
        assert same(climbed.reduction.messages, messages[4:])

    async def test_a_prompt_that_lost_the_results_it_had_joined_is_not_taken_for_a_later_one_with_the_same_words(self) -> None:
        joined = user(result("a", ""), {"text": "go on"})
        messages = [user("go on"), assistant(use("a")), joined, assistant("done"), user("go on"), assistant("done"), user("go on")]
        climbed = await go(messages, SlidingWindowConversationManager(), 2)

        assert climbed.failed == []
        assert climbed.reduction is not None
        [place] = climbed.reduction.protected
        assert climbed.reduction.messages[place]["content"][-1] is joined["content"][1]

    async def test_a_rung_goes_on_from_the_last_accepted(self) -> None:
        pairs = [message for number in range(6) for message in (assistant(use(str(number))), user(result(str(number), "x" * 1000)))]
        messages = [*plain(4), user("go"), *pairs]
        climbed = await go(messages, ConversationManager(), 8, 19, 20, target=70)

        assert climbed.failed == []
        assert climbed.reduction is not None
        assert climbed.reduction.rung == "window"
        assert [message["role"] for message in climbed.reduction.messages] == ["user", "assistant", "user"]
        assert "chars removed" in tool_results(climbed.reduction.messages[2])[0]["content"][0]["text"] or climbed.reduction.tokens_after > 70

    async def test_the_smallest_counts_even_where_it_misses_the_target(self) -> None:
        messages = [*plain(4), user("n" * 4000)]
        climbed = await go(messages, SlidingWindowConversationManager(), 8, target=500)

        assert climbed.reduction is not None
        assert same(climbed.reduction.messages, messages[8:])
        assert climbed.reduction.tokens_after == 1000

    async def test_nothing_smaller_is_none(self) -> None:
        assert await go([user("n" * 4000)], SlidingWindowConversationManager(), 0, target=500) == Climb(None, [])

    async def test_what_meets_the_target_is_not_touched(self) -> None:
        assert await go(plain(3), Reducing(_fail), 4, target=60) == Climb(None, [])

    async def test_null_has_no_ladder(self) -> None:
        assert await go(plain(30), NullConversationManager(), 58) == Climb(None, [])

    async def test_an_empty_ladder_leaves_the_manager_alone(self) -> None:
        climbed = await go(plain(30), SlidingWindowConversationManager(), 58, ladder=())

        assert climbed.reduction is not None
        assert climbed.reduction.rung == "manager"

    async def test_an_unknown_rung_is_named(self) -> None:
        climbed = await go(plain(30), ConversationManager(), 58, ladder=("lift", "window"))

        assert [(name, type(error)) for name, error in climbed.failed] == [("lift", InvalidOption)]
        assert climbed.reduction is not None

    async def test_a_manager_that_did_well_is_enough(self) -> None:
        heard: list[Exception | None] = []

        class Mine(ConversationManager):
            async def reduce_context(self, agent: Any, e: Exception | None = None, **kwargs: Any) -> None:
                heard.append(e)
                agent.messages = agent.messages[-2:]

        overflow = ContextWindowOverflow()
        messages = plain(10)
        climbed = await go(messages, Mine(), 18, target=20, error=overflow)

        assert climbed.failed == []
        assert climbed.reduction == Reduction("manager", messages[-2:], 200, 20, frozenset({0}))
        assert heard == [overflow]

    async def test_a_manager_that_is_skipped_is_not_asked(self) -> None:
        climbed = await go([*plain(10), user("go")], Reducing(_fail), 20, skip_manager=True)

        assert climbed.failed == []
        assert climbed.reduction is not None
        assert climbed.reduction.rung == "window"

    @pytest.mark.parametrize("behaviour", ADVERSARIES)
    async def test_a_bad_manager_costs_its_own_rung_only(self, behaviour: str) -> None:
        messages = [*plain(10), user("go"), assistant(use()), user(result("a", "x" * 4000))]
        before = copy.deepcopy(messages)
        climbed = await go(messages, Reducing(ADVERSARIES[behaviour]), 20, 21, 22)
        without = await go(messages, ConversationManager(), 20, 21, 22)

        assert messages == before
        assert climbed.names == ["manager"]
        assert climbed.reduction == without.reduction
        assert climbed.reduction is not None

    @pytest.mark.parametrize(
        ("behaviour", "kind", "says"),
        [
            ("raises", ZeroDivisionError, "in the manager"),
            ("raises later", ValueError, "of one"),
            ("does nothing", RungRefused, "manager: 1204 tokens, and 1204 before"),
            ("makes it longer", RungRefused, "manager: 1454 tokens, and 1204 before"),
            ("empties", RungRefused, "manager: no message is left"),
            ("leaves other words", RungRefused, "message 22 is gone"),
            ("starts with an answer", InvalidConversation, "message 0: a conversation starts with a user message"),
            ("leaves nonsense", InvalidConversation, "a conversation manager left something other"),
            ("answers itself", InvalidConversation, "message 0: the toolResult 'a' answers no toolUse"),
        ],
    )
    async def test_the_reason_is_told(self, behaviour: str, kind: type[Exception], says: str) -> None:
        messages = [*plain(10), user("go"), assistant(use()), user(result("a", "x" * 4000))]
        [(_, error)] = (await go(messages, Reducing(ADVERSARIES[behaviour]), 20, 21, 22)).failed

        assert type(error) is kind
        assert str(error).startswith(says)

    async def test_a_view_that_ends_in_a_prompt_must_not_end_in_an_answer(self) -> None:
        climbed = await go([*plain(5), user("go")], Reducing(ADVERSARIES["answers itself"]), 10, ladder=())

        assert climbed.names == ["manager"]
        assert "end with an answer" in str(climbed.failed[0][1])

    async def test_an_open_call_stays_open(self) -> None:
        messages = [*plain(5), user("go"), assistant(use())]
        climbed = await go(messages, Reducing(lambda left: left.__delitem__(slice(0, 10))), 10, 11)

        assert climbed.failed == []
        assert climbed.reduction is not None
        assert is_open(climbed.reduction.messages)

    async def test_a_settled_call_may_not_be_opened(self) -> None:
        messages = [*plain(5), user("go"), assistant(use()), user(result()), assistant("done")]
        climbed = await go(messages, Reducing(lambda left: left.__delitem__(slice(-2, None))), 10, ladder=())

        assert climbed.reduction is None
        assert isinstance(climbed.failed[0][1], InvalidConversation)

    async def test_an_older_message_of_the_same_words_is_no_substitute_for_the_prompt(self) -> None:
        messages = [user("go"), assistant("x" * 100), user("go"), assistant(use("a")), user(result("a")), assistant(use("a")), user(result("a"))]
        climbed = await go(messages, ConversationManager(), 2, 5, 6)

        assert climbed.reduction is not None
        assert [text_of(message) for message in climbed.reduction.messages if message["role"] == "user"][-2:] == ["go", ""]
        assert climbed.reduction.messages[-2:] == messages[-2:]

    @pytest.mark.parametrize("sync", [False, True])
    async def test_a_hanging_manager_is_left_by_cancellation(self, sync: bool, autojump_clock: trio.testing.MockClock) -> None:
        class Hanging(ConversationManager):
            async def reduce_context(self, messages: list[Message], e: Exception | None = None) -> None:
                messages.clear()
                await anyio.sleep_forever()

        class HangingInThread(ConversationManager):
            def reduce_context(self, messages: Any, /, e: Exception | None = None) -> None:
                messages.clear()

        async def never(call: Callable[[], Any]) -> Any:
            call()
            await anyio.sleep_forever()

        messages = plain(10)
        failed: list[str] = []
        manager: ConversationManager = HangingInThread() if sync else Hanging()
        with trio.move_on_after(3600) as scope:
            await climb(
                messages,
                manager=manager,
                ladder=LADDER,
                protected=frozenset({18}),
                target=0,
                system_prompt=None,
                error=None,
                skip_manager=False,
                run_sync=never,
                failed=lambda name, error: failed.append(name),
            )

        assert scope.cancelled_caught
        assert failed == []
        assert messages == plain(10)

    @given(
        situation=situations(),
        target=st.integers(0, 2000),
        behaviour=st.sampled_from(sorted(ADVERSARIES)),
        ladder=st.lists(st.sampled_from([*LADDER, "lift"]), max_size=5),
    )
    async def test_every_climb_ends_with_something_smaller_and_whole_or_with_nothing(
        self, situation: tuple[list[Message], frozenset[int]], target: int, behaviour: str, ladder: list[str]
    ) -> None:
        messages, protected = situation
        before = copy.deepcopy(messages)
        climbed = await go(messages, Reducing(ADVERSARIES[behaviour]), *protected, target=target, ladder=ladder)

        assert messages == before
        assert set(climbed.names) <= {"manager", "lift"}
        if climbed.reduction is None:
            return
        reduced = climbed.reduction
        assert is_valid(reduced.messages) or (is_open(messages) and is_open(reduced.messages))
        assert reduced.tokens_after == estimate_all(reduced.messages) < reduced.tokens_before == estimate_all(messages)
        assert reduced.rung in {"manager", *ladder}

    @given(situation=situations())
    async def test_the_whole_ladder_keeps_what_is_protected(self, situation: tuple[list[Message], frozenset[int]]) -> None:
        messages, protected = situation
        climbed = await go(messages, SlidingWindowConversationManager(), *protected)

        assert climbed.failed == []
        if climbed.reduction is not None:
            assert_kept(messages, protected, climbed.reduction.messages)
            places = climbed.reduction.protected
            assert_kept(messages, protected, [message for place, message in enumerate(climbed.reduction.messages) if place in places])


async def test_reducing_is_linear() -> None:
    """Twice the messages, about twice the messages looked at: the counts asked for are counted, not the seconds."""

    async def counted(exchanges: int) -> int:
        asked = 0

        def count(message: Message) -> int:
            nonlocal asked
            asked += 1
            return estimate(message)

        await climb(
            plain(exchanges),
            manager=SlidingWindowConversationManager(),
            ladder=LADDER,
            protected=frozenset({2 * exchanges - 2}),
            target=0,
            system_prompt=None,
            error=None,
            skip_manager=False,
            run_sync=inline,
            count=count,
            failed=lambda name, error: None,
        )
        return asked

    assert await counted(2000) <= 2.1 * await counted(1000)

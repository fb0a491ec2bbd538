"""Conversation managers: what the shipped ones keep, what they cost, and how any user's own is run without trusting it."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.actors.conversation import (
    ConversationManager,
    Draft,
    NullConversationManager,
    SlidingWindowConversationManager,
    estimate,
    estimate_all,
    manage,
    policy_of,
    run_custom,
    slide,
)
from ropewalk.actors.conversation.tokens import json_length
from ropewalk.actors.errors import InvalidConversation
from ropewalk.actors.messages import Message, assistant, tool_uses, user
from ropewalk.actors.testing.strategies import messages as any_messages
from ropewalk.actors.testing.strategies import valid_conversations
from ropewalk.actors.validity import is_open, is_valid
from ropewalk.runtime.errors import InvalidOption


def use(tool_use_id: str = "a") -> dict[str, Any]:
    return {"toolUse": {"toolUseId": tool_use_id, "name": "search", "input": {}}}


def result(tool_use_id: str = "a", text: str = "found") -> dict[str, Any]:
    return {"toolResult": {"toolUseId": tool_use_id, "status": "success", "content": [{"text": text}]}}


def plain(length: int) -> list[Message]:
    return [assistant(str(number)) if number % 2 else user(str(number)) for number in range(length)]


def tool_exchange(rounds: int, *, answered: bool = True) -> list[Message]:
    """A prompt, pairs of calls and results, and an answer."""
    pairs = [message for number in range(rounds) for message in (assistant(use(str(number))), user(result(str(number))))]
    return [user("go"), *pairs, *([assistant("done")] if answered else [])]


def same(messages: Sequence[Message], others: Sequence[Message]) -> bool:
    return len(messages) == len(others) and all(message is other for message, other in zip(messages, others, strict=True))


async def inline(call: Callable[[], Any]) -> Any:
    return call()


class TestTokens:
    @pytest.mark.parametrize(
        ("message", "tokens"),
        [
            (user("x" * 400), 100),
            (user("x" * 401), 101),
            (user("a"), 1),
            (user(), 1),
            (user({"cachePoint": {"type": "default"}}), 1),
            (assistant({"toolUse": {"toolUseId": "a", "name": "nine", "input": "x" * 98}}), 1 + 50),
            (user(result("a", "x" * 400)), 100),
            (user({"toolResult": {"toolUseId": "a", "content": [{"json": "x" * 98}, {"text": "x" * 40}]}}), 60),
            (user({"image": {"format": "png", "source": {"bytes": b"x"}}}), 85),
            (user({"image": {"format": "png", "source": {"bytes": b"x" * 200_000}}}), 1_000),
            (user({"image": {"format": "png", "source": {"bytes": b"x" * 2_000_000}}}), 1_600),
            (user({"image": {"format": "png", "source": {"location": {"uri": "s3://a"}}}}), 1_600),
            (user({"document": {"format": "txt", "source": {"bytes": b"x" * 400}}}), 100),
            (user({"document": {"format": "pdf", "source": {"bytes": b"x" * 3_200}}}), 100),
            (user({"document": {"format": "pdf", "source": {}}}), 3_000),
            (user({"video": {"format": "mp4", "source": {"bytes": b"x" * 5_000}}}), 10),
            (assistant({"reasoningContent": {"reasoningText": {"text": "x" * 40, "signature": "x" * 40}}}), 20),
        ],
    )
    def test_counts_by_length(self, message: Message, tokens: int) -> None:
        assert estimate(message) == tokens

    @given(valid_conversations())
    def test_counts_are_positive_and_add_up(self, messages: list[Message]) -> None:
        assert estimate_all(messages) == sum(map(estimate, messages))
        assert all(estimate(message) >= 1 for message in messages)

    @given(any_messages())
    def test_less_never_counts_more(self, message: Message) -> None:
        for place in range(len(message["content"])):
            fewer = {**message, "content": [block for at, block in enumerate(message["content"]) if at != place]}
            assert estimate(fewer) <= estimate(message)

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.text("ab"), lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner)))
    def test_json_is_measured_without_being_written(self, value: Any) -> None:
        written = len(json.dumps(value))

        assert written <= json_length(value) <= 2 * written + 4


class TestSlide:
    def test_prefers_the_near_tool_pair_over_the_far_prompt(self) -> None:
        messages = [user("u"), assistant(use()), user(result()), assistant("a"), user("u"), assistant(use()), user(result())]

        assert same(slide(messages, 4), messages[-3:])

    @pytest.mark.parametrize(("length", "size", "kept"), [(41, 40, 39), (40, 40, 40), (42, 40, 40), (1000, 40, 40), (6, 1, 0), (7, 1, 1), (6, 0, 0)])
    def test_plain_messages(self, length: int, size: int, kept: int) -> None:
        messages = plain(length)

        assert same(slide(messages, size), messages[length - kept :])

    def test_a_long_tool_exchange_keeps_its_prompt_and_newest_pairs(self) -> None:
        messages = tool_exchange(30)

        assert same(slide(messages, 10), [messages[0], *messages[-9:]])
        assert same(slide(messages, 9), [messages[0], *messages[-7:]])
        assert same(slide(messages, 2), [messages[0], messages[-1]])

    def test_an_older_exchange_keeps_its_prompt_and_newest_pairs_where_there_is_room(self) -> None:
        messages = [*tool_exchange(10), *plain(2)]

        assert same(slide(messages, 8), [messages[0], *messages[-7:]])
        assert same(slide(messages, 7), [messages[0], *messages[-5:]])

    def test_an_open_call_is_never_cut(self) -> None:
        messages = tool_exchange(3, answered=False)[:-1]

        assert is_open(messages)
        for size in range(3):
            assert same(slide(messages, size), [messages[0], messages[-1]])

    def test_a_prompt_that_joined_results_keeps_its_words(self) -> None:
        messages = [user("u"), assistant(use()), user(result(), "and now?"), assistant("this")]

        assert slide(messages, 3) == [user("and now?"), assistant("this")]
        assert slide(messages, 3)[1] is messages[3]

    @given(valid_conversations(max_size=16) | valid_conversations(max_size=16, open=True), st.integers(0, 18))
    def test_what_stays_is_a_conversation_within_the_size(self, messages: list[Message], size: int) -> None:
        before = copy.deepcopy(messages)
        kept = slide(messages, size)

        assert messages == before
        assert len(kept) <= (max(size, 2) if is_open(messages) else size)
        assert is_open(kept) if is_open(messages) else is_valid(kept)
        if len(messages) <= size:
            assert same(kept, messages)
        whole = [index for index, message in enumerate(messages) if len(messages) - index <= size and message["role"] == "user" and not _only_results(message)]
        assert len(kept) >= max((len(messages) - index for index in whole), default=0)


def _only_results(message: Message) -> bool:
    return all("toolResult" in block for block in message["content"])


class TestShipped:
    @pytest.mark.parametrize("size", [-1, 2.0, "40", None, True])
    def test_a_window_size_is_a_number_of_messages(self, size: Any) -> None:
        with pytest.raises(InvalidOption, match="window_size is"):
            SlidingWindowConversationManager(window_size=size)

    def test_truncation_is_a_yes_or_no(self) -> None:
        with pytest.raises(InvalidOption, match="should_truncate_results is 'no'"):
            SlidingWindowConversationManager(should_truncate_results="no")  # type: ignore[arg-type]  # the point

    async def test_the_window_slides_after_a_turn(self) -> None:
        messages = plain(41)
        managed = await manage(messages, manager=SlidingWindowConversationManager(), system_prompt=None, run_sync=inline)

        assert managed is not None
        assert same(managed, messages[-39:])

    @pytest.mark.parametrize("manager", [SlidingWindowConversationManager(), NullConversationManager(), ConversationManager()])
    async def test_nothing_to_do_looks_at_no_message(self, manager: ConversationManager) -> None:
        class Opaque(list[Message]):
            def __iter__(self) -> Any:
                raise AssertionError("a message was looked at")

            def __getitem__(self, index: Any) -> Any:
                raise AssertionError("a message was looked at")

        assert await manage(Opaque(plain(40)), manager=manager, system_prompt=None, run_sync=inline) is None

    async def test_null_keeps_everything(self) -> None:
        assert await manage(plain(1000), manager=NullConversationManager(), system_prompt=None, run_sync=inline) is None

    def test_a_subclass_need_not_call_init(self) -> None:
        class Mine(SlidingWindowConversationManager):
            def __init__(self) -> None:
                self.note = "mine"

        assert (Mine().window_size, Mine().should_truncate_results) == (40, True)

    def test_whose_method_it_is(self) -> None:
        class OnlyApply(SlidingWindowConversationManager):
            def apply_management(self, messages: Any, /, **kwargs: Any) -> Awaitable[None] | None:
                return super().apply_management(messages)

        assert policy_of(ConversationManager(), "apply") == policy_of(NullConversationManager(), "reduce") == "none"
        assert policy_of(SlidingWindowConversationManager(), "apply") == policy_of(OnlyApply(), "reduce") == "window"
        assert policy_of(OnlyApply(), "apply") == "custom"

    async def test_a_subclass_may_call_the_shipped_method(self) -> None:
        class Mine(SlidingWindowConversationManager):
            def apply_management(self, agent: Any, /, **kwargs: Any) -> Awaitable[None] | None:
                return super().apply_management(agent, **kwargs)

        messages = plain(10)
        managed = await manage(messages, manager=Mine(window_size=4), system_prompt=None, run_sync=inline)

        assert managed is not None
        assert same(managed, messages[-4:])

    def test_reducing_in_place_halves_what_it_may(self) -> None:
        messages = [user("old"), assistant(use("x")), user(result("x", "long " * 400)), assistant("ok"), user("new"), assistant(use()), user(result())]
        before = estimate_all(messages)
        for target in (messages, Draft(messages, None)):
            SlidingWindowConversationManager().reduce_context(target, e=None)

        assert estimate_all(messages) <= before // 2
        assert is_valid(messages)
        assert messages[-3:] == [user("new"), assistant(use()), user(result())]


# --- managers of the user's own: every face that may be met ----------------------------------------------------------


class OldFace(ConversationManager):
    def apply_management(self, messages: list[Message]) -> None:
        del messages[:2]

    def reduce_context(self, messages: list[Message], e: Exception) -> None:  # type: ignore[override]  # as the guide has it
        messages[0]["content"].append({"text": f"because {e}"})


class AsyncFace(ConversationManager):
    async def apply_management(self, messages: list[Message]) -> None:
        await anyio.lowlevel.checkpoint()
        del messages[:2]

    async def reduce_context(self, messages: list[Message], e: Exception | None = None) -> None:
        messages[0]["content"].append({"text": f"because {e}"})


class AgentFace(ConversationManager):
    def apply_management(self, agent: Any, **kwargs: Any) -> None:
        agent.messages = agent.messages[2:]

    def reduce_context(self, agent: Any, e: Exception | None = None, **kwargs: Any) -> None:
        agent.messages[0]["content"].append({"text": f"because {e}"})


class AgentFaceInPlace(AgentFace):
    async def apply_management(self, agent: Any, **kwargs: Any) -> None:  # type: ignore[override]  # sync or async, as users do
        agent.messages[:] = agent.messages[2:]

    def reduce_context(self, agent: Any, **kwargs: Any) -> None:  # type: ignore[override]  # as users do
        agent.messages[0]["content"].append({"text": f"because {kwargs['e']}"})


class OtherNames(ConversationManager):
    def apply_management(self, conversation: list[Message]) -> None:
        del conversation[:2]

    def reduce_context(self, conversation: list[Message], problem: Exception | None) -> None:  # type: ignore[override]  # as users do
        conversation[0]["content"].append({"text": f"because {problem}"})


class OtherAgentName(ConversationManager):
    def apply_management(self, bot: Any, **kwargs: Any) -> None:
        bot.messages = bot.messages[2:]

    def reduce_context(self, bot: Any, *, e: Exception | None = None, **kwargs: Any) -> None:  # type: ignore[override]  # as users do
        bot.messages[0]["content"].append({"text": f"because {e}"})


class PlainWithKeywords(ConversationManager):
    def apply_management(self, messages: list[Message], **kwargs: Any) -> None:
        del messages[:2]

    def reduce_context(self, messages: list[Message], e: Exception | None = None, **kwargs: Any) -> None:
        messages[0]["content"].append({"text": f"because {e}"})


class ReturnsAwaitable(ConversationManager):
    def apply_management(self, messages: list[Message]) -> Any:
        return AsyncFace().apply_management(messages)

    def reduce_context(self, *arguments: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # as users do
        return AsyncFace().reduce_context(*arguments)


class Wrapped(ConversationManager):
    """Attributes of the instance, one a partial, one an object with an async ``__call__``."""

    def __init__(self) -> None:
        class Reducer:
            async def __call__(self, messages: list[Message], e: Exception | None = None) -> None:
                await AsyncFace().reduce_context(messages, e)

        self.apply_management = functools.partial(_delete_first, 2)  # type: ignore[method-assign]
        self.reduce_context = Reducer()  # type: ignore[method-assign]


def _delete_first(how_many: int, messages: list[Message]) -> None:
    del messages[:how_many]


FACES = [OldFace, AsyncFace, AgentFace, AgentFaceInPlace, OtherNames, OtherAgentName, PlainWithKeywords, ReturnsAwaitable, Wrapped]


class Doing(ConversationManager):
    """Does to the messages what it is given."""

    def __init__(self, what: Callable[[list[Any]], Any]) -> None:
        self.what = what

    def apply_management(self, messages: list[Any]) -> None:
        self.what(messages)

    def reduce_context(self, messages: list[Any], e: Exception | None = None) -> None:
        self.what(messages)


class DoingToAgent(ConversationManager):
    def __init__(self, what: Callable[[Any], Any]) -> None:
        self.what = what

    def apply_management(self, agent: Any) -> None:
        self.what(agent)


async def run(manager: ConversationManager, messages: list[Message]) -> list[Message]:
    return await run_custom(manager, "apply", messages, system_prompt="be kind", error=None, run_sync=inline)


class TestCustom:
    @pytest.mark.parametrize("face", FACES)
    async def test_every_face_manages(self, face: type[ConversationManager]) -> None:
        messages = plain(6)
        before = copy.deepcopy(messages)
        managed = await manage(messages, manager=face(), system_prompt=None, run_sync=inline)

        assert managed is not None
        assert same(managed, messages[2:])
        assert messages == before

    @pytest.mark.parametrize("face", FACES)
    async def test_every_face_reduces_and_hears_why(self, face: type[ConversationManager]) -> None:
        messages = plain(4)
        reduced = await run_custom(face(), "reduce", messages, system_prompt=None, error=ValueError("it is full"), run_sync=inline)

        assert reduced[0] == user("0", "because it is full")
        assert same(reduced[1:], messages[1:])
        assert messages == plain(4)

    async def test_an_agent_shows_its_system_prompt(self) -> None:
        seen: list[str] = []
        await run(DoingToAgent(lambda agent: seen.append(agent.system_prompt)), plain(2))

        assert seen == ["be kind"]

    @pytest.mark.parametrize("sync", [True, False])
    async def test_only_sync_methods_run_in_a_thread(self, sync: bool) -> None:
        ran: list[Any] = []

        async def noting(call: Callable[[], Any]) -> Any:
            ran.append(call)
            return await anyio.to_thread.run_sync(call)

        await manage(plain(4), manager=OldFace() if sync else AsyncFace(), system_prompt=None, run_sync=noting)

        assert len(ran) == int(sync)

    @pytest.mark.parametrize(
        "edit",
        [
            lambda messages: None,
            lambda messages: messages.reverse() or messages.reverse(),
            lambda messages: messages.__setitem__(slice(None), copy.deepcopy(messages)),
            lambda messages: messages.__setitem__(slice(None), [dict(message) for message in messages]),
            lambda messages: messages.__setitem__(slice(None), json.loads(json.dumps(messages))),
        ],
    )
    async def test_what_says_the_same_is_the_same(self, edit: Callable[[list[Message]], None]) -> None:
        messages = [*plain(4), *plain(2)]

        assert same(await run(Doing(edit), messages), messages)
        assert await manage(messages, manager=Doing(edit), system_prompt=None, run_sync=inline) is None

    async def test_edited_messages_are_new_and_the_originals_unchanged(self) -> None:
        def edit(messages: list[Message]) -> None:
            messages[1]["content"][0]["text"] = "edited"
            messages.append(user("added"))

        messages = plain(4)
        managed = await run(Doing(edit), messages)

        assert managed == [user("0"), assistant("edited"), user("2"), assistant("3"), user("added")]
        assert messages == plain(4)
        assert [any(message is other for other in messages) for message in managed] == [True, False, True, True, False]

    async def test_a_manager_has_no_hold_on_what_it_left(self) -> None:
        kept: list[Message] = []

        def edit(messages: list[Message]) -> None:
            messages[0] = user("mine")
            kept.extend(messages)

        messages = plain(2)
        managed = await run(Doing(edit), messages)
        for message in kept:
            message["content"].clear()

        assert managed == [user("mine"), assistant("1")]

    async def test_one_message_left_twice_is_two(self) -> None:
        messages = plain(2)
        managed = await run(Doing(lambda left: left.extend(list(left))), messages)

        assert managed == [*messages, *messages]
        assert len({id(message) for message in managed}) == 4

    @pytest.mark.parametrize("nonsense", [None, "text", (), 3, {}, [None], ["text"], [[]]])
    async def test_nonsense_is_refused(self, nonsense: Any) -> None:
        with pytest.raises(InvalidConversation, match="a conversation manager left something other than a list of messages"):
            await run(DoingToAgent(lambda agent: setattr(agent, "messages", nonsense)), plain(2))

    @pytest.mark.parametrize("left", [[{}], [{"role": "user"}], [assistant("1")], [user("0"), user("1")], [user("0"), assistant(use())], [user(object())]])  # type: ignore[arg-type]  # the point
    async def test_an_invalid_policy_is_refused(self, left: list[Message]) -> None:
        with pytest.raises(InvalidConversation, match="message"):
            await manage(plain(4), manager=Doing(lambda messages: messages.__setitem__(slice(None), left)), system_prompt=None, run_sync=inline)

    async def test_a_cycle_is_refused(self) -> None:
        def edit(messages: list[Any]) -> None:
            messages[0]["content"].append(messages[0])

        with pytest.raises(InvalidConversation, match="nested deeper"):
            await run(Doing(edit), plain(2))

    async def test_what_a_manager_raises_comes_out(self) -> None:
        def fail(messages: list[Any]) -> None:
            messages.clear()
            raise ZeroDivisionError

        messages = plain(2)
        with pytest.raises(ZeroDivisionError):
            await run(Doing(fail), messages)

        assert messages == plain(2)

    async def test_an_open_call_may_stay_open(self) -> None:
        messages = [*plain(2), user("go"), assistant(use())]
        managed = await manage(messages, manager=OldFace(), system_prompt=None, run_sync=inline)

        assert managed is not None
        assert same(managed, messages[2:])

    async def test_a_policy_may_keep_nothing(self) -> None:
        assert await manage(plain(2), manager=Doing(lambda messages: messages.clear()), system_prompt=None, run_sync=inline) == []

    @given(messages=valid_conversations(), data=st.data())
    async def test_any_edit_leaves_the_originals_alone(self, messages: list[Message], data: st.DataObject) -> None:
        def edit(left: list[Message]) -> None:
            for _ in range(data.draw(st.integers(0, 4))):
                if left:
                    index = data.draw(st.integers(0, len(left) - 1))
                    data.draw(st.sampled_from([_pop, _clear, _swap_ends, _rename, _replace]))(left, index)

        before = copy.deepcopy(messages)
        managed = await run(Doing(edit), messages)

        assert messages == before
        originals = {id(message) for message in messages}
        for message in managed:
            assert id(message) in originals or not _parts(message) & _parts(messages)


def _pop(left: list[Message], index: int) -> None:
    del left[index]


def _clear(left: list[Message], index: int) -> None:
    left[index]["content"].clear()


def _swap_ends(left: list[Message], index: int) -> None:
    left[0], left[-1] = left[-1], left[0]


def _rename(left: list[Message], index: int) -> None:
    for call in tool_uses(left[index]):
        call["name"] = "other"


def _replace(left: list[Message], index: int) -> None:
    left[index] = {**left[index], "content": [*left[index]["content"], {"text": "more"}]}


def _parts(value: Any) -> set[int]:
    """The ids of all dicts and lists in a value, messages themselves included."""
    if isinstance(value, dict):
        return {id(value)}.union(*map(_parts, value.values()))
    if isinstance(value, list):
        return {id(value)}.union(*map(_parts, value))
    return set()

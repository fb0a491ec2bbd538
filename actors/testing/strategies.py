"""Hypothesis strategies for what goes into a conversation: texts, blocks, messages, prompts, and conversations valid and not quite.

They shrink towards little: one word, one message, no tools. Results of tools are sometimes long, and ids of tool uses come
back in later messages, as some providers' do, so that reductions and repairs meet both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import strategies as st

from ropewalk.actors.messages import Block, Message, tool_uses
from ropewalk.actors.validity import copied

__all__ = [
    "blocks",
    "conversations",
    "messages",
    "nearly_valid_conversations",
    "prompts",
    "request_states",
    "texts",
    "tool_inputs",
    "valid_conversations",
]

_IDS = [f"call_{number}" for number in range(6)]
_NAMES = st.sampled_from(["calculator", "search", "book_flight", "weather"])
_STATUSES = st.sampled_from(["success", "error"])
_ONE_IN_FOUR = st.sampled_from([False, False, False, True])
_MEDIA = [("image", "png"), ("image", "jpeg"), ("document", "pdf"), ("document", "txt"), ("video", "mp4")]


@cache
def texts(max_size: int = 40) -> st.SearchStrategy[str]:
    """What people and models say: at least one character, any script, no surrogates."""
    return st.sampled_from(["hi", "yes, please", "what is 2 + 2?", "4", "🪢 naïve 你好"]) | st.text(min_size=1, max_size=max_size)


@cache
def tool_inputs() -> st.SearchStrategy[dict[str, Any]]:
    """The input of a tool call: a dict of JSON values."""
    return st.just({"expression": "1 + 1"}) | st.dictionaries(texts(8), _json_values(), max_size=3)


@cache
def request_states() -> st.SearchStrategy[dict[str, Any]]:
    """Request states: dicts of JSON values."""
    return st.dictionaries(texts(8), _json_values(), max_size=4)


@cache
def blocks() -> st.SearchStrategy[Block]:
    """Blocks that a prompt may consist of: mostly text, now and then an image, a document, a film or a cache point."""
    text = st.builds(lambda text: {"text": text}, texts())
    return text | text | _media() | st.just({"cachePoint": {"type": "default"}})


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """One well-formed message of either role, without a word on whether it fits anywhere."""
    if draw(st.booleans()):
        return {"role": "user", "content": draw(st.lists(blocks(), min_size=1, max_size=3))}
    said = draw(st.lists(_answer_blocks(), max_size=2))
    return {"role": "assistant", "content": said + _calls(draw, 0 if said else 1)}


@st.composite
def valid_conversations(draw: st.DrawFn, min_size: int = 0, max_size: int = 12, open: bool = False) -> list[Message]:  # the word of the design
    """Valid conversations of this many messages; with `open`, ones whose last message's calls are unanswered.

    They may end in a user message, as after a limit, and a prompt may have joined tool results.
    """
    half = draw(st.integers((max(min_size, 2) + 1) // 2, max(max_size, 2) // 2)) if open else 0
    size = 2 * half or draw(st.integers(min_size, max_size))
    conversation: list[Message] = []
    for index in range(size):
        if index % 2 == 0:
            conversation.append(_user_message(draw, tool_uses(conversation[-1]) if conversation else []))
        elif index < size - 1:
            conversation.append(_assistant_message(draw, 0, 3))
        else:
            conversation.append(_assistant_message(draw, 1, 3) if open else _assistant_message(draw, 0, 0))
    return conversation


@st.composite
def nearly_valid_conversations(draw: st.DrawFn, max_size: int = 10) -> list[Any]:
    """Valid or open conversations after one to four damages, as other programs, crashes and careless edits do them.

    Mostly repairable; now and then something has the wrong type.
    """
    conversation: list[Any] = copied(draw(valid_conversations(1, max_size) | valid_conversations(2, max_size, open=True)))
    for damage in draw(st.lists(st.sampled_from(_DAMAGES), min_size=1, max_size=4)):
        if conversation:
            damage(conversation, draw(st.integers(0, len(conversation) - 1)), draw)
    return conversation


def conversations(*, valid: bool) -> st.SearchStrategy[list[Any]]:
    """Valid conversations, or nearly valid ones."""
    return valid_conversations() if valid else nearly_valid_conversations()


def prompts() -> st.SearchStrategy[str | list[Any]]:
    """What may be asked of a session: a text, a list of content blocks, or a list of messages."""
    return texts() | st.lists(blocks(), min_size=1, max_size=3) | st.sampled_from([1, 3]).flatmap(lambda size: valid_conversations(size, size))


# --- parts of messages -----------------------------------------------------------------------------------------------


@cache
def _long_texts() -> st.SearchStrategy[str]:
    """Texts of up to some thousands of characters, cheap to draw and to shrink."""
    return st.builds(lambda text, times: text * times, texts(12), st.integers(1, 300))


@cache
def _json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts(8)
    return leaves | st.lists(leaves, max_size=3) | st.dictionaries(texts(8), leaves | st.lists(leaves, max_size=2), max_size=3)


@cache
def _media() -> st.SearchStrategy[Block]:
    def medium(kind_and_format: tuple[str, str], data: bytes, times: int) -> Block:
        kind, of = kind_and_format
        return {kind: {"format": of, **({"name": "notes"} if kind == "document" else {}), "source": {"bytes": data * times}}}

    return st.builds(medium, st.sampled_from(_MEDIA), st.binary(min_size=1, max_size=8), st.integers(1, 200))


@cache
def _answer_blocks() -> st.SearchStrategy[Block]:
    """Blocks of an assistant other than calls."""
    reasoning = st.builds(lambda text: {"reasoningContent": {"reasoningText": {"text": text, "signature": "s"}}}, texts())
    return st.builds(lambda text: {"text": text}, texts() | _long_texts()) | reasoning


@cache
def _result_items() -> st.SearchStrategy[list[Block]]:
    text = st.builds(lambda text: {"text": text}, texts() | _long_texts())
    rows = st.builds(lambda value, times: {"json": {"rows": [value] * times}}, _json_values(), st.integers(0, 60))
    return st.lists(text | rows | _media(), max_size=2)


@cache
def _id_lists(min_size: int, max_size: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(_IDS), min_size=min_size, max_size=max_size, unique=True)


def _calls(draw: st.DrawFn, min_size: int, max_size: int = 3) -> list[Block]:
    """Calls of one assistant message, with different ids."""
    ids = draw(_id_lists(min_size, max_size)) if max_size else []
    return [{"toolUse": {"toolUseId": tool_use_id, "name": draw(_NAMES), "input": draw(tool_inputs())}} for tool_use_id in ids]


def _assistant_message(draw: st.DrawFn, min_calls: int, max_calls: int) -> Message:
    calls = _calls(draw, min_calls, max_calls)
    said = draw(_some_answer_blocks(0 if calls else 1))
    return {"role": "assistant", "content": said + calls}


@cache
def _some_answer_blocks(min_size: int) -> st.SearchStrategy[list[Block]]:
    return st.lists(_answer_blocks(), min_size=min_size, max_size=2)


@cache
def _some_blocks() -> st.SearchStrategy[list[Block]]:
    return st.lists(blocks(), min_size=1, max_size=2)


def _user_message(draw: st.DrawFn, uses: list[Block]) -> Message:
    """Results for each use once, in any order, and words where there are none, or where a prompt joined them."""
    results: list[Block] = []
    for use in draw(st.permutations(uses)) if len(uses) > 1 else uses:
        status = draw(_STATUSES)
        results.append({"toolResult": {"toolUseId": use["toolUseId"], "status": status, "content": draw(_result_items())}})
    words = draw(_some_blocks()) if not results or draw(_ONE_IN_FOUR) else []
    return {"role": "user", "content": results + words}


# --- damages ---------------------------------------------------------------------------------------------------------


def _drop(conversation: list[Any], index: int, draw: st.DrawFn) -> None:
    del conversation[index]


def _repeat(conversation: list[Any], index: int, draw: st.DrawFn) -> None:
    conversation.insert(draw(st.integers(0, len(conversation))), copied(conversation)[index])


def _swap(conversation: list[Any], index: int, draw: st.DrawFn) -> None:
    other = (index + 1) % len(conversation)
    conversation[index], conversation[other] = conversation[other], conversation[index]


def _empty(conversation: list[Any], index: int, draw: st.DrawFn) -> None:
    _set(conversation, index, "content", [])


def _turn_role(conversation: list[Any], index: int, draw: st.DrawFn) -> None:
    _set(conversation, index, "role", draw(st.sampled_from(["user", "assistant", "assistant", "system"])))


def _flatten(conversation: list[Any], index: int, draw: st.DrawFn) -> None:
    _set(conversation, index, "content", draw(st.just("") | texts()))


def _add_key(conversation: list[Any], index: int, draw: st.DrawFn) -> None:
    key, value = draw(st.sampled_from([("tracking_id", "f3c6"), ("metadata", {"usage": {"inputTokens": 3}})]))
    _set(conversation, index, key, value)


def _orphan(conversation: list[Any], index: int, draw: st.DrawFn) -> None:
    result = {"toolResult": {"toolUseId": draw(st.sampled_from(_IDS)), "status": "success", "content": [{"text": "42"}]}}
    _insert_block(conversation, index, result, draw)


def _repeat_block(conversation: list[Any], index: int, draw: st.DrawFn) -> None:
    content = _content(conversation, index)
    if content:
        _insert_block(conversation, index, draw(st.sampled_from(content)), draw)


def _drop_block(conversation: list[Any], index: int, draw: st.DrawFn) -> None:
    content = _content(conversation, index)
    if content:
        del content[draw(st.integers(0, len(content) - 1))]


def _spoil(conversation: list[Any], index: int, draw: st.DrawFn) -> None:
    """Put something where it cannot stand: into the list, into a content, or as one."""
    [nonsense] = copied([draw(st.sampled_from(_NONSENSE))])
    how = draw(st.integers(0, 2))
    if how == 0:
        _insert_block(conversation, index, nonsense, draw)
    elif how == 1:
        _set(conversation, index, "content", nonsense)
    else:
        conversation[index] = nonsense


def _set(conversation: list[Any], index: int, key: str, value: Any) -> None:
    if isinstance(conversation[index], dict):
        conversation[index][key] = value


def _content(conversation: list[Any], index: int) -> list[Any]:
    content: Any = conversation[index].get("content") if isinstance(conversation[index], dict) else None
    return content if isinstance(content, list) else []


def _insert_block(conversation: list[Any], index: int, block: Any, draw: st.DrawFn) -> None:
    content = _content(conversation, index)
    content.insert(draw(st.integers(0, len(content))), block)


_NONSENSE: list[Any] = [None, 3, "text", [], {}, {"text": 3}, {"text": "a", "image": {}}, {"toolUse": {}}, {"toolResult": "x"}, {3: "x"}]

_DAMAGES: list[Callable[[list[Any], int, st.DrawFn], None]] = [
    *(_drop, _repeat, _swap, _empty, _turn_role, _flatten, _add_key, _orphan, _repeat_block, _drop_block),
    *(_drop, _repeat, _swap, _empty, _orphan, _spoil),
]

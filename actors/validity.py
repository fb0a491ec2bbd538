"""Validity: what a model may be shown, and the one door through which lists of messages come in from outside.

A conversation is *valid* when it starts with a user message, roles alternate, every ``toolUse`` is answered by exactly
one ``toolResult`` in the next message, no result stands without its use, and no content is empty; no messages at all are
valid too. It is *open* when it is valid but for the calls of its last message. Everything inside Ropewalk keeps this by
construction; only what comes from outside is repaired, and only at the door.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, TypeGuard

from ropewalk.actors.errors import InvalidConversation
from ropewalk.actors.messages import Block, Message, error_result, tool_results, tool_uses

__all__ = [
    "BLANK",
    "INPUT_DEPTH",
    "INTERRUPTED",
    "MAX_DEPTH",
    "check",
    "copied",
    "deeper_than",
    "door",
    "is_dict",
    "is_list",
    "is_open",
    "is_valid",
    "unanswered",
    "unanswered_among",
]

BLANK = "[blank text]"
INTERRUPTED = "Tool was interrupted."
MAX_DEPTH = 100
INPUT_DEPTH = MAX_DEPTH - 10
"""How deep a call's input or a citation may be nested, so that the message around it stays within what can be copied."""


def check(messages: Sequence[Message]) -> None:
    """Return when the conversation is valid; otherwise raise `InvalidConversation` naming the message's index and the rule."""
    if calls := unanswered(messages):
        raise _broken(len(messages) - 1, f"the toolUse {calls[0]!r} has no toolResult in a next message")


def unanswered(messages: Sequence[Message]) -> list[str]:
    """The ids of the calls that the last message leaves unanswered, none for a valid conversation.

    Raises `InvalidConversation` when the messages are neither valid nor open.
    """
    return _unanswered(_listed(messages), frozenset())


def unanswered_among(messages: Sequence[Message], valid: Sequence[Message]) -> list[str]:
    """`unanswered` for messages some of which are taken, as the same objects, from a valid or open conversation: their blocks are not looked into again."""
    return _unanswered(_listed(messages), set(map(id, valid)))


def _unanswered(messages: Sequence[Any], well_formed: Set[int]) -> list[str]:
    calls: list[str] = []
    for index, message in enumerate(messages):
        role = "assistant" if index % 2 else "user"
        if id(message) in well_formed and message["role"] == role:
            own = _BLOCKS[role][0]
            ids = [block[own]["toolUseId"] for block in message["content"] if own in block]
        elif not is_dict(message) or len(message) != 2 or message.get("role") != role or not is_list(message.get("content")) or not message["content"]:
            raise _broken(index, _message_fault(index, message, role))
        else:
            ids = _ids(index, message["content"], role)
        if role == "user":
            if ids or calls:
                _check_answers(index, ids, calls)
            calls = []
        else:
            calls = ids
            if len(ids) > 1 and len(set(ids)) < len(ids):
                raise _broken(index, "two toolUse blocks have one id")
    return calls


def is_valid(messages: Sequence[Message]) -> bool:
    """Whether `check` would let these messages pass."""
    try:
        return not unanswered(messages)
    except InvalidConversation:
        return False


def is_open(messages: Sequence[Message]) -> bool:
    """Whether these messages are valid but for a last assistant message whose calls are unanswered."""
    try:
        return bool(unanswered(messages))
    except InvalidConversation:
        return False


def door(messages: Sequence[Message]) -> list[Message]:
    """The valid conversation that these messages of somebody else's are meant to be.

    Content that is a string becomes a text block, keys beside role and content are dropped, neighbours of one role are
    joined (tool results first), orphaned and repeated results and repeated calls are dropped, missing results become
    error results, an assistant message without content says so and a user message without content leaves. Messages that
    need none of this are the same objects in the result; the argument is not changed, and the result shares with it.
    Raises `InvalidConversation` for what cannot be repaired: wrong types, a start with an assistant message.
    """
    repaired: list[Message] = []
    calls: list[str] = []
    for run in _runs(messages):
        if run[0]["role"] == "assistant":
            repaired.append(_joined_assistant(run))
            calls = [use["toolUseId"] for use in tool_uses(repaired[-1])]
        else:
            repaired.append(_joined_user(run, calls))
            calls = []
    if calls:
        repaired.append(_joined_user([{"role": "user", "content": []}], calls))
    return repaired


def copied(messages: Sequence[Message]) -> list[Message]:
    """A deep copy of dicts and lists (tuples become lists); leaves, bytes among them, are shared.

    Raises `InvalidConversation` for what is no list, or is nested deeper than `MAX_DEPTH`.
    """
    return [_copy(message, 0, index) for index, message in enumerate(_listed(messages))]


def deeper_than(levels: int, value: Any) -> bool:
    """Whether JSON data is nested deeper than so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(inner) and (levels <= 0 or any(deeper_than(levels - 1, item) for item in inner))


def is_dict(value: Any) -> TypeGuard[dict[Any, Any]]:
    """Whether a value is a dict, of whatever."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether a value is a list, of whatever."""
    return isinstance(value, list)


def _broken(index: int, rule: str) -> InvalidConversation:
    return InvalidConversation(f"message {index}: {rule}")


def _listed(messages: Any) -> Sequence[Any]:
    if is_list(messages) or _is_tuple(messages):
        return messages
    raise InvalidConversation(f"a conversation is a list of messages, not {type(messages).__name__}")


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)


def _copy(value: Any, depth: int, index: int) -> Any:
    if not isinstance(value, _CONTAINERS):
        return value
    if depth > MAX_DEPTH:
        raise _broken(index, f"nested deeper than {MAX_DEPTH} levels")
    if is_dict(value):
        return {key: _copy(item, depth + 1, index) for key, item in value.items()}
    copy = list(value)  # no larger than it must be, which one that grows is not: these lists are kept as long as the session
    for place, item in enumerate(copy):
        if isinstance(item, _CONTAINERS):
            copy[place] = _copy(item, depth + 1, index)
    return copy


# --- the rules -------------------------------------------------------------------------------------------------------


def _message_fault(index: int, message: Any, role: str) -> str:
    """What is wrong with the outer shape or the role of a message of which something is."""
    content = _content(index, message)
    if len(message) != 2:
        return "has the keys 'role' and 'content' and no others"
    if not is_list(content) or not content:
        return "the content is a list of at least one block"
    return "the roles of neighbours differ" if index else f"a conversation starts with a {role} message"


def _content(index: int, message: Any) -> Any:
    """The content of something that has the outer shape of a message."""
    if not is_dict(message):
        raise _broken(index, f"a message is a dict, not {type(message).__name__}")
    if message.get("role") not in ("user", "assistant"):
        instead = "; what the model is told beforehand is the agent's system_prompt" if message.get("role") == "system" else ""
        raise _broken(index, f"the role is 'user' or 'assistant', not {message.get('role')!r:.100}{instead}")
    if "content" not in message:
        raise _broken(index, "the content is missing")
    return message["content"]


def _ids(index: int, content: list[Any], role: str) -> list[str]:
    """The tool use ids in a message of this role, once every block has its shape and belongs to the role."""
    ids: list[str] = []
    for block in content:
        if is_dict(block) and len(block) == 1 and isinstance(block.get("text"), str):
            continue
        if fault := _block_fault(block):
            raise _broken(index, fault)
        own, foreign = _BLOCKS[role]
        if own in block:
            ids.append(block[own]["toolUseId"])
        elif foreign in block:
            raise _broken(index, f"{foreign} blocks belong to the other role")
    return ids


def _check_answers(index: int, answers: list[str], calls: list[str]) -> None:
    if answers == calls:
        return
    if orphans := set(answers) - set(calls):
        raise _broken(index, f"the toolResult {min(orphans)!r} answers no toolUse of the message before")
    if missing := set(calls) - set(answers):
        raise _broken(index, f"the toolUse {min(missing)!r} of the message before has no toolResult")
    if len(answers) > len(calls):
        raise _broken(index, "a toolUse of the message before has more than one toolResult")


def _block_fault(block: Any) -> str | None:
    if not is_dict(block) or len(block) != 1:
        return "a block is a dict with one key, which names its type"
    kind, value = next(iter(block.items()))
    if kind == "text":
        return None if isinstance(value, str) else "a text block holds a string"
    if not isinstance(kind, str):
        return "the key of a block is a string"
    return _FAULTS.get(kind, _value_fault)(value)


def _use_fault(use: Any) -> str | None:
    if not is_dict(use) or not isinstance(use.get("toolUseId"), str) or not isinstance(use.get("name"), str) or "input" not in use:
        return "a toolUse is a dict with 'toolUseId' and 'name', strings, and 'input'"
    return _value_fault(use["input"], 4) if len(use) == 3 else _value_fault(use)


def _result_fault(result: Any) -> str | None:
    if not is_dict(result) or not isinstance(result.get("toolUseId"), str) or not is_list(result.get("content")):
        return "a toolResult is a dict with 'toolUseId', a string, and 'content', a list"
    if result.get("status", "success") not in ("success", "error"):
        return "the status of a toolResult is 'success' or 'error'"
    only_texts = len(result) == 2 + ("status" in result)
    for item in result["content"]:
        if not is_dict(item) or len(item) != 1 or ("text" in item and not isinstance(item["text"], str)):
            return "an item of a toolResult is a dict with one key; under 'text' is a string"
        only_texts = only_texts and "text" in item
    return None if only_texts else _value_fault(result)


_BLOCKS = {"user": ("toolResult", "toolUse"), "assistant": ("toolUse", "toolResult")}
_LEAVES = (str, bytes, int)
_CONTAINERS = (dict, list, tuple)
_FAULTS: dict[str, Callable[[Any], str | None]] = {"toolUse": _use_fault, "toolResult": _result_fault}


def _value_fault(value: Any, depth: int = 3) -> str | None:
    """What keeps a value from being JSON or bytes. Depth counts from the message, as in a copy."""
    if isinstance(value, _LEAVES) or value is None:
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value} is not a JSON number"
    if depth > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    if is_dict(value):
        if not all(map(_is_str, value)):
            return "the keys of a dict are strings"
        value = value.values()
    elif not is_list(value):
        return f"{type(value).__name__} is not a JSON value"
    for item in value:
        if not isinstance(item, _LEAVES) and (fault := _value_fault(item, depth + 1)):
            return fault
    return None


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


# --- the door --------------------------------------------------------------------------------------------------------


def _runs(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The messages, admitted, in runs of one role; user runs that would be left empty are taken out, so roles alternate."""
    runs: list[list[Message]] = []
    asks = False
    for index, outside in enumerate(_listed(messages)):
        message = _admitted(index, outside)
        if message["role"] == "assistant":
            if runs and _leaves_nothing(runs[-1], asks):
                runs.pop()
            if not runs:
                raise _broken(index, "a conversation starts with a user message")
            asks = bool(tool_uses(message)) or (asks and runs[-1][0]["role"] == "assistant")
        if runs and runs[-1][0]["role"] == message["role"]:
            runs[-1].append(message)
        else:
            runs.append([message])
    if runs and _leaves_nothing(runs[-1], asks):
        runs.pop()
    return iter(runs)


def _leaves_nothing(run: list[Message], asks: bool) -> bool:
    """Whether a run is the user's and holds nothing but results that no call before it asked for."""
    return run[0]["role"] == "user" and not asks and all("toolResult" in block for message in run for block in message["content"])


def _admitted(index: int, outside: Any) -> Message:
    """A message of two keys with a list of well-formed blocks; the same object if it was one."""
    given = _content(index, outside)
    content: Any = ([{"text": given}] if given else []) if isinstance(given, str) else given
    if not is_list(content):
        raise _broken(index, "the content is a list of blocks, or a string")
    role: str = outside["role"]
    blocks: list[Any] = content
    for block in blocks:
        if fault := _block_fault(block):
            raise _broken(index, fault)
        if role == "user" and "toolUse" in block:
            raise _broken(index, "toolUse blocks belong to the other role")
    if role == "assistant" and any("toolResult" in block for block in blocks):
        blocks = [block for block in blocks if "toolResult" not in block]
    return outside if len(outside) == 2 and blocks is given else {"role": role, "content": blocks}


def _joined_assistant(run: list[Message]) -> Message:
    """One assistant message of a run: calls with an id already taken are dropped, and it is never empty."""
    taken: set[str] = set()
    blocks: list[Block] = []
    for block in (block for message in run for block in message["content"]):
        if "toolUse" in block:
            if block["toolUse"]["toolUseId"] in taken:
                continue
            taken.add(block["toolUse"]["toolUseId"])
        blocks.append(block)
    if len(run) == 1 and blocks and len(blocks) == len(run[0]["content"]):
        return run[0]
    return {"role": "assistant", "content": blocks or [{"text": BLANK}]}


def _joined_user(run: list[Message], calls: list[str]) -> Message:
    """One user message of a run that answers each of these calls once, in front of everything else."""
    missing = dict.fromkeys(calls)
    answers: list[Block] = []
    for result in (result for message in run for result in tool_results(message)):
        if result["toolUseId"] in missing:
            del missing[result["toolUseId"]]
            answers.append({"toolResult": result})
    if len(run) == 1 and not missing and len(answers) == len(tool_results(run[0])):
        return run[0]
    answers += [{"toolResult": error_result(call, INTERRUPTED)} for call in missing]
    return {"role": "user", "content": answers + [block for message in run for block in message["content"] if "toolResult" not in block]}

"""What a tool returned or raised, as the one ``toolResult`` block its call gets.

A result has the keys ``toolUseId, status, content`` in this order, unless the tool made the result itself: then its own
order stays and the id comes last. The error texts are those that models are used to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ropewalk.actors.messages import Block, error_result
from ropewalk.actors.tools.tool import Errors, is_tool_name
from ropewalk.actors.validity import BLANK, INTERRUPTED, MAX_DEPTH, deeper_than, is_dict, is_list
from ropewalk.runtime.supervision import Failure, contain

__all__ = [
    "call_keys",
    "exception_result",
    "interrupted_result",
    "invalid_input_result",
    "missing_result",
    "settled",
    "success_result",
    "timeout_result",
    "unknown_tool_result",
    "unreadable_input_result",
]

_BYTES = (bytes, bytearray, memoryview)
_DATA_BLOCKS = ("json", "image", "document", "video")
_RESULT_DEPTH = MAX_DEPTH - 10
"""How deep the data of a tool's own block may be nested, so that the message around it stays within what can be copied."""
_RAW_SHOWN = 200


# What a tool returned -------------------------------------------------------------------------------------------------


def success_result(tool_use_id: str, value: Any) -> Block:
    """The result a returned value stands for.

    A dict that is a result already (``status`` and a list of ``content`` blocks) is used as it is, a string becomes text,
    anything else JSON text, or its `str` where it has no JSON form. Bytes are refused with an error result. Never raises.
    """
    if type(value) is str:
        return _text_result(tool_use_id, value)
    kind: type[Any] = type(value)
    if issubclass(kind, bytes | bytearray | memoryview):
        return error_result(tool_use_id, f"Error: the tool returned {kind.__name__}; a tool returns text, JSON values or content blocks")
    made = contain(_own_result, tool_use_id, value)
    if made is not None and not isinstance(made, Failure):
        return made
    text = contain(_as_text, value)
    return exception_result(tool_use_id, text.error, "type") if isinstance(text, Failure) else _text_result(tool_use_id, text)


def _text_result(tool_use_id: str, text: str) -> Block:
    # Providers refuse empty text, and lone surrogates cannot be written to a journal.
    return {"toolUseId": tool_use_id, "status": "success", "content": [{"text": _encodable(text) or BLANK}]}


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _own_result(tool_use_id: str, value: Any) -> Block | None:
    """The result a tool made itself; None for a value that merely has such keys."""
    if not is_dict(value) or value.get("status") not in ("success", "error") or not is_list(value.get("content")):
        return None
    content = [_own_block(block) for block in value["content"]] or [{"text": BLANK}]
    if None in content:
        return None
    made: Block = {"status": value["status"], "content": content}
    return {**{key: made[key] for key in value if key in made}, "toolUseId": tool_use_id}


def _own_block(block: Any) -> Block | None:
    """A copy of one content block, None for what is none; raises for one that no journal could hold."""
    if not is_dict(block) or len(block) != 1:
        return None
    [(key, body)] = block.items()
    if key == "text" and isinstance(body, str):
        return {"text": _encodable(str.__str__(body)) or BLANK}
    if key not in _DATA_BLOCKS:
        return None
    encoded = msgspec.json.encode(body)
    data = msgspec.json.decode(encoded) if key == "json" else _data(msgspec.to_builtins(body, builtin_types=_BYTES, str_keys=True))
    return None if deeper_than(_RESULT_DEPTH, data) else {key: data}


def _data(value: Any) -> Any:
    """Builtin data as a message may hold it: in dicts and lists, and bytes as such, whatever the tool had them in."""
    if is_dict(value):
        return {key: _data(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_data(inner) for inner in value]
    if isinstance(value, _BYTES):
        return bytes(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value  # as JSON text has it


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    encoded = contain(_encoder.encode, value)
    # Spaced, as the standard library writes JSON, which is what models have seen most.
    return str(value) if isinstance(encoded, Failure) else msgspec.json.format(encoded, indent=0).decode()


def _model_data(value: Any) -> Any:
    # Data models of other libraries say their JSON form by this method; what has no such method has no JSON form.
    return value.model_dump(mode="json")


_encoder = msgspec.json.Encoder(enc_hook=_model_data)


# What a call came to instead ------------------------------------------------------------------------------------------


def exception_result(tool_use_id: str, error: BaseException, shown: Errors = "full") -> Block:
    """The error result of an exception: its text, with its type unless it is a ValueError; the type alone where `shown` says so. Never raises."""
    kind = type(error).__name__
    message = _message(error) if shown == "full" else ""
    if not message:
        return error_result(tool_use_id, f"Error: {kind}")
    return error_result(tool_use_id, f"Error: {message}" if isinstance(error, ValueError) else f"Error: {kind} - {message}")


def _message(error: BaseException) -> str:
    message = contain(str, error)
    return "" if isinstance(message, Failure) else _encodable(message).strip()


def invalid_input_result(tool_use_id: str, error: Exception, shown: Errors = "full") -> Block:
    """The error result of an input that the tool's schema refuses."""
    # What validation says is ours and may be shown; what a parameter's own class raised is the tool's.
    own = error if isinstance(error, msgspec.ValidationError) and error.__cause__ is None else None
    message = _message(error) if own or shown == "full" else ""
    return error_result(tool_use_id, f"Error: Validation failed for input parameters: {message or type(error.__cause__ or error).__name__}")


def unreadable_input_result(tool_use_id: str, raw: str, problem: str) -> Block:
    """The error result of an input that is not a JSON object; quotes what the model wrote, up to 200 characters."""
    quoted = raw if len(raw) <= _RAW_SHOWN else raw[:_RAW_SHOWN] + "..."
    text = f"Error: the tool's input is not a JSON object ({problem}), so the tool was not called; the input began: {quoted}"
    return error_result(tool_use_id, _encodable(text))


def unknown_tool_result(tool_use_id: str, name: object) -> Block:
    """The error result of a call of a tool there is not, or cannot be under such a name."""
    if is_tool_name(name):
        return error_result(tool_use_id, f"Unknown tool: {name}")
    shown = _encodable(name[:_RAW_SHOWN]) if isinstance(name, str) else type(name).__name__
    return error_result(tool_use_id, f"Error: tool_name=<{shown}> | invalid tool name pattern")


def timeout_result(tool_use_id: str, name: str, seconds: float) -> Block:
    """The error result of a call that took longer than its tool allows."""
    return error_result(tool_use_id, f"Error: Tool '{name}' timed out after {seconds:g} seconds")


def missing_result(tool_use_id: str, name: str) -> Block:
    """The error result of a generator that ended without an item."""
    return error_result(tool_use_id, f"Tool '{name}' did not return a result")


def interrupted_result(tool_use_id: str) -> Block:
    """The error result of a call whose outcome nobody waited for."""
    return error_result(tool_use_id, INTERRUPTED)


# The results of one message -------------------------------------------------------------------------------------------


def call_keys(tool_uses: Iterable[Mapping[str, Any]]) -> list[str]:
    """What each call of one message is kept under: its id, or a name made from it where a model gave one id twice."""
    keys: list[str] = []
    for tool_use in tool_uses:
        key, number = tool_use["toolUseId"], 1
        while key in keys:
            number += 1
            key = f"{tool_use['toolUseId']}#{number}"
        keys.append(key)
    return keys


def settled(tool_uses: Iterable[Mapping[str, Any]], outcomes: Mapping[str, Block]) -> list[Block]:
    """One result for each call, in request order; a call without an outcome was interrupted."""
    uses = list(tool_uses)
    return [outcomes.get(key) or interrupted_result(use["toolUseId"]) for key, use in zip(call_keys(uses), uses, strict=True)]

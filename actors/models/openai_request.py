"""A conversation in Converse form, as the body of a request for a chat completion.

Pure. What the API has no place for goes where the model still sees it: an image in a tool's result follows in a user
message. What it cannot take at all raises `ModelError`, unless it is a tool's: then the result says so. Cache points say
nothing here, and reasoning is not sent back.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ropewalk.actors.errors import ModelError
from ropewalk.actors.messages import Block, Message, tool_results, tool_uses
from ropewalk.actors.validity import BLANK

__all__ = ["request_body"]

Part: TypeAlias = dict[str, Any]

IMAGES = ("png", "jpeg", "gif", "webp")
SOUNDS = ("mp3", "wav")
TEXTS = ("txt", "md", "csv", "html")
FILES = {
    "pdf": "application/pdf",
    "doc": "application/msword",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xls": "application/vnd.ms-excel",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
LONGEST_ID = 40
LONGEST_NAME = 64


def request_body(
    model_id: str,
    messages: Sequence[Message],
    *,
    system_prompt: str | None = None,
    tool_specs: Sequence[Mapping[str, Any]] = (),
    tool_choice: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The request for a streamed answer to these messages.

    :param params: keys to add or replace; a key whose value is None is left out, whoever gave it.
    """
    body: dict[str, Any] = {"model": model_id, "messages": _messages(messages, system_prompt), "stream": True, "stream_options": {"include_usage": True}}
    if tool_specs:
        body["tools"] = [_tool(spec) for spec in tool_specs]
        if tool_choice is not None:
            body["tool_choice"] = _choice(tool_choice)
    return {key: value for key, value in {**body, **(params or {})}.items() if value is not None}


def _messages(messages: Iterable[Message], system_prompt: str | None) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if system_prompt:
        made.append({"role": "system", "content": _sendable(system_prompt)})
    for message in messages:
        if message["role"] == "assistant":
            made.append(_assistant(message))
        else:
            made += _user(message)
    return made


def _assistant(message: Message) -> dict[str, Any]:
    text = "\n".join(text for block in message["content"] if (text := _assistant_text(block)))
    calls = [_call(use) for use in tool_uses(message)]
    made: dict[str, Any] = {"role": "assistant"}
    if text or not calls:
        made["content"] = text or BLANK
    if calls:
        made["tool_calls"] = calls
    return made


def _assistant_text(block: Block) -> str:
    if "text" in block:
        return _sendable(block["text"])
    if "citationsContent" in block:
        return "".join(_sendable(part.get("text", "")) for part in block["citationsContent"].get("content", ()))
    if "toolUse" in block or "reasoningContent" in block or "cachePoint" in block:
        return ""
    raise _unsendable(block, "an assistant message")


def _call(use: Mapping[str, Any]) -> dict[str, Any]:
    given = json.dumps(use["input"], ensure_ascii=True, default=str)
    return {"id": _id(use["toolUseId"]), "type": "function", "function": {"name": _name(use["name"]), "arguments": given}}


def _user(message: Message) -> list[dict[str, Any]]:
    """Results first, each a message of its own, as the API wants them right after the calls; then one message of all the rest."""
    made: list[dict[str, Any]] = []
    parts: list[Part] = []
    for result in tool_results(message):
        texts, others = _result(result)
        made.append({"role": "tool", "tool_call_id": _id(result["toolUseId"]), "content": "\n".join(texts) or BLANK})
        parts += others
    parts += [part for block in message["content"] if "toolResult" not in block and (part := _part(block)) is not None]
    if parts or not made:
        made.append({"role": "user", "content": _content(parts)})
    return made


def _result(result: Block) -> tuple[list[str], list[Part]]:
    """A tool's result as text, and as the parts that are none, with a word on where they come from.

    In place of what the API does not take stands that it does not: no tool may make a conversation one that cannot go on.
    """
    texts: list[str] = []
    others: list[Part] = []
    for block in result["content"]:
        if "json" in block:
            texts.append(json.dumps(block["json"], ensure_ascii=True, default=str))
            continue
        try:
            part = _part(block)
        except ModelError as error:
            part = {"type": "text", "text": f"[{error}]"}
        if part is None:
            continue
        if part["type"] == "text":
            texts.append(part["text"])
        else:
            others.append(part)
    if result.get("status") == "error" and not (texts and texts[0].startswith("Error")):
        texts = ["Error: " + " ".join(texts[:1]), *texts[1:]]
    if others:
        texts.append("[What this tool returned beside text is in the next user message.]")
        others = [{"type": "text", "text": f"[From the result of the tool call {_id(result['toolUseId'])}:]"}, *others]
    return texts, others


def _content(parts: list[Part]) -> str | list[Part]:
    """Text alone as a string, which every server understands."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts) or BLANK
    return parts


def _part(block: Block) -> Part | None:
    """A block of a user's message, None for what is not sent."""
    kind, value = next(iter(block.items()))
    if kind == "text":
        return {"type": "text", "text": _sendable(value)} if value else None
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": _data_url(f"image/{_format(value, 'image', IMAGES)}", _bytes(value, "image"))}}
    if kind == "document":
        return _document(value)
    if kind == "audio":
        sound = _format(value, "audio", SOUNDS)
        return {"type": "input_audio", "input_audio": {"data": base64.b64encode(_bytes(value, "audio")).decode("ascii"), "format": sound}}
    if kind == "guardContent":
        return {"type": "text", "text": _sendable(value["text"]["text"])} if "text" in value else None
    if kind in ("cachePoint", "reasoningContent"):
        return None
    raise _unsendable(block, "a user message")


def _document(document: Mapping[str, Any]) -> Part:
    """A document: text as text, which every server understands, anything else as a file."""
    form = _format(document, "document", (*TEXTS, *FILES))
    name = _sendable(str(document.get("name") or "document"))
    given = _bytes(document, "document")
    if form in TEXTS:
        return {"type": "text", "text": f"[Document {name}.{form}]\n{given.decode('utf-8', 'replace')}"}
    return {"type": "file", "file": {"filename": f"{name}.{form}", "file_data": _data_url(FILES[form], given)}}


def _format(value: Mapping[str, Any], kind: str, known: Sequence[str]) -> str:
    form = value.get("format")
    if form not in known:
        raise ModelError(f"chat completions take {kind} blocks of the format {', '.join(known)}, not {form!r}")
    return str(form)


def _bytes(value: Mapping[str, Any], kind: str) -> bytes:
    source = value.get("source") or {}
    given = source.get("bytes")
    if isinstance(given, bytes | bytearray):
        return bytes(given)
    if kind == "document" and isinstance(source.get("text"), str):
        return _sendable(source["text"]).encode()
    raise ModelError(
        f"chat completions take {kind} blocks by their bytes, {{'source': {{'bytes': b'...'}}}}, not by {', '.join(map(repr, source)) or 'nothing'}"
    )


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _unsendable(block: Block, where: str) -> ModelError:
    return ModelError(f"chat completions take no {next(iter(block))} block in {where}")


def _tool(spec: Mapping[str, Any]) -> dict[str, Any]:
    spec = spec.get("toolSpec", spec)
    function = {"name": spec["name"], "description": spec.get("description") or "", "parameters": spec["inputSchema"]["json"]}
    return {"type": "function", "function": function}


def _choice(choice: Mapping[str, Any]) -> str | dict[str, Any]:
    if "auto" in choice:
        return "auto"
    if "any" in choice:
        return "required"
    if "tool" in choice:
        return {"type": "function", "function": {"name": choice["tool"]["name"]}}
    raise ModelError(f"tool_choice is {{'auto': {{}}}}, {{'any': {{}}}} or {{'tool': {{'name': ...}}}}, not {dict(choice)!r:.200}")


def _id(tool_use_id: str) -> str:
    """An id as the API takes it: other providers make longer ones, of which a digest keeps call and result together."""
    tool_use_id = _sendable(tool_use_id)
    return tool_use_id if len(tool_use_id) <= LONGEST_ID else "call_" + hashlib.sha256(tool_use_id.encode()).hexdigest()[:32]


def _name(name: str) -> str:
    """A name as the API takes it. One a model made up stays in the history, and would have every later request refused."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:LONGEST_NAME] or "_"


def _sendable(text: str) -> str:
    """The text without halves of characters, which UTF-8 cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")

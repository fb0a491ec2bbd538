"""Chunks into a message: what a model streamed, put together block by block.

Pure: it is fed chunks and says what came of each; who publishes what is the caller's business. Block starts and stops may
be missing, blocks may come interleaved when chunks name a ``contentBlockIndex``. Whatever comes in, what comes out is a
message that may stand in a conversation; what cannot be understood raises `ModelError` the moment it is fed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from ropewalk.actors.errors import ModelError
from ropewalk.actors.messages import Block, Message
from ropewalk.actors.tools.inputs import read_input
from ropewalk.actors.validity import BLANK, INPUT_DEPTH, deeper_than
from ropewalk.runtime.supervision import Failure, contain

__all__ = ["Assembly", "Piece"]

T = TypeVar("T")

Kind: TypeAlias = Literal["text", "reasoning", "redacted", "tool"]
Piece: TypeAlias = tuple[Kind, str, int, "OpenBlock"]
"""What one delta said: its kind, the text, the number of its block, and the block."""


class OpenBlock:
    """A content block being streamed. `index` is what its chunks call it, None where they name none."""

    __slots__ = ("citations", "done", "index", "kind", "name", "parts", "redacted", "signature", "tool_use_id")

    def __init__(self, kind: Kind, index: int | None, tool_use_id: str = "", name: str = "") -> None:
        self.kind = kind
        self.index = index
        self.parts: list[str] = []
        self.tool_use_id = tool_use_id
        self.name = name
        self.signature = ""
        self.redacted = b""
        self.citations: list[Any] | None = None
        self.done = False

    @property
    def is_blank(self) -> bool:
        """Whether it was started and nothing was said in it yet, so that it may still be of any kind."""
        return self.kind != "tool" and not (self.parts or self.signature or self.redacted or self.citations)


class Assembly:
    """One answer being put together. `usage` and `latency` are what the provider reported, `stop_reason` None until it said."""

    __slots__ = ("_blocks", "_by_index", "_current", "_new_id", "latency", "stop_reason", "usage")

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._blocks: list[OpenBlock] = []
        self._by_index: dict[int, int] | None = None
        self._current = -1
        self._new_id = new_id
        self.stop_reason: str | None = None
        self.usage: tuple[int, int, int] = (0, 0, 0)
        self.latency = 0

    def text_lane(self) -> tuple[int, list[str]]:
        """Where text without an index goes, the commonest chunk by far: the number of its block, and the list its pieces are put into.

        The list is good until the next chunk of any other kind; what is put into it is text.
        """
        place = self._current
        if place < 0 or self._blocks[place].kind != "text":
            place = self._place_for("text", None)
        return place, self._blocks[place].parts

    def feed(self, chunk: dict[str, Any]) -> Piece | None:
        """Take a chunk in; returns what a delta said, None for every other chunk. Raises `ModelError` for what is no chunk."""
        if type(chunk) is not dict:
            _of("a chunk in Converse stream form", dict, chunk)
        if "contentBlockDelta" in chunk:
            return self._delta(_of("contentBlockDelta", dict, chunk["contentBlockDelta"]))
        if "contentBlockStart" in chunk:
            self._start(_of("contentBlockStart", dict, chunk["contentBlockStart"]))
        elif "contentBlockStop" in chunk:
            self._stop(_of("contentBlockStop", dict, chunk["contentBlockStop"]))
        elif "messageStop" in chunk:
            self.stop_reason = _of("stopReason", str, _of("messageStop", dict, chunk["messageStop"]).get("stopReason"))
        elif "metadata" in chunk:
            self._account(_of("metadata", dict, chunk["metadata"]))
        return None

    def streamed(self) -> str:
        """The text so far."""
        return "".join(part for block in self._ordered() if block.kind == "text" for part in block.parts)

    def message(self) -> tuple[Message, dict[str, str]]:
        """The complete answer, and the raw input of calls whose input is no JSON object, by tool use id. Never empty of content.

        Call it once the model said it stopped. Left out are calls that name no tool and, where the token limit ended the
        answer, a call it cut off and reasoning without its signature.
        """
        if len(self._blocks) == 1 and self._blocks[0].kind == "text" and self._blocks[0].citations is None:
            return {"role": "assistant", "content": [{"text": _whole(self._blocks[0].parts) or BLANK}]}, {}
        malformed: dict[str, str] = {}
        content = self._content(cut=self.stop_reason == "max_tokens", malformed=malformed)
        return {"role": "assistant", "content": content or [{"text": BLANK}]}, malformed

    def partial(self) -> Message | None:
        """What is worth keeping of an answer that was cut off: text and complete calls; None when there is neither."""
        content = self._content(cut=True, malformed={})
        worth = any("reasoningContent" not in block for block in content)
        return {"role": "assistant", "content": content} if worth else None

    def raw(self) -> Message | None:
        """Everything that was streamed, complete or not, for the transcript; None when nothing was. Equal to `partial` where that says it all."""
        content: list[Block] = []
        for block in self._ordered():
            if block.kind == "tool":
                made = _tool(block, cut=True, malformed={}) if block.done else None
                content.append(made or {"text": f"[tool call cut off: {block.name} {_whole(block.parts)}]"})
            elif (made := _prose(block, cut=False)) is not None:
                content.append(made)
        return {"role": "assistant", "content": content} if content else None

    def _content(self, *, cut: bool, malformed: dict[str, str]) -> list[Block]:
        made = (_tool(block, cut, malformed) if block.kind == "tool" else _prose(block, cut) for block in self._ordered())
        return [block for block in made if block is not None]

    def _ordered(self) -> list[OpenBlock]:
        """The blocks in the order of their indexes where all have one, else in the order they began."""
        if self._by_index is None or any(block.index is None for block in self._blocks):
            return self._blocks
        return sorted(self._blocks, key=lambda block: block.index or 0)

    # What chunks do to the blocks.

    def _open(self, block: OpenBlock) -> int:
        if self._current >= 0 and self._blocks[self._current].index is None:
            self._blocks[self._current].done = True  # a model that names no indexes streams one block after the other
        self._blocks.append(block)
        self._current = len(self._blocks) - 1
        if block.index is not None:
            self._name(block.index, self._current)
        return self._current

    def _name(self, index: int, place: int) -> None:
        if self._by_index is None:
            self._by_index = {}
        self._by_index[index] = place
        self._blocks[place].index = index

    def _place(self, index: int | None) -> int:
        """The block a chunk belongs to, -1 for none: the one it names, else the one opened last."""
        if index is None:
            return self._current
        place = -1 if self._by_index is None else self._by_index.get(index, -1)
        if place < 0 <= self._current and self._blocks[self._current].index is None:
            place = self._current  # its start named no index, its deltas do
            self._name(index, place)
        return place

    def _place_for(self, kind: Kind, index: int | None) -> int:
        """The block that a delta of this kind belongs to, opened if need be."""
        place = self._place(index)
        if place >= 0 and self._blocks[place].kind != kind and self._blocks[place].is_blank:
            self._blocks[place].kind = kind  # a start that said nothing of its kind
        elif place < 0 or self._blocks[place].kind != kind:
            place = self._open(OpenBlock(kind, index))
        return place

    def _start(self, part: dict[str, Any]) -> None:
        index = _index(part)
        tool = _of("start", dict, part.get("start") or {}).get("toolUse")
        if tool is not None:
            self._open(self._tool_block(index, _of("toolUse", dict, tool)))
        elif index is not None:
            self._open(OpenBlock("text", index))
        else:
            if self._current >= 0:
                self._blocks[self._current].done = True
            self._current = -1  # the first delta says what kind of block this is

    def _tool_block(self, index: int | None, tool: dict[str, Any]) -> OpenBlock:
        tool_use_id = _whole([_of("toolUseId", str, tool.get("toolUseId") or "")])
        while not tool_use_id or any(block.tool_use_id == tool_use_id for block in self._blocks):
            tool_use_id = f"tooluse_{self._new_id()}"  # two calls under one id could not be answered apart
        return OpenBlock("tool", index, tool_use_id, _whole([_of("name", str, tool.get("name") or "")]))

    def _stop(self, part: dict[str, Any]) -> None:
        place = self._place(_index(part)) if part else self._current
        if place >= 0:
            self._blocks[place].done = True
        if place == self._current:
            self._current = -1

    def _delta(self, part: dict[str, Any]) -> Piece | None:
        index, delta = _index(part), _of("delta", dict, part.get("delta"))
        if "text" in delta:
            return self._piece("text", index, _of("text", str, delta["text"]))
        if "toolUse" in delta:
            text = _of("the input of a tool, streamed as JSON text,", str, _of("toolUse", dict, delta["toolUse"]).get("input") or "")
            place = self._place(index)
            if place < 0 or self._blocks[place].kind != "tool":
                raise ModelError("a tool's input was streamed before the block that names the tool")
            return self._piece("tool", index, text)
        if "reasoningContent" in delta:
            return self._reasoning(index, _of("reasoningContent", dict, delta["reasoningContent"]))
        if "citation" in delta:
            citation = _citation(delta["citation"])
            block = self._blocks[self._place_for("text", index)]
            block.citations = [*(block.citations or ()), citation]
        return None

    def _reasoning(self, index: int | None, reasoning: dict[str, Any]) -> Piece | None:
        if "redactedContent" in reasoning:
            redacted = _of("redactedContent", bytes, reasoning["redactedContent"])
            self._blocks[self._place_for("redacted", index)].redacted += redacted
        text = _of("the text of reasoning", str, reasoning.get("text") or "")
        signature = _of("the signature of reasoning", str, reasoning.get("signature") or "")
        if not text and not signature:
            return None
        piece = self._piece("reasoning", index, text)
        piece[3].signature += signature
        return piece if text else None

    def _piece(self, kind: Kind, index: int | None, text: str) -> Piece:
        place = self._place_for(kind, index)
        block = self._blocks[place]
        if text:
            block.parts.append(text)
        return kind, text, place, block

    def _account(self, metadata: dict[str, Any]) -> None:
        """Usage may come in parts, each a total so far. What is no count is none: accounts are not worth an answer."""
        usage, metrics = metadata.get("usage"), metadata.get("metrics")
        if isinstance(usage, dict):
            read, written = _count(usage.get("inputTokens"), self.usage[0]), _count(usage.get("outputTokens"), self.usage[1])
            self.usage = (read, written, _count(usage.get("totalTokens"), read + written))
        if isinstance(metrics, dict):
            self.latency = _count(metrics.get("latencyMs"), self.latency)


def _tool(block: OpenBlock, cut: bool, malformed: dict[str, str]) -> Block | None:
    """The call a block holds; None for one that names no tool, and in an answer that was `cut` for one that is not complete."""
    if not block.name or (cut and not block.done):
        return None
    raw = _whole(block.parts)
    given = contain(read_input, raw)
    if isinstance(given, Failure):
        if cut:
            return None  # its block was closed all the same
        malformed[block.tool_use_id], given = raw, {}
    return {"toolUse": {"toolUseId": block.tool_use_id, "name": block.name, "input": given}}


def _prose(block: OpenBlock, cut: bool) -> Block | None:
    """What a block says; None for nothing, and in an answer that was `cut` for reasoning no provider would take back: unsigned or not complete."""
    text = _whole(block.parts)
    if block.kind == "text":
        if block.citations is not None:
            return {"citationsContent": {"citations": block.citations, "content": [{"text": text or BLANK}]}}
        return {"text": text} if text else None
    if cut and not block.done:
        return None
    if block.kind == "redacted":
        return {"reasoningContent": {"redactedContent": block.redacted}} if block.redacted else None
    if block.signature:
        return {"reasoningContent": {"reasoningText": {"text": text, "signature": _whole([block.signature])}}}
    return {"reasoningContent": {"reasoningText": {"text": text}}} if text and not cut else None


def _whole(parts: Iterable[str]) -> str:
    """The parts as one text: halves of a character that were streamed apart joined, halves left alone replaced, since no journal can hold them."""
    text = "".join(parts)
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _citation(given: Any) -> dict[str, Any]:
    """A citation as JSON of our own; raises `ModelError` for what has no such form."""
    _of("a citation", dict, given)
    encoded = contain(msgspec.json.encode, given)
    citation = encoded if isinstance(encoded, Failure) else msgspec.json.decode(encoded)
    if isinstance(citation, Failure) or deeper_than(INPUT_DEPTH, citation):
        raise ModelError("a citation holds JSON values")
    return citation  # type: ignore[no-any-return]


def _index(part: dict[str, Any]) -> int | None:
    index = part.get("contentBlockIndex") if part else None
    return index if index is None else _of("contentBlockIndex", int, index)


def _count(value: Any, otherwise: int) -> int:
    if type(value) is int:
        return value if value >= 0 else otherwise
    return int(value) if isinstance(value, int | float) and 0 <= value < math.inf else otherwise


def _of(what: str, kind: type[T], value: Any) -> T:
    """The value, if it is of this kind; raises `ModelError` otherwise."""
    if type(value) is kind or isinstance(value, kind):
        return value
    raise ModelError(f"{what} is of type {kind.__name__}, not {type(value).__name__}")

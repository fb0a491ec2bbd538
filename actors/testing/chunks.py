"""Hypothesis strategies for what models stream: Converse chunk sequences as providers send them, and broken ones.

They shrink towards one text, without indexes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import attrs
from hypothesis import strategies as st

from ropewalk.actors.messages import Block, Message
from ropewalk.actors.testing.strategies import texts, tool_inputs
from ropewalk.actors.validity import BLANK, copied

__all__ = ["BAD_INPUTS", "DEEP_INPUTS", "TOOL_NAMES", "StreamedAnswer", "chunk_streams", "streamed_answers"]

Chunk: TypeAlias = dict[str, Any]
Kind: TypeAlias = Literal["text", "cited", "reasoning", "redacted", "tool"]

TOOL_NAMES = ("calculator", "search")
DEEP_INPUTS = tuple('{"a": ' + opening * depth + "0" + closing * depth + "}" for depth in (95, 3000) for opening, closing in ("[]", ('{"a":', "}")))
"""JSON objects that are nested deeper than a message can be, by a little and by so much that reading them overflows the stack."""
BAD_INPUTS = ("{", '{"expression": ', "nonsense", "[1, 2]", "3", '"text"', "null", '{"a": 1e999}', '{"a": "\\ud83d"}', "{'a': 1}", "[" * 3000, *DEEP_INPUTS)
"""What is no JSON object that a call could be made with, as models and dropped connections leave it."""


@attrs.frozen
class StreamedAnswer:
    """An answer as chunks, the message they come to, and the raw input of its calls whose input is no JSON object, by id."""

    chunks: tuple[Chunk, ...]
    message: Message
    malformed: dict[str, str]


@st.composite
def streamed_answers(draw: st.DrawFn, stop_reasons: Sequence[str] = ("end_turn", "tool_use"), max_blocks: int = 4) -> StreamedAnswer:
    """Complete answers, streamed as providers do it: with and without indexes, starts and stops; interleaved where indexes allow it."""
    kinds: list[Kind] = draw(st.lists(st.sampled_from(_KINDS), max_size=max_blocks))
    malformed: dict[str, str] = {}
    spoken = [_SPOKEN[kind](draw, number, malformed) for number, kind in enumerate(kinds)]
    indexed, starts, stops = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    streams: list[list[Chunk]] = []
    for number, (kind, (start, deltas, _)) in enumerate(zip(kinds, spoken, strict=True)):
        # Without indexes nothing else would keep two blocks of one kind apart.
        told_apart = stops or (not indexed and kinds[number + 1 : number + 2] != [] and _alike(kind, kinds[number + 1]))
        naming = {"contentBlockIndex": number} if indexed else {}
        opening = [{"contentBlockStart": {"start": start, **naming}}] if start or starts else []
        closing = [{"contentBlockStop": dict(naming)}] if told_apart else []
        streams.append([*opening, *({"contentBlockDelta": {"delta": delta, **naming}} for delta in deltas), *closing])
    body = _interleaved(draw, streams) if indexed else [chunk for stream in streams for chunk in stream]
    ending: list[Chunk] = [{"messageStop": {"stopReason": draw(st.sampled_from(stop_reasons))}}]
    if draw(st.booleans()):
        ending.append({"metadata": {"usage": {"inputTokens": 3, "outputTokens": draw(st.integers(0, 50))}, "metrics": {"latencyMs": 7}}})
    content = [block for _, _, block in spoken if block is not None]
    return StreamedAnswer(({"messageStart": {"role": "assistant"}}, *body, *ending), {"role": "assistant", "content": content or [{"text": BLANK}]}, malformed)


def chunk_streams(*, damaged: bool = False) -> st.SearchStrategy[list[Chunk]]:
    """Converse chunk sequences of complete answers, or ones with chunks lost, doubled, swapped, cut off and made nonsense of."""
    whole = streamed_answers().map(lambda answer: list(answer.chunks))
    return whole.flatmap(_damaged_streams) if damaged else whole


@st.composite
def _damaged_streams(draw: st.DrawFn, chunks: list[Chunk]) -> list[Any]:
    stream: list[Any] = copied(chunks)
    for damage in draw(st.lists(st.sampled_from(_DAMAGES), min_size=1, max_size=4)):
        if stream:
            damage(stream, draw(st.integers(0, len(stream) - 1)), draw)
    return stream


def _lose(stream: list[Any], place: int, draw: st.DrawFn) -> None:
    del stream[place]


def _double(stream: list[Any], place: int, draw: st.DrawFn) -> None:
    stream.insert(draw(st.integers(0, len(stream))), copied(stream)[place])


def _swap(stream: list[Any], place: int, draw: st.DrawFn) -> None:
    other = draw(st.integers(0, len(stream) - 1))
    stream[place], stream[other] = stream[other], stream[place]


def _cut_off(stream: list[Any], place: int, draw: st.DrawFn) -> None:
    del stream[place:]


def _spoil(stream: list[Any], place: int, draw: st.DrawFn) -> None:
    """Put nonsense in the place of a chunk or of something in it, or take that away."""
    holder: Any = stream
    key: Any = place
    while isinstance(holder[key], dict) and holder[key] and draw(st.sampled_from([True, True, True, False])):
        holder = holder[key]
        key = draw(st.sampled_from(sorted(holder)))
    if isinstance(holder, dict) and draw(st.booleans()):
        del holder[key]
    else:
        [holder[key]] = copied([draw(st.sampled_from(_NONSENSE))])


_DAMAGES: list[Callable[[list[Any], int, st.DrawFn], None]] = [_lose, _double, _swap, _cut_off, _spoil, _spoil]
_NUMBERS: list[Any] = [None, 3, -1, 0.5, float("nan"), float("inf"), True]
_NONSENSE: list[Any] = [*_NUMBERS, "", "text", "\ud83d", b"bytes", [], [[]], {}, {"text": 3}, {"toolUse": {"input": "{}"}}, object()]


def _alike(kind: Kind, other: Kind) -> bool:
    """Whether deltas of two blocks would run together: a tool's start always keeps it apart."""
    return other != "tool" and {"cited": "text"}.get(kind, kind) == {"cited": "text"}.get(other, other)


def _interleaved(draw: st.DrawFn, streams: list[list[Chunk]]) -> list[Chunk]:
    """The chunks of all blocks in some order that keeps each block's own, and begins the blocks in turn."""
    waiting = [stream for stream in streams if stream]
    running: list[list[Chunk]] = []
    merged: list[Chunk] = []
    while waiting or running:
        # By default a block is ended before the next begins.
        if not running or (waiting and draw(st.sampled_from([False, False, True]))):
            stream = list(waiting.pop(0))
            running.append(stream)
        else:
            stream = running[draw(st.integers(0, len(running) - 1))] if len(running) > 1 else running[0]
        merged.append(stream.pop(0))
        running = [left for left in running if left]
    return merged


_Spoken: TypeAlias = tuple[dict[str, Any], list[dict[str, Any]], Block | None]
"""A block as its start, its deltas, and what it comes to; None for nothing."""


def _pieces(draw: st.DrawFn, text: str) -> list[str]:
    """A text in pieces, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _spoken_text(draw: st.DrawFn, number: int, malformed: dict[str, str]) -> _Spoken:
    text = draw(texts())
    return {}, [{"text": piece} for piece in _pieces(draw, text)], {"text": text}


def _spoken_cited(draw: st.DrawFn, number: int, malformed: dict[str, str]) -> _Spoken:
    _, deltas, block = _spoken_text(draw, number, malformed)
    citation = {"title": draw(texts(8)), "location": {"documentPage": {"documentIndex": 0, "start": 1, "end": draw(st.integers(1, 9))}}}
    return {}, [*deltas, {"citation": citation}], {"citationsContent": {"citations": [citation], "content": [block]}}


def _spoken_reasoning(draw: st.DrawFn, number: int, malformed: dict[str, str]) -> _Spoken:
    text, signature = draw(texts()), draw(st.none() | st.text("abc=", min_size=1, max_size=6))
    deltas = [{"reasoningContent": {"text": piece}} for piece in _pieces(draw, text)]
    if signature is None:
        return {}, deltas, {"reasoningContent": {"reasoningText": {"text": text}}}
    deltas += [{"reasoningContent": {"signature": piece}} for piece in _pieces(draw, signature)]
    return {}, deltas, {"reasoningContent": {"reasoningText": {"text": text, "signature": signature}}}


def _spoken_redacted(draw: st.DrawFn, number: int, malformed: dict[str, str]) -> _Spoken:
    parts = draw(st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=2))
    return {}, [{"reasoningContent": {"redactedContent": part}} for part in parts], {"reasoningContent": {"redactedContent": b"".join(parts)}}


def _spoken_tool(draw: st.DrawFn, number: int, malformed: dict[str, str]) -> _Spoken:
    name, tool_use_id = draw(st.sampled_from(TOOL_NAMES)), f"call_{number}"
    given: dict[str, Any] = {}
    raw = draw(st.sampled_from(["", " "]) | tool_inputs().map(lambda given: json.dumps(given, ensure_ascii=False)) | st.sampled_from(BAD_INPUTS))
    if raw in BAD_INPUTS:
        malformed[tool_use_id] = raw
    elif raw.strip():
        given = json.loads(raw)
    deltas = [{"toolUse": {"input": piece}} for piece in _pieces(draw, raw)] if raw else []
    return {"toolUse": {"toolUseId": tool_use_id, "name": name}}, deltas, {"toolUse": {"toolUseId": tool_use_id, "name": name, "input": given}}


_KINDS: tuple[Kind, ...] = ("text", "text", "tool", "tool", "reasoning", "cited", "redacted")
_SPOKEN: dict[Kind, Callable[[st.DrawFn, int, dict[str, str]], _Spoken]] = {
    "text": _spoken_text,
    "cited": _spoken_cited,
    "reasoning": _spoken_reasoning,
    "redacted": _spoken_redacted,
    "tool": _spoken_tool,
}

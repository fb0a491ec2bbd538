"""What a server's error means: an overflow, throttling, or a failure whose text says what to do.

Pure. A status, a code and a type decide where they say anything; only where they do not is the message read, and then for
whole phrases that no other error contains. Figures are read out of messages in any case: nothing else carries them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ropewalk.actors.errors import ContextWindowOverflow, ModelError, ModelThrottled

__all__ = ["retry_after", "server_error", "stream_error"]

OVERFLOW_CODES = ("context_length_exceeded", "context_window_exceeded", "model_max_prompt_tokens_exceeded", "exceed_context_size_error")
TOO_LONG_CODES = ("string_above_max_length", "array_above_max_length")
"""Of a single field; an overflow when the field is one of the messages."""
NO_MONEY_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance")
THROTTLED_CODES = ("rate_limit_exceeded", "rate_limit_error", "rate_limit_reached", "too_many_requests", "overloaded_error", "engine_overloaded", "slow_down")
THROTTLED_STATUSES = (429, 503, 529)
UNTELLING = (
    *("", "error", "api_error", "bad_request", "badrequesterror", "invalid_request_error", "invalid_request_prompt", "invalid_argument"),
    *("server_error", "internal_server_error", "internalservererror", "value_error", "validation"),
)
"""Codes and types that say no more than that something is wrong."""

CURES = {
    400: "the server does not accept the request",
    401: "check the API key (api_key=, or $OPENAI_API_KEY)",
    402: "the account has no money left: see to its billing",
    403: "this API key may not use this model, or not from here",
    404: "check the model's name, and that base_url is right and ends as the server wants it (often in /v1)",
    408: "the server gave up waiting: try again",
    422: "the server does not accept the request",
    500: "the server failed: try again",
    502: "the server behind the gateway failed: try again",
    504: "the server behind the gateway did not answer in time: try again",
}

SHORTEST_SECRET = 8
"""A key shorter than this is one that a server takes without asking for any, such as "none": a word, which may stand in a text."""

_N = r"(?P<{}>\d[\d,]*)"
_TOKENS, _LIMIT, _ANSWER = _N.format("tokens"), _N.format("limit"), _N.format("answer")
_IN_PROMPT = rf"\D{{0,20}}?{_TOKENS} (?:in|of|from) (?:the |text )*(?:messages|prompt|input)\b"

OVERFLOWS = [
    re.compile(phrase, re.IGNORECASE)
    for phrase in (
        r"maximum (?:context|prompt) length (?:is|of)\b",
        r"\bmaximum context length (?:exceeded|reached)\b",
        r"\bmaximum context length\W*$",
        r"\bcontext (?:length|window|size) (?:has been |was |is )?exceeded\b",
        r"\bexceed(?:s|ed|ing)? (?:the |this )?(?:available |maximum |model'?s? |allowed )*context (?:length|window|size|limit)\b",
        r"\bprompt is too long\b",
        r"\binput is too long for (?:the )?requested model\b",
        r"\blonger than the (?:model's context|maximum model|maximum context|context) length\b",
        r"\btoken count\b.{0,40}\bexceeds the maximum number of (?:input )?tokens\b",
        r"`inputs`(?: tokens \+ `max_new_tokens`)? must (?:be <=|have less than)",
        r"\bloaded with (?:a )?context length of only\b",
        r"\bexceeded model token limit\b",
        r"\btoo many total text bytes\b",
    )
]

FIGURES = [
    re.compile(figures, re.IGNORECASE | re.DOTALL)
    for figures in (
        # The prompt and what is to be answered apart, which is best: what must shrink is the prompt alone.
        rf"maximum context length is {_LIMIT} tokens.{{0,120}}\({_IN_PROMPT}[^)]*?{_ANSWER} (?:in|for|of) the (?:completion|output)",
        rf"maximum context length of {_LIMIT} tokens.{{0,120}}?\b{_TOKENS} tokens from the input messages and {_ANSWER} tokens for the completion",
        rf"maximum context length is {_LIMIT} tokens.{{0,60}}requested {_ANSWER} output tokens.{{0,60}}?contains (?:at least )?{_TOKENS} input tokens",
        rf"too large: {_ANSWER}\.\s.{{0,40}}maximum context length is {_LIMIT} tokens.{{0,60}}request has {_TOKENS} input tokens",
        rf"context limit: {_TOKENS} \+ {_ANSWER} > {_LIMIT}",
        rf"`max_new_tokens` must be <= {_LIMIT}\. Given: {_TOKENS} `inputs` tokens and {_ANSWER} `max_new_tokens`",
        # All of it together.
        rf"maximum context length is {_LIMIT} tokens.{{0,120}}?(?:requested|resulted in|contains?|has)(?: about| at least)? {_TOKENS}(?: input)? tokens",
        rf"maximum prompt length is {_LIMIT}\b.{{0,60}}?contains {_TOKENS} tokens",
        rf"prompt is too long: {_TOKENS} tokens > {_LIMIT} maximum",
        rf"prompt is too long: {_TOKENS}, model maximum context length: {_LIMIT}",
        rf"prompt contains {_TOKENS} tokens.{{0,60}}model with {_LIMIT} maximum context length",
        rf"\({_TOKENS} tokens\) exceeds the available context size \({_LIMIT} tokens\)",
        rf"\({_TOKENS} tokens\) is longer than the model's context length \({_LIMIT} tokens\)",
        rf"\(length {_TOKENS}\) is longer than the maximum model length of {_LIMIT}",
        rf"token count \({_TOKENS}\) exceeds the maximum number of (?:input )?tokens allowed \({_LIMIT}\)",
        rf"current length is {_TOKENS} while limit is {_LIMIT}",
        rf"limit {_LIMIT}, requested {_TOKENS}",
        rf"first {_TOKENS} tokens when context.{{0,80}}context length of only {_LIMIT} tokens",
        # What would fit, and no more than that.
        rf"maximum context length (?:is|of) {_LIMIT}\b",
        rf"exceeded model token limit: {_LIMIT}",
    )
]

THROTTLED = re.compile(
    r"\brate limit (?:reached|exceeded)\b|\btoo many requests\b|\b(?:server|model|engine) is (?:currently |temporarily )?overloaded\b", re.IGNORECASE
)

_READ = 10_000
_SHOWN = 500


def server_error(status: int | None, body: object, headers: Mapping[str, str], *, model: str, now: float, secret: str | None = None) -> ModelError:
    """The error that an answer with an error status means.

    :param status: the HTTP status; None for an error in the middle of a stream, which had status 200.
    :param body: the decoded JSON of the answer, or its text.
    :param now: seconds since 1970, by which a ``Retry-After`` date is a number of seconds.
    :param secret: what must not stand in the text, though a server may say it back.
    """
    fields = _fields(body)
    if status is None:
        status = _status_in(fields)
    names = _names(fields)
    message = _message(fields, body)
    said = _said(status, names, message, model, secret)
    if any(name in NO_MONEY_CODES for name in names):
        return ModelError(f"{said}; waiting does not help: see to the account's plan and billing")
    if _is_overflow(status, names, fields, message):
        tokens, limit = _figures(fields, message)
        return ContextWindowOverflow(said, tokens=tokens, limit=limit)
    if _is_throttling(status, names, message):
        return ModelThrottled(said, retry_after=retry_after(headers, now))
    if "content_filter" in names:
        return ModelError(f"{said}; the server's content filter refused the request")
    return ModelError(f"{said}; {CURES[status]}" if status in CURES else said)


def stream_error(body: object, *, model: str, secret: str | None = None) -> ModelError:
    """The error that a server sent in the middle of a stream."""
    return server_error(None, body, {}, model=model, now=0.0, secret=secret)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The seconds a server asks to wait, None where it does not say, or says nothing that can be understood.

    :param headers: with lower-case names. ``retry-after-ms`` is in milliseconds; ``retry-after`` is in seconds, or an HTTP date.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    given = headers.get("retry-after")
    seconds = _number(given)
    if seconds is not None or given is None:
        return seconds
    return _until(given, now)


def _number(given: str | None) -> float | None:
    return float(given) if given is not None and re.fullmatch(r"\s*\d{1,12}(?:\.\d{0,12})?\s*", given, re.ASCII) else None


def _until(date: str, now: float) -> float | None:
    from datetime import UTC
    from email.utils import parsedate_to_datetime

    try:
        parsed = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return None
    parsed = parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
    return max(0.0, parsed.timestamp() - now)


# What an error says ----------------------------------------------------------------------------------------------------


def _fields(body: object) -> dict[str, Any]:
    """The error object in what a server sent: as it is, under ``error``, or the first of a list."""
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return {}
    inner = body.get("error")
    return {**body, **inner} if isinstance(inner, dict) else body


def _names(fields: Mapping[str, Any]) -> list[str]:
    """Code, type and status of an error, as far as they are words that tell something."""
    given = (fields.get(key) for key in ("code", "type", "status", "error_type"))
    names = (name.strip().lower() for name in given if isinstance(name, str))
    return [name for name in names if name not in UNTELLING and not name.isdecimal()]


def _status_in(fields: Mapping[str, Any]) -> int | None:
    """The status in an error that came without one of its own: gateways give it as its code."""
    code = str(fields.get("code"))
    return int(code) if re.fullmatch(r"[45]\d\d", code, re.ASCII) else None


def _message(fields: Mapping[str, Any], body: object) -> str:
    for candidate in (fields.get("message"), fields.get("error"), fields.get("detail"), None if fields else body):
        if isinstance(candidate, str) and candidate.strip():
            return candidate.strip()[:_READ]
        if isinstance(candidate, list | dict) and candidate:
            return str(candidate)[:_READ]
    return ""


def _said(status: int | None, names: list[str], message: str, model: str, secret: str | None) -> str:
    parts = [f"HTTP {status}" if status is not None else "", ", ".join(dict.fromkeys(names))]
    what = ", ".join(part for part in parts if part) or "an error"
    if secret and len(secret) >= SHORTEST_SECRET:
        message = message.replace(secret, "[api key]")
    shown = message if len(message) <= _SHOWN else message[:_SHOWN] + " ..."
    return f"{model}: the server answered {what}" + (f": {shown}" if shown else "")


def _is_overflow(status: int | None, names: list[str], fields: Mapping[str, Any], message: str) -> bool:
    if any(name in OVERFLOW_CODES for name in names):
        return not _answer_alone_is_too_long(message)
    if any(name in TOO_LONG_CODES for name in names):
        return str(fields.get("param")).startswith("messages")
    if status == 413:
        return True
    if status == 429 and "tokens" in names:
        tokens, limit = _figures(fields, message)  # one request above what a minute allows: waiting never makes it fit
        return tokens is not None and limit is not None and tokens > limit
    untold = not names and status in (None, 400, 422, 500)
    return untold and any(phrase.search(message) for phrase in OVERFLOWS) and not _answer_alone_is_too_long(message)


def _is_throttling(status: int | None, names: list[str], message: str) -> bool:
    if status in THROTTLED_STATUSES or any(name in THROTTLED_CODES for name in names):
        return True
    return status is None and not names and THROTTLED.search(message) is not None


def _answer_alone_is_too_long(message: str) -> bool:
    """Whether more tokens are asked for in answer than the context has, which no smaller prompt mends."""
    found = next(_figures_in(message), {})
    return "answer" in found and found["answer"] >= found["limit"]


def _figures(fields: Mapping[str, Any], message: str) -> tuple[int | None, int | None]:
    """The tokens of the request and how many would fit, each None where the error does not say."""
    given = fields.get("n_prompt_tokens"), fields.get("n_ctx")
    if all(type(figure) is int for figure in given):
        return given
    for found in _figures_in(message):
        limit = found["limit"] - found.get("answer", 0)
        return found.get("tokens"), limit if limit > 0 else found["limit"]
    return None, None


def _figures_in(message: str) -> Iterator[dict[str, int]]:
    for figures in FIGURES:
        if match := figures.search(message):
            yield {name: int(figure.replace(",", "")) for name, figure in match.groupdict().items() if figure}

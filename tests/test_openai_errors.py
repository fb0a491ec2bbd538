"""What a server's errors are taken for: overflow, throttling, or a failure that says what to do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk import ContextWindowOverflow, ModelError, ModelThrottled
from ropewalk.actors.models.openai_errors import retry_after, server_error, stream_error
from ropewalk.actors.testing.strategies import texts
from test_openai_format import json_values


def refused(status: int | None, headers: dict[str, str] | None = None, **error: Any) -> ModelError:
    return server_error(status, {"error": error}, headers or {}, model="m", now=0.0)


OVERFLOWS: dict[str, tuple[int | None, int | None]] = {
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages, 1000 in the completion).": (4000, 3096),
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 10000 tokens.": (10000, 8192),
    "This model's maximum context length is 2048 tokens. However, you requested 100 output tokens and your prompt contains at least 1949 input tokens.": (
        1949,
        1948,
    ),
    "'max_tokens' is too large: 500. This model's maximum context length is 4096 tokens and your request has 4000 input tokens.": (4000, 3596),
    "This endpoint's maximum context length is 131072 tokens. However, you requested about 200000 tokens (190000 of text input, 10000 in the output).": (
        190000,
        121072,
    ),
    "request (3032 tokens) exceeds the available context size (1024 tokens), try increasing it": (3032, 1024),
    "the request exceeds the available context size, try increasing it": (None, None),
    "The decoder prompt (length 5000) is longer than the maximum model length of 4096.": (5000, 4096),
    "The input (5000 tokens) is longer than the model's context length (4096 tokens).": (5000, 4096),
    "Requested token count exceeds the model's maximum context length of 16384 tokens. You requested a total of 20000 tokens: "
    "18000 tokens from the input messages and 2000 tokens for the completion.": (18000, 14384),
    "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length": (40000, 32768),
    "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).": (1200000, 1048576),
    "prompt is too long: 210,000 tokens > 200,000 maximum": (210000, 200000),
    "input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000": (199000, 191808),
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 100 `max_new_tokens`": (5000, 3996),
    "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens": (5000, 4096),
    "This model's maximum prompt length is 131072 but the request contains 537812 tokens.": (537812, 131072),
    "Your request exceeded model token limit: 8192": (None, 8192),
    "Input is too long for requested model.": (None, None),
}


@pytest.mark.parametrize(("message", "figures"), OVERFLOWS.items(), ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("error", [{}, {"type": "invalid_request_error", "code": 400}, {"type": "BadRequestError", "code": None}], ids=str)
def test_an_overflow_told_by_text_alone(message: str, figures: tuple[int | None, int | None], error: dict[str, Any]) -> None:
    caught = refused(400, message=message, **error)

    assert isinstance(caught, ContextWindowOverflow)
    assert (caught.tokens, caught.limit) == figures


@pytest.mark.parametrize(
    ("error", "figures"),
    [
        (refused(400, code="context_length_exceeded", message="Too long."), (None, None)),
        (refused(400, code="context_length_exceeded", message="Current length is 9000 while limit is 8192"), (9000, 8192)),
        (refused(400, code=400, type="exceed_context_size_error", message="-", n_prompt_tokens=3032, n_ctx=1024), (3032, 1024)),
        (refused(413, message="Request Entity Too Large"), (None, None)),
        (refused(413, code="rate_limit_exceeded", message="Request too large for model: Limit 6000, Requested 7000, please"), (7000, 6000)),
        (refused(429, code="rate_limit_exceeded", type="tokens", message="Request too large for m: Limit 30000, Requested 40000."), (40000, 30000)),
        (refused(400, code="string_above_max_length", param="messages[1].content", message="string too long"), (None, None)),
        (stream_error({"message": "Context size has been exceeded."}, model="m"), (None, None)),
        (server_error(400, [{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "prompt is too long"}}], {}, model="m", now=0), (None, None)),
        (server_error(400, {"object": "error", "message": "prompt is too long", "type": "BadRequestError"}, {}, model="m", now=0), (None, None)),
        (server_error(400, "prompt is too long", {}, model="m", now=0), (None, None)),
    ],
    ids=str,
)
def test_an_overflow(error: ModelError, figures: tuple[int | None, int | None]) -> None:
    assert isinstance(error, ContextWindowOverflow)
    assert (error.tokens, error.limit) == figures


@pytest.mark.parametrize(
    "error",
    [
        refused(400, message="Failed to generate: the rate of this operation is out of context; the slot is separate"),
        refused(400, message="context must be a string"),
        refused(400, message="max_tokens is too large: 5000. This model's maximum context length is 4096 tokens and your request has 12 input tokens."),
        refused(400, code="invalid_value", message="This model's maximum context length is 5 tokens."),
        refused(401, message="maximum context length is 5"),
        refused(400, code="string_above_max_length", param="user", message="string too long"),
        refused(400, code="content_filter", message="Refused."),
        refused(403),
        refused(404, code="model_not_found"),
        refused(429, code="insufficient_quota"),
        refused(429, type="insufficient_quota", code=None),
        refused(500, message="the rate limiter is broken"),
        stream_error("moderate, generate, operate", model="m"),
        stream_error(None, model="m"),
        server_error(502, "<html>" + "x" * 10_000, {}, model="m", now=0),
    ],
    ids=lambda error: str(error)[:40],
)
def test_what_is_neither_overflow_nor_throttling(error: ModelError) -> None:
    assert type(error) is ModelError
    assert str(error).startswith("m: ")
    assert len(str(error)) < 1000


@pytest.mark.parametrize(
    "error",
    [
        refused(429),
        refused(429, code="rate_limit_exceeded", type="tokens", message="Rate limit reached for m: Limit 30000, Used 29000, Requested 2000."),
        refused(503, message="Loading model"),
        refused(529, type="overloaded_error"),
        refused(500, type="overloaded_error"),
        stream_error({"error": {"code": 429, "message": "Provider returned error"}}, model="m"),
        stream_error("Rate limit exceeded", model="m"),
        stream_error({"message": "The server is currently overloaded with other requests."}, model="m"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_throttling(error: ModelError) -> None:
    assert isinstance(error, ModelThrottled)


def test_a_key_that_the_server_says_back_is_left_out() -> None:
    def said(secret: str) -> str:
        return str(server_error(401, {"error": {"message": f"Incorrect key: {secret}."}}, {}, model="m", now=0.0, secret=secret))

    assert "Incorrect key: [api key]." in said("sk-abcdefgh")
    assert "Incorrect key: e." in said("e")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 70.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
    ],
    ids=str,
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=30.0) == seconds


@given(
    st.none() | st.integers(100, 999),
    json_values() | st.fixed_dictionaries({"error": json_values()}) | texts(),
    st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"]), texts()),
)
def test_any_error_of_a_server_is_one_of_ours(status: int | None, body: Any, headers: dict[str, str]) -> None:
    error = server_error(status, body, headers, model="m", now=0.0)

    assert isinstance(error, ModelError)
    assert str(error)

"""How long the other side asks to be left alone, wherever it says so."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx2
import openai
import pytest

from paidonce.policies.asked_waits import LARGEST_BODY_BYTES, LONGEST_SECONDS
from paidonce.policies.failures import describe_failure

NOW = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC)


class Answer(Exception):
    """As an SDK raises an answer."""

    def __init__(self, status: int = 429, headers: dict[str, str] | None = None, **attributes: Any) -> None:
        super().__init__(status)
        self.status_code = status
        self.headers = headers or {}
        self.__dict__.update(attributes)


class Response:
    """A response whose body may have been read."""

    def __init__(self, content: object, headers: dict[str, str] | None = None) -> None:
        self.headers = headers or {}
        self._content = content


def wait(error: Exception) -> float | None:
    return describe_failure(error, clock=lambda: NOW).retry_after_seconds


GEMINI = {
    "error": {
        "code": 429,
        "message": "You exceeded your current quota. Please retry in 13.257s.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaValue": "10"}]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "13s"},
        ],
    }
}


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (GEMINI, 13.0),
        ({"error": {"message": GEMINI["error"]["message"]}}, 13.257),
        ({"message": "Rate limit reached for gpt-4o: Limit 30000. Please try again in 1.2s. Visit the page."}, 1.2),
        ({"message": "Please try again in 6m0s."}, 360.0),
        ({"message": "Please try again in 20ms."}, 0.02),
        ({"message": "please Retry After 26 seconds."}, 26.0),
        ({"message": "Please try again in 1h2m3.5s"}, 3723.5),
        ({"type": "error", "error": {"type": "rate_limit_error", "retry_after": 7.5}}, 7.5),
        ({"error": {"retry_after_ms": 1500}}, 1.5),
        ({"error": {"retry_after": "12"}}, 12.0),
        ({"detail": [{"retryDelay": {"seconds": "3", "nanos": 500000000}}]}, 3.5),
        ({"error": {"retry_after": 1e30}}, LONGEST_SECONDS),
        ({"error": {"retry_after": -5}}, None),
        ({"error": {"retry_after": True}}, None),
        ({"error": {"retry_after": "soon"}}, None),
        ({"error": {"retry_after": "2026-11-29T12:00:40Z"}}, 40.0),
        ({"error": {"retry_after": "Sun, 29 Nov 2026 12:00:30 GMT"}}, 30.0),
        ({"error": {"retry_after": "2026-11-29T11:59:00+00:00"}}, 0.0),
        ({"error": {"retry_after": "Sun, 29 Nov 99999999999999999999 12:00:30 GMT"}}, None),
        ({"error": {"retry_after": "Sun, 29 Nov 2026 12:00:30 GMT" + " " * 10_000}}, 30.0),
        ({"error": {"retry_after": float("nan")}}, None),
        ({"error": {"retry_after": None, "message": "Please try again in a moment."}}, None),
        ({"message": "Please try again in 5 apples."}, None),
        ({"message": "x" * 5_000 + " Please try again in 5s"}, None),
        (None, None),
        ([1, 2, 3], None),
    ],
)
def test_waits_in_bodies(body: Any, seconds: float | None) -> None:
    assert wait(Answer(body=body)) == seconds
    assert wait(Answer(details=body)) == seconds
    text = json.dumps(body).encode()
    assert wait(Answer(response=Response(text))) == seconds


def test_a_body_of_other_answers_or_one_that_is_not_read_or_too_large_says_nothing() -> None:
    says = {"message": "Please try again in 5s"}
    assert wait(Answer(400, body=says)) is None
    assert wait(ValueError("Please try again in 5s")) is None
    assert wait(Answer(503, body=says)) == 5.0
    assert wait(Answer(response=Response(False))) is None
    assert wait(Answer(response=Response(b"Please try again in 5s"))) == 5.0
    assert wait(Answer(response=Response(b" " * LARGEST_BODY_BYTES + json.dumps(says).encode()))) is None
    assert wait(Answer(response=Response(b"[" * 60_000))) is None
    deep: dict[str, Any] = {"retry_after": 9}
    for _ in range(100):
        deep = {"inner": deep}
    assert wait(Answer(body=deep)) is None


TRY_AGAIN = "Please try again in 12s."


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"code": "rate_limit_exceeded", "message": TRY_AGAIN}, 12.0),
        ({"message": TRY_AGAIN, "type": "tokens", "code": "rate_limit_exceeded"}, 12.0),
        ({"type": "error", "error": {"type": "overloaded_error", "message": TRY_AGAIN}}, 12.0),
        ({"error": {"code": 429, "message": TRY_AGAIN}}, 12.0),
        (GEMINI, 13.0),
        ({"retry_after": 3}, 3.0),
        ({"code": "invalid_request_error", "message": TRY_AGAIN}, None),
        ({"code": 10**50, "message": TRY_AGAIN}, None),
        ({"message": TRY_AGAIN}, None),
        (TRY_AGAIN, None),
    ],
)
def test_an_error_in_a_stream_has_no_status_and_says_in_its_body_what_it_is(body: Any, seconds: float | None) -> None:
    request = httpx2.Request("POST", "https://api.openai.com/v1/chat/completions")
    assert wait(openai.APIError("in the stream", request, body=body)) == seconds
    assert wait(Answer(200, details=body)) == seconds


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("7", 7.0),
        (" 7.5 ", 7.5),
        ("1m30s", 90.0),
        ("2026-11-29T12:00:40Z", 40.0),
        ("Sun, 29 Nov 2026 12:00:30 GMT", 30.0),
        (NOW.replace(minute=1), 60.0),
        ("", None),
        ("soon", None),
        ("-7", None),
        ("nan", None),
        ("9" * 100_000, LONGEST_SECONDS),
        (b"7", None),
    ],
)
def test_an_attribute_of_the_error_may_be_a_text_or_a_date(asked: object, seconds: float | None) -> None:
    error = ValueError("slower")
    error.retry_after = asked  # type: ignore[attr-defined]  # as clients add it
    assert wait(error) == seconds


def test_a_header_with_an_impossible_date_says_nothing() -> None:
    assert wait(Answer(headers={"Retry-After": "Sun, 29 Nov 99999999999999999999 12:00:30 GMT"})) is None


def test_the_header_goes_before_the_body() -> None:
    assert wait(Answer(headers={"Retry-After": "2"}, body=GEMINI)) == 2.0
    assert wait(Answer(headers={"retry-after-ms": "250", "Retry-After": "2"}, body=GEMINI)) == 0.25
    assert wait(Answer(headers={"Retry-After": "Sun, 29 Nov 2026 12:00:30 GMT"})) == 30.0
    assert wait(Answer(headers={"Retry-After": "whenever"}, body=GEMINI)) == 13.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "8.64s",
                "x-ratelimit-remaining-tokens": "900",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            8.64,
        ),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW.timestamp()) + 45)}, 45.0),
        ({"ratelimit-reset": "50"}, 50.0),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-11-29T12:01:00Z",
                "anthropic-ratelimit-tokens-remaining": "4000",
                "anthropic-ratelimit-tokens-reset": "2026-11-29T13:00:00Z",
            },
            60.0,
        ),
        ({"x-ratelimit-reset-requests": "soon"}, None),
        ({"x-ratelimit-reset": "5", "x-ratelimit-remaining": "12"}, None),
    ],
)
def test_limits_that_are_used_up_say_when_they_are_full_again(headers: dict[str, str], seconds: float | None) -> None:
    assert wait(Answer(headers=headers)) == seconds
    assert wait(Answer(503, headers=headers)) is None

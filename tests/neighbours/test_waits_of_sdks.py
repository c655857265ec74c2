"""What real SDKs raise for an answer 429, alone and in groups: its kinds, and how long it asks to wait."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any

import anthropic
import httpx
import openai
import pytest
import requests
import tenacity
from google import genai

from paidonce.policies import describe_failure

MESSAGES = [{"role": "user", "content": "hello"}]
OPENAI = {"error": {"message": "Rate limit reached. Please try again in 1.2s.", "type": "tokens", "code": "rate_limit"}}
ANTHROPIC = {"type": "error", "error": {"type": "rate_limit_error", "message": "Too many.", "retry_after": 7}}
GEMINI = {
    "error": {
        "code": 429,
        "message": "You exceeded your current quota.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "13s"}],
    }
}
AZURE = {"error": {"code": "429", "message": "Please retry after 26 seconds."}}


class Refusing(ThreadingHTTPServer):
    """Answers every request with 429, a body and headers that the test sets."""

    body: Any = None
    more: Mapping[str, str] = MappingProxyType({})

    def answer(self, body: Any, **headers: str) -> str:
        """From now on; returns its address."""
        self.body, self.more = body, {name.replace("_", "-"): value for name, value in headers.items()}
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Refusing

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.dumps(self.server.body).encode()
        self.send_response(429)
        for name, value in {"content-type": "application/json", **self.server.more}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Refusing]:
    made = Refusing(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def openai_call(url: str) -> object:
    client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)
    return client.chat.completions.create(model="gpt-4o", messages=MESSAGES)  # type: ignore[arg-type]


def openai_stream(url: str) -> object:
    client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)
    return client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)  # type: ignore[arg-type]


def anthropic_call(url: str) -> object:
    client = anthropic.Anthropic(base_url=url, api_key="x", max_retries=0)
    return client.messages.create(model="claude", max_tokens=5, messages=MESSAGES)  # type: ignore[arg-type]


def gemini_call(url: str) -> object:
    client = genai.Client(api_key="x", http_options=genai.types.HttpOptions(base_url=url))
    return client.models.generate_content(model="gemini-2.5-flash", contents="hello")


def httpx_call(url: str) -> object:
    return httpx.post(url, json={}).raise_for_status()


def requests_call(url: str) -> object:
    return requests.post(url, json={}, timeout=10).raise_for_status()


@tenacity.retry(stop=tenacity.stop_after_attempt(1))
def under_tenacity(url: str) -> object:
    return openai_call(url)


CASES: list[tuple[Callable[[str], object], Any, float]] = [
    (openai_call, OPENAI, 1.2),
    (openai_stream, OPENAI, 1.2),
    (openai_call, AZURE, 26.0),
    (anthropic_call, ANTHROPIC, 7.0),
    (gemini_call, GEMINI, 13.0),
    (httpx_call, GEMINI, 13.0),
    (requests_call, ANTHROPIC, 7.0),
    (under_tenacity, OPENAI, 1.2),
]


def error_of(call: Callable[[str], object], url: str) -> Exception:
    with pytest.raises(Exception) as caught:
        call(url)
    return caught.value


@pytest.mark.parametrize(("call", "body", "seconds"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wait_in_the_body_counts_as_retry_after(
    server: Refusing, call: Callable[[str], object], body: Any, seconds: float
) -> None:
    found = describe_failure(error_of(call, server.answer(body)))
    assert "http:429" in found.kinds
    assert found.retry_after_seconds == seconds
    found = describe_failure(error_of(call, server.answer(body, Retry_After="3")))
    assert found.retry_after_seconds == 3.0
    found = describe_failure(error_of(call, server.answer({"error": {"message": "no"}}, x_ratelimit_reset_tokens="6m")))
    assert found.retry_after_seconds == 360.0
    assert describe_failure(error_of(call, server.answer({"error": {"message": "no"}}))).retry_after_seconds is None


def test_two_of_them_in_a_task_group_are_what_both_are(server: Refusing) -> None:
    url = server.answer(OPENAI)

    async def both() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
            create = client.chat.completions.create
            both_failed = asyncio.Barrier(2)

            async def ask() -> None:
                try:
                    await create(model="gpt-4o", messages=MESSAGES)  # type: ignore[arg-type]
                finally:
                    await both_failed.wait()

            async with asyncio.TaskGroup() as group:
                group.create_task(ask())
                group.create_task(ask())

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(both())
    assert len(caught.value.exceptions) == 2
    found = describe_failure(caught.value)
    assert {"http:429", "RateLimitError", "openai.RateLimitError"} <= found.kinds
    assert found.retry_after_seconds == 1.2

"""A step's body without a worker: a recorder, the taps, and HTTP clients whose replies are made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import httpx2

from paidonce.usage.call_recorder import CallRecorder, recording_into
from paidonce_models.usage import CallRecord
from paidonce_workers.capture import capturing

OPENAI = "https://api.openai.com/v1/chat/completions"
CHAT: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 0}},
}
ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
LIBRARIES: list[Any] = [httpx, httpx2]

Reply = Callable[[Any], Any]


@contextmanager
def step_body(hosts: Iterable[tuple[str, str]] = ()) -> Iterator[CallRecorder]:
    """What a worker puts around a body."""
    with capturing(hosts), recording_into(CallRecorder()) as recorder:
        yield recorder


class Pieces(httpx.SyncByteStream, httpx2.SyncByteStream):
    """A body that comes over a wire: in pieces, and perhaps not to its end."""

    def __init__(self, *pieces: bytes, error: Exception | None = None) -> None:
        self.pieces = pieces
        self.error = error

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        if self.error is not None:
            raise self.error


def client(reply: Reply, library: Any = httpx) -> Any:
    """A client of that library whose requests are answered by ``reply``."""
    return library.Client(transport=library.MockTransport(reply))


def replying(document: Any, status: int = 200, library: Any = httpx, **headers: str) -> Reply:
    """The same JSON for every request, as if it came over a wire."""
    raw = json.dumps(document).encode()
    half = len(raw) // 2
    return lambda request: library.Response(
        status,
        headers={"content-type": "application/json", **headers},
        stream=Pieces(raw[:half], raw[half:]),
    )


def events(*documents: Any) -> bytes:
    """Server-sent events; text as it is, anything else as JSON."""
    return b"".join(
        b"data: " + (each.encode() if isinstance(each, str) else json.dumps(each).encode()) + b"\n\n"
        for each in documents
    )


def streaming(*pieces: bytes, error: Exception | None = None, library: Any = httpx) -> Reply:
    """An event stream for every request."""
    return lambda request: library.Response(
        200, headers={"content-type": "text/event-stream"}, stream=Pieces(*pieces, error=error)
    )


def only(recorder: CallRecorder) -> CallRecord:
    """The one call that was recorded."""
    (call,) = recorder.drain()
    return call

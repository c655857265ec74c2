"""What the readers take from answers in the providers' shapes, whole, in pieces and cut."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from paidonce.usage.provider_hosts_setting import Api
from paidonce_workers.capture.bounded_bytes import TAIL_BYTES, WHOLE_BYTES
from paidonce_workers.capture.responses import Answer, DocumentReader, EventStreamReader
from tests.capture.replies import CHAT, events

GEMINI = {
    "candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 4, "totalTokenCount": 14},
    "modelVersion": "gemini-2.5-flash",
    "responseId": "r1",
}
OPENED = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "model": "claude-sonnet-4-5",
        "usage": {"input_tokens": 5, "cache_read_input_tokens": 100, "output_tokens": 1},
    },
}
SAID = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": '"usage": {"input": 9}'}}
CLOSING = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 42}}
CLOSED = {"type": "message_stop"}


def read(reader: DocumentReader | EventStreamReader, raw: bytes, size: int) -> Answer:
    for start in range(0, len(raw), size):
        reader.feed(raw[start : start + size])
    reader.end()
    return reader.answer


@pytest.mark.parametrize("size", [1, 13, 1_000_000])
def test_a_document_gives_model_usage_and_id(size: int) -> None:
    answer = read(DocumentReader(Api.OPENAI), json.dumps(CHAT).encode(), size)
    assert (answer.id, answer.is_complete, answer.fields["usage"]) == ("chatcmpl-1", True, CHAT["usage"])
    assert "choices" not in answer.fields


@pytest.mark.parametrize("size", [1, 13, 1_000_000])
def test_anthropics_input_comes_first_and_its_output_last(size: int) -> None:
    answer = read(EventStreamReader(Api.ANTHROPIC), events(OPENED, SAID, CLOSING, CLOSED), size)
    assert answer.fields["usage"] == {"input_tokens": 5, "cache_read_input_tokens": 100, "output_tokens": 42}
    assert (answer.id, answer.is_complete, answer.has_closed, answer.has_final_usage) == ("msg_1", True, True, True)


def test_a_cut_message_has_its_input_and_no_final_output() -> None:
    answer = read(EventStreamReader(Api.ANTHROPIC), events(OPENED, SAID), 50)
    assert (answer.is_complete, answer.has_final_usage) == (False, False)
    assert answer.fields["model"] == "claude-sonnet-4-5"


@pytest.mark.parametrize("cut", [False, True])
def test_geminis_array_is_read_also_when_it_breaks_off(cut: bool) -> None:
    raw = json.dumps([{**GEMINI, "candidates": [{}]}, GEMINI]).encode()
    answer = read(DocumentReader(Api.GOOGLE), raw[:-40] if cut else raw, 30)
    assert answer.fields["usageMetadata"] == GEMINI["usageMetadata"]
    assert (answer.fields["model"], answer.is_complete) == ("gemini-2.5-flash", not cut)


def test_geminis_events_end_with_a_reason() -> None:
    going = {**GEMINI, "candidates": [{"content": {}}]}
    assert not read(EventStreamReader(Api.GOOGLE), events(going), 30).is_complete
    assert read(EventStreamReader(Api.GOOGLE), events(going, GEMINI), 30).is_complete
    assert read(EventStreamReader(Api.GOOGLE), events({**going, "promptFeedback": {}}), 30).is_complete


def test_events_of_the_responses_api_carry_the_response_inside() -> None:
    usage = {"input_tokens": 7, "output_tokens": 2}
    response: dict[str, Any] = {"id": "resp_1", "model": "gpt-5", "usage": None, "service_tier": "flex"}
    opened = {"type": "response.created", "response": response}
    ended = {"type": "response.completed", "response": {**response, "usage": usage}}
    answer = read(EventStreamReader(Api.OPENAI), events(opened, {"type": "x", "delta": "Hi"}, ended), 9)
    assert answer.fields == {"model": "gpt-5", "service_tier": "flex", "usage": usage}
    assert (answer.id, answer.has_closed) == ("resp_1", True)


def test_groq_keeps_its_usage_elsewhere() -> None:
    chunk = {"id": "c", "model": "llama", "choices": [{"finish_reason": "stop"}], "x_groq": {"usage": CHAT["usage"]}}
    answer = read(EventStreamReader(Api.OPENAI), events({"id": "c", "model": "llama"}, chunk, "[DONE]"), 30)
    assert answer.fields["usage"] == CHAT["usage"]


@pytest.mark.parametrize("as_event", [False, True])
def test_a_large_answer_is_read_at_its_ends_and_never_held(as_event: bool) -> None:
    liar = '"usage": {"input_tokens": 1}, "id": "no", \\" " ' * 20
    document = {
        "id": "resp_1",
        "model": "gpt-5",
        "output": [liar * 4_000],
        "usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9},
        "metadata": {"a": liar},
    }
    raw = json.dumps(document).encode()
    assert len(raw) > 5 * WHOLE_BYTES
    reader: Any = DocumentReader(Api.OPENAI)
    if as_event:
        reader, raw = EventStreamReader(Api.OPENAI), events({"type": "response.completed", "response": document})
    held = []
    for start in range(0, len(raw), 10_000):
        reader.feed(raw[start : start + 10_000])
        held.append(len((reader._long_line or b"") if as_event else reader._body))
    reader.end()
    assert max(held) <= WHOLE_BYTES
    assert (reader.answer.id, reader.answer.fields["model"]) == ("resp_1", "gpt-5")
    assert reader.answer.fields["usage"] == document["usage"]
    assert reader.answer.is_complete


def test_the_usage_of_a_large_answer_may_stand_far_before_its_end() -> None:
    usage = {"input_tokens": 7, "output_tokens": 2}
    filling = {"a": "x" * (TAIL_BYTES - 1_000)}
    document = {"id": "resp_1", "output": ["x" * WHOLE_BYTES], "usage": usage, "metadata": filling}
    answer = read(DocumentReader(Api.OPENAI), json.dumps(document).encode(), 1_000_000)
    assert (answer.id, answer.fields["usage"]) == ("resp_1", usage)


def test_of_several_usages_in_a_large_answer_the_last_one_counts() -> None:
    going = {**GEMINI, "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 1, "totalTokenCount": 11}}
    filling = {**going, "candidates": [{"content": {"parts": [{"text": "x" * WHOLE_BYTES}]}}]}
    answer = read(DocumentReader(Api.GOOGLE), json.dumps([filling, going, GEMINI]).encode(), 10_000)
    assert answer.fields["usageMetadata"] == GEMINI["usageMetadata"]


@pytest.mark.parametrize(
    "raw", [b"", b"<html>no</html>", b"null", b"[1, 2]", b'"text"', b'{"usage": [1]}', b"\xff\xfe"]
)
def test_what_is_no_answer_tells_nothing(raw: bytes) -> None:
    for reader in (DocumentReader(Api.OPENAI), EventStreamReader(Api.OPENAI), EventStreamReader(Api.GOOGLE)):
        answer = read(reader, raw if isinstance(reader, DocumentReader) else b"data: " + raw + b"\n\n", 3)
        assert (answer.fields, answer.id) == ({}, None)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 5_000 + b"]" * 5_000,
        b"[" * 1_000 + b"]" * 1_000,
        b'{"text": "\\ud800", "deep": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"text": "\\ud800", "number": ' + b"9" * 5_000 + b"}",
        b'{"pad": "' + b"x" * WHOLE_BYTES + b'", "usage": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001,
    ],
    ids=["brackets", "brackets that are read", "half a pair", "digits", "large"],
)
@pytest.mark.parametrize("api", list(Api))
def test_an_answer_that_nests_without_an_end_tells_nothing_and_raises_nothing(api: Api, body: bytes) -> None:
    for reader in (DocumentReader(api), EventStreamReader(api)):
        raw = body if isinstance(reader, DocumentReader) else b"data: " + body + b"\n\n"
        answer = read(reader, raw, 100_000)
        assert "usage" not in answer.fields and "usageMetadata" not in answer.fields


def test_a_stream_whose_line_never_ends_is_read_in_bounded_memory() -> None:
    reader = EventStreamReader(Api.OPENAI)
    tracemalloc.start()
    try:
        for _ in range(2_000):
            reader.feed(b"x" * 16_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    reader.end()
    assert peak < 4 * 2**20


def test_a_count_that_a_later_event_leaves_empty_stands() -> None:
    answer = Answer(Api.ANTHROPIC)
    answer.take({"type": "message_start", "message": {"usage": {"input_tokens": 20, "output_tokens": 1}}})
    answer.take({"type": "message_delta", "usage": {"input_tokens": None, "output_tokens": 9}})
    assert answer.fields["usage"] == {"input_tokens": 20, "output_tokens": 9}

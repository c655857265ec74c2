"""A response that was captured and is also given to ``record_usage`` is one call, with the most that is known of it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from paidonce.usage.explicit_usage import record_usage
from paidonce_models.usage import CallStatus, UsageSource
from tests.capture.replies import ASKED, CHAT, OPENAI, client, events, replying, step_body, streaming

CHUNK = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "model": "gpt-4o-mini", "choices": []}
LAST = {**CHUNK, "usage": CHAT["usage"]}
UNTOLD = {**CHAT, "usage": None}


def ask(document: Any = CHAT, model: str = "gpt-4o-mini", **headers: str) -> Any:
    with client(replying(document, **headers)) as http:
        return http.post(OPENAI, json={**ASKED, "model": model}).json()


def test_a_captured_response_is_returned_and_not_counted_again() -> None:
    with step_body() as recorder:
        returned = record_usage(ask(**{"x-request-id": "req_1"}), provider="openai")
        record_usage(provider="openai", model="gpt-4o-mini", input_tokens=9, output_tokens=9, request_id="req_1")
        (call,) = recorder.drain()
    assert (call.id, call.provider_request_id, call.input_tokens) == (returned.id, "req_1", 1000)


def test_it_is_known_by_the_sdks_header_id_and_after_a_heartbeat_too() -> None:
    class Embeddings:
        _request_id = "req_7"
        model = "text-embedding-3-small"
        usage: dict[str, int] = {"prompt_tokens": 5, "total_tokens": 5}  # noqa: RUF012

    with step_body() as recorder:
        ask(**{"x-request-id": "req_7"})
        assert len(recorder.drain()) == 1
        record_usage(Embeddings())
        assert recorder.drain() == []


def test_a_streams_last_chunk_recorded_before_the_stream_has_ended_is_counted_once() -> None:
    with step_body() as recorder:
        with client(streaming(events(CHUNK, LAST), events("[DONE]"))) as http, http.stream("POST", OPENAI) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            explicit = record_usage(LAST, provider="openai")
            for _ in pieces:
                pass
        record_usage(LAST, provider="openai")
        (call,) = recorder.drain()
    assert call == explicit


def test_usage_that_the_capture_did_not_see_completes_its_row() -> None:
    with step_body() as recorder:
        returned = record_usage({**ask(UNTOLD), "usage": CHAT["usage"]})
        (call,) = recorder.drain()
    assert call == returned
    assert (call.input_tokens, call.usage_source, call.model_requested) == (1000, UsageSource.PROVIDER, None)
    assert call.duration_us is not None and call.status is CallStatus.OK


def test_a_written_row_is_never_changed_so_that_unknown_usage_becomes_a_row_of_its_own() -> None:
    with step_body() as recorder:
        response = ask(UNTOLD)
        (written,) = recorder.drain()
        record_usage({**response, "usage": CHAT["usage"]})
        (second,) = recorder.drain()
    assert (written.input_tokens, second.input_tokens) == (None, 1000)


def test_a_stated_cost_is_taken_while_the_row_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    with step_body() as recorder, caplog.at_level(logging.WARNING):
        response = ask()
        record_usage(response, cost_usd="0.5")
        (call,) = recorder.drain()
        assert (call.cost_nanousd, call.price_source, call.input_cost_nanousd) == (500_000_000, "explicit", None)
        assert record_usage(response, cost_usd="0.7").cost_nanousd == 500_000_000
        assert recorder.drain() == []
    assert [record.__dict__["event"] for record in caplog.records] == ["stated_cost_too_late"]


def test_a_cost_for_a_model_without_a_price_is_never_lost() -> None:
    with step_body() as recorder:
        response = ask({**CHAT, "model": "nobody-knows"}, "nobody-knows")
        (written,) = recorder.drain()
        record_usage(response, cost_usd="0.5")
        (stated,) = recorder.drain()
    assert (written.cost_nanousd, stated.cost_nanousd) == (None, 500_000_000)
    assert (written.input_tokens, stated.input_tokens) == (1000, None)


def test_plain_numbers_and_other_responses_are_calls_of_their_own() -> None:
    with step_body() as recorder:
        ask()
        record_usage(provider="openai", model="gpt-4o-mini", input_tokens=1000, output_tokens=100)
        record_usage({**CHAT, "id": "chatcmpl-2"})
        record_usage({**CHAT, "id": "chatcmpl-2"})
        assert len(recorder.drain()) == 4


def test_what_comes_after_the_end_is_told_and_can_be_drained() -> None:
    told: list[int] = []
    with step_body() as recorder:
        recorder.end(lambda: told.append(1))
        assert told == []
        ask()
        assert told == [1]
        late = recorder.begin_flush()
        recorder.end_flush(late, written=False)
        assert (told, recorder.drain()) == ([1, 1], late)

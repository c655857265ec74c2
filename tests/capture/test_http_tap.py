"""The tap: one call for each paid request of a step, whatever becomes of it, and never a change to the user's call."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import time
from typing import Any

import httpx
import httpx2
import pytest

from paidonce.usage.call_recorder import CallRecorder, innermost_tool, recording_into
from paidonce_models.usage import CallKind, CallStatus, UsageSource
from paidonce_workers.capture import capturing, install, observation
from paidonce_workers.capture.provider_endpoints import HostTable
from paidonce_workers.capture.responses import DocumentReader
from tests.capture.replies import (
    ASKED,
    CHAT,
    LIBRARIES,
    OPENAI,
    Pieces,
    client,
    events,
    only,
    replying,
    step_body,
    streaming,
)

CHUNK = {"id": "c1", "object": "chat.completion.chunk", "model": "gpt-4o-mini", "usage": None}
PIECE = {**CHUNK, "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]}
LAST = {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {**CHUNK, "choices": [], "usage": CHAT["usage"]}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_request_in_a_step_is_a_priced_call(library: Any) -> None:
    reply = replying(CHAT, library=library, **{"x-request-id": "req_1"})
    with step_body() as recorder, innermost_tool("ask"), client(reply, library) as http:
        assert http.post(OPENAI, json=ASKED, headers={"x-stainless-retry-count": "2"}).json() == CHAT
    call = only(recorder)
    assert (call.kind, call.status, call.usage_source) == (CallKind.LLM, CallStatus.OK, UsageSource.PROVIDER)
    assert (call.provider, call.model_requested, call.model_billed) == (
        "openai",
        "gpt-4o-mini",
        "gpt-4o-mini-2024-07-18",
    )
    assert (call.input_tokens, call.output_tokens, call.cost_nanousd) == (1000, 100, 1000 * 150 + 100 * 600)
    assert (call.tool, call.http_retry, call.provider_request_id) == ("ask", 2, "req_1")
    assert call.duration_us is not None and call.duration_us > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_async_request_is_recorded_too(library: Any) -> None:
    async def body() -> None:
        def answer(request: Any) -> Any:
            return library.Response(200, json=CHAT)  # a mock that has read it already

        async with library.AsyncClient(transport=library.MockTransport(answer)) as http:
            assert (await http.post(OPENAI, json=ASKED)).json() == CHAT

    with step_body() as recorder:
        asyncio.run(body())
    assert only(recorder).input_tokens == 1000


def test_outside_a_step_nothing_is_recorded_and_afterwards_nothing_is_wrapped() -> None:
    before = (httpx.Client.__dict__["_send_single_request"], httpx2.AsyncClient.__dict__["_send_single_request"])
    recorder = CallRecorder()
    with capturing(), client(replying(CHAT)) as http:
        assert httpx.Client.__dict__["_send_single_request"] is not before[0]
        http.post(OPENAI, json=ASKED)
    assert (
        httpx.Client.__dict__["_send_single_request"],
        httpx2.AsyncClient.__dict__["_send_single_request"],
    ) == before
    with recording_into(recorder), client(replying(CHAT)) as http:
        http.post(OPENAI, json=ASKED)
    assert recorder.drain() == []


def test_installing_twice_records_once_and_lasts_until_both_have_left() -> None:
    first, second = install(), install([("llm.internal", "openai")])
    try:
        second.uninstall()
        with recording_into(CallRecorder()) as recorder, client(replying(CHAT)) as http:
            http.post(OPENAI, json=ASKED)
            http.post("http://llm.internal/v1/chat/completions", json=ASKED)
        assert len(recorder.drain()) == 2
    finally:
        first.uninstall()


def test_what_is_not_a_paid_call_passes_unseen() -> None:
    with step_body() as recorder, client(replying(CHAT)) as http:
        http.get("https://api.openai.com/v1/models")
        http.post("https://api.openai.com/v1/files", json={})
        http.get("https://api.openai.com/v1/responses/resp_1")
        http.post("https://api.anthropic.com/v1/messages/count_tokens", json=ASKED)
        http.post("https://example.com/v1/chat/completions", json=ASKED)
    assert recorder.drain() == []


@pytest.mark.parametrize("status", [400, 429, 503])
def test_a_refused_request_is_a_failed_call_of_unknown_cost(status: int) -> None:
    with step_body() as recorder, client(replying({"error": {}}, status)) as http:
        http.post(OPENAI, json=ASKED)
    call = only(recorder)
    assert (call.status, call.usage_source, call.cost_nanousd) == (CallStatus.FAILED, UsageSource.MISSING, None)
    assert (call.model_requested, call.model_billed, call.input_tokens) == ("gpt-4o-mini", None, None)


def test_a_transport_error_is_a_failed_call_and_reaches_the_user() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody there", request=request)

    with step_body() as recorder, client(refuse) as http, pytest.raises(httpx.ConnectError, match="nobody"):
        http.post(OPENAI, json=ASKED)
    call = only(recorder)
    assert (call.status, call.is_unpriced) == (CallStatus.FAILED, False)


def test_a_request_that_was_sent_and_timed_out_may_be_billed_and_its_next_try_is_a_retry() -> None:
    def time_out(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("late", request=request)

    with step_body() as recorder, client(time_out) as http:
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout, match="late"):
                http.post(OPENAI, json=ASKED)
    calls = recorder.drain()
    assert [(call.status, call.is_unpriced, call.http_retry) for call in calls] == [
        (CallStatus.CUT, True, 0),
        (CallStatus.CUT, True, 1),
    ]


def test_a_cancelled_request_is_cut_for_nobody_knows_what_the_provider_did() -> None:
    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def body() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(hang)) as http:
            async with asyncio.timeout(0.01):
                await http.post(OPENAI, json=ASKED)

    with step_body() as recorder, pytest.raises(TimeoutError):
        asyncio.run(body())
    assert only(recorder).status is CallStatus.CUT


def test_a_clients_own_retry_is_counted_where_no_header_says_it() -> None:
    statuses = iter([503, 503, 200, 200])
    with step_body() as recorder, client(lambda request: httpx.Response(next(statuses), json=CHAT)) as http:
        for _ in range(4):
            http.post(OPENAI, json=ASKED)
    assert [(call.status.value, call.http_retry) for call in recorder.drain()] == [
        ("failed", 0),
        ("failed", 1),
        ("ok", 2),
        ("ok", 0),
    ]


def test_a_stream_is_passed_on_unchanged_and_read_for_its_usage() -> None:
    raw = events(PIECE, LAST, USAGE, "[DONE]")
    pieces = [raw[start : start + 7] for start in range(0, len(raw), 7)]
    with (
        step_body() as recorder,
        client(streaming(*pieces)) as http,
        http.stream("POST", OPENAI, json={**ASKED, "stream": True}) as answer,
    ):
        assert list(answer.iter_raw()) == pieces
    call = only(recorder)
    assert (call.status, call.input_tokens, call.output_tokens) == (CallStatus.OK, 1000, 100)


def test_a_stream_without_usage_is_missing_and_never_zero() -> None:
    with step_body() as recorder, client(streaming(events(PIECE, LAST, "[DONE]"))) as http:
        http.post(OPENAI, json=ASKED)
    call = only(recorder)
    assert (call.status, call.usage_source, call.input_tokens, call.cost_nanousd) == (
        CallStatus.OK,
        UsageSource.MISSING,
        None,
        None,
    )


def test_a_stream_that_breaks_off_is_cut_and_its_error_reaches_the_user() -> None:
    error = httpx.RemoteProtocolError("peer closed connection")
    with (
        step_body() as recorder,
        client(streaming(events(PIECE), error=error)) as http,
        pytest.raises(httpx.RemoteProtocolError, match="peer closed"),
    ):
        http.post(OPENAI, json=ASKED)
    call = only(recorder)
    assert (call.status, call.model_billed, call.output_tokens) == (CallStatus.CUT, "gpt-4o-mini", None)


def test_the_output_that_a_stream_tells_of_when_it_opens_is_not_that_of_a_stream_that_broke_off() -> None:
    told = {"model": "claude-sonnet-4-5", "usage": {"input_tokens": 20, "output_tokens": 1}}
    opens = {"type": "message_start", "message": {"type": "message", "id": "msg_1", **told}}
    with step_body() as recorder, client(streaming(events(opens))) as http:
        http.post("https://api.anthropic.com/v1/messages", json={"model": "claude-sonnet-4-5"})
    call = only(recorder)
    assert (call.status, call.input_tokens, call.output_tokens) == (CallStatus.CUT, 20, None)
    assert call.is_unpriced


def test_what_work_that_goes_on_has_used_so_far_is_not_what_it_used() -> None:
    begun = {"id": "resp_1", "object": "response", "status": "in_progress", "model": "gpt-4o-mini"}
    with (
        step_body() as recorder,
        client(replying({**begun, "usage": {"input_tokens": 20, "output_tokens": 1}})) as http,
    ):
        http.post("https://api.openai.com/v1/responses", json=ASKED)
    call = only(recorder)
    assert (call.usage_source, call.input_tokens, call.output_tokens) == (UsageSource.MISSING, None, None)
    assert call.is_unpriced


def test_a_stream_that_ends_without_its_last_word_is_cut() -> None:
    with step_body() as recorder, client(streaming(events(PIECE, PIECE))) as http:
        http.post(OPENAI, json=ASKED)
    assert only(recorder).status is CallStatus.CUT


def test_a_stream_that_the_user_leaves_is_cut_unless_it_had_said_its_last_word() -> None:
    for raw, status in ((events(PIECE), CallStatus.CUT), (events(LAST, USAGE, "[DONE]"), CallStatus.OK)):
        with (
            step_body() as recorder,
            client(streaming(raw, events(PIECE))) as http,
            http.stream("POST", OPENAI, json=ASKED) as answer,
        ):
            next(answer.iter_raw())
        assert only(recorder).status is status


def test_compressed_answers_are_read() -> None:
    raw = gzip.compress(json.dumps(CHAT).encode())
    for library in LIBRARIES:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}

        def answer(request: Any, library: Any = library, headers: Any = headers) -> Any:
            return library.Response(200, headers=headers, stream=Pieces(raw[:50], raw[50:]))

        with step_body() as recorder, client(answer, library) as http:
            assert http.post(OPENAI, json=ASKED).json() == CHAT
        assert only(recorder).input_tokens == 1000


def test_the_cost_that_a_gateway_states_is_taken() -> None:
    with step_body([("gateway:4000", "openai")]) as recorder:
        with client(replying(CHAT, **{"x-litellm-response-cost": "0.000123"})) as http:
            http.post("http://gateway:4000/chat/completions", json=ASKED)
        with client(replying(CHAT, **{"x-litellm-response-cost": "0.0"})) as http:
            http.post("http://gateway:4000/chat/completions", json=ASKED)
    stated, unknown = recorder.drain()
    assert (stated.cost_nanousd, stated.price_source, stated.input_tokens) == (123_000, "gateway", 1000)
    assert stated.input_cost_nanousd is None
    assert unknown.price_source is not None and unknown.price_source.startswith("genai-prices")


@pytest.mark.parametrize("stated", ["1e30", "1e999999", "nan", "-1", "free", "1_0", "1e-12"])
def test_a_stated_cost_that_is_no_amount_is_passed_over(stated: str) -> None:
    reply = replying(CHAT, **{"x-litellm-response-cost": stated})
    with step_body() as recorder, client(reply) as http:
        http.post(OPENAI, json=ASKED)
    call = only(recorder)
    assert (call.input_tokens, call.cost_nanousd) == (1000, 1000 * 150 + 100 * 600)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HostTable, "find"),
        (observation, "requested_model"),
        (observation, "reader_for"),
        (DocumentReader, "feed"),
        (DocumentReader, "end"),
        (CallRecorder, "append_captured"),
    ],
)
def test_a_fault_of_ours_is_logged_once_without_content_and_changes_nothing(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("Hello")  # what an exception of a parser may quote

    monkeypatch.setattr(owner, name, fail)
    with step_body(), client(replying(CHAT)) as http:
        for _ in range(3):
            assert http.post(OPENAI, json=ASKED).json() == CHAT
    assert [record.__dict__["event"] for record in caplog.records] == ["capture_failed"]
    assert "Hello" not in caplog.text


def test_an_answer_that_cannot_be_read_is_a_call_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    cached = {"prompt_tokens_details": {"cached_tokens": 9}}
    strange: list[tuple[dict[str, Any], UsageSource, int | None, int | None]] = [
        ({"prompt_tokens": -5, "completion_tokens": 1}, UsageSource.PROVIDER, None, 1),
        ({"prompt_tokens": 5, "completion_tokens": 1, **cached}, UsageSource.PROVIDER, 5, 1),
        ({"prompt_tokens": "many", "completion_tokens": 1}, UsageSource.PROVIDER, None, 1),
        ({"something": "else"}, UsageSource.MISSING, None, None),
    ]
    for usage, source, input_tokens, output_tokens in strange:
        document = {**CHAT, "usage": usage}
        with step_body() as recorder, client(replying(document)) as http:
            assert http.post(OPENAI, json=ASKED).json() == document
        call = only(recorder)
        assert (call.status, call.usage_source) == (CallStatus.OK, source)
        assert (call.input_tokens, call.output_tokens) == (input_tokens, output_tokens)
        assert (call.cache_read_tokens, call.cost_nanousd) == (None, None)
    assert {record.__dict__["event"] for record in caplog.records} == {"captured_usage_unreadable"}


def test_half_an_emoji_costs_no_call() -> None:
    halved = json.dumps({**CHAT, "model": "gpt-4o-mini-\ud83d"}).encode()
    reply = streaming(events({**LAST, "usage": CHAT["usage"], "model": "\ud83d"}, "[DONE]"))
    plain = httpx.Response(200, headers={"content-type": "application/json"}, stream=Pieces(halved))
    for answer in (lambda request: plain, reply):
        asked = json.dumps({"model": "gpt-\ud83d", "messages": "x" * 20_000}).encode()
        with step_body() as recorder, client(answer) as http:
            http.post(OPENAI, content=asked)
        call = only(recorder)
        assert (call.status, call.input_tokens, call.output_tokens) == (CallStatus.OK, 1000, 100)
        assert call.model_requested == "gpt-?"


def test_a_library_imported_by_a_body_is_tapped_and_none_is_imported_for_it() -> None:
    program = """
import sys
from paidonce.usage.call_recorder import CallRecorder, recording_into
from paidonce_workers.capture import capturing
with capturing(), recording_into(CallRecorder()) as recorder:
    assert not {"httpx", "httpx2", "genai_prices"} & set(sys.modules), "imported for nothing"
    import httpx
    answer = {"model": "m", "usage": {"prompt_tokens": 7, "completion_tokens": 1}}
    with httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, json=answer))) as client:
        client.post("https://api.openai.com/v1/chat/completions", json={"model": "m"})
    assert [call.input_tokens for call in recorder.drain()] == [7]
    assert "exec_module" not in vars(httpx.__spec__.loader)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_call_is_hardly_delayed() -> None:
    """The median of what the tap adds on this thread, with the counting and pricing that the drain does."""
    rounds = 200

    def spent(http: Any) -> float:
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            http.post(OPENAI, json=ASKED)
            times.append(time.perf_counter() - start)
        return sorted(times)[rounds // 2]

    with client(replying(CHAT)) as http:
        plain = spent(http)
        with step_body() as recorder:
            http.post(OPENAI, json=ASKED)
            recorder.drain()
            tapped = spent(http)
            start = time.perf_counter()
            assert len(recorder.drain()) == rounds
            drained = (time.perf_counter() - start) / rounds
    print(f"{(tapped - plain) * 1e6:.0f} us on the call, {drained * 1e6:.0f} us in the drain")
    assert tapped - plain < 0.1, "far more than it takes on a busy machine"

"""Work that goes on after its first answer: what it used is counted once, however often it is asked, or unknown."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import Mock

import openai
import pytest

from paidonce.usage.call_recorder import CallRecorder
from paidonce.usage.explicit_usage import record_usage
from paidonce.usage.provider_hosts_setting import Api
from paidonce_models.usage import CallRecord, CallStatus, UsageSource
from paidonce_workers.capture.capture_errors import Faults
from paidonce_workers.capture.polled_responses import PollObservation
from paidonce_workers.capture.provider_endpoints import Poll
from tests.capture.replies import step_body

USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 50,
    "output_tokens_details": {"reasoning_tokens": 10},
    "total_tokens": 150,
}
BATCH = {
    "object": "batch",
    "endpoint": "/v1/responses",
    "input_file_id": "f",
    "completion_window": "24h",
    "created_at": 1,
}


def response(number: int, status: str, *, used: bool) -> dict[str, Any]:
    return {
        "id": f"resp_{number}", "object": "response", "created_at": 1, "status": status, "background": True,
        "model": "gpt-4o-mini", "output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "usage": USAGE if used else None,
    }  # fmt: skip


class Provider(BaseHTTPRequestHandler):
    """Background responses that are done at the third look, streams that break off, batches."""

    looks: dict[str, int]
    ends: str

    def do_POST(self) -> None:  # the name http.server calls
        asked = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        if self.path.endswith("/cancel"):
            self._say(response(1, "cancelled", used=False))
        elif self.path.endswith("/batches"):
            self._say({**BATCH, "id": "batch_1", "status": "validating", "usage": {"input_tokens": 0}})
        elif asked.get("stream"):
            created = {"type": "response.created", "sequence_number": 0, "response": response(1, "queued", used=False)}
            self._stream(created)
        else:
            self.looks["created"] = self.looks.get("created", 0) + 1
            self._say(response(self.looks["created"], "queued", used=False))

    def do_GET(self) -> None:  # as above
        path, _, query = self.path.partition("?")
        name = path.rpartition("/")[2]
        self.looks[name] = self.looks.get(name, 0) + 1
        done = self.looks[name] >= 3
        if "/batches/" in path:
            usage = {**USAGE, "input_tokens": 100 if done else 0}
            self._say({**BATCH, "id": name, "status": "completed" if done else "in_progress", "usage": usage})
        elif "stream=true" in query:
            done_event = {
                "type": "response.completed",
                "sequence_number": 1,
                "response": response(1, "completed", used=True),
            }
            self._stream(done_event)
        else:
            number = int(name.removeprefix("resp_"))
            status = self.ends if done else "in_progress"
            self._say(response(number, status, used=done and self.ends != "failed"))

    def _say(self, document: object) -> None:
        self._send(json.dumps(document).encode(), "application/json")

    def _stream(self, *events: object) -> None:
        self._send(b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events), "text/event-stream")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-request-id", "req_1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


class Polling:
    def __init__(self, client: openai.OpenAI, recorder: CallRecorder, provider: type[Provider]) -> None:
        self.client = client
        self.recorder = recorder
        self.provider = provider

    def create(self) -> Any:
        return self.client.responses.create(model="gpt-4o-mini", input="hi", background=True)

    def until_done(self, response_id: str) -> Any:
        for _ in range(10):
            found = self.client.responses.retrieve(response_id)
            if found.status not in ("queued", "in_progress"):
                return found
        raise AssertionError("it is never done")


@pytest.fixture
def polling() -> Iterator[Polling]:
    provider = type("OneProvider", (Provider,), {"looks": {}, "ends": "completed"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"
    try:
        with (
            step_body([(host, "openai")]) as recorder,
            openai.OpenAI(api_key="k", base_url=f"http://{host}/v1", max_retries=0) as client,
        ):
            yield Polling(client, recorder, provider)
    finally:
        server.shutdown()
        server.server_close()


def counted(call: CallRecord) -> tuple[Any, ...]:
    return call.input_tokens, call.output_tokens, call.reasoning_tokens, call.usage_source, call.status


ALL_OF_IT = (100, 50, 10, UsageSource.PROVIDER, CallStatus.OK)


def test_a_background_response_is_one_call_however_often_it_is_asked(polling: Polling) -> None:
    done = polling.until_done(polling.create().id)
    for _ in range(3):
        polling.client.responses.retrieve(done.id)
    record_usage(done)
    (call,) = polling.recorder.drain()
    assert counted(call) == ALL_OF_IT
    assert call.cost_nanousd is not None and call.cost_nanousd > 0


def test_a_heartbeat_does_not_write_it_before_its_usage_is_known(polling: Polling) -> None:
    created = polling.create()
    assert polling.recorder.begin_flush() == []
    polling.until_done(created.id)
    calls = polling.recorder.begin_flush()
    polling.recorder.end_flush(calls, written=True)
    assert [counted(call) for call in calls] == [ALL_OF_IT]
    assert polling.recorder.drain() == []


def test_several_at_once_are_told_apart(polling: Polling) -> None:
    created = [polling.create() for _ in range(3)]
    for each in created[:2]:
        polling.until_done(each.id)
    calls = polling.recorder.drain()
    assert sorted(call.input_tokens or 0 for call in calls) == [0, 100, 100]


def test_one_that_is_not_waited_for_or_fails_is_unknown_not_nothing(polling: Polling) -> None:
    polling.provider.ends = "failed"
    polling.until_done(polling.create().id)
    (call,) = polling.recorder.drain()
    assert (call.input_tokens, call.cost_nanousd, call.usage_source) == (None, None, UsageSource.MISSING)
    assert call.is_unpriced, "a budget says that it cannot see it"


def test_one_that_begins_after_its_attempt_is_not_waited_for(polling: Polling) -> None:
    told: list[bool] = []
    polling.recorder.end(lambda: told.append(True))
    polling.create()
    (call,) = polling.recorder.begin_flush()
    polling.recorder.end_flush([call], written=True)
    assert (told, call.usage_source, call.is_unpriced) == ([True], UsageSource.MISSING, True)


def test_a_cancelled_one_is_unknown(polling: Polling) -> None:
    polling.client.responses.cancel(polling.create().id)
    (call,) = polling.recorder.drain()
    assert (call.cost_nanousd, call.is_unpriced) == (None, True)


def test_a_stream_that_breaks_off_and_is_taken_up_again_is_one_call(polling: Polling) -> None:
    for _ in polling.client.responses.create(model="gpt-4o-mini", input="hi", background=True, stream=True):
        pass
    for _ in polling.client.responses.retrieve("resp_1", stream=True, starting_after=0):
        pass
    (call,) = polling.recorder.drain()
    assert counted(call) == ALL_OF_IT


def test_a_response_of_another_step_is_not_counted_here(polling: Polling) -> None:
    polling.until_done("resp_77")
    assert polling.recorder.drain() == []


def test_what_record_usage_says_of_one_that_goes_on_completes_it(polling: Polling) -> None:
    created = polling.create()
    record_usage({"id": created.id, "model": "gpt-4o-mini", "usage": USAGE})
    (call,) = polling.recorder.drain()
    assert (call.input_tokens, call.output_tokens) == (100, 50)


def test_a_batch_is_one_call_with_the_usage_of_its_end(polling: Polling) -> None:
    created = polling.client.batches.create(completion_window="24h", endpoint="/v1/responses", input_file_id="f")
    for _ in range(4):
        polling.client.batches.retrieve(created.id)
    (call,) = polling.recorder.drain()
    assert (call.input_tokens, call.output_tokens) == (100, 50)


def test_the_tariff_of_a_batch_goes_with_its_usage() -> None:
    recorder = Mock(spec=CallRecorder)
    poll = Poll(id="batch_1", api=Api.OPENAI, says={"service_tier": "batch"})
    observed = PollObservation(recorder=recorder, poll=poll, faults=Faults())
    assert observed.answered(200, {"content-type": "application/json"}, None)
    observed.feed(json.dumps({**BATCH, "id": "batch_1", "status": "completed", "usage": USAGE}).encode())
    observed.finished()
    (_, answer), _ = recorder.complete_awaited.call_args
    assert (answer["service_tier"], answer["usage"]["output_tokens"]) == ("batch", 50)

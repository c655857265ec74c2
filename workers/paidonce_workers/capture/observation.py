"""``Observation``: one HTTP request to a provider, from sending it to the end of its response.

Created where a request is sent inside a step. It ends exactly once, in whatever
thread the response ends, and passes a ``CapturedCall`` to the recorder of the
attempt that sent it. Reads nothing of the request but the model's name.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from paidonce.policies.attempt_policies import GuardedRequest
from paidonce.usage.call_recorder import CallRecorder
from paidonce.usage.captured_calls import CapturedCall
from paidonce_models.errors import InvalidInput
from paidonce_models.money import nanousd_from_usd
from paidonce_models.usage import LARGEST_COST_NANOUSD, CallRecord, CallStatus, UsageSource
from paidonce_workers.capture.bounded_bytes import parsed_json
from paidonce_workers.capture.capture_errors import Faults
from paidonce_workers.capture.provider_endpoints import Endpoint
from paidonce_workers.capture.responses import AnswerReader, reader_for
from paidonce_workers.capture.retries import Retries, fingerprint

PARSED_REQUEST_BYTES: Final = 16 * 1024
"""A request body of up to this size is parsed for its model; a longer one is searched."""
RETRY_HEADER: Final = "x-stainless-retry-count"
"""A header that the SDKs of OpenAI and Anthropic set on each request."""
REQUEST_ID_HEADERS: Final = (
    *("x-request-id", "request-id", "apim-request-id", "x-goog-request-id", "x-generation-id", "cf-ray"),
)
GIVEN_UP_WAITING: Final = frozenset({"ReadTimeout", "SocketTimeoutError", "ServerTimeoutError", "TimeoutError"})
"""Errors of the HTTP libraries that mean: the request was sent, and the client did not wait for the response."""
GATEWAY_COST_HEADER: Final = "x-litellm-response-cost"
GOES_ON: Final = frozenset({"queued", "in_progress", "validating", "finalizing"})
"""States of work that the response to its start does not complete: its usage comes with a later response."""
_MODEL: Final = re.compile(rb'"model"\s*:\s*"((?:[^"\\]|\\.){1,300})"')

_STATED_COST: Final = re.compile(r"[0-9]{1,40}(\.[0-9]{0,60})?([eE][+-]?[0-9]{1,3})?")

Decode = Callable[[bytes], Iterable[bytes]]


class Observation:
    """No method raises: all errors are contained."""

    def __init__(
        self,
        *,
        recorder: CallRecorder,
        endpoint: Endpoint,
        tool: str | None,
        faults: Faults,
        retries: Retries,
        path: str,
        request_headers: Mapping[str, str],
        content: bytes,
        guard: GuardedRequest | None = None,
    ) -> None:
        self.guard = guard
        self._recorder = recorder
        self._endpoint = endpoint
        self._tool = tool
        self._faults = faults
        self._model = requested_model(content) or endpoint.model
        self._retries = retries
        self._fingerprint = fingerprint(path, content)
        said = retry_number(request_headers.get(RETRY_HEADER))
        self.http_retry = retries.number(recorder, self._fingerprint) if said is None else said
        self._started_at_us = recorder.now_us()
        self._started = time.perf_counter()
        self._reader: AnswerReader | None = None
        self._decode: Decode | None = None
        self._ids: tuple[str, ...] = ()
        self._cost_nanousd: int | None = None
        self._lock = threading.Lock()
        self._has_ended = False

    def answered(self, status_code: int, headers: Mapping[str, str], decode: Decode | None) -> bool:
        """The response's head has arrived; whether to read its body. ``decode`` undoes the content encoding."""
        with self._faults.contained("reporting to a circuit"):
            if self.guard is not None:
                self.guard.answered(status_code, headers)
        with self._faults.contained("reading a response's head"):
            self._ids = tuple(dict.fromkeys(headers[name] for name in REQUEST_ID_HEADERS if headers.get(name)))
            if status_code >= 400:
                self._end(CallStatus.FAILED)
            elif status_code >= 300:  # a redirect; the request that follows is observed separately
                self._has_ended = True
            self._cost_nanousd = gateway_cost(headers.get(GATEWAY_COST_HEADER))
            self._reader = reader_for(self._endpoint.api, headers.get("content-type") or "")
            self._decode = decode
        return not self._has_ended

    def feed(self, data: bytes) -> None:
        """The next bytes of the body, as they came over the wire."""
        if self._has_ended or self._reader is None:
            return
        try:
            if self._decode is None:
                self._reader.feed(data)
            else:
                for decoded in self._decode(data):
                    self._reader.feed(decoded)
            if self._reader.answer.has_closed:
                self._end(CallStatus.OK)
        except Exception as error:  # noqa: BLE001 - as `contained`, which costs more on each piece of a stream
            self._faults.tell("reading a response", error)

    def finished(self) -> None:
        """The body has ended. A stream without its final event was cut off even so."""
        self._end(CallStatus.OK)

    def broke_off(self) -> None:
        """The response was closed or failed before its end."""
        self._end(CallStatus.CUT)

    def failed(self, error: BaseException) -> None:
        """No response came. If the client did not wait for it, the provider may well have worked, and may bill."""
        with self._faults.contained("reporting to a circuit"):
            if self.guard is not None:
                self.guard.failed(error)
        is_failure = isinstance(error, Exception)
        has_waited = is_failure and type(error).__name__ not in GIVEN_UP_WAITING
        self._end(CallStatus.FAILED if has_waited else CallStatus.CUT, came_to_nothing=is_failure)

    def _end(self, status: CallStatus, *, came_to_nothing: bool = False) -> None:
        with self._faults.contained("recording a call"):
            with self._lock:
                if self._has_ended:
                    return
                self._has_ended = True
            duration_us = int((time.perf_counter() - self._started) * 1e6)
            reader = self._reader
            if reader is not None:
                with self._faults.contained("reading a response's end"):
                    reader.end()
                    if status is not CallStatus.FAILED:
                        status = CallStatus.OK if reader.answer.is_complete else CallStatus.CUT
            if came_to_nothing or status is CallStatus.FAILED:
                self._retries.failed(self._recorder, self._fingerprint)
            else:
                self._retries.answered(self._recorder, self._fingerprint)
            answer = None if reader is None else reader.answer
            awaited_id = None
            if answer is not None and status is not CallStatus.FAILED and answer.status in GOES_ON:
                awaited_id = answer.id
                answer.fields.pop("usage", None)  # at most an intermediate count
            ids = self._ids if answer is None or answer.id is None else (*self._ids, answer.id)
            captured = CapturedCall(
                call=CallRecord(
                    kind=self._endpoint.kind,
                    started_at_us=self._started_at_us,
                    duration_us=duration_us,
                    tool=self._tool,
                    provider=self._endpoint.provider,
                    model_requested=self._model,
                    usage_source=UsageSource.MISSING,
                    status=status,
                    http_retry=self.http_retry,
                    provider_request_id=ids[0] if ids else None,
                    cost_nanousd=self._cost_nanousd,
                    price_source=None if self._cost_nanousd is None else "gateway",
                ),
                answer=None if answer is None else answer.fields,
                output_is_known=status is CallStatus.OK or (answer is not None and answer.has_final_usage),
                ids=ids,
                awaited_id=awaited_id,
            )
            self._recorder.append_captured(captured)


def requested_model(content: bytes) -> str | None:
    """The model that a request's body names. A long body (images, a conversation) is searched, not parsed."""
    if len(content) > PARSED_REQUEST_BYTES:
        found = models_in(content)
        if len(found) == 1:
            content = b'{"model":"' + found.pop() + b'"}'
    if not content:
        return None
    try:
        document = parsed_json(content)
    except ValueError:
        return None
    model = document.get("model") if isinstance(document, dict) else None
    return model if isinstance(model, str) and model else None


def models_in(content: bytes) -> set[bytes]:
    """All strings under the key ``model`` at any depth, limited to the first few."""
    found: set[bytes] = set()
    start = content.find(b'"model"')  # many times faster than the regex on a long text
    while start >= 0 and len(found) < 2:
        match = _MODEL.match(content, start)
        if match is not None:
            found.add(match[1])
        start = content.find(b'"model"', start + 7)
    return found


def retry_number(header: str | None) -> int | None:
    """The number of the SDK's own retry, 0 for the first request; ``None`` if the client does not send it."""
    return min(int(header), 1_000) if header is not None and header.isascii() and header.isdigit() else None


def gateway_cost(header: str | None) -> int | None:
    """The cost that a gateway reports, in nano-dollars; ``None`` if it reports none.

    LiteLLM sends 0 both for a model whose price it does not know and before a stream
    has started, so 0 counts as unknown, and so does what is no amount.
    """
    if not header or _STATED_COST.fullmatch(header.strip()) is None:
        return None
    try:
        cost_nanousd = nanousd_from_usd(header.strip(), round_to_nano=True)
    except InvalidInput:  # an exponent beyond any amount
        return None
    return cost_nanousd if 0 < cost_nanousd <= LARGEST_COST_NANOUSD else None

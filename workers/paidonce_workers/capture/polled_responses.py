"""``PollObservation``: a request that polls work which an earlier call of the same attempt has started.

The response that starts a background response, a batch or a video reports no usage; a later one does, perhaps more
than once. The usage is taken from the first final response and completes the call that started the work: one call,
counted once. A poll is no paid call, uses no circuit, and is observed only while its call waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from paidonce.usage.call_recorder import CallRecorder
from paidonce_workers.capture.capture_errors import Faults
from paidonce_workers.capture.observation import Decode
from paidonce_workers.capture.provider_endpoints import Poll
from paidonce_workers.capture.responses import AnswerReader, reader_for

FINAL: Final = frozenset({"completed", "incomplete", "failed", "cancelled", "expired", "ended"})
"""States in which the usage is that of all the work; before, some providers report progress."""


class PollObservation:
    """Like ``Observation``, for polls. No method raises."""

    guard = None
    http_retry = 0

    def __init__(self, *, recorder: CallRecorder, poll: Poll, faults: Faults) -> None:
        self._recorder = recorder
        self._poll = poll
        self._faults = faults
        self._reader: AnswerReader | None = None
        self._decode: Decode | None = None

    def answered(self, status_code: int, headers: Mapping[str, str], decode: Decode | None) -> bool:
        """Whether to read the response."""
        if status_code >= 300:
            return False
        with self._faults.contained("reading a poll's head"):
            self._reader = reader_for(self._poll.api, headers.get("content-type") or "")
            self._decode = decode
        return self._reader is not None

    def feed(self, data: bytes) -> None:
        """The next bytes of the body, as they came over the wire."""
        reader = self._reader
        if reader is None:
            return
        with self._faults.contained("reading a poll's response"):
            for decoded in (data,) if self._decode is None else self._decode(data):
                reader.feed(decoded)
            if reader.answer.has_closed:
                self.finished()

    def finished(self) -> None:
        """The body has ended, or was closed: what it reported counts."""
        reader, self._reader = self._reader, None
        if reader is None:
            return
        with self._faults.contained("reading a poll's end"):
            reader.end()
            answer = reader.answer
            is_final = answer.has_closed or answer.status in FINAL
            if is_final and answer.has_final_usage and answer.fields.get("usage"):
                self._recorder.complete_awaited(self._poll.id, {**answer.fields, **self._poll.says})

    def broke_off(self) -> None:
        """The response was closed or failed before its end."""
        self.finished()

    def failed(self, error: BaseException) -> None:
        """No response came; the next poll will report."""

"""``PollObservation``: a request that asks how work stands which an earlier call of the same attempt has begun.

The answer that begins a background response, a batch or a video says nothing of its usage; a later one does, perhaps
more than once. It is taken from the first that is final and completes the call that began the work: one call, counted
once. A poll is no paid call of its own, asks no circuit, and is looked at only while its call waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from paidonce.usage import CallRecorder
from paidonce_workers.capture.answers import AnswerReader, reader_for
from paidonce_workers.capture.faults import Faults
from paidonce_workers.capture.hosts import Poll
from paidonce_workers.capture.observation import Decode

FINAL: Final = frozenset({"completed", "incomplete", "failed", "cancelled", "expired", "ended"})
"""States in which the usage is that of all the work; before, some providers say how far it has come."""


class PollObservation:
    """As ``Observation``, for polls. None of its methods raises."""

    guard = None
    http_retry = 0

    def __init__(self, *, recorder: CallRecorder, poll: Poll, faults: Faults) -> None:
        self._recorder = recorder
        self._poll = poll
        self._faults = faults
        self._reader: AnswerReader | None = None
        self._decode: Decode | None = None

    def answered(self, status_code: int, headers: Mapping[str, str], decode: Decode | None) -> bool:
        """Whether the answer is to be read."""
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
        with self._faults.contained("reading a poll's answer"):
            for decoded in (data,) if self._decode is None else self._decode(data):
                reader.feed(decoded)
            if reader.answer.has_closed:
                self.finished()

    def finished(self) -> None:
        """The body has come to its end, or was closed: what it has said counts."""
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
        """The answer was closed or failed before its end."""
        self.finished()

    def failed(self, error: BaseException) -> None:
        """No answer came: the next poll will say."""

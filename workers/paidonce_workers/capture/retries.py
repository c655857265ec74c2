"""``Retries``: the retry number of a request, for clients that send it in no header.

Keeps a fingerprint of each failed request of an attempt, and nothing of its content:
the same request sent again after a failure is its next retry.
"""

from __future__ import annotations

import logging
import threading
from typing import Final
from weakref import WeakKeyDictionary

from paidonce.usage.call_recorder import CallRecorder

REMEMBERED_FAILURES: Final = 1_000
_END_BYTES: Final = 2_048

Fingerprint = int

log = logging.getLogger(__name__)


def fingerprint(path: str, content: bytes) -> Fingerprint:
    """Equal for a request that is sent again. A long body counts by its length and its two ends."""
    return hash((path, len(content), content[:_END_BYTES], content[-_END_BYTES:]))


class Retries:
    """Consecutive failures by attempt and request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: WeakKeyDictionary[CallRecorder, dict[Fingerprint, int]] = WeakKeyDictionary()

    def number(self, recorder: CallRecorder, request: Fingerprint) -> int:
        """How often this request has just failed in a row; 0 for a first one."""
        failures = self._failures.get(recorder)
        return 0 if failures is None else failures.get(request, 0)

    def failed(self, recorder: CallRecorder, request: Fingerprint) -> None:
        """The request failed."""
        with self._lock:
            failures = self._failures.setdefault(recorder, {})
            failures[request] = failures.pop(request, 0) + 1
            while len(failures) > REMEMBERED_FAILURES:
                del failures[next(iter(failures))]

    def answered(self, recorder: CallRecorder, request: Fingerprint) -> None:
        """The request got a response; an equal one after it is a new request."""
        failures = self._failures.get(recorder)
        if failures:
            failures.pop(request, None)


class HiddenRetries:
    """Warns once per provider whose client retries by itself: the retries of a step are counted by us."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, provider: str) -> None:
        """A request of this provider's client was the client's own retry."""
        if provider in self._told:
            return
        self._told.add(provider)
        log.warning(
            "a client of %s retries by itself, besides the step's own retries: each failure is paid for several times. "
            "Make the client with paidonce.provider_client(...), or give it max_retries=0",
            provider,
            extra={"event": "hidden_retries", "provider": provider},
        )

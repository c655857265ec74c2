"""``Retries``: which retry a request is, for clients that do not say so in a header.

Knows of an attempt's failed requests a fingerprint each, and nothing of their
content: the same request sent again after it failed is its next retry.
"""

from __future__ import annotations

import logging
import threading
from typing import Final
from weakref import WeakKeyDictionary

from paidonce.usage import CallRecorder

REMEMBERED_FAILURES: Final = 1_000
_END_BYTES: Final = 2_048

Fingerprint = int

log = logging.getLogger(__name__)


def fingerprint(path: str, content: bytes) -> Fingerprint:
    """Equal for a request that is sent again. A long body counts by its length and its two ends."""
    return hash((path, len(content), content[:_END_BYTES], content[-_END_BYTES:]))


class Retries:
    """Failures in a row, by attempt and request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: WeakKeyDictionary[CallRecorder, dict[Fingerprint, int]] = WeakKeyDictionary()

    def number(self, recorder: CallRecorder, request: Fingerprint) -> int:
        """How often this request has failed just before; 0 for a first one."""
        failures = self._failures.get(recorder)
        return 0 if failures is None else failures.get(request, 0)

    def failed(self, recorder: CallRecorder, request: Fingerprint) -> None:
        """It came to nothing."""
        with self._lock:
            failures = self._failures.setdefault(recorder, {})
            failures[request] = failures.pop(request, 0) + 1
            while len(failures) > REMEMBERED_FAILURES:
                del failures[next(iter(failures))]

    def answered(self, recorder: CallRecorder, request: Fingerprint) -> None:
        """What is sent after this is a request of its own."""
        failures = self._failures.get(recorder)
        if failures:
            failures.pop(request, None)


class HiddenRetries:
    """Warns once for each provider whose client sends requests again by itself: tries of a step are counted by us."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, provider: str) -> None:
        """A request of this provider's client was a retry of its own."""
        if provider in self._told:
            return
        self._told.add(provider)
        log.warning(
            "a client of %s retries by itself, besides the step's own retries: each failure is paid for several times. "
            "Make the client with paidonce.provider_client(...), or give it max_retries=0",
            provider,
            extra={"event": "hidden_retries", "provider": provider},
        )

"""The stand-in model's log of every request: the evidence with which the demo compares.

Knows nothing of HTTP and nothing of Paidonce; entries are only ever added and closed.
"""

import hashlib
import threading
import time
from dataclasses import asdict, dataclass


@dataclass(kw_only=True)
class Received:
    """One completion request. Times are seconds since the epoch.

    `fingerprint` is equal for equal bodies. `answered_at` is None while the response is
    being made; `delivered` is whether the client was still there to read it. A provider
    bills for a response that is not read, so its tokens count too.
    """

    number: int
    step: str | None
    fingerprint: str
    arrived_at: float
    model: str | None = None
    status: int | None = None
    answered_at: float | None = None
    delivered: bool | None = None
    input_tokens: int = 0
    output_tokens: int = 0


class RequestLog:
    """Every request since the server started. Thread-safe."""

    def __init__(self) -> None:
        """Starts empty."""
        self._lock = threading.Lock()
        self._received: list[Received] = []

    def open(self, step: str | None, body: bytes) -> Received:
        """Record that a request has arrived, before it is processed."""
        with self._lock:
            entry = Received(
                number=len(self._received) + 1,
                step=step,
                fingerprint=hashlib.sha256(body).hexdigest()[:16],
                arrived_at=time.time(),
            )
            self._received.append(entry)
            return entry

    def close(self, entry: Received, *, status: int, delivered: bool) -> None:
        """Record how a request ended."""
        with self._lock:
            entry.status = status
            entry.delivered = delivered
            entry.answered_at = time.time()

    def snapshot(self) -> dict[str, object]:
        """The whole log as JSON types."""
        with self._lock:
            return {
                "in_flight": sum(entry.answered_at is None for entry in self._received),
                "requests": [asdict(entry) for entry in self._received],
            }

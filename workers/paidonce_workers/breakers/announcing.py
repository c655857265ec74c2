"""``Announcer``: tells listeners about state changes of circuits, in a dedicated thread.

Listeners write to the store, which may be slow or away, and no caller waits for that. The queue is bounded: beyond
``MOST_WAITING``, changes are dropped and counted, to bound memory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from paidonce_models.privacy.log_texts import failure_of

log = logging.getLogger(__name__)

MOST_WAITING: Final = 1000
CLOSING_SECONDS: Final = 2.0

News = Callable[[], object]


class Announcer:
    """One daemon thread per process, started with the first change. Thread-safe."""

    def __init__(self, name: str) -> None:
        """``name`` is the thread's name."""
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # A lock in C: a signal handler that raises inside a ``Queue`` would leave it locked for ever.
        self._waiting: SimpleQueue[News | None] = SimpleQueue()
        self._dropped = 0

    def start(self) -> None:
        """Start the thread now, not with the first change. Never raises; if it cannot, the next change retries."""
        missing: RuntimeError | None = None
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._thread = threading.Thread(target=self._speak, name=self._name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:
                self._thread, missing = None, error
        if missing is not None:  # outside the lock: a log handler may be slow, or call this method itself
            log.warning("no thread for circuits: %s", missing, extra={"event": "breaker_thread_missing"})

    def tell(self, news: News) -> None:
        """Queue a change for the listeners. Never blocks, never raises."""
        if self._waiting.qsize() < MOST_WAITING:
            self._waiting.put(news)
        else:
            self._dropped += 1
        self.start()  # last: a thread that is ending checks the queue once more

    def wait_until_told(self, limit_seconds: float) -> bool:
        """Wait until every change queued so far was delivered; False if ``limit_seconds`` passed first."""
        if threading.current_thread() is self._thread:
            return False  # called by a listener: it would wait for itself
        told = threading.Event()
        self._waiting.put(told.set)
        self.start()
        return told.wait(limit_seconds)

    def close(self) -> None:
        """Deliver what is queued, for ``CLOSING_SECONDS`` at most, and end the thread. Later changes start another."""
        if self._thread is not None:
            self.wait_until_told(CLOSING_SECONDS)
            self._waiting.put(None)

    def _speak(self) -> None:
        while True:
            news = self._waiting.get()
            if news is None:
                with self._lock:
                    if self._waiting.empty():
                        self._thread = None
                        return
                continue  # queued while this thread was ending
            try:
                news()
            except Exception as error:  # noqa: BLE001 - told by type and place
                log.error(
                    "a state change of a circuit could not be delivered: %s",
                    failure_of(error),
                    extra={"event": "breaker_listener_failed"},
                )
            dropped, self._dropped = self._dropped, 0
            if dropped:
                log.warning(
                    "listeners of circuits are too slow: %d state changes or more were dropped; the circuits "
                    "themselves are not affected",
                    dropped,
                    extra={"event": "breaker_news_dropped"},
                )

"""``Announcer``: what is to be said of circuits is said by a thread of its own, never by a caller's.

Listeners write moves into the store, which may be slow or away, and a log's
handlers hold locks that an interrupted caller would leave locked. So callers
only put what is to be said into a queue. It is bounded: beyond ``MOST_WAITING``
news are dropped and counted, because nobody may wait and memory is not endless.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from paidonce_models.log_texts import failure_of
from paidonce_workers.breakers.own_threads import Begin

log = logging.getLogger(__name__)

MOST_WAITING: Final = 1000
CLOSING_SECONDS: Final = 2.0

News = Callable[[], None]


class Announcer:
    """One thread of one process, begun with the first news. Safe to use from many threads."""

    def __init__(self, name: str, begin: Begin) -> None:
        """``name`` is the thread's."""
        self._name = name
        self._begin_thread = begin
        self._lock = threading.Lock()
        self._was_asked = False
        self._speaker: int | None = None
        self._waiting: SimpleQueue[News | None] = SimpleQueue()
        self._dropped = 0

    def start(self) -> None:
        """Begin now rather than with the first news. Raises nothing."""
        if self._speaker is None:
            self._was_asked = True
            self._begin_thread(self._speak, self._name)

    def tell(self, news: News) -> None:
        """Say it soon. Waits for nothing and raises nothing."""
        self.start()
        if self._waiting.qsize() < MOST_WAITING:
            self._waiting.put(news)
        else:
            self._dropped += 1

    def wait_until_told(self, limit_seconds: float) -> bool:
        """Whether all that was to be told by now has been told within the time."""
        if threading.get_ident() == self._speaker:
            return False  # a listener asks: it would wait for itself
        told = threading.Lock()
        told.acquire()
        self.start()
        self._waiting.put(told.release)
        return told.acquire(timeout=limit_seconds)

    def close(self) -> None:
        """Tell what is waiting, for ``CLOSING_SECONDS`` at most, and end the thread."""
        if self._was_asked:  # the thread may be on its way
            self.wait_until_told(CLOSING_SECONDS)
            self._waiting.put(None)

    def _speak(self) -> None:
        with self._lock:
            if self._speaker is not None:
                return  # several callers began one at once
            self._speaker = threading.get_ident()
        while (news := self._waiting.get()) is not None:
            try:
                news()
            except Exception as error:  # noqa: BLE001 - told by type and place
                log.error(
                    "news of a circuit could not be told: %s",
                    failure_of(error),
                    extra={"event": "breaker_listener_failed"},
                )
            del news
            dropped, self._dropped = self._dropped, 0
            if dropped:
                log.warning(
                    "listeners of circuits are too slow: %d moves or more were not told to them; the circuits "
                    "themselves are as they should be",
                    dropped,
                    extra={"event": "breaker_news_dropped"},
                )
        self._speaker = None
        if not self._waiting.empty():
            self.start()  # told while this one was ending

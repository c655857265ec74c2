"""Logs what strangers cause: every line at first, then only counts.

Owns two rules for log lines about unusable messages. A flood of one kind must not fill
the disk: the first few of a kind are logged in full, the rest are counted, and the count
is logged at powers of ten and once a minute. Text from outside must not forge a line: it
is quoted through ``log_texts.loggable``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

IN_FULL = 5
WINDOW_SECONDS = 60.0


@dataclass(kw_only=True)
class _Kind:
    level: int
    event: str
    began: float
    count: int = 0
    told: int = 0


class FloodLog:
    """A logger's lines about one source of trouble, bounded. Thread-safe."""

    def __init__(self, logger: logging.Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}
        self._lock = threading.Lock()

    def report(self, kind: str, level: int, text: str, *arguments: object, event: str) -> None:
        """Log the event, or count it. ``kind`` is one of a few fixed texts, never one from outside."""
        with self._lock:
            now = self._clock()
            known = self._kinds.get(kind)
            if known is None or now - known.began > WINDOW_SECONDS:
                self._tell_rest(kind, known)
                known = self._kinds[kind] = _Kind(level=level, event=event, began=now)
            known.count += 1
            count = known.count
            in_full = count <= IN_FULL
            if in_full or _is_power_of_ten(count):
                known.told = count
        if in_full:
            self._logger.log(level, text, *arguments, extra={"event": event})
        elif _is_power_of_ten(count):
            self._logger.log(
                level,
                "%d times within a minute: %s; further are only counted",
                count,
                kind,
                extra={"event": event},
            )

    def flush(self) -> None:
        """Log the counts of windows that are over; call it now and then, and at the end."""
        with self._lock:
            now = self._clock()
            for kind, known in list(self._kinds.items()):
                if now - known.began > WINDOW_SECONDS:
                    self._tell_rest(kind, known)
                    del self._kinds[kind]

    def close(self) -> None:
        """Log all counts that were not logged yet."""
        with self._lock:
            for kind, known in self._kinds.items():
                self._tell_rest(kind, known)
            self._kinds.clear()

    def _tell_rest(self, kind: str, known: _Kind | None) -> None:
        if known is not None and known.count > known.told:
            self._logger.log(
                known.level, "%d times within a minute: %s", known.count, kind, extra={"event": known.event}
            )


def _is_power_of_ten(count: int) -> bool:
    while count % 10 == 0:
        count //= 10
    return count == 1

"""One timer thread per process for every deadline of that process.

Owns a heap of (time, callback) and the daemon thread that calls what is due.
Step timeouts, Celery's time limits and grace periods after an interrupt all use
this heap, so that a thousand running steps cost one thread.

Must never run anything slow: a callback only sets a flag, sends an interrupt or
logs, because it delays the next deadline. Times are ``time.monotonic``; deadlines
that must survive this process are in the store, not here.

The thread starts with the first deadline and belongs to the process that added it:
a forked child starts with an empty heap and its own thread.
"""

from __future__ import annotations

import heapq
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from itertools import count

from paidonce_models.privacy.log_texts import failure_of

logger = logging.getLogger(__name__)

FEWEST_CANCELLED_BEFORE_REBUILD = 512
"""Below this many cancelled entries, rebuilding the heap is not worth its cost."""


class Deadline:
    """One entry: calls ``callback`` once at ``due`` (monotonic seconds) unless cancelled before."""

    __slots__ = ("callback", "cancelled", "due", "owner")

    def __init__(self, due: float, callback: Callable[[], object], owner: Deadlines) -> None:
        self.due = due
        self.callback: Callable[[], object] | None = callback
        self.cancelled = False
        self.owner = owner

    def cancel(self) -> None:
        """Cancel the deadline; does nothing if it was already called or cancelled."""
        self.owner.forget(self)


class Deadlines:
    """The heap and its thread. Thread-safe and fork-safe."""

    def __init__(self, *, name: str = "paidonce-deadlines") -> None:
        self._name = name
        self._begin_empty()
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _begin_empty_if_alive(this))

    def _begin_empty(self) -> None:
        # Also runs in a forked child: a thread that does not exist there may have
        # held the parent's lock, so everything is created again.
        self._changed = threading.Condition(threading.Lock())
        self._heap: list[tuple[float, int, Deadline]] = []
        self._order = count()
        self._cancelled_entries = 0
        self._thread: threading.Thread | None = None

    def add(self, seconds: float, callback: Callable[[], object]) -> Deadline:
        """Call ``callback`` on the timer thread ``seconds`` from now; it must be quick."""
        deadline = Deadline(time.monotonic() + max(seconds, 0.0), callback, self)
        with self._changed:
            first = not self._heap or deadline.due < self._heap[0][0]
            heapq.heappush(self._heap, (deadline.due, next(self._order), deadline))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()
            elif first:
                self._changed.notify()
        return deadline

    def forget(self, deadline: Deadline) -> None:
        """Drop ``deadline``; does not wait for a callback that is running now."""
        with self._changed:
            if deadline.cancelled or deadline.callback is None:
                return
            deadline.cancelled = True
            deadline.callback = None
            self._cancelled_entries += 1
            # A fast step leaves an entry that is due in 15 minutes; without this the
            # heap would hold every step of the last 15 minutes.
            if self._cancelled_entries > max(FEWEST_CANCELLED_BEFORE_REBUILD, len(self._heap) // 2):
                self._heap = [entry for entry in self._heap if not entry[2].cancelled]
                heapq.heapify(self._heap)
                self._cancelled_entries = 0

    def __len__(self) -> int:
        with self._changed:
            return len(self._heap) - self._cancelled_entries

    def _serve(self) -> None:
        while True:
            callback = self._next_callback()
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - told by type and place
                logger.error(
                    "a deadline's callback failed: %s", failure_of(error), extra={"event": "deadline_callback_failed"}
                )

    def _next_callback(self) -> Callable[[], object]:
        with self._changed:
            while True:
                while self._heap and self._heap[0][2].cancelled:
                    heapq.heappop(self._heap)
                    self._cancelled_entries -= 1
                if not self._heap:
                    self._changed.wait()
                    continue
                due, _, deadline = self._heap[0]
                remaining = due - time.monotonic()
                if remaining > 0:
                    self._changed.wait(remaining)
                    continue
                heapq.heappop(self._heap)
                callback, deadline.callback = deadline.callback, None
                if callback is not None:
                    return callback


def _begin_empty_if_alive(reference: weakref.ref[Deadlines]) -> None:
    deadlines = reference()
    if deadlines is not None:
        deadlines._begin_empty()

"""The queue of a process's SQLite writers; urgent ones go first."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class WriteQueue:
    """A lock with two classes of waiters: heartbeats overtake all others; within a class, first come first served."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._urgent: deque[threading.Lock] = deque()
        self._waiting: deque[threading.Lock] = deque()

    @contextmanager
    def turn(self, *, urgent: bool = False) -> Iterator[None]:
        """Hold the queue's lock for the block."""
        self._acquire(urgent)
        try:
            yield
        finally:
            self._release()

    def _acquire(self, urgent: bool) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            ticket = threading.Lock()
            ticket.acquire()
            (self._urgent if urgent else self._waiting).append(ticket)
        ticket.acquire()  # released by the holder before us, who leaves _held set

    def _release(self) -> None:
        with self._guard:
            queue = self._urgent or self._waiting
            if queue:
                queue.popleft().release()
            else:
                self._held = False

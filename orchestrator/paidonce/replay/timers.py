"""The deadlines of one replay loop.

Owns which timers are pending and in which order they fire: by deadline, then by ordinal.
Must never read a clock: a timer fires when the machine delivers a recorded timer event,
and not before.
"""

from __future__ import annotations

import heapq

from paidonce.replay.tasks import ReplayTimerHandle

# Rebuild the heap once this many of its entries, and more than half, are cancelled; every
# ``asyncio.timeout`` that did not expire leaves one behind.
CANCELLED_BEFORE_REBUILD = 64


class Timers:
    """Pending timers, earliest first."""

    __slots__ = ("_cancelled", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, ReplayTimerHandle]] = []
        self._cancelled = 0

    def add(self, when: float, ordinal: int, handle: ReplayTimerHandle) -> None:
        """Keep ``handle`` until it fires or is cancelled."""
        heapq.heappush(self._heap, (when, ordinal, handle))

    def note_cancelled(self) -> None:
        """One of the kept handles was cancelled."""
        self._cancelled += 1
        if self._cancelled > CANCELLED_BEFORE_REBUILD and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].cancelled()]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def earliest(self) -> float | None:
        """The earliest deadline that is not cancelled, or None."""
        heap = self._heap
        while heap and heap[0][2].cancelled():
            heapq.heappop(heap)
            self._cancelled = max(0, self._cancelled - 1)
        return heap[0][0] if heap else None

    def take_due(self, until: float) -> list[ReplayTimerHandle]:
        """Remove and return what is due at ``until``, in firing order."""
        due: list[ReplayTimerHandle] = []
        while (when := self.earliest()) is not None and when <= until:
            due.append(heapq.heappop(self._heap)[2])
        return due

    def handles(self) -> list[ReplayTimerHandle]:
        """Everything kept, in no particular order; for eviction."""
        return [entry[2] for entry in self._heap]

    def clear(self) -> None:
        """Forget everything."""
        self._heap.clear()
        self._cancelled = 0

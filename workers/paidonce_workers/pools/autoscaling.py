"""Celery's ``--autoscale`` for a pool of threads.

With an event loop, Celery scales without a lock, in the thread that reads messages. Here the threads of the pool
deliver messages too (``local_delivery``): two that found one thread missing would both add it.
"""

from __future__ import annotations

import threading
from typing import Any

from celery.worker import autoscale


class Autoscaler(autoscale.Autoscaler):  # type: ignore[misc] # Celery publishes no types
    """Celery's, limited to one thread at a time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._one_at_a_time = threading.RLock()

    def maybe_scale(self, req: Any = None) -> None:
        """Add or remove threads to match the messages."""
        with self._one_at_a_time:
            super().maybe_scale(req)

    def update(self, max: int | None = None, min: int | None = None) -> Any:  # noqa: A002 # Celery's names
        """``celery control autoscale``."""
        largest = self.max_concurrency if max is None else max
        least = self.min_concurrency if min is None else min
        if not all(type(value) is int for value in (largest, least)) or not 0 <= least <= largest or largest < 1:
            raise ValueError(f"expected max and min with 0 <= min <= max and 1 <= max, got {largest!r} and {least!r}")
        with self._one_at_a_time:
            return super().update(max, min)

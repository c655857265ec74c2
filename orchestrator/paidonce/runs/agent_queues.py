"""The queues on which agents start that this process does not know itself, cached for a moment.

What live workers have registered decides. An answer is at most ``FRESH_SECONDS`` old: so long after a worker has
registered its agent on another queue, this process may still submit to the old one. That no worker holds an agent is
never cached: its runs go to the default queue, and move when the first worker registers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from paidonce_models.database.transactions import Database
from paidonce_models.queues import DEFAULT_QUEUE
from paidonce_models.store.recovery.workers import registered_queue

FRESH_SECONDS: Final = 1.0
MOST_CACHED: Final = 1_000


class AgentQueues:
    """The queues of one namespace's agents. Thread-safe: at worst two threads read the same."""

    def __init__(self, namespace: str, *, now_seconds: Callable[[], float] = time.monotonic) -> None:
        self._namespace = namespace
        self._now_seconds = now_seconds
        self._cached: dict[str, tuple[float, str]] = {}

    def queue_of(self, database: Database, agent: str) -> str:
        """The queue on which runs of this agent start. Raises ``StoreError``."""
        now = self._now_seconds()
        read_at, queue = self._cached.get(agent, (now - FRESH_SECONDS, ""))
        if now - read_at < FRESH_SECONDS:
            return queue
        with database.read() as connection:
            found = registered_queue(connection, self._namespace, agent)
        if found is None:
            return DEFAULT_QUEUE
        if len(self._cached) >= MOST_CACHED:
            self._cached.clear()
        self._cached[agent] = (now, found)  # of before it was read: not older than it looks
        return found

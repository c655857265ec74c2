"""Learns which provider a step calls from its calls, for steps that do not declare one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreError
from paidonce_models.store.queries import last_provider_of
from paidonce_models.usage import CallRecord

ASK_AGAIN_SECONDS = 60.0


class LearnedProviders:
    """Remembers by agent and step; reads the store if this process has not seen the step yet. Thread-safe."""

    def __init__(self, database: Database, namespace: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._namespace = namespace
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[str | None, float]] = {}

    def note(self, agent: str, step: str, calls: Sequence[CallRecord]) -> None:
        """Record the calls of a step; the last one that names a provider counts."""
        for call in reversed(calls):
            if call.provider is not None and call.tool is None:
                with self._lock:
                    self._known[agent, step] = (call.provider, float("inf"))
                return

    def of(self, agent: str, step: str) -> str | None:
        """The provider of the step's newest call; ``None`` while it is unknown."""
        found = self._known.get((agent, step))
        now = self._monotonic()
        if found is not None and now < found[1]:
            return found[0]
        provider = self._from_store(agent, step)
        with self._lock:
            self._known[agent, step] = (provider, float("inf") if provider is not None else now + ASK_AGAIN_SECONDS)
        return provider

    def _from_store(self, agent: str, step: str) -> str | None:
        def read(connection: Connection) -> str | None:
            return last_provider_of(connection, self._namespace, agent, step)

        try:
            with self._database.read() as connection:
                return read(connection)
        except StoreError:
            return None

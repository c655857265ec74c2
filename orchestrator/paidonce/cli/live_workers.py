"""Which workers are up, and what they hold, for the commands that say so."""

from __future__ import annotations

from collections.abc import Sequence

from paidonce.settings import Settings
from paidonce_models.database.transactions import Database
from paidonce_models.store.recovery.workers import LiveWorker, live_workers


def workers_alive(database: Database, settings: Settings) -> list[LiveWorker]:
    """The workers whose last heartbeat is younger than a lease."""
    within_us = int(settings.lease_seconds * 1_000_000)
    with database.read() as connection:
        return live_workers(connection, settings.namespace, within_us=within_us)


def held_agents(workers: Sequence[LiveWorker]) -> set[str]:
    """The names of the agents that any of these workers holds."""
    return {name for worker in workers for name, _ in worker.agents}

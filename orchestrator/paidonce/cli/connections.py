"""Reaching the store and the broker from a command: each failure is one error that says what to do."""

from __future__ import annotations

from collections.abc import Sequence

from paidonce.broker_check import check_connection
from paidonce.celery_app import build_celery_app
from paidonce.client import Client
from paidonce.home import make_home
from paidonce.opening import open_store
from paidonce.settings import Settings, load_settings
from paidonce_models.database import Database
from paidonce_models.store.workers import LiveWorker, live_workers


def open_client(settings: Settings | None = None) -> Client:
    """A client whose store answers and is at our schema. Raises ``StoreError`` or ``ConfigurationError``."""
    client = Client(settings if settings is not None else load_settings())
    make_home(client.settings)
    client.database.close()
    return client


def open_database(settings: Settings) -> Database:
    """The store as it is, its schema unchecked; for the commands that look after the schema."""
    make_home(settings)
    return open_store(settings, pool_size=2)


def check_broker(settings: Settings) -> str:
    """Connect to the broker once, starting the embedded one; returns its URL without a password.

    Raises ``BrokerUnreachable``.
    """
    return check_connection(build_celery_app(settings))


def check_tasks(settings: Settings) -> None:
    """Refuse modules that a worker could not start with: an ``async def`` under Celery's own ``@shared_task``.

    Celery makes such tasks when an app is finalized. Raises ``DeclarationError``.
    """
    build_celery_app(settings).finalize()


def workers_alive(client: Client) -> list[LiveWorker]:
    """The workers that were heard of within a lease."""
    within_us = int(client.settings.lease_seconds * 1_000_000)
    with client.database.read() as connection:
        return live_workers(connection, client.settings.namespace, within_us=within_us)


def held_agents(workers: Sequence[LiveWorker]) -> set[str]:
    """The names of the agents that any of these workers holds."""
    return {name for worker in workers for name, _ in worker.agents}

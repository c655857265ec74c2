"""Reaching the store and the broker from a command: each failure is one error that says what to do."""

from __future__ import annotations

from collections.abc import Sequence

from kombu.exceptions import OperationalError
from sqlalchemy.exc import DBAPIError

from paidonce.celery_app import build_celery_app
from paidonce.client import Client
from paidonce.settings import Settings, load_settings
from paidonce_models.database import Database
from paidonce_models.errors import BrokerUnreachable, ConfigurationError, StoreUnreachable
from paidonce_models.log_texts import cause_of, loggable
from paidonce_models.masking import mask
from paidonce_models.private_files import make_private_folder
from paidonce_models.store.workers import LiveWorker, live_workers


def open_client(settings: Settings | None = None) -> Client:
    """A client whose store answers and is at our schema. Raises ``StoreError`` or ``ConfigurationError``."""
    client = Client(settings if settings is not None else load_settings())
    make_home(client.settings)
    try:
        client.database.close()
    except DBAPIError as error:
        raise unusable_store(client.settings, error) from error
    return client


def open_database(settings: Settings) -> Database:
    """The store as it is, its schema unchecked; for the commands that look after the schema."""
    make_home(settings)
    return Database(settings.database_url, pool_size=2)


def unusable_store(settings: Settings, error: DBAPIError) -> StoreUnreachable:
    """A store that answers, but not as a store: another program's file, a damaged one."""
    shown = Database(settings.database_url).shown_url
    return StoreUnreachable(
        f"the store {shown} cannot be used: {loggable(str(error.orig).strip())}; check PAIDONCE_DATABASE_URL, "
        "or restore the store from a backup; nothing was changed"
    )


def make_home(settings: Settings) -> None:
    """Create PAIDONCE_HOME, where the embedded store and broker live."""
    try:
        make_private_folder(settings.home, is_ours=True)
    except OSError as error:
        raise ConfigurationError(
            f"PAIDONCE_HOME is {settings.home}, which cannot be created: {error.strerror}; "
            "set it to a folder that can be written"
        ) from None


def check_broker(settings: Settings) -> str:
    """Connect to the broker once, starting the embedded one; returns its URL without a password.

    Raises ``BrokerUnreachable``.
    """
    app = build_celery_app(settings)
    shown = mask(str(app.conf.broker_url))
    with app.connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=10)
            connection.default_channel.close()
        except (OperationalError, *connection.connection_errors, *connection.channel_errors, OSError) as error:
            raise BrokerUnreachable(
                f"the broker at {shown} cannot be reached: {cause_of(error)}; check PAIDONCE_BROKER_URL "
                "and that the server runs. Submitted runs are stored and go on when it is back"
            ) from error
    return shown


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

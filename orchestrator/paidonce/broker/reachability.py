"""Whether the broker can be reached: checked once, before a worker or a command relies on it."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Connection
from redis.exceptions import NoPermissionError

from paidonce.broker.broker_urls import speaks_redis
from paidonce_models.errors import BrokerUnreachable, ConfigurationError
from paidonce_models.privacy.log_texts import loggable
from paidonce_models.privacy.masking import mask

SECONDS = 10


def check_connection(app: Celery) -> str:
    """Connect once and disconnect; returns the broker's URL without a password. Raises ``BrokerUnreachable``.

    Raises ``ConfigurationError`` if the broker is reachable but unsuitable.
    """
    shown = mask(str(app.conf.broker_url))
    with app.connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=SECONDS)
            is_cluster = speaks_redis(str(app.conf.broker_url)) and _is_cluster(connection)
            connection.default_channel.close()
        except Exception as error:
            # Not only what kombu calls a connection error: wrong credentials, another protocol on that port.
            raise BrokerUnreachable(
                f"the broker at {shown} cannot be reached: {type(error).__name__}: {loggable(error, 300)}; check "
                "PAIDONCE_BROKER_URL and that the server runs. Submitted runs are stored and continue when it is back"
            ) from error
    if is_cluster:
        raise ConfigurationError(
            f"PAIDONCE_BROKER_URL: the server at {shown} belongs to a Redis Cluster, which cannot serve as broker: "
            "Celery uses several keys at once, and a cluster keeps each on a separate server; use a Redis or "
            "Valkey without cluster mode, sentinels (sentinel://), or RabbitMQ"
        )
    return shown


def _is_cluster(connection: Connection) -> bool:
    client: Any = connection.default_channel.client  # type: ignore[attr-defined]  # Redis's channels have one
    try:
        return bool(client.info("cluster").get("cluster_enabled"))
    except NoPermissionError:
        return False  # the first message will raise

"""Removes what a drill leaves on a given broker: the queues and exchanges of its own namespace.

Called at the end, once the fleet has stopped. A team's namespace is never deleted: its submissions are in there.
"""

from __future__ import annotations

from typing import Any

from kombu.exceptions import OperationalError

from paidonce.broker.celery_app import PaidonceCelery, build_celery_app, speaks_amqp
from paidonce.settings import Settings
from paidonce_models.errors import BrokerUnreachable
from paidonce_models.queues import broker_scope


def remove_broker_traces(settings: Settings) -> None:
    """Delete what the drill's namespace has on its broker; does nothing if the broker is gone."""
    scope = broker_scope(settings.namespace)
    if scope is None:
        raise ValueError("a drill has a namespace of its own")
    try:
        app = build_celery_app(settings)
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
            _remove(app, scope, connection.default_channel)
    except (BrokerUnreachable, OperationalError, OSError):
        return


def _remove(app: PaidonceCelery, scope: str, channel: Any) -> None:
    amqp = speaks_amqp(str(app.conf.broker_url))
    for queue in app.conf.task_queues:
        found = queue(channel)
        if not amqp:
            found.purge()  # deletes a list on Redis
        found.delete()
    if amqp:
        for exchange in (f"{scope}.pidbox", f"reply.{scope}.pidbox", f"{scope}.events"):
            channel.exchange_delete(exchange)

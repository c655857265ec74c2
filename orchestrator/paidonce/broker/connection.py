"""The connections of our Celery app: kombu's, with our transports for Redis and RabbitMQ."""

# mypy: allow-untyped-calls, allow-subclassing-any
# because kombu is typed in part only.

from __future__ import annotations

from typing import Any

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.transport import pyamqp, redis

from paidonce.broker.amqp_transport import AmqpTransport
from paidonce.broker.redis_transport import SentinelTransport, Transport

OURS = {
    redis.Transport: Transport,
    redis.SentinelTransport: SentinelTransport,
    pyamqp.Transport: AmqpTransport,
    pyamqp.SSLTransport: AmqpTransport,
}
"""kombu's transports, and ours that replace them."""
SCHEMES = (
    (AmqpTransport, "amqp", "amqps"),
    (SentinelTransport, "sentinel", "sentinels"),
    (Transport, "redis", "rediss"),
)
"""URL schemes of our transports, without TLS and with it."""


class PaidonceConnection(Connection):
    """A connection that uses our transports for Redis and RabbitMQ, and kombu's for anything else.

    The class is set where kombu's pools copy it from, because they create connections of a class of their own.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        ours = OURS.get(super().get_transport_cls())
        if ours is not None:
            self.transport_cls = ours

    def get_transport_cls(self) -> type[Any]:
        """Our transport instead of kombu's for Redis and RabbitMQ, kombu's choice for anything else."""
        found: type[Any] = super().get_transport_cls()
        return OURS.get(found, found)

    def as_uri(self, *args: Any, **options: Any) -> str:
        """For people and logs. kombu would write a transport's class if it was given one."""
        shown = str(super().as_uri(*args, **options))
        for ours, plain, encrypted in SCHEMES:
            shown = shown.replace(f"{ours}://", f"{encrypted if self.ssl else plain}://")
        return shown


class PaidonceAMQP(AMQP):
    """Celery's messaging with our connections."""

    Connection = PaidonceConnection

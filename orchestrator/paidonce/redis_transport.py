"""kombu's Redis transport without the work that Paidonce has no use for.

Owns two differences, each measured on the hot path of a worker, and one repair (``Channel._connparams``):

- kombu makes a ``redis.Redis`` object for every command it sends; the constructor took a sixth of a worker's time. A
  client is only a handle on the channel's connection pool and safe to share between threads: a channel keeps one.
- kombu copies every message it takes into ``unacked`` and deletes it there when it is acknowledged, two transactions
  that only matter a visibility timeout later. What a message for a step or a run asks for is in the store and the
  sweeper sends it again, so only the messages of ``paidonce.submit``, which exist nowhere else, are copied.

Everything else is kombu's. RabbitMQ is untouched.
"""

# mypy: allow-untyped-calls, allow-subclassing-any
# because kombu is typed in part only.

from __future__ import annotations

from typing import Any

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.transport import redis, virtual
from redis import exceptions as redis_errors

from paidonce_models.queues import SUBMIT_QUEUE


def exists_nowhere_else(message: Any) -> bool:
    """Whether the store does not know yet what this message asks for."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    return message.delivery_info["routing_key"] == SUBMIT_QUEUE or headers.get("task") == SUBMIT_QUEUE


class QoS(redis.QoS):
    """Keeps what was delivered and not acknowledged: in memory, and for submissions in Redis too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_redis: set[str] = set()

    def append(self, message: Any, delivery_tag: str) -> None:
        """Called for each delivery."""
        if exists_nowhere_else(message):
            super().append(message, delivery_tag)
            self._in_redis.add(delivery_tag)
        else:
            virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """The message is done with."""
        if delivery_tag in self._in_redis:
            super().ack(delivery_tag)
            self._in_redis.discard(delivery_tag)
        else:
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drop the message, or put it back at the end of its queue."""
        if delivery_tag in self._in_redis:
            super().reject(delivery_tag, requeue=requeue)
            self._in_redis.discard(delivery_tag)
        else:
            virtual.QoS.reject(self, delivery_tag, requeue=requeue)

    def restore_unacked(self, client: Any = None) -> None:
        """Put back everything not acknowledged, as a channel does when it closes."""
        self._flush()
        for message in [found for tag, found in self._delivered.items() if tag not in self._in_redis]:
            self.channel.put_back(message)
        for tag in self._in_redis & self._delivered.keys():
            self.restore_by_tag(tag, client=client)
        self._in_redis.clear()
        self._delivered.clear()


class Channel(redis.Channel):
    """A channel that keeps its client as long as its connection pool."""

    QoS = QoS
    # Names of our own: kombu gives again whatever has been in there for longer than *its reader's* visibility
    # time-out. Ours is short, and under the shared names it would repeat the long tasks of a team's own Celery app.
    unacked_key = "paidonce.unacked"
    unacked_index_key = "paidonce.unacked_index"
    unacked_mutex_key = "paidonce.unacked_mutex"
    _kept: tuple[Any, Any] | None = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # carries a connection of its own: never shared
        kept = self._kept
        if kept is None or kept[0] is not self.pool:
            kept = self._kept = (self.pool, super()._create_client())
        return kept[1]

    def _connparams(self, asynchronous: bool = False) -> Any:
        """Where to connect to. Raises ``redis.ConnectionError`` once the connection has been taken apart.

        After a lost connection Celery takes it apart and then closes it, which closes the channel, which puts back
        what is not acknowledged: kombu has forgotten the address by then, and its AttributeError ended the worker.
        """
        if self.connection.client is None:
            raise redis_errors.ConnectionError("the connection to the broker is closed")
        return super()._connparams(asynchronous=asynchronous)

    def put_back(self, message: Any, *, last: bool = False) -> None:
        """Return a delivered message to its queue, where it comes next or ``last``."""
        info = message.delivery_info
        with self.conn_or_acquire() as client:
            self._do_restore_message(message._raw, info["exchange"], info["routing_key"], client, last)

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        if exists_nowhere_else(message):
            super()._restore(message, leftmost=leftmost)
        else:
            self.put_back(message, last=leftmost)


class Transport(redis.Transport):
    """kombu's transport with our channel."""

    Channel = Channel


class PaidonceConnection(Connection):
    """A connection that speaks to Redis through ``Transport`` and to anything else as kombu does.

    The class is put where kombu's pools copy it from, as they make connections of a class of their own.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if super().get_transport_cls() is redis.Transport:
            self.transport_cls = Transport

    def get_transport_cls(self) -> type[Any]:
        """Our transport instead of kombu's for Redis, kombu's choice for anything else."""
        found: type[Any] = super().get_transport_cls()
        return Transport if found is redis.Transport else found


class PaidonceAMQP(AMQP):
    """Celery's messaging with our connections."""

    Connection = PaidonceConnection

"""kombu's Redis transport without the work that Paidonce has no use for, and with no fear of what it finds.

Owns two differences, each measured on the hot path of a worker, one repair (``Channel._connparams``), and the guard
against items that are no messages (``envelopes``), which cost kombu a reconnect, or the worker:

- kombu makes a ``redis.Redis`` object for every command it sends; the constructor took a sixth of a worker's time. A
  client is only a handle on the channel's connection pool and safe to share between threads: a channel keeps one.
- kombu copies every message it takes into ``unacked`` and deletes it there when it is acknowledged, two transactions
  that only matter a visibility timeout later. What a message for a step or a run asks for is in the store and the
  sweeper sends it again, so only submissions, which exist nowhere else, are copied.

An unreadable item on a queue's list, among the unacknowledged or on a channel is dropped with one line, and nothing
waits for it. Everything else is kombu's.
"""

# mypy: allow-untyped-calls, allow-subclassing-any
# because kombu is typed in part only.

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from queue import Empty
from typing import Any

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.message import Message as KombuMessage
from kombu.transport import pyamqp, redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from redis import exceptions as redis_errors

from paidonce.amqp_transport import AmqpTransport
from paidonce.envelopes import UnreadableEnvelope, check_envelope, delivered_from, read_item, read_json
from paidonce.flood_log import FloodLog
from paidonce.stored_texts import fits
from paidonce.unread_bodies import refuse_compression
from paidonce_models.forks import in_child, leave_to_parent
from paidonce_models.log_texts import loggable
from paidonce_models.queues import is_submit_queue

log = logging.getLogger(__name__)

LONGEST_QUEUE_NAME = 255
SUBMIT_TASK = "paidonce.submit"
JUNK_BATCH = 50
JUNK_ROUNDS = 20
"""How much junk is taken before the loop looks at anything else again."""
LARGEST_ITEM_BYTES = 256 * 1024 * 1024
"""Of an item that is read at all, where the app does not say (``max_message_bytes`` of its transport options)."""


def exists_nowhere_else(message: Any) -> bool:
    """Whether the store does not know yet what this message asks for."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    return is_submit_queue(message.delivery_info["routing_key"]) or headers.get("task") == SUBMIT_TASK


class Message(virtual.Message):
    """An envelope's message. A body that cannot be decoded is an error of the message, which its consumer hears of."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **options: Any) -> None:
        self._raw = payload
        properties, headers, body = payload["properties"], payload["headers"], payload["body"]
        refuse_compression(self, headers)
        try:
            body = channel.decode_body(body, properties["body_encoding"])
        except Exception:  # noqa: BLE001 - told to the consumer with the message
            self.errors = [sys.exc_info()]
        # Past virtual.Message, which does the same and lets the error of a body out.
        KombuMessage.__init__(
            self,
            body=body,
            channel=channel,
            delivery_tag=properties["delivery_tag"],
            content_type=payload["content-type"],
            content_encoding=payload["content-encoding"],
            headers=headers,
            properties=properties,
            delivery_info=properties["delivery_info"],
            postencode="utf-8",
            **options,
        )


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

    def held(self) -> int:
        """How many messages are delivered and not settled."""
        return len(self._delivered) - len(self._dirty)

    def restore_unacked(self, client: Any = None) -> None:
        """Put back everything not acknowledged, as a channel does when it closes."""
        self._flush()
        for message in [found for tag, found in self._delivered.items() if tag not in self._in_redis]:
            self.channel.put_back(message)
        for tag in self._in_redis & self._delivered.keys():
            self.restore_by_tag(tag, client=client)
        self._in_redis.clear()
        self._delivered.clear()

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """Give again what a dead worker had taken; keys of another type than ours are somebody's mistake."""
        try:
            super().restore_visible(*args, **options)
        except redis_errors.ResponseError as error:
            self.channel.connection.junk.report(
                "unacknowledged submissions that cannot be looked for",
                logging.ERROR,
                "unacknowledged submissions cannot be looked for on the broker: %s; see to the keys %s and %s",
                loggable(error),
                self.unacked_key,
                self.unacked_index_key,
                event="unacked_unreadable",
            )

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Return a copied message to its queue; a copy that is no message is dropped."""

        def restore_transaction(pipe: Any) -> None:
            kept = pipe.hget(self.unacked_key, tag)
            pipe.multi()
            self._remove_from_indices(tag, pipe)
            if kept is not None:
                self.channel.restore_copy(kept, pipe, leftmost)

        with self.channel.conn_or_acquire(client) as client:
            client.transaction(restore_transaction, self.unacked_key)


class Channel(redis.Channel):
    """A channel that keeps its client as long as its connection pool."""

    QoS = QoS
    Message = Message
    from_transport_options: tuple[str, ...] = (  # type: ignore[assignment]  # kombu's type is their exact number
        *redis.Channel.from_transport_options,
        "max_message_bytes",
    )
    max_message_bytes = LARGEST_ITEM_BYTES
    # Names of our own: kombu gives again whatever has been in there for longer than *its reader's* visibility
    # time-out. Ours is short, and under the shared names it would repeat the long tasks of a team's own Celery app.
    unacked_key = "paidonce.unacked"
    unacked_index_key = "paidonce.unacked_index"
    unacked_mutex_key = "paidonce.unacked_mutex"
    _kept: tuple[Any, Any] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        in_child(self, Channel._leave_to_parent)

    def _leave_to_parent(self) -> None:
        """In a forked child: before kombu closes the pools there, which it does in some kinds of children only."""
        leave_to_parent(self.__dict__)
        self._pool = self._async_pool = self._kept = None

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
            self.qos.restore_by_tag(message.delivery_tag, leftmost=leftmost)
        else:
            self.put_back(message, last=leftmost)

    def restore_copy(self, kept: bytes, pipe: Any, last: bool) -> None:
        """Queue a copy from ``unacked``: envelope, exchange, routing key, as kombu writes them."""
        try:
            copy = read_json(kept, limit_bytes=2 * self.max_message_bytes)
            if not isinstance(copy, list) or len(copy) != 3 or not fits(copy[2], LONGEST_QUEUE_NAME):
                raise UnreadableEnvelope("it is not what kombu copies")
            envelope = check_envelope(copy[0])
        except UnreadableEnvelope as error:
            self._drop("a copy among the unacknowledged", "the unacknowledged", error)
            return
        self._do_restore_message(envelope, "", copy[2], pipe, last)

    def _do_restore_message(
        self, payload: Any, exchange: Any, routing_key: Any, pipe: Any, leftmost: bool = False
    ) -> None:
        """As kombu's, for envelopes that were read: to the queue of that name, and never a body in the log."""
        del exchange  # every queue of ours is reached by its own name
        payload["headers"]["redelivered"] = True
        payload["properties"]["delivery_info"]["redelivered"] = True
        key = self._q_for_pri(routing_key, self._get_message_priority(payload, reverse=False))
        (pipe.lpush if leftmost else pipe.rpush)(key, dumps(payload))

    def _brpop_read(self, **options: Any) -> bool:
        """As kombu's, but an item that is no message is dropped here, and the next one is asked for at once."""
        try:
            try:
                found = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            except redis_errors.ResponseError as error:
                if not _is_wrong_type(error):
                    # A server that answers, but not with messages: read-only, out of memory, without the right.
                    raise redis_errors.ConnectionError(f"the broker refuses to hand out messages: {error}") from error
                self._set_wrong_types_aside(self.active_queues)
                raise Empty from None
            if not found:
                raise Empty
            key = bytes_to_str(found[0])
            queue = key.rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            if not self._take(queue, found[1]):
                self._take_more(queue, key)
            return True
        finally:
            self._in_poll: Any = None
            self._flush_brpop_reauth()

    def _take(self, queue: str, item: bytes | str) -> bool:
        """Deliver an item; False where it was dealt with at once, by us or by its consumer: junk, most likely."""
        try:
            envelope = read_item(item, limit_bytes=self.max_message_bytes)
        except UnreadableEnvelope as error:
            self._drop(f"an item on queue {queue}", f"queue {queue}", error)
            return False
        before = self.qos.held()
        self.connection._deliver(delivered_from(envelope, exchange="", routing_key=queue), queue)
        return bool(self.qos.held() > before)

    def _take_more(self, queue: str, key: str) -> None:
        """Behind junk lies more of it: take what the prefetch allows in one round trip, as long as some of it is junk.

        One item a round trip kept a run waiting for seconds behind some thousand of them. Submissions exist nowhere
        else before they are delivered, so they are taken one by one.
        """
        if is_submit_queue(queue):
            return
        for _ in range(JUNK_ROUNDS):
            if not self.qos.can_consume():
                return
            room = min(self.qos.can_consume_max_estimate() or JUNK_BATCH, JUNK_BATCH)
            with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
                for _ in range(room):
                    pipe.rpop(key)
                items = [item for item in pipe.execute() if item is not None]
            taken = [self._take(queue, item) for item in items]
            if all(taken) or len(items) < room:
                return

    def _receive_one(self, subscriber: Any) -> bool | None:
        """As kombu's: a broadcast, for remote control or replies. What is none is dropped."""
        try:
            response = subscriber.parse_response()
        except self.connection_errors:
            self._in_listen: Any = None
            raise
        if not isinstance(response, list | tuple):
            return None
        payload = self._handle_message(subscriber, response)
        if not bytes_to_str(payload["type"]).endswith("message") or not payload["data"]:
            return None
        channel = _as_text(payload["channel"])
        if channel.startswith("/"):
            channel = channel.partition(".")[2]
        exchange, _, routing_key = channel.partition("/")
        queue = self._fanout_to_queue.get(exchange)
        try:
            if queue is None:  # just cancelled, or nobody's
                raise UnreadableEnvelope("nothing here listens to its exchange")
            envelope = read_item(payload["data"], limit_bytes=self.max_message_bytes)
        except UnreadableEnvelope as error:
            self._drop("a broadcast", f"channel {loggable(channel)}", error)
            return True
        self.connection._deliver(delivered_from(envelope, exchange=exchange, routing_key=routing_key), queue)
        return True

    def _drop(self, kind: str, place: str, error: UnreadableEnvelope) -> None:
        self.connection.junk.report(
            f"{kind} has no readable envelope and was dropped",
            logging.ERROR,
            "a message on %s has no readable envelope (%s) and was dropped; send messages with a Celery client",
            place,
            error.message,
            event="message_malformed",
        )

    def _size(self, queue: str) -> int:
        try:
            return int(super()._size(queue))
        except redis_errors.ResponseError as error:
            if not _is_wrong_type(error):
                raise
            self._set_wrong_types_aside([queue])
            return int(super()._size(queue))

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        """As kombu's; a server that refuses a message (full, read-only) is one that cannot be reached for now."""
        try:
            super()._put(queue, message, **options)
        except redis_errors.ResponseError as error:
            if _is_wrong_type(error):
                self._set_wrong_types_aside([queue])
            raise redis_errors.ConnectionError(f"the broker refuses a message: {error}") from error

    def _set_wrong_types_aside(self, queues: Iterable[str]) -> None:
        """A key of a queue's name that is no list stops every worker and producer: give it another name."""
        with self.conn_or_acquire() as client:
            for queue in queues:
                for priority in self.priority_steps:
                    key = self._q_for_pri(queue, priority)
                    kind = bytes_to_str(client.type(key))
                    if kind in ("list", "none"):
                        continue
                    client.rename(key, f"{key}.no-queue")
                    self.connection.junk.report(
                        "the key of a queue was no list",
                        logging.ERROR,
                        "the key %s on the broker held a %s, not a queue's list, and was renamed to %s.no-queue; "
                        "find out who wrote it",
                        loggable(key),
                        kind,
                        loggable(key),
                        event="queue_key_set_aside",
                    )


class Transport(redis.Transport):
    """kombu's transport with our channel."""

    Channel = Channel

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.junk = FloodLog(log)


def _is_wrong_type(error: redis_errors.ResponseError) -> bool:
    return "WRONGTYPE" in str(error)  # in a pipeline it follows the command


def _as_text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode(errors="replace")


class SentinelChannel(Channel, redis.SentinelChannel):
    """Such a channel to whichever server the sentinels call the master."""

    from_transport_options: tuple[str, ...] = (  # type: ignore[assignment]  # as above
        *redis.SentinelChannel.from_transport_options,
        "max_message_bytes",
    )


class SentinelTransport(Transport):
    """kombu's transport over sentinels with our channel."""

    default_port: int | None = redis.SentinelTransport.default_port  # type: ignore[assignment]  # kombu's is None
    Channel = SentinelChannel


OURS = {
    redis.Transport: Transport,
    redis.SentinelTransport: SentinelTransport,
    pyamqp.Transport: AmqpTransport,
    pyamqp.SSLTransport: AmqpTransport,
}
"""kombu's transports, and what we put in their places."""
SCHEMES = (
    (AmqpTransport, "amqp", "amqps"),
    (SentinelTransport, "sentinel", "sentinels"),
    (Transport, "redis", "rediss"),
)
"""How people write the addresses of ours, without TLS and with it."""


class PaidonceConnection(Connection):
    """A connection that speaks to Redis and RabbitMQ through our transports and to anything else as kombu does.

    The class is put where kombu's pools copy it from, as they make connections of a class of their own.
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
        """For people and logs. kombu writes a transport's class where it was given one."""
        shown = str(super().as_uri(*args, **options))
        for ours, plain, encrypted in SCHEMES:
            shown = shown.replace(f"{ours}://", f"{encrypted if self.ssl else plain}://")
        return shown


class PaidonceAMQP(AMQP):
    """Celery's messaging with our connections."""

    Connection = PaidonceConnection

"""kombu's Redis transport without work that Paidonce does not need, and robust against any content.

Owns, with ``redis_unacknowledged``, two differences, each measured on the hot path of a worker, one fix
(``Channel._connparams``), and the guard against items that are no messages (``envelopes``), which cost kombu a
reconnect, or the worker:

- kombu creates a ``redis.Redis`` object for every command; the constructor took a sixth of a worker's time. A client
  is only a handle on the channel's connection pool and thread-safe: a channel keeps one.
- kombu copies every message it takes into ``unacked`` and deletes it there when it is acknowledged, two transactions
  that only matter a visibility timeout later. What a message for a step or a run requests is in the store, and the
  sweeper sends it again, so only submissions, which exist nowhere else, are copied.

An unreadable item on a queue's list, among the unacknowledged or on a channel is dropped and logged, and blocks
nothing. Everything else is kombu's.
"""

# mypy: allow-untyped-calls, allow-subclassing-any
# because kombu is typed in part only.

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

from kombu.message import Message as KombuMessage
from kombu.transport import redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from redis import exceptions as redis_errors

from paidonce.broker.envelopes import UnreadableEnvelope, check_envelope, delivered_from, read_item, read_json
from paidonce.broker.flood_log import FloodLog
from paidonce.broker.redis_unacknowledged import QoS, exists_nowhere_else
from paidonce.broker.unread_bodies import refuse_compression
from paidonce.stored_texts import fits
from paidonce_models.forks import in_child, leave_to_parent
from paidonce_models.privacy.log_texts import loggable
from paidonce_models.queues import is_submit_queue

log = logging.getLogger(__name__)

LONGEST_QUEUE_NAME = 255
JUNK_BATCH = 50
JUNK_ROUNDS = 20
"""How much junk is taken before the loop continues with anything else."""
LARGEST_ITEM_BYTES = 256 * 1024 * 1024
"""The size limit of an item, where the app sets none (``max_message_bytes`` of its transport options)."""


class Message(virtual.Message):
    """An envelope's message. A body that cannot be decoded is an error of the message, which its consumer receives."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **options: Any) -> None:
        self._raw = payload
        properties, headers, body = payload["properties"], payload["headers"], payload["body"]
        refuse_compression(self, headers)
        try:
            body = channel.decode_body(body, properties["body_encoding"])
        except Exception:  # noqa: BLE001 - told to the consumer with the message
            self.errors = [sys.exc_info()]
        # Bypasses virtual.Message, which does the same but raises the body's error.
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


class Channel(redis.Channel):
    """A channel that keeps its client as long as its connection pool."""

    QoS = QoS
    Message = Message
    from_transport_options: tuple[str, ...] = (  # type: ignore[assignment]  # kombu's type is their exact number
        *redis.Channel.from_transport_options,
        "max_message_bytes",
    )
    max_message_bytes = LARGEST_ITEM_BYTES
    # Our own names: kombu redelivers whatever has been in there for longer than *its reader's* visibility timeout.
    # Ours is short, and under the shared names it would repeat the long tasks of a team's own Celery app.
    unacked_key = "paidonce.unacked"
    unacked_index_key = "paidonce.unacked_index"
    unacked_mutex_key = "paidonce.unacked_mutex"
    _kept: tuple[Any, Any] | None = None
    _together: tuple[Any, list[str]] | None = None
    """The pipeline that collects messages and the queues they are for, while several are sent together."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        in_child(self, Channel._leave_to_parent)

    def _leave_to_parent(self) -> None:
        """In a forked child, before kombu closes the pools there, which it does only in some kinds of children."""
        leave_to_parent(self.__dict__)
        self._pool = self._async_pool = self._kept = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # has its own connection: never shared
        kept = self._kept
        if kept is None or kept[0] is not self.pool:
            kept = self._kept = (self.pool, super()._create_client())
        return kept[1]

    def _connparams(self, asynchronous: bool = False) -> Any:
        """The connection parameters. Raises ``redis.ConnectionError`` once the connection was collapsed.

        After a lost connection, Celery collapses it and then closes it, which closes the channel, which requeues
        what is not acknowledged: by then kombu has forgotten the address, and its AttributeError ended the worker.
        """
        if self.connection.client is None:
            raise redis_errors.ConnectionError("the connection to the broker is closed")
        return super()._connparams(asynchronous=asynchronous)

    def put_back(self, message: Any, *, last: bool = False) -> None:
        """Return a delivered message to its queue, to be delivered next or ``last``."""
        info = message.delivery_info
        with self.conn_or_acquire() as client:
            self._do_restore_message(message._raw, info["exchange"], info["routing_key"], client, last)

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        if exists_nowhere_else(message):
            self.qos.restore_by_tag(message.delivery_tag, leftmost=leftmost)
        else:
            self.put_back(message, last=leftmost)

    def restore_copy(self, kept: bytes, pipe: Any, last: bool) -> None:
        """Requeue a copy from ``unacked``: envelope, exchange, routing key, as kombu writes them."""
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
        """Like kombu's, for parsed envelopes: to the queue of that name, and never a body in the log."""
        del exchange  # all our queues are reached by name
        payload["headers"]["redelivered"] = True
        payload["properties"]["delivery_info"]["redelivered"] = True
        key = self._q_for_pri(routing_key, self._get_message_priority(payload, reverse=False))
        (pipe.lpush if leftmost else pipe.rpush)(key, dumps(payload))

    def _brpop_read(self, **options: Any) -> bool:
        """Like kombu's, but drops an item that is no message here, and fetches the next one at once."""
        try:
            try:
                found = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            except redis_errors.ResponseError as error:
                if not _is_wrong_type(error):
                    # A server that responds, but not with messages: read-only, out of memory, without permission.
                    raise redis_errors.ConnectionError(f"the broker refuses to deliver messages: {error}") from error
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
        """Deliver an item; False if it was settled at once, by us or by its consumer: most likely junk."""
        try:
            envelope = read_item(item, limit_bytes=self.max_message_bytes)
        except UnreadableEnvelope as error:
            self._drop(f"an item on queue {queue}", f"queue {queue}", error)
            return False
        before = self.qos.held()
        self.connection._deliver(delivered_from(envelope, exchange="", routing_key=queue), queue)
        return bool(self.qos.held() > before)

    def _take_more(self, queue: str, key: str) -> None:
        """After junk there is often more: take what the prefetch allows in one round trip, while some of it is junk.

        One item per round trip delayed a run for seconds behind some thousand of them. Submissions exist nowhere else
        before they are delivered, so they are taken one by one.
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
        """Like kombu's: a broadcast, for remote control or replies. Anything else is dropped."""
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
            if queue is None:  # just cancelled, or unknown
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

    @contextmanager
    def together(self) -> Iterator[None]:
        """Send the messages that are published in the block in one round trip, at its end; none if it raises."""
        queues: list[str] = []
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            self._together = (pipe, queues)
            try:
                yield
            finally:
                self._together = None
            try:
                pipe.execute()
            except redis_errors.ResponseError as error:
                if _is_wrong_type(error):
                    self._set_wrong_types_aside(dict.fromkeys(queues))
                raise redis_errors.ConnectionError(f"the broker refuses a message: {error}") from error

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        """Like kombu's; a server that refuses a message (full, read-only) counts as unreachable for now."""
        if self._together is not None:
            pipe, queues = self._together
            queues.append(queue)
            pipe.lpush(self._q_for_pri(queue, self._get_message_priority(message, reverse=False)), dumps(message))
            return
        try:
            super()._put(queue, message, **options)
        except redis_errors.ResponseError as error:
            if _is_wrong_type(error):
                self._set_wrong_types_aside([queue])
            raise redis_errors.ConnectionError(f"the broker refuses a message: {error}") from error

    def _set_wrong_types_aside(self, queues: Iterable[str]) -> None:
        """A key with a queue's name that is no list would stop every worker and producer: rename it."""
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
    """Such a channel to the server that the sentinels call the master."""

    from_transport_options: tuple[str, ...] = (  # type: ignore[assignment]  # as above
        *redis.SentinelChannel.from_transport_options,
        "max_message_bytes",
    )


class SentinelTransport(Transport):
    """kombu's transport over sentinels with our channel."""

    default_port: int | None = redis.SentinelTransport.default_port  # type: ignore[assignment]  # kombu's is None
    Channel = SentinelChannel

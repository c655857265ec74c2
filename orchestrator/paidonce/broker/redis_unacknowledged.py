"""The messages of a Redis channel that are delivered and not acknowledged; ``redis_transport`` says what is kept."""

# mypy: allow-untyped-calls, allow-subclassing-any
# because kombu is typed in part only.

from __future__ import annotations

import logging
from typing import Any

from kombu.transport import redis, virtual
from redis import exceptions as redis_errors

from paidonce_models.privacy.log_texts import loggable
from paidonce_models.queues import is_submit_queue

SUBMIT_TASK = "paidonce.submit"


def exists_nowhere_else(message: Any) -> bool:
    """Whether the store does not yet know what this message requests."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    return is_submit_queue(message.delivery_info["routing_key"]) or headers.get("task") == SUBMIT_TASK


class QoS(redis.QoS):
    """Keeps delivered, unacknowledged messages: in memory, and submissions in Redis too."""

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
        """Acknowledge the message."""
        if delivery_tag in self._in_redis:
            super().ack(delivery_tag)
            self._in_redis.discard(delivery_tag)
        else:
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drop the message, or requeue it at the end of its queue."""
        if delivery_tag in self._in_redis:
            super().reject(delivery_tag, requeue=requeue)
            self._in_redis.discard(delivery_tag)
        else:
            virtual.QoS.reject(self, delivery_tag, requeue=requeue)

    def held(self) -> int:
        """How many messages are delivered and not settled."""
        return len(self._delivered) - len(self._dirty)

    def restore_unacked(self, client: Any = None) -> None:
        """Requeue everything unacknowledged, as a channel does when it closes."""
        self._flush()
        for message in [found for tag, found in self._delivered.items() if tag not in self._in_redis]:
            self.channel.put_back(message)
        for tag in self._in_redis & self._delivered.keys():
            self.restore_by_tag(tag, client=client)
        self._in_redis.clear()
        self._delivered.clear()

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """Redeliver what a dead worker had taken; keys of another type than ours are someone's mistake."""
        try:
            super().restore_visible(*args, **options)
        except redis_errors.ResponseError as error:
            self.channel.connection.junk.report(
                "unacknowledged submissions cannot be read",
                logging.ERROR,
                "unacknowledged submissions cannot be read on the broker: %s; check the keys %s and %s",
                loggable(error),
                self.unacked_key,
                self.unacked_index_key,
                event="unacked_unreadable",
            )

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Requeue a copied message; a copy that is no message is dropped."""

        def restore_transaction(pipe: Any) -> None:
            kept = pipe.hget(self.unacked_key, tag)
            pipe.multi()
            self._remove_from_indices(tag, pipe)
            if kept is not None:
                self.channel.restore_copy(kept, pipe, leftmost)

        with self.channel.conn_or_acquire(client) as client:
            client.transaction(restore_transaction, self.unacked_key)

"""Delivering a message to this worker's own consumer, as if a broker had brought it.

Owns what such a message must look like for Celery to make a request of it: the
task has its id, its events, its signals and its place among the active ones like
any other. Must be called by the thread that runs what it delivers (``turn``).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from paidonce.publishing import celery_message
from paidonce_workers.turn import Kept


class MessageFromHere:
    """What Celery reads of a kombu message. The body is never encoded: it says so by having no content type."""

    content_type = None
    content_encoding = None

    def __init__(
        self, body: tuple[Any, ...], headers: dict[str, Any], properties: dict[str, Any], queue: str, priority: int
    ) -> None:
        self.body = self.payload = body
        self.headers = headers
        self.properties = {**properties, "priority": priority}
        self.delivery_info = {"exchange": "", "routing_key": queue, "redelivered": False}


class LocalDelivery:
    """The way from a commit to the next task without the broker."""

    def __init__(self, consumer: Any, on_broker: Callable[[str], str]) -> None:
        """``on_broker`` makes the broker's name of a queue."""
        self._consumer = consumer
        self._on_broker = on_broker
        self._origin = f"paidonce@{uuid.uuid4().hex[:8]}"

    def may_take(self, queue: str, task: str) -> bool:
        """Whether the broker could bring the task here: its queue is consumed, the task is known and not rationed."""
        consumer = self._consumer
        return (
            self._on_broker(queue) in consumer.app.amqp.queues.consume_from
            and task in consumer.strategies
            and (consumer.disable_rate_limits or consumer.task_buckets[task] is None)
        )

    def deliver(self, kept: Kept) -> None:
        """Hand the message to the task's strategy, which applies it to the pool in the calling thread."""
        consumer, message = self._consumer, kept.message
        body, headers, properties = celery_message(consumer.app, message, self._origin)
        consumer.strategies[headers["task"]](
            MessageFromHere(body, headers, properties, self._on_broker(message.queue), message.priority),
            None,
            kept.acknowledge,
            kept.reject,
            consumer.on_task_message,
        )

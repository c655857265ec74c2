"""Delivers a message to this worker's own consumer, as if it came from a broker.

Owns what Celery needs in such a message to create a request: the task has its id,
events, signals and place among the active tasks like any other. Must be called by
the thread that executes what it delivers (``eager_execution``).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from paidonce.broker.publisher import celery_message
from paidonce_workers.execution.eager_execution import EagerMessage


class MessageFromHere:
    """What Celery reads of a kombu message. The body is never encoded, which the missing content type indicates."""

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
        """``on_broker`` converts a queue to its name on the broker."""
        self._consumer = consumer
        self._on_broker = on_broker
        self._origin = f"paidonce@{uuid.uuid4().hex[:8]}"

    def may_take(self, queue: str, task: str) -> bool:
        """Whether the broker could deliver the task here: its queue is consumed, it is known and has no rate limit."""
        consumer = self._consumer
        return (
            self._on_broker(queue) in consumer.app.amqp.queues.consume_from
            and task in consumer.strategies
            and (consumer.disable_rate_limits or consumer.task_buckets[task] is None)
        )

    def deliver(self, kept: EagerMessage) -> None:
        """Pass the message to the task's strategy, which applies it to the pool in the calling thread."""
        consumer, message = self._consumer, kept.message
        body, headers, properties = celery_message(consumer.app, message, self._origin)
        consumer.strategies[headers["task"]](
            MessageFromHere(body, headers, properties, self._on_broker(message.queue), message.priority),
            None,
            kept.acknowledge,
            kept.reject,
            consumer.on_task_message,
        )

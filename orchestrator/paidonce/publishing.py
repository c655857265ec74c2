"""Publishing messages after a commit. A message is a hint: a failed publish loses nothing, the sweeper repeats it."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import redis
from amqp.exceptions import AMQPError  # type: ignore[import-untyped]  # py-amqp publishes no types
from kombu.exceptions import OperationalError

from paidonce.celery_app import PaidonceCelery, queue_for, speaks_amqp
from paidonce.embedded import ensure_embedded_valkey
from paidonce.settings import Settings
from paidonce_models.errors import PaidonceError
from paidonce_models.forks import in_child
from paidonce_models.log_texts import cause_of
from paidonce_models.store.messages import Message, StepMessage

log = logging.getLogger(__name__)

ADVANCE_TASK = "paidonce.advance"
SUBMIT_TASK = "paidonce.submit"
REDECLARE_SECONDS = 2.0
AWAY_SECONDS = 2.0
_BROKER_ERRORS = (OperationalError, OSError, TimeoutError, PaidonceError, AMQPError)
"""Of AMQP's all: RabbitMQ refuses a user by an error that kombu takes for a channel's."""


def give_up_on_silence(error: Exception, interval_seconds: float) -> None:
    """Called before a publish is tried again. A lost connection is made anew; of a broker that is silent ask no more.

    Each further try would wait for a whole socket time-out: three of them made a submission take 15 s.
    """
    del interval_seconds
    if isinstance(error, TimeoutError | redis.TimeoutError):
        raise error


def task_name(message: Message) -> str:
    """The Celery task that a message is for."""
    return message.name if isinstance(message, StepMessage) else ADVANCE_TASK


def celery_message(
    app: PaidonceCelery, message: Message, origin: str
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Body, headers and properties of the Celery task that a message is; with a new task id."""
    arguments: dict[str, Any] = {"agent": message.agent, "run": message.run_id}
    if isinstance(message, StepMessage):
        arguments = {"agent": message.agent, "step": message.position, "run": message.run_id}
    # The run's id is last: Flower's list cuts the column where it is too narrow.
    shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
    task = app.amqp.as_task_v2(
        str(uuid.uuid4()),
        task_name(message),
        (),
        arguments,
        argsrepr="()",
        kwargsrepr=f"{{{shown}}}",
        origin=origin,
        ignore_result=True,
    )
    return task.body, task.headers, task.properties


class Publisher:
    """Publishes step and advance messages. Safe to use from many threads."""

    def __init__(self, app: PaidonceCelery, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._amqp = speaks_amqp(str(app.conf.broker_url))
        self._begin_empty()
        in_child(self, Publisher._begin_empty)

    def _begin_empty(self) -> None:
        """Also in a forked child, where the parent's lock may be held by a thread that is not there."""
        self._declared: dict[str, float] = {}
        self._away_until = 0.0
        self._guard = threading.Lock()
        self._origin = f"paidonce@{uuid.uuid4().hex[:8]}"

    def publish(self, messages: Sequence[Message]) -> int:
        """Send what can be sent; returns how many were. After a failure the broker is left alone for a moment."""
        if not messages or time.monotonic() < self._away_until:
            return 0
        sent = 0
        try:
            with self._app.producer_pool.acquire(block=True, timeout=5) as producer:
                for message in messages:
                    self._send(producer, message)
                    sent += 1
        except (*_BROKER_ERRORS, *self._app.connection_for_write().connection_errors) as error:
            self._report(error, len(messages) - sent)
        return sent

    def _send(self, producer: Any, message: Message) -> None:
        body, headers, properties = celery_message(self._app, message, self._origin)
        queue = self._app.on_broker(message.queue)  # here and not in the store: rows outlive such names
        self._declare_anew(producer, queue)
        producer.publish(
            body,
            exchange="",
            routing_key=queue,
            serializer="json",
            headers=headers,
            delivery_mode=2,
            priority=message.priority if self._amqp else 9 - message.priority,
            retry=True,
            retry_policy=self._retry_policy(),
            **properties,
        )

    def _retry_policy(self) -> dict[str, Any]:
        return {**self._app.conf.task_publish_retry_policy, "errback": give_up_on_silence}

    def _declare_anew(self, producer: Any, queue: str) -> None:
        """RabbitMQ drops what goes to a queue that was deleted, so declare it again every few seconds.

        On Redis a list needs no declaration, and the default exchange no binding.
        """
        if not self._amqp:
            return
        now = time.monotonic()
        with self._guard:
            if now - self._declared.get(queue, -1e9) < REDECLARE_SECONDS:
                return
            self._declared[queue] = now

        def declare() -> None:
            queue_for(queue, amqp=True)(producer.channel).declare()

        # A connection that nobody used for a while may have been ended by the server or by what lies between.
        producer.connection.ensure(producer, declare, **self._retry_policy())()

    def _report(self, error: Exception, unsent: int) -> None:
        first = time.monotonic() > self._away_until + AWAY_SECONDS
        self._away_until = time.monotonic() + AWAY_SECONDS
        if first:
            log.warning(
                "the broker cannot be reached (%s); %d message(s) stay in the store and are sent when it is back",
                cause_of(error),
                unsent,
                extra={"event": "broker_away"},
            )
        if self._settings.broker_url is None:
            try:
                ensure_embedded_valkey(self._settings.home)
            except PaidonceError as unavailable:
                log.warning("%s", unavailable.message, extra={"event": "embedded_broker_away"})

    def depth(self, queues: Iterable[str]) -> dict[str, int]:
        """How many messages wait in each queue, by its name in the store; one that cannot be asked is left out."""
        names = {self._app.on_broker(name): name for name in queues}
        return {names[found]: waiting for found, waiting in self.depth_on_broker(names).items()}

    def depth_on_broker(self, names: Iterable[str]) -> dict[str, int]:
        """The same for the broker's own names, of whatever namespace."""
        depths: dict[str, int] = {}
        try:
            with self._app.producer_pool.acquire(block=True, timeout=5) as producer:
                for name in names:
                    queue = queue_for(name, amqp=self._amqp)(producer.channel)
                    try:
                        depths[name] = int(queue.queue_declare(passive=self._amqp).message_count)
                    except producer.connection.channel_errors:
                        # No such queue on RabbitMQ, which closes the channel for the question.
                        producer.revive(producer.connection.channel())
        except (*_BROKER_ERRORS, *self._app.connection_for_write().connection_errors):
            return depths
        return depths

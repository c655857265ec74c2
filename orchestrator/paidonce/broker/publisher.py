"""``Publisher``: sends messages to the broker after a commit, and asks for the depths of queues.

A message is a hint: a failed publish loses nothing, the sweeper repeats it.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import redis
from amqp.exceptions import AMQPError  # type: ignore[import-untyped]  # py-amqp publishes no types
from kombu.exceptions import OperationalError

from paidonce.broker.celery_app import PaidonceCelery, queue_for, speaks_amqp
from paidonce.embedded import ensure_embedded_valkey
from paidonce.settings import Settings
from paidonce_models.errors import PaidonceError
from paidonce_models.forks import in_child, leave_to_parent, notice_fork
from paidonce_models.privacy.log_texts import cause_of
from paidonce_models.store.messages import Message, StepMessage

log = logging.getLogger(__name__)

ADVANCE_TASK = "paidonce.advance"
SUBMIT_TASK = "paidonce.submit"
REDECLARE_SECONDS = 2.0
AWAY_SECONDS = 2.0
CLOSING_SECONDS: Final = 0.1
TOGETHER: Final = 500
"""How many messages are sent in one round trip."""
_BROKER_ERRORS = (OperationalError, OSError, TimeoutError, PaidonceError, AMQPError)
"""All of AMQP's: RabbitMQ refuses a user by an error that kombu takes for a channel's."""


def give_up_on_silence(error: Exception, interval_seconds: float) -> None:
    """Called before a publish is retried. Reconnects a lost connection; gives up on a broker that is silent.

    Each further try would wait for a whole socket timeout: three of them made a submission take 15 s.
    """
    del interval_seconds
    if isinstance(error, TimeoutError | redis.TimeoutError):
        raise error


def task_name(message: Message) -> str:
    """The Celery task of a message."""
    return message.name if isinstance(message, StepMessage) else ADVANCE_TASK


def celery_message(
    app: PaidonceCelery, message: Message, origin: str
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Body, headers and properties of the message's Celery task; with a new task id."""
    arguments: dict[str, Any] = {"agent": message.agent, "run": message.run_id}
    if isinstance(message, StepMessage):
        arguments = {"agent": message.agent, "step": message.position, "run": message.run_id}
    # The run's id comes last: Flower's list truncates the column if it is too narrow.
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
    """Publishes step and advance messages. Thread-safe."""

    def __init__(self, app: PaidonceCelery, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._amqp = speaks_amqp(str(app.conf.broker_url))
        self._kept: Any = None
        self._closing: weakref.finalize[Any, Publisher]
        self._begin_empty()
        in_child(self, Publisher._begin_empty)

    def _begin_empty(self) -> None:
        """Also in a forked child, where a thread that does not exist there may hold the parent's lock."""
        if self._kept is not None:
            leave_to_parent(self._kept)
            self._closing.detach()
        self._kept = None
        self._keeping = threading.Lock()
        self._declared: dict[str, float] = {}
        self._away_until = 0.0
        self._is_away = False
        self._guard = threading.Lock()
        self._origin = f"paidonce@{uuid.uuid4().hex[:8]}"

    def publish(self, messages: Sequence[Message]) -> int:
        """Send what can be sent; returns how many were. After a failure the broker is not used for a moment."""
        notice_fork()
        if not messages or time.monotonic() < self._away_until:
            return 0
        sent = 0
        try:
            with self._producer() as producer:
                for first in range(0, len(messages), TOGETHER):
                    together = messages[first : first + TOGETHER]
                    self._send(producer, together)
                    sent += len(together)
            self._is_away = False
        except (*_BROKER_ERRORS, *self._app.connection_for_write().connection_errors) as error:
            self._report(error, len(messages) - sent)
        return sent

    @contextmanager
    def _producer(self) -> Iterator[Any]:
        """A producer that is kept: kombu's pool takes as long to prepare one as the message takes.

        While another thread has it, one of the pool's. The kept one has a connection of its own: all Celery apps of a
        process share kombu's pools, and another app cannot set its limit while something is in use.
        """
        if not self._keeping.acquire(blocking=False):
            with self._app.producer_pool.acquire(block=True, timeout=5) as producer:
                yield producer
            return
        try:
            if self._kept is None:
                self._kept = self._app.amqp.Producer(self._connect())
                self._closing = weakref.finalize(self, self._kept.connection.collect, CLOSING_SECONDS)
                self._closing.atexit = False
            try:
                yield self._kept
            except BaseException:
                self._kept = None
                self._closing()
                raise
        finally:
            self._keeping.release()

    def _connect(self) -> Any:
        """A new connection, connected by our own rules: left to its first use, kombu tries for six seconds.

        Every host of the address is tried once, and one more.
        """
        connection = self._app.connection_for_write()
        policy = self._retry_policy()
        try:
            connection.ensure_connection(**{**policy, "max_retries": max(policy["max_retries"], len(connection.alt))})
        except BaseException:
            connection.collect(CLOSING_SECONDS)
            raise
        return connection

    def _send(self, producer: Any, messages: Sequence[Message]) -> None:
        """Send them in one round trip, where the transport is ours; all of them again after a lost connection."""
        for queue in dict.fromkeys(message.queue for message in messages):
            self._declare_anew(producer, self._app.on_broker(queue))

        def send() -> None:
            together = getattr(producer.channel, "together", nullcontext) if len(messages) > 1 else nullcontext
            with together():
                for message in messages:
                    self._publish(producer, message)

        producer.connection.ensure(producer, send, **self._retry_policy())()

    def _publish(self, producer: Any, message: Message) -> None:
        body, headers, properties = celery_message(self._app, message, self._origin)
        producer.publish(
            body,
            exchange="",
            routing_key=self._app.on_broker(message.queue),  # here and not in the store: rows outlive such names
            serializer="json",
            headers=headers,
            delivery_mode=2,
            priority=message.priority if self._amqp else 9 - message.priority,
            **properties,
        )

    def _retry_policy(self) -> dict[str, Any]:
        return {**self._app.conf.task_publish_retry_policy, "errback": give_up_on_silence}

    def _declare_anew(self, producer: Any, queue: str) -> None:
        """RabbitMQ drops messages to a queue that was deleted, so declare it again every few seconds.

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

        # An idle connection may have been closed by the server or by something in between.
        producer.connection.ensure(producer, declare, **self._retry_policy())()

    def _report(self, error: Exception, unsent: int) -> None:
        first, self._is_away = not self._is_away, True
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
        """How many messages wait in each queue, by its name in the store; one that cannot be queried is left out."""
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
                        # No such queue on RabbitMQ, which closes the channel after that request.
                        producer.revive(producer.connection.channel())
        except (*_BROKER_ERRORS, *self._app.connection_for_write().connection_errors):
            return depths
        return depths

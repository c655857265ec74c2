"""Celery's consumer, which loses no unknown step and survives every message.

Owns the handling of each message before its task. One check comes before all tasks
(``message_check``): a message that passes is rebuilt from its name, id and arguments,
so that nothing else in it controls the worker. A message for a step that this worker
does not hold is requeued through the store (``WorkerParts.on_unknown_step``) and then
acknowledged; if that fails, it is retried after a pause, a limited number of times. So
is a good message whose task cannot be started; that of a submission without limit. An
unusable message is acknowledged and logged as an error with its queue and what was
found; if it is a submission, its producer finds the error in the store as well
(``WorkerParts.on_refused_submission``).

Must never block: the hooks run in a separate thread, and messages are acknowledged
in the consumer's thread, which owns the broker connection.
Must never log a body: it may hold a user's input.

Set through ``app.conf.worker_consumer = Consumer``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery.worker import loops
from celery.worker.consumer import consumer as celery_consumer

from paidonce.broker.celery_app import queue_for, speaks_amqp
from paidonce.broker.flood_log import FloodLog
from paidonce.broker.publisher import ADVANCE_TASK, SUBMIT_TASK
from paidonce_models.privacy.log_texts import cause_of, failure_of, loggable, shown_headers, shown_type
from paidonce_workers.delivery.message_check import UnusableMessage, read_message, submission_id
from paidonce_workers.delivery.remote_control import Control
from paidonce_workers.execution.local_delivery import LocalDelivery
from paidonce_workers.process.worker_parts import worker_parts_of

logger = logging.getLogger(__name__)

CONTROL = "celery.worker.consumer.control:Control"
DELAYED_DELIVERY = "celery.worker.consumer.delayed_delivery:DelayedDelivery"
LONGEST_PAUSE_SECONDS = 60.0
FLUSH_SECONDS = 15.0


class Consumer(celery_consumer.Consumer):  # type: ignore[misc] # Celery publishes no types
    """The consumer of every Paidonce worker, whatever its pool."""

    class Blueprint(celery_consumer.Consumer.Blueprint):  # type: ignore[misc] # Celery publishes no types
        """Celery's, with our remote control, and without native delayed delivery.

        That one declares 28 exchanges and 28 quorum queues on RabbitMQ for messages with a ``countdown``, which none of
        ours has; each queue takes some of the broker's file handles.
        """

        default_steps = tuple(
            Control if step == CONTROL else step
            for step in celery_consumer.Consumer.Blueprint.default_steps
            if step != DELAYED_DELIVERY
        )

    def __init__(self, *args: Any, worker_options: Mapping[str, Any] | None = None, **options: Any) -> None:
        # Gossip and mingle process whatever other workers send, which can affect tasks. We do not need them:
        # what workers must know of each other is in the store.
        alone = {**(worker_options or {}), "without_gossip": True, "without_mingle": True}
        self.junk = FloodLog(logger)
        super().__init__(*args, worker_options=alone, **options)
        self._parts = worker_parts_of(self.app)
        self._parts.local_delivery = LocalDelivery(self, self._parts.on_broker)
        self._hand_back_thread = ThreadPoolExecutor(1, thread_name_prefix="paidonce-unknown-steps")
        self.timer.call_repeatedly(FLUSH_SECONDS, self._flush_logs)

    def shutdown(self) -> None:
        """Stop; messages that were not requeued yet stay with the broker."""
        self._hand_back_thread.shutdown(wait=False, cancel_futures=True)
        self.junk.close()
        super().shutdown()

    def _flush_logs(self) -> None:
        self.junk.flush()
        transport_junk = getattr(getattr(self.connection, "transport", None), "junk", None)
        if transport_junk is not None:
            transport_junk.flush()

    def loop(self, *args: Any) -> None:
        """Celery's loop; an error that a message causes in kombu or Celery costs a reconnect, not the worker."""
        run = loops.asynloop if self.hub else loops.synloop
        try:
            run(*args)
        except self.connection_errors:
            raise
        except Exception as error:
            # With a traceback: our transports and handlers let no message get this far, so this is a bug.
            logger.error(
                "a message on one of the queues %s has no readable envelope, or its handling failed (%s); reconnecting",
                ", ".join(sorted(self.app.amqp.queues.consume_from)),
                failure_of(error),
                extra={"event": "consumer_failed"},
            )
            raise self.connection_errors[0]("reconnecting after a failure of the consumer") from error

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], Any]:
        """Celery's message handler, limited to messages that passed the check; no error ends the worker."""
        handle: Callable[[Any], Any] = super().create_task_handler(*args, **options)

        def on_task_received(message: Any) -> Any:
            try:
                is_admitted = self._admit(message)
            except UnusableMessage as error:
                return self._discard(message, error.message, error.kind)
            except Exception as error:  # noqa: BLE001 - discarded with an error that says what it was
                return self._discard_failed(message, error)
            return self._begin(handle, message, 1) if is_admitted else None

        return on_task_received

    def _begin(self, handle: Callable[[Any], Any], message: Any, tried: int) -> Any:
        """Let Celery start the task of a checked message. The message is good, so a failure is the worker's fault."""
        try:
            return handle(message)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # First: kombu's Redis transport counts KeyError among its connection errors,
            # and a message without an id would reconnect it for ever.
            return self._begin_again(handle, message, error, tried)
        except (*self.connection_errors, *self.channel_errors):
            raise
        except Exception as error:  # noqa: BLE001 - told by type and place
            return self._begin_again(handle, message, error, tried)

    def _begin_again(self, handle: Callable[[Any], Any], message: Any, error: Exception, tried: int) -> None:
        """Retry a good message whose task could not start: no thread available, or a fault in a pool or a library.

        It stays unacknowledged meanwhile. The store knows steps and runs, so their messages are finally dropped; a
        submission is retried for as long as it takes.
        """
        if self._parts.is_step is None:  # an app of other tasks, whose messages are not checked
            return self._discard_failed(message, error)
        task = message.headers.get("task")
        pause = self._pause_after(tried)
        is_last = task != SUBMIT_TASK and tried >= self._parts.requeue_tries
        self.junk.report(
            f"a task could not be started, through no fault of its message ({type(error).__name__})",
            logging.ERROR,
            "the task %s could not be started, through no fault of its message: %s; %s",
            loggable(str(task), 120),
            failure_of(error),
            "the sweeper sends another" if is_last else f"tried again in {pause:.1f} s",
            event="task_not_begun",
        )
        if is_last:
            self._acknowledge(message)
        else:
            self.timer.call_after(pause, self.call_soon, (self._begin, handle, message, tried + 1))

    def _admit(self, message: Any) -> bool:
        """Rebuild a message of ours so that it holds nothing but its task; False if it was settled here.

        Raises ``UnusableMessage``.
        """
        parts = self._parts
        if parts.is_step is None:
            return True
        incoming = read_message(message, largest_submission_bytes=parts.largest_submission_bytes)
        if incoming.task not in (ADVANCE_TASK, SUBMIT_TASK) and not parts.is_step(incoming.task):
            self._hand_back(incoming.task, incoming.args, incoming.kwargs, message)
            return False
        message.headers = incoming.headers()
        # Already decoded, so without a content type: Celery does not decode it again, in this process or a child.
        message.body = message._decoded_cache = incoming.body()
        message.content_type = message.content_encoding = None
        priority = message.properties.get("priority")
        message.properties = {
            "correlation_id": incoming.task_id,
            "priority": priority if type(priority) is int else None,
        }
        return True

    # What `celery control add_consumer` and `cancel_consumer` call.

    def add_task_queue(self, queue: str, *_: Any, **__: Any) -> None:
        """Consume this namespace's queue ``x`` by any of its names, declared as publishers declare it."""
        full = self._parts.on_broker(queue)
        queues = self.app.amqp.queues
        if full not in queues:
            queues.add(queue_for(full, amqp=speaks_amqp(str(self.app.conf.broker_url))))
        super().add_task_queue(full)

    def cancel_task_queue(self, queue: str) -> None:
        """Stop consuming it."""
        super().cancel_task_queue(self._parts.on_broker(queue))

    # Celery calls these four; `create_task_handler` binds them when the loop starts.

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """The message names no task."""
        self._discard(message, "it names no task", "it names no task")

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """The message names a task of ours, but does not fit Celery's protocol otherwise."""
        self._discard_failed(message, exc)

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """The body cannot be decoded, or has a content type that is not accepted."""
        self._discard(
            message,
            f"its body cannot be decoded ({cause_of(exc)})",
            f"its body cannot be decoded ({type(exc).__name__})",
        )

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """A task that is not registered, in an app whose messages are not checked."""
        try:
            name, args, kwargs = _task_of(message)
        except Exception as error:  # noqa: BLE001 - decoding raises what the serializer likes
            self._discard_failed(message, error)
            return
        self._hand_back(name, args, kwargs, message)

    def _hand_back(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], message: Any) -> None:
        """Requeue a step of code that this worker does not hold."""
        self._in_hand_back_thread(self._offer, name, args, kwargs, message, 1)

    def _in_hand_back_thread(self, act: Callable[..., object], *arguments: object) -> None:
        try:
            self._hand_back_thread.submit(act, *arguments)
        except RuntimeError:  # shutting down: not acknowledged, so the broker keeps it
            return

    def _refuse(self, task_id: str, message: Any, found: str, kind: str, tried: int) -> None:
        """In the requeue thread: store the refusal, then settle the message as above."""
        hook = self._parts.on_refused_submission
        try:
            if hook is not None:
                hook(task_id, message.body, found)
        except Exception as error:  # noqa: BLE001 - whatever it was, the producer must hear of it
            pause = self._pause_after(tried)
            self.junk.report(
                f"the refusal of a submission could not be stored ({type(error).__name__})",
                logging.WARNING,
                "the refusal of submission %s could not be stored (%s); tried again in %.1f s",
                loggable(task_id),
                failure_of(error),
                pause,
                event="refusal_requeued",
            )
            # The only copy: not acknowledged, for as long as it takes.
            self._try_again(pause, self._refuse, task_id, message, found, kind, tried + 1)
            return
        self.call_soon(self._drop, message, found, kind)

    def _offer(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], message: Any, tried: int) -> None:
        """In the requeue thread: let the store decide, then settle the message in the consumer's thread."""
        hook = self._parts.on_unknown_step
        try:
            if hook is None:
                raise LookupError("this app has no hook to requeue it")
            handed_back = hook(name, args, kwargs, message)
        except Exception as error:  # noqa: BLE001 - whatever it was, the step is in the store
            self._offer_again(error, name, args, kwargs, message, tried)
            return
        shown = loggable(name, 120)
        if handed_back:
            self.junk.report(
                "a step that this worker does not hold was requeued",
                logging.INFO,
                "this worker does not hold %s; it was requeued",
                shown,
                event="unknown_step_handed_back",
            )
            self.call_soon(self._acknowledge, message)
        else:
            self.call_soon(
                self._discard,
                message,
                f"task {shown} is not registered here, and no step waits for it",
                "its task is not registered here, and no step waits for it",
            )

    def _offer_again(
        self,
        error: Exception,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        message: Any,
        tried: int,
    ) -> None:
        pause, is_last = self._pause_after(tried), tried >= self._parts.requeue_tries
        self.junk.report(
            f"a step that this worker does not hold could not be requeued ({type(error).__name__})",
            logging.WARNING,
            "this worker does not hold %s and could not requeue it (%s); %s",
            loggable(name, 120),
            cause_of(error),
            "its message is dropped, the sweeper sends another" if is_last else f"tried again in {pause:.1f} s",
            event="unknown_step_requeued",
        )
        if is_last:
            self.call_soon(self._acknowledge, message)
        else:
            self._try_again(pause, self._offer, name, args, kwargs, message, tried + 1)

    def _pause_after(self, tried: int) -> float:
        return float(min(self._parts.requeue_seconds * 2 ** min(tried - 1, 10), LONGEST_PAUSE_SECONDS))

    def _try_again(self, pause: float, act: Callable[..., object], *arguments: object) -> None:
        """Thread-safe. Call it in the requeue thread after a pause; the broker still counts the message as taken."""
        self.call_soon(self.timer.call_after, pause, self._in_hand_back_thread, (act, *arguments))

    def _acknowledge(self, message: Any) -> None:
        if not message.acknowledged:
            message.ack_log_error(celery_consumer.logger, self.connection_errors)

    def _discard(self, message: Any, found: str, kind: str) -> None:
        """Settle an unusable message; that of a submission once its refusal is stored."""
        task_id = submission_id(message)
        if task_id is None:
            self._drop(message, found, kind)
        else:
            self._in_hand_back_thread(self._refuse, task_id, message, found, kind, 1)

    def _discard_failed(self, message: Any, error: BaseException) -> None:
        self._discard(message, cause_of(error), type(error).__name__)

    def _drop(self, message: Any, found: str, kind: str) -> None:
        """Acknowledge an unusable message and log it."""
        body, headers = getattr(message, "body", None), getattr(message, "headers", None)
        self.junk.report(
            f"a message cannot be used and was dropped: {kind}",
            logging.ERROR,
            "a message on queue %s cannot be used and was dropped: %s [content type %s, %s bytes, headers: %s]",
            loggable(_queue_of(message), 120),
            loggable(found),
            shown_type(getattr(message, "content_type", None)),
            len(body) if isinstance(body, (str, bytes)) else "?",
            shown_headers(headers) if isinstance(headers, Mapping) else type(headers).__name__,
            event="message_malformed",
        )
        self._acknowledge(message)


def _queue_of(message: Any) -> str:
    """The queue's name: all our queues are bound by their own names."""
    delivery = getattr(message, "delivery_info", None) or {}
    return loggable(str(delivery.get("routing_key") or delivery.get("exchange") or "unknown"))


def _task_of(message: Any) -> tuple[str, Sequence[Any], Mapping[str, Any]]:
    """Name and arguments of a Celery message, protocol 2 or 1."""
    headers, payload = message.headers or {}, message.payload
    name = headers.get("task") or payload["task"]
    args, kwargs = (payload["args"], payload["kwargs"]) if isinstance(payload, Mapping) else payload[:2]
    if not isinstance(args, Sequence) or not isinstance(kwargs, Mapping):
        raise TypeError("its arguments are no list and mapping")
    return str(name), args, kwargs

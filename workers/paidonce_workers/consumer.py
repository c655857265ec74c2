"""Celery's consumer, which loses no step it does not know and survives every message.

Owns what happens to a message that no task of this worker takes. Stock Celery
rejects and drops a message for an unregistered task, and some malformed ones
end the worker. Here a message for a step that this worker does not hold is
handed back in the store (``Machinery.on_unknown_step``) and then acknowledged;
if that fails it returns to its queue after a pause; a malformed one is
acknowledged with one error that says which queue and what was found. If it says
that it is a submission, its producer finds the error in the store as well
(``Machinery.on_refused_submission``).

Must never block: the hook runs in a thread of its own, and messages are
acknowledged in the consumer's thread, to which the broker connection belongs.
Must never log a body: it may hold a user's input.

Set through ``app.conf.worker_consumer = "paidonce_workers.consumer:Consumer"``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery.worker import loops
from celery.worker.consumer import consumer as celery_consumer

from paidonce.publishing import SUBMIT_TASK
from paidonce_models.log_texts import cause_of, failure_of, loggable, shown_headers, shown_type
from paidonce_workers.local_delivery import LocalDelivery
from paidonce_workers.machinery import machinery_of

logger = logging.getLogger(__name__)

MALFORMED = (AttributeError, KeyError, TypeError, ValueError)
"""What reading a message that is not what it should be raises."""


class Consumer(celery_consumer.Consumer):  # type: ignore[misc] # Celery publishes no types
    """The consumer of every Paidonce worker, whatever its pool."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._machinery = machinery_of(self.app)
        self._machinery.local_delivery = LocalDelivery(self)
        self._hand_back_thread = ThreadPoolExecutor(1, thread_name_prefix="paidonce-unknown-steps")

    def shutdown(self) -> None:
        """Stop; what was not handed back yet stays with the broker."""
        self._hand_back_thread.shutdown(wait=False, cancel_futures=True)
        super().shutdown()

    def loop(self, *args: Any) -> None:
        """Celery's loop; a broken envelope, which the transport itself cannot read, costs a reconnect, not the worker.

        Redis has popped such an item already, so it cannot come again.
        """
        run = loops.asynloop if self.hub else loops.synloop
        try:
            run(*args)
        except self.connection_errors:
            raise
        except MALFORMED as error:
            # With its places: this also catches a bug in whatever else runs on the loop.
            logger.error(
                "a message on one of the queues %s has no readable envelope (%s) and was dropped; "
                "send messages with a Celery client",
                ", ".join(sorted(self.app.amqp.queues.consume_from)),
                failure_of(error),
                extra={"event": "message_malformed"},
            )
            raise self.connection_errors[0]("reconnecting after an unreadable message") from error

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], Any]:
        """Celery's handler of every message, kept from ending the worker over one of them."""
        handle: Callable[[Any], Any] = super().create_task_handler(*args, **options)

        def on_task_received(message: Any) -> Any:
            try:
                return handle(message)
            except MALFORMED as error:
                # First: kombu's Redis transport counts KeyError among its connection errors,
                # and a message without an id would reconnect it for ever.
                return self._discard(message, cause_of(error))
            except (*self.connection_errors, *self.channel_errors):
                raise
            except Exception as error:  # noqa: BLE001 - discarded with an error that says what it was
                return self._discard(message, cause_of(error))

        return on_task_received

    # Celery calls these four; `create_task_handler` binds them when the loop starts.

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """No task is named."""
        self._discard(message, "it names no task")

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """A task of ours is named, but the rest does not fit Celery's protocol."""
        self._discard(message, cause_of(exc))

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """The body cannot be decoded, or is of a content type that is not accepted."""
        self._discard(message, f"its body cannot be decoded ({cause_of(exc)})")

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """A task that is not registered here: a step of code that this worker does not hold."""
        try:
            name, args, kwargs = _task_of(message)
        except Exception as error:  # noqa: BLE001 - decoding raises what the serializer likes
            self._discard(message, cause_of(error))
            return
        try:
            self._hand_back_thread.submit(self._offer, name, args, kwargs, message)
        except RuntimeError:  # shutting down: not acknowledged, so the broker keeps it
            return

    def _refuse(self, task_id: str, message: Any, found: str) -> None:
        """In the hand-back thread: let the store keep what was wrong, then settle the message as above."""
        hook = self._machinery.on_refused_submission
        try:
            if hook is not None:
                hook(task_id, message.body, found)
        except Exception as error:  # noqa: BLE001 - whatever it was, the producer must hear of it
            logger.warning(
                "the refusal of submission %s could not be stored (%s); its message returns to queue %s in %.1f s",
                loggable(task_id),
                failure_of(error),
                _queue_of(message),
                self._machinery.requeue_seconds,
                extra={"event": "refusal_requeued"},
            )
            self._requeue_later(message)
            return
        self.call_soon(self._drop, message, found)

    def _offer(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], message: Any) -> None:
        """In the hand-back thread: let the store decide, then settle the message in the consumer's thread."""
        hook = self._machinery.on_unknown_step
        try:
            if hook is None:
                raise LookupError("nothing here can hand it back")
            handed_back = hook(name, args, kwargs, message)
        except Exception as error:  # noqa: BLE001 - whatever it was, the message must not be lost
            logger.warning(
                "this worker does not hold %s and could not hand it back (%s); its message returns to queue %s "
                "in %.1f s",
                loggable(name),
                cause_of(error),
                _queue_of(message),
                self._machinery.requeue_seconds,
                extra={"event": "unknown_step_requeued", "step": name},
            )
            self._requeue_later(message)
            return
        if handed_back:
            logger.info(
                "this worker does not hold %s; handed back",
                loggable(name),
                extra={"event": "unknown_step_handed_back", "step": name},
            )
            self.call_soon(self._acknowledge, message)
        else:
            self.call_soon(
                self._discard, message, f"task {loggable(name)} is not registered here, and no step waits for it"
            )

    def _requeue_later(self, message: Any) -> None:
        """From any thread: back to its queue after a pause, in the consumer's thread."""
        self.call_soon(self.timer.call_after, self._machinery.requeue_seconds, self.call_soon, (self._requeue, message))

    def _requeue(self, message: Any) -> None:
        if not message.acknowledged:
            message.reject_log_error(celery_consumer.logger, self.connection_errors, requeue=True)

    def _acknowledge(self, message: Any) -> None:
        if not message.acknowledged:
            message.ack_log_error(celery_consumer.logger, self.connection_errors)

    def _discard(self, message: Any, found: str) -> None:
        """Settle a message that nobody can use; that of a submission once its refusal is stored."""
        task_id = _id_of_submission(message)
        if task_id is None:
            self._drop(message, found)
            return
        try:
            self._hand_back_thread.submit(self._refuse, task_id, message, found)
        except RuntimeError:  # shutting down: not acknowledged, so the broker keeps it
            return

    def _drop(self, message: Any, found: str) -> None:
        """Acknowledge a message that nobody can use and say so once."""
        body = getattr(message, "body", None)
        headers = getattr(message, "headers", None)
        logger.error(
            "a message on queue %s cannot be used and was dropped: %s [content type %s, %s bytes, headers: %s]",
            _queue_of(message),
            loggable(found),
            shown_type(getattr(message, "content_type", None)),
            len(body) if isinstance(body, (str, bytes)) else "?",
            shown_headers(headers) if isinstance(headers, Mapping) else type(headers).__name__,
            extra={"event": "message_malformed"},
        )
        self._acknowledge(message)


def _id_of_submission(message: Any) -> str | None:
    """The task's id where the headers say that this is a submission; ``None`` if they do not or name none."""
    headers = getattr(message, "headers", None)
    if not isinstance(headers, Mapping) or headers.get("task") != SUBMIT_TASK:
        return None
    task_id = headers.get("id")
    return task_id if isinstance(task_id, str) else None


def _queue_of(message: Any) -> str:
    """The queue's name; every queue of ours is bound by its own name."""
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

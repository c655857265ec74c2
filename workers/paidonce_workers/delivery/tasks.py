"""The Celery tasks of a worker: one per step, named after its function, and Paidonce's own two.

Their arguments were checked before the call (``message_check``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.exceptions import Reject

from paidonce.broker.publisher import ADVANCE_TASK, SUBMIT_TASK
from paidonce.declarations.registry import Registry
from paidonce.runs.advance_result import Advanced
from paidonce_models.privacy.log_texts import failure_of
from paidonce_workers.delivery.broker_submissions import take_submission
from paidonce_workers.delivery.code_held_elsewhere import hand_on_advance
from paidonce_workers.delivery.hidden_arguments import QUIET_REQUEST
from paidonce_workers.delivery.task_failures import failing_without_data
from paidonce_workers.execution.store_waits import WorkerStopping
from paidonce_workers.process.worker_process import WorkerProcess

log = logging.getLogger(__name__)

REQUEUE_SECONDS = 2.0
"""Seconds before a submission that could not even be refused is redelivered."""

Current = Callable[[], WorkerProcess]


def register_tasks(app: Celery, registry: Registry, current: Current) -> None:
    """Register every step of the registry and Paidonce's own tasks. ``current`` returns this process's wiring."""
    for declaration in registry.steps:
        _register_step(app, declaration.name, current)

    def advance(run: str, agent: str = "") -> None:
        """Feed a run the events that it has not seen."""
        process = current()
        with _redelivered_when_stopping(), failing_without_data():
            result = process.executor.advance(run)
        if result.outcome is Advanced.NOT_HELD:
            hand_on_advance(process, run)

    def submit(self: Any, /, *args: Any, **kwargs: Any) -> None:
        """Create a run for a producer that has only the broker."""
        with _kept_until_stored(), failing_without_data():
            take_submission(current(), _submitted_as(self.request), args, kwargs)

    app.task(name=ADVANCE_TASK, typing=False, Request=QUIET_REQUEST)(advance)
    # Not acknowledged at a worker's `--time-limit` either: while the store is full, it may take any time.
    app.task(name=SUBMIT_TASK, typing=False, bind=True, acks_on_timeout=False, Request=QUIET_REQUEST)(submit)


def _submitted_as(request: Any) -> str:
    """The id that the producer sent; the request's own may be a replacement that can be shown."""
    given = getattr(request, "submitted_as", None)
    return given if isinstance(given, str) else str(request.id)


def _register_step(app: Celery, name: str, current: Current) -> None:
    def execute(run: str, step: int, agent: str = "") -> None:
        with _redelivered_when_stopping(), failing_without_data():
            current().executor.execute(run, step, name, agent)

    execute.__doc__ = f"Execute the step {name}."
    app.task(name=name, typing=False, Request=QUIET_REQUEST)(execute)


class _kept_until_stored:
    """Requeues the message after any error, following a pause: it is the only copy of a submission."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, Exception):
            return
        if not isinstance(error, WorkerStopping):
            log.error(
                "a submission could be neither accepted nor refused (%s); its message is redelivered in %.0f s",
                failure_of(error),
                REQUEUE_SECONDS,
                extra={"event": "submission_requeued"},
            )
            time.sleep(REQUEUE_SECONDS)
        raise Reject(type(error).__name__, requeue=True) from error


class _redelivered_when_stopping:
    """Requeues the message if the worker stops while the store is away."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, WorkerStopping):
            raise Reject(error.message, requeue=True) from error

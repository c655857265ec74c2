"""The Celery tasks of a worker: one for each step, named after its function, and Paidonce's own two.

Their arguments have been checked by the time they are called (``incoming``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.exceptions import Reject

from paidonce.advance import Advanced
from paidonce.publishing import ADVANCE_TASK, SUBMIT_TASK
from paidonce.registry import Registry
from paidonce_workers.intake import take_submission
from paidonce_workers.patience import WorkerStopping
from paidonce_workers.worker_process import WorkerProcess

Current = Callable[[], WorkerProcess]


def register_tasks(app: Celery, registry: Registry, current: Current) -> None:
    """Put every step of the registry and Paidonce's own tasks on the app. ``current`` is this process's wiring."""
    for declaration in registry.steps:
        _register_step(app, declaration.name, current)

    def advance(run: str, agent: str = "") -> None:
        """Feed a run the events it has not seen."""
        process = current()
        with _redelivered_when_stopping():
            result = process.executor.advance(run)
        if result.outcome is Advanced.NOT_HELD:
            process.hand_on_advance(run)

    def submit(self: Any, *args: Any, **kwargs: Any) -> None:
        """Create a run for a producer that has only the broker."""
        process = current()
        with _redelivered_when_stopping():
            take_submission(process, _submitted_as(self.request), args, kwargs)

    app.task(name=ADVANCE_TASK, typing=False)(advance)
    app.task(name=SUBMIT_TASK, typing=False, bind=True)(submit)


def _submitted_as(request: Any) -> str:
    """The id that the producer gave; the request's own may be one that can be shown in its place."""
    given = getattr(request, "submitted_as", None)
    return given if isinstance(given, str) else str(request.id)


def _register_step(app: Celery, name: str, current: Current) -> None:
    def execute(run: str, step: int, agent: str = "") -> None:
        with _redelivered_when_stopping():
            current().executor.execute(run, step, name, agent)

    execute.__doc__ = f"Execute the step {name}."
    app.task(name=name, typing=False)(execute)


class _redelivered_when_stopping:
    """Gives the message back to the broker when the worker stops while the store is away."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, WorkerStopping):
            raise Reject(error.message, requeue=True) from error

"""The Celery tasks of a worker: one for each step, named after its function, and Paidonce's own two."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from celery.exceptions import Reject

from paidonce.advance import Advanced
from paidonce.publishing import ADVANCE_TASK, SUBMIT_TASK
from paidonce.registry import Registry
from paidonce_workers.hidden_arguments import QUIET_REQUEST
from paidonce_workers.intake import take_submission
from paidonce_workers.patience import WorkerStopping
from paidonce_workers.task_failures import failing_without_data
from paidonce_workers.worker_process import WorkerProcess

log = logging.getLogger(__name__)

Current = Callable[[], WorkerProcess]


def register_tasks(app: Celery, registry: Registry, current: Current) -> None:
    """Put every step of the registry and Paidonce's own tasks on the app. ``current`` is this process's wiring."""
    for declaration in registry.steps:
        _register_step(app, declaration.name, current)

    def advance(run: str, agent: str = "") -> None:
        """Feed a run the events it has not seen."""
        process = current()
        with _redelivered_when_stopping(), failing_without_data():
            result = process.executor.advance(run)
        if result.outcome is Advanced.NOT_HELD:
            process.hand_on_advance(run)

    def submit(self: Any, *args: Any, **kwargs: Any) -> None:
        """Create a run for a producer that has only the broker."""
        process = current()
        with _redelivered_when_stopping(), failing_without_data():
            take_submission(process, str(self.request.id), args, kwargs)

    app.task(name=ADVANCE_TASK, typing=False, Request=QUIET_REQUEST)(advance)
    app.task(name=SUBMIT_TASK, typing=False, bind=True, Request=QUIET_REQUEST)(submit)


def _register_step(app: Celery, name: str, current: Current) -> None:
    def execute(*args: Any, **kwargs: Any) -> None:
        run, step = _address(name, args, kwargs)
        if run is None or step is None:
            return
        with _redelivered_when_stopping(), failing_without_data():
            current().executor.execute(run, step, name, str(kwargs.get("agent", "")))

    execute.__doc__ = f"Execute the step {name}."
    app.task(name=name, typing=False, Request=QUIET_REQUEST)(execute)


def _address(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, int | None]:
    run, step = kwargs.get("run"), kwargs.get("step")
    if isinstance(run, str) and isinstance(step, int):
        return run, step
    log.error(
        "task %s was sent with %d argument(s) by place and %d by name, none of them read; a step's message carries "
        "run= and step=: submit a run of an agent instead of sending its steps",
        name,
        len(args),
        len(kwargs),
        extra={"event": "message_malformed"},
    )
    return None, None


class _redelivered_when_stopping:
    """Gives the message back to the broker when the worker stops while the store is away."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, WorkerStopping):
            raise Reject(error.message, requeue=True) from error

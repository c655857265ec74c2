"""What Celery sees of a failed task of ours: enough to find the fault, and no data.

Owns the error that leaves a task. Celery logs a task's exception with its traceback and sends both to listeners of its
events (Flower), but the message of an unexpected exception may quote a prompt, a result or a row. So only the type and
the code locations leave. Errors of a step's body never get here: they are the step's result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import TaskPredicate

from paidonce_models.errors import PaidonceError
from paidonce_models.privacy.log_texts import failure_of
from paidonce_workers.execution.store_waits import WorkerStopping


class TaskFailed(PaidonceError):
    """A task of Paidonce's own failed; the sweeper reschedules its step or run."""

    code = "task_failed"


@contextmanager
def failing_without_data() -> Iterator[None]:
    """Convert exceptions of the block to ``TaskFailed``; those that Celery and the pool act upon pass through."""
    try:
        yield
    except (TaskPredicate, SoftTimeLimitExceeded, WorkerStopping):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it was, its words must not leave
        failed = TaskFailed(f"{failure_of(error)}; its step or run is rescheduled through leases and the sweeper")
        raise failed from None

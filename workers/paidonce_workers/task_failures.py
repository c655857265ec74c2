"""What Celery is told of a task of ours that fails: enough to find the fault, and no data.

Owns the error that leaves a task. Celery writes what a task raises into its log, with the traceback, and sends both to
whoever listens to its events (Flower): the words of an exception that nobody foresaw may quote a prompt, a result or
a row. So only the type and the places leave; what a step's body raises never comes here, as that is its result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import TaskPredicate

from paidonce_models.errors import PaidonceError
from paidonce_models.log_texts import failure_of
from paidonce_workers.patience import WorkerStopping


class TaskFailed(PaidonceError):
    """A task of Paidonce's own failed; the step or run that it was for is taken up again by the sweeper."""

    code = "task_failed"


@contextmanager
def failing_without_data() -> Iterator[None]:
    """Turn what the block raises into a ``TaskFailed``; what Celery and the pool act upon passes."""
    try:
        yield
    except (TaskPredicate, SoftTimeLimitExceeded, WorkerStopping):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it was, its words must not leave
        failed = TaskFailed(f"{failure_of(error)}; leases and the sweeper bring back what it was for")
        raise failed from None

"""Messages for code that this worker does not hold: no attempt starts; they are requeued for a worker that holds it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from paidonce_models.errors import StatementRefused, StoreError
from paidonce_models.store.messages import AdvanceMessage
from paidonce_models.store.runs.runs_head import read_head
from paidonce_models.store.steps.leases import defer_step
from paidonce_workers.delivery.message_check import UnusableMessage, checked_address
from paidonce_workers.process.worker_process import WorkerProcess

log = logging.getLogger(__name__)

PASS_ON_AFTER_US = 5_000_000


def hand_on_step(process: WorkerProcess, kwargs: Mapping[str, Any]) -> bool:
    """Defer the step in the store and requeue its message; False: there is no such step. Raises ``StoreError``."""
    try:
        address = checked_address(kwargs, with_step=True)
    except UnusableMessage:
        return False
    run, step = address["run"], address["step"]
    try:
        deferred = process.database.transact(
            lambda connection: defer_step(
                connection,
                namespace=process.settings.namespace,
                run_id=run,
                position=step,
                redeliver_us=PASS_ON_AFTER_US,
            )
        )
    except StatementRefused as error:  # no step has such an address: requeued, it would come back for ever
        if error.is_about_data:
            return False
        raise
    if deferred is None:
        return False
    process.local_schedule.pass_on(deferred.message, deferred.bounces)
    return True


def hand_on_advance(process: WorkerProcess, run_id: str) -> None:
    """Requeue the advance message; while the store is away, the sweeper does it."""
    try:
        with process.database.read() as connection:
            head = read_head(connection, process.settings.namespace, run_id)
    except StoreError as error:
        log.debug("left to the sweeper: %s", error)
        return
    if head is not None and not head.state.is_terminal:
        message = AdvanceMessage(run_id=run_id, agent=head.agent, queue=head.queue, priority=head.priority)
        process.local_schedule.pass_on(message, 1)

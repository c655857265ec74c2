"""Ending a step from outside of an attempt: a person says what came of it, or nothing will come of it.

The run's row is locked first and the step's state looked at under that lock, so that no sequence number is taken for
an event that is not written.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, text

from paidonce_models.payloads import SplitPayload
from paidonce_models.states import StepState
from paidonce_models.store.events import EventKind, allocate_seq, insert_event
from paidonce_models.store.messages import AdvanceMessage
from paidonce_models.store.payload_rows import insert_payloads
from paidonce_models.store.standing import restate_run

_LOCK_RUN = text("SELECT id FROM runs WHERE id = :run_id AND namespace = :namespace FOR UPDATE")
_FIND = text(
    "SELECT steps.state, steps.attempt, runs.namespace, runs.agent, runs.queue, runs.priority FROM steps "
    "JOIN runs ON runs.id = steps.run_id WHERE steps.run_id = :run_id AND steps.position = :position "
    "AND steps.namespace = :namespace"
)
_END = text(
    "UPDATE steps SET state = :state, result_id = :result_id, error = :error, lease_owner = NULL, "
    "lease_expires_at_us = NULL, publish_at_us = NULL, finished_at_us = paidonce_now() "
    "WHERE run_id = :run_id AND position = :position"
)


def lock_step(connection: Connection, namespace: str, run_id: str, position: int) -> Row[Any] | None:
    """The step's state with what is known of its run, under the run's lock; ``None`` where there is no such step.

    All that end a step from outside come through here, so a step of another namespace is never touched.
    """
    key = {"namespace": namespace, "run_id": run_id, "position": position}
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_RUN, key)
    return connection.execute(_FIND, key).first()


def end_step(
    connection: Connection,
    *,
    namespace: str,
    run_id: str,
    position: int,
    only_if: Collection[StepState],
    result: SplitPayload | None = None,
    error: dict[str, object] | None = None,
) -> AdvanceMessage | None:
    """Give a step its outcome and tell its agent; ``None`` where its state is none of ``only_if`` or its run ended.

    Without ``error`` it succeeded with ``result``. Neither an attempt nor the count of failures is touched.
    """
    found = lock_step(connection, namespace, run_id, position)
    if found is None or found.state not in only_if:
        return None
    seq = allocate_seq(connection, run_id)
    if seq is None:
        return None
    if result is not None:
        insert_payloads(connection, found.namespace, result.rows)
    result_id = None if result is None else result.root_id
    connection.execute(
        _END,
        {
            "run_id": run_id,
            "position": position,
            "state": "succeeded" if error is None else "failed",
            "result_id": result_id,
            "error": None if error is None else json.dumps(error),
        },
    )
    insert_event(
        connection,
        namespace=found.namespace,
        run_id=run_id,
        seq=seq,
        kind=EventKind.STEP_SUCCEEDED if error is None else EventKind.STEP_FAILED,
        position=position,
        attempts=found.attempt,
        payload_id=result_id,
        data=None if error is None else {"error": error, "timed_out": False},
    )
    restate_run(connection, run_id)
    return AdvanceMessage(run_id=run_id, agent=found.agent, queue=found.queue, priority=found.priority)

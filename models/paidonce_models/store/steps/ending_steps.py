"""Ends a step from outside an attempt: a person decides its outcome, or it can have none any more.

The run's row is locked first, then the step's, and its state is read under these locks, so that no sequence number is
allocated for an event that is not written.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, text

from paidonce_models.payloads.payload_parts import SplitPayload
from paidonce_models.states import CLAIMABLE, StepState
from paidonce_models.store.messages import AdvanceMessage
from paidonce_models.store.payload_rows import insert_payloads
from paidonce_models.store.runs.events import EventKind, allocate_seq, insert_event
from paidonce_models.store.runs.run_states import update_run_state
from paidonce_models.store.state_guards import step_may_become

# The run's row before the step's, as everywhere: a completion allocates its event's number first.
_LOCK_RUN = text("SELECT id FROM runs WHERE id = :run_id AND namespace = :namespace FOR UPDATE")
_FIND = (
    "SELECT steps.state, steps.attempt, runs.namespace, runs.agent, runs.queue, runs.priority FROM steps "
    "JOIN runs ON runs.id = steps.run_id WHERE steps.run_id = :run_id AND steps.position = :position "
    "AND steps.namespace = :namespace"
)
# A claim locks only the step: without its lock, an attempt could start between this read and the step's end.
_FIND_STATEMENTS = {"postgresql": text(f"{_FIND} FOR UPDATE OF steps"), "sqlite": text(_FIND)}
_END = {
    state: text(
        "UPDATE steps SET state = :state, result_id = :result_id, error = :error, lease_owner = NULL, "
        "lease_expires_at_us = NULL, publish_at_us = NULL, finished_at_us = paidonce_now() "
        f"WHERE run_id = :run_id AND position = :position AND {step_may_become(state, only=sources)}"
    )
    for state, sources in (
        (StepState.SUCCEEDED, (StepState.UNKNOWN, StepState.BLOCKED)),
        (StepState.FAILED, (*CLAIMABLE, StepState.PARKED, StepState.UNKNOWN, StepState.BLOCKED)),
    )
}
"""Without running steps: those end by their attempt."""


def lock_step(connection: Connection, namespace: str, run_id: str, position: int) -> Row[Any] | None:
    """The step's state with what is needed of its run, both locked; ``None`` if there is no such step.

    Everything that ends a step from outside goes through here, so a step of another namespace is never touched.
    """
    key = {"namespace": namespace, "run_id": run_id, "position": position}
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_RUN, key)
    return connection.execute(_FIND_STATEMENTS[connection.dialect.name], key).first()


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
    """Give a step its outcome and tell its agent; ``None`` if its state is none of ``only_if`` or its run has ended.

    Without ``error`` it succeeded with ``result``. Neither the attempt nor the count of failures is changed.
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
    state = StepState.SUCCEEDED if error is None else StepState.FAILED
    connection.execute(
        _END[state],
        {
            "run_id": run_id,
            "position": position,
            "state": state.value,
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
    update_run_state(connection, run_id)
    return AdvanceMessage(run_id=run_id, agent=found.agent, queue=found.queue, priority=found.priority)

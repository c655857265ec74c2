"""Ending a run from outside of its agent, because a policy says so: its agent is not asked any more."""

from __future__ import annotations

import json

from sqlalchemy import Connection, text

from paidonce_models.states import RunState
from paidonce_models.store.advancing import RunEnd, cancel_open_steps, lock_parent, tell_parent
from paidonce_models.store.messages import Message
from paidonce_models.store.parked_steps import lock_run
from paidonce_models.store.runs_head import read_head

_FAIL = text(
    "UPDATE runs SET state = 'failed', state_reason = NULL, finished_at_us = paidonce_now(), wake_at_us = NULL, "
    "publish_at_us = NULL, error = :error WHERE id = :run_id "
    "AND state NOT IN ('succeeded', 'failed', 'cancelled') RETURNING id"
)


def fail_run(
    connection: Connection, namespace: str, run_id: str, error: dict[str, object], *, grace_seconds: float
) -> list[Message]:
    """Fail the run with this error, cancel what it has open, and tell its parent.

    Does nothing where it has ended, or the namespace has no such run.
    ``grace_seconds`` is what the ``finally`` of child runs may take.
    """
    head = read_head(connection, namespace, run_id)
    if head is None or head.state.is_terminal:
        return []
    # Only their locks, the parent's first: a number taken for a child that has ended meanwhile would be a gap.
    if head.parent_run_id is not None:
        lock_run(connection, head.parent_run_id)
    lock_run(connection, run_id)
    if connection.execute(_FAIL, {"run_id": run_id, "error": json.dumps(error)}).first() is None:
        return []
    messages = cancel_open_steps(connection, run_id, grace_seconds=grace_seconds)
    parent_seq = lock_parent(connection, head)
    if parent_seq is not None:
        messages += tell_parent(connection, head, RunEnd(state=RunState.FAILED, error=error), parent_seq)
    return messages

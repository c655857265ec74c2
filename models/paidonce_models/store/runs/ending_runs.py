"""Ends a run from outside its agent, because a policy says so; the agent does not run again."""

from __future__ import annotations

import json

from sqlalchemy import Connection, text

from paidonce_models.states import RunState
from paidonce_models.store.circuits.parked_steps import lock_run
from paidonce_models.store.messages import Message
from paidonce_models.store.runs.advancing import RunEnd, cancel_open_steps, lock_parent, tell_parent
from paidonce_models.store.runs.runs_head import read_head
from paidonce_models.store.state_guards import run_is_open

# Races with the run's own end: the one that is written first is kept.
_FAIL = text(
    "UPDATE runs SET state = 'failed', state_reason = NULL, finished_at_us = paidonce_now(), wake_at_us = NULL, "
    "publish_at_us = NULL, error = :error WHERE id = :run_id "
    f"AND {run_is_open()} RETURNING id"
)


def fail_run(
    connection: Connection, namespace: str, run_id: str, error: dict[str, object], *, grace_seconds: float
) -> list[Message]:
    """Fail the run with this error, cancel what it has open, and tell its parent.

    Does nothing if it has ended, or if the namespace has no such run. ``grace_seconds``
    is how long the ``finally`` blocks of child runs may take.
    """
    head = read_head(connection, namespace, run_id)
    if head is None or head.state.is_terminal:
        return []
    # Only their locks, the parent's first: a number allocated for a child that has ended meanwhile would leave a gap.
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

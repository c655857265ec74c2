"""Implements ``cancel``: tell the agent, or end a run at once whose agent cannot be told."""

from __future__ import annotations

from sqlalchemy import Connection, text

from paidonce_models.states import RunState
from paidonce_models.store.messages import Message
from paidonce_models.store.runs.advancing import RunEnd, cancel_open_steps, lock_parent, tell_parent
from paidonce_models.store.runs.cancel_events import UNREACHABLE, end_unstarted, request_cancel
from paidonce_models.store.runs.runs_head import read_head
from paidonce_models.store.state_guards import run_is

_UNSTARTED = text(f"SELECT consumed_seq FROM runs WHERE id = :run_id AND {run_is(*UNREACHABLE)}")

# A parent's row before its child's: a child that ends meanwhile locks them in this order.
_LOCK_RUN = text("SELECT id FROM runs WHERE id = :run_id FOR UPDATE")


def cancel_run(connection: Connection, namespace: str, run_id: str, *, grace_seconds: float) -> list[Message]:
    """Request the cancellation; ends a run that never started or is blocked, and tells its parent.

    Does nothing if the run has ended or was cancelled before, or if the namespace has no such run.
    """
    head = read_head(connection, namespace, run_id)
    if head is None or head.state.is_terminal:
        return []
    unstarted = connection.execute(_UNSTARTED, {"run_id": run_id}).first()
    if unstarted is None or (head.state is RunState.PENDING and unstarted.consumed_seq > 0):
        return request_cancel(connection, run_id, grace_seconds=grace_seconds)
    # Only its lock, before the child's: a number allocated for a child that has started meanwhile would leave a gap.
    if head.parent_run_id is not None and connection.dialect.name == "postgresql":
        connection.execute(_LOCK_RUN, {"run_id": head.parent_run_id})
    messages = request_cancel(connection, run_id, grace_seconds=grace_seconds)
    if not end_unstarted(connection, run_id):
        return messages
    messages = cancel_open_steps(connection, run_id, grace_seconds=grace_seconds)
    parent_seq = lock_parent(connection, head)
    if parent_seq is not None:
        end = RunEnd(
            state=RunState.CANCELLED,
            error={"type": "CancelledError", "code": "cancelled", "message": f"child run {run_id} was cancelled"},
        )
        messages += tell_parent(connection, head, end, parent_seq)
    return messages

"""Cancelling a run: an event of its history, delivered once."""

from __future__ import annotations

import json
from typing import Final

from sqlalchemy import Connection, text

from paidonce_models.states import RunState
from paidonce_models.store.messages import AdvanceMessage, Message
from paidonce_models.store.runs.events import REDELIVER_AFTER_US, EventKind, insert_event
from paidonce_models.store.state_guards import run_is_open, run_may_become

CANCEL_GRACE_SECONDS = 60.0
"""How long an agent's ``finally`` may await steps after a cancellation, unless a setting says otherwise."""

# Cancellations race: one statement checks that none was requested and allocates the event's number, so there is only
# one event.
_REQUEST = text(
    "UPDATE runs SET cancel_requested_at_us = paidonce_now(), last_seq = last_seq + 1, "
    "publish_at_us = paidonce_now() + :redeliver, publish_count = 0 "
    f"WHERE id = :run_id AND cancel_requested_at_us IS NULL AND {run_is_open()} "
    "RETURNING last_seq, namespace, queue, priority, agent"
)


def request_cancel(
    connection: Connection, run_id: str, *, grace_seconds: float = CANCEL_GRACE_SECONDS
) -> list[Message]:
    """Append the cancellation to the event history; does nothing if it was requested before or the run has ended.

    The grace period is part of the event, so that a replay under another setting ends the same way.
    """
    row = connection.execute(_REQUEST, {"run_id": run_id, "redeliver": REDELIVER_AFTER_US}).first()
    if row is None:
        return []
    insert_event(
        connection,
        namespace=row.namespace,
        run_id=run_id,
        seq=int(row.last_seq),
        kind=EventKind.CANCEL,
        data={"grace_seconds": grace_seconds},
    )
    return [AdvanceMessage(run_id=run_id, agent=row.agent, queue=row.queue, priority=row.priority)]


UNREACHABLE: Final = (RunState.PENDING, RunState.BLOCKED)
"""The states of a run whose agent cannot be told."""
# Races with the run's first advance and with code that unblocks it: the run is ended only if its agent still cannot be
# told.
_FORCE = text(
    "UPDATE runs SET state = 'cancelled', state_reason = NULL, finished_at_us = paidonce_now(), wake_at_us = NULL, "
    "publish_at_us = NULL, error = :error WHERE id = :run_id "
    f"AND {run_may_become(RunState.CANCELLED, only=UNREACHABLE)} AND cancel_requested_at_us IS NOT NULL RETURNING id"
)


def end_unstarted(connection: Connection, run_id: str) -> bool:
    """End a cancelled run whose agent cannot be told: one that never started or is blocked. Returns whether it did."""
    error = json.dumps({"type": "CancelledError", "code": "cancelled", "message": "cancelled before it could continue"})
    return connection.execute(_FORCE, {"run_id": run_id, "error": error}).first() is not None

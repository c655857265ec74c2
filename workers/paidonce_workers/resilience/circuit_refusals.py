"""What a refused delivery does to its step, by policy: park it, raise in its agent, or end its run."""

from __future__ import annotations

import logging

from sqlalchemy import Connection

from paidonce_models.store.circuits.parked_steps import park_step, refuse_step
from paidonce_models.store.messages import Message
from paidonce_models.store.runs.ending_runs import fail_run
from paidonce_models.store.runs.runs_head import namespace_of
from paidonce_workers.resilience.step_circuits import Refused

log = logging.getLogger(__name__)


def act_on_refusal(
    connection: Connection, namespace: str, run_id: str, position: int, refused: Refused, *, grace_seconds: float
) -> list[Message] | None:
    """Write it in the caller's transaction; returns the messages to publish after the commit.

    ``None`` if the namespace has no such run: then nothing was written. ``grace_seconds`` is the time that the
    ``finally`` blocks of child runs may take if the run ends. Does nothing if the step cannot be claimed anyway.
    """
    if namespace_of(connection, run_id) != namespace:
        return None
    error = refused.error
    log.info(
        "step %d of run %s is not tried: %s (%s)",
        position,
        run_id,
        error.message,
        refused.when_open,
        extra={"event": "step_refused", "run_id": run_id, "step": position, "circuit": refused.policy.circuit},
    )
    if refused.when_open == "park":
        park_step(connection, namespace=namespace, run_id=run_id, position=position, parking=refused.parking)
        return []
    if refused.when_open == "fail":
        return fail_run(connection, namespace, run_id, error.to_json(), grace_seconds=grace_seconds)
    message = refuse_step(connection, namespace=namespace, run_id=run_id, position=position, error=error.to_json())
    return [] if message is None else [message]

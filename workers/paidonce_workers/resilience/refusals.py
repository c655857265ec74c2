"""What a refused delivery does to its step: put it aside, tell its agent, or end its run, as the policy says."""

from __future__ import annotations

import logging

from sqlalchemy import Connection

from paidonce_models.store.ending_runs import fail_run
from paidonce_models.store.messages import Message
from paidonce_models.store.parked_steps import park_step, refuse_step
from paidonce_models.store.runs_head import namespace_of
from paidonce_workers.resilience.step_circuits import Refused

log = logging.getLogger(__name__)


def act_on_refusal(
    connection: Connection, namespace: str, run_id: str, position: int, refused: Refused, *, grace_seconds: float
) -> list[Message] | None:
    """Write it in a transaction of the caller's; the messages to publish after it.

    ``None`` where the namespace has no such run: then nothing was written. ``grace_seconds`` is what the ``finally``
    of child runs may take where the run ends. Does nothing where the step cannot be claimed anyway.
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

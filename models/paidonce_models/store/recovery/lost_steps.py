"""Statements that find steps whose lease has expired, and reclaim steps whose worker is gone.

A lost attempt counts once; its step is scheduled again, fails, or waits for a person. What the attempt
has spent stays recorded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, text

from paidonce_models.states import AttemptOutcome, RunState, StepState
from paidonce_models.store.budgets.spending import release
from paidonce_models.store.ledger.awaited_calls import settle_as_unknown
from paidonce_models.store.messages import AdvanceMessage, Message, StepMessage
from paidonce_models.store.runs.events import REDELIVER_AFTER_US, EventKind, allocate_seq, insert_event
from paidonce_models.store.state_guards import (
    attempt_may_become,
    run_may_become,
    step_may_become,
)
from paidonce_models.store.steps.leases import LeaseKey

_EXPIRED = text(
    "SELECT run_id, position, attempt FROM steps WHERE shard = :shard AND namespace = :namespace "
    "AND lease_expires_at_us < paidonce_now() AND (lease_expires_at_us < paidonce_now() - :frozen_us "
    "OR lease_owner IS NULL OR lease_owner NOT IN :living) ORDER BY lease_expires_at_us LIMIT :most"
).bindparams(bindparam("living", expanding=True))
# The run's row is locked before the step's, as everywhere: an event's number may be allocated afterwards.
_LOCK_RUN = text("SELECT id FROM runs WHERE id = :run_id FOR UPDATE")
_BLAMED = "(blamed + CAST(:alone AS INTEGER))"
_MAY_BE_LOST = step_may_become(StepState.SCHEDULED, StepState.UNKNOWN, StepState.FAILED, only=[StepState.RUNNING])
# Races with a heartbeat, with the attempt's own end, and with others that saw the same death. Attempt, owner and
# expiry are compared again under the row's lock; whoever comes second finds another number or owner, or no
# lease.
_TAKE_BACK = text(
    f"UPDATE steps SET lost = lost + CASE WHEN {_MAY_BE_LOST} THEN 1 ELSE 0 END, "
    f"blamed = CASE WHEN {_MAY_BE_LOST} THEN {_BLAMED} ELSE blamed END, "
    f"state = CASE WHEN NOT ({_MAY_BE_LOST}) THEN state WHEN delivery = 'at_most_once' THEN 'unknown' "
    f"WHEN {_BLAMED} >= max_lost THEN 'failed' ELSE 'scheduled' END, lease_expires_at_us = NULL, "
    f"lease_owner = CASE WHEN {_MAY_BE_LOST} AND delivery = 'at_most_once' THEN lease_owner ELSE NULL END, "
    "due_at_us = NULL, publish_count = 0, "
    f"publish_at_us = CASE WHEN {_MAY_BE_LOST} AND delivery <> 'at_most_once' AND {_BLAMED} < max_lost "
    "THEN paidonce_now() + :redeliver ELSE NULL END, "
    f"finished_at_us = CASE WHEN {_MAY_BE_LOST} AND delivery <> 'at_most_once' AND {_BLAMED} >= max_lost "
    "THEN paidonce_now() ELSE finished_at_us END "
    "WHERE run_id = :run_id AND position = :position AND attempt = :attempt "
    "AND (lease_expires_at_us < paidonce_now() OR CAST(:anyway AS INTEGER) = 1) "
    "AND lease_owner = coalesce(CAST(:owner AS VARCHAR), lease_owner) "
    "RETURNING state, lost, blamed, name, agent, queue, priority, namespace, root_run_id"
)
# An attempt whose end was committed just before keeps that outcome.
_LOSE = text(
    "UPDATE attempts SET outcome = 'lost', ended_at_us = paidonce_now(), error = :error "
    "WHERE run_id = :run_id AND position = :position AND number = :attempt "
    f"AND {attempt_may_become(AttemptOutcome.LOST)}"
)
_FAIL_STEP = text("UPDATE steps SET error = :error WHERE run_id = :run_id AND position = :position")
# Only while the run is ``running``: any other state that it has reached meanwhile is kept.
_WAIT_FOR_PERSON = text(
    "UPDATE runs SET state = 'waiting', state_reason = 'unknown_outcome' "
    f"WHERE id = :run_id AND {run_may_become(RunState.WAITING, only=[RunState.RUNNING])}"
)
# Once for each lost attempt, however often its loss is seen.
_AVOID = text(
    "INSERT INTO avoided (run_id, position, attempt, namespace, root_run_id, agent, reason, steps, calls, "
    "unpriced_calls, input_tokens, output_tokens, cost_nanousd, recorded_at_us) "
    "SELECT CAST(:run_id AS VARCHAR), CAST(:position AS INTEGER), CAST(:attempt AS INTEGER), :namespace, :root_run_id, "
    ":agent, 'lost', count(*), "
    "coalesce(sum(calls), 0), coalesce(sum(unpriced_calls), 0), sum(input_tokens), sum(output_tokens), "
    "sum(cost_nanousd), paidonce_now() FROM attempts WHERE run_id = :run_id AND outcome = 'accepted' "
    "ON CONFLICT (run_id, position, attempt) DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class Holding:
    """Who holds a step, with how many others, and until when in µs since 1970; ``""`` and 0 if nobody does."""

    key: LeaseKey
    owner: str
    held: int
    expires_at_us: int | None
    has_expired: bool


def expired_leases(
    connection: Connection,
    *,
    namespace: str,
    shard: int,
    living: Sequence[str] = (),
    frozen_us: int = 0,
    most: int = 500,
) -> Sequence[LeaseKey]:
    """Steps whose lease has expired by the store's clock, for ``living`` workers by ``frozen_us`` more.

    A live process that does not renew its leases is computing or suspended: it may return and report.
    """
    parameters = {"namespace": namespace, "shard": shard, "living": [*living, ""], "frozen_us": frozen_us, "most": most}
    rows = connection.execute(_EXPIRED, parameters).all()
    return [LeaseKey(row.run_id, row.position, row.attempt) for row in rows]


# Races with the heartbeat that it replaces, and with the attempt's end: has the same guard as the reclaim.
_GRANT = text(
    "UPDATE steps SET lease_expires_at_us = paidonce_now() + :lease_us WHERE run_id = :run_id "
    "AND position = :position AND attempt = :attempt AND lease_owner = :owner AND lease_expires_at_us = :expired_at_us "
    "RETURNING lease_expires_at_us"
)


def grant_lease(connection: Connection, holding: Holding, *, lease_us: int) -> int | None:
    """Extend the lease of a process that lives, on behalf of whoever would reclaim its step; returns the new expiry.

    This write shows that the store accepts writes: a heartbeat that a full disk refused must not cost a paid step.
    ``None``: the lease has changed.
    """
    key = holding.key
    parameters = {"run_id": key.run_id, "position": key.position, "attempt": key.attempt, "owner": holding.owner}
    given = {"lease_us": lease_us, "expired_at_us": holding.expires_at_us}
    granted = connection.execute(_GRANT, {**parameters, **given}).scalar()
    return None if granted is None else int(granted)


_SHARING = text(
    "SELECT s.run_id, s.position, s.attempt, (SELECT count(*) FROM steps o WHERE o.namespace = s.namespace "
    "AND o.lease_expires_at_us IS NOT NULL AND o.lease_owner = s.lease_owner) AS held, s.lease_owner, "
    "s.lease_expires_at_us, s.lease_expires_at_us < paidonce_now() AS has_expired "
    "FROM steps s WHERE s.run_id = :run_id AND s.position = :position AND s.attempt = :attempt"
)


def holding_of(connection: Connection, key: LeaseKey) -> Holding:
    """The process that holds this very attempt of the step."""
    row = connection.execute(_SHARING, {"run_id": key.run_id, "position": key.position, "attempt": key.attempt}).first()
    if row is None or row.lease_owner is None:
        return Holding(key, "", 0, None, has_expired=False)
    return Holding(key, str(row.lease_owner), int(row.held), row.lease_expires_at_us, has_expired=bool(row.has_expired))


def reclaim_step(
    connection: Connection, key: LeaseKey, *, why: str, alone: bool, anyway: bool = False, owner: str | None = None
) -> Message | None:
    """Reclaim a step: declare its attempt lost and schedule it again; returns the message to publish.

    Guarded by the attempt's number and the lease's expiry. ``anyway`` skips the expiry:
    the executing process is known to be dead; ``owner`` is that process, and guards
    against a lease that another process holds by now. ``alone``: the step was all that its
    process ran, or it is known to have killed it. Only such a loss is blamed on the step,
    because among several steps the guilty one is unknown; after ``max_lost`` of them the
    step fails and its agent sees the error. Also records what this recovery avoids.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_RUN, {"run_id": key.run_id})
    parameters: dict[str, object] = {"run_id": key.run_id, "position": key.position, "attempt": key.attempt}
    given = {"redeliver": REDELIVER_AFTER_US, "anyway": int(anyway), "alone": int(alone), "owner": owner}
    row = connection.execute(_TAKE_BACK, {**parameters, **given}).first()
    if row is None:
        return None
    error: dict[str, object] = {"type": "AttemptLost", "code": "attempt_lost", "message": why}
    connection.execute(_LOSE, {**parameters, "error": json.dumps(error)})
    settle_as_unknown(connection, key)
    release(connection, run_id=key.run_id, position=key.position, attempt=key.attempt, accepted=False)
    if row.state == "cancelled":
        return None
    if row.state == "unknown":
        connection.execute(_WAIT_FOR_PERSON, {"run_id": key.run_id})
        return None
    connection.execute(
        _AVOID, {**parameters, "namespace": row.namespace, "root_run_id": row.root_run_id, "agent": row.agent}
    )
    if row.state == "failed":
        return _fail_after_losses(connection, key, row.name, lost=row.lost, blamed=row.blamed, why=why)
    return StepMessage(
        run_id=key.run_id,
        position=key.position,
        name=row.name,
        agent=row.agent,
        queue=row.queue,
        priority=row.priority,
    )


_RUN_ROUTE = text("SELECT namespace, agent, queue, priority FROM runs WHERE id = :run_id")


def _fail_after_losses(
    connection: Connection, key: LeaseKey, name: str, *, lost: int, blamed: int, why: str
) -> Message | None:
    error: dict[str, object] = {
        "type": "AttemptsLost",
        "code": "attempts_lost",
        "message": f"step {key.position} ({name}) lost {blamed} workers that ran nothing else, {lost} in all, and is "
        f"not tried again; the last time: {why}; look for what kills the process (memory, a native crash), "
        "or raise max_lost=",
        "lost": lost,
        "blamed": blamed,
    }
    connection.execute(_FAIL_STEP, {"run_id": key.run_id, "position": key.position, "error": json.dumps(error)})
    seq = allocate_seq(connection, key.run_id)
    if seq is None:
        return None
    route = connection.execute(_RUN_ROUTE, {"run_id": key.run_id}).one()
    insert_event(
        connection,
        namespace=route.namespace,
        run_id=key.run_id,
        seq=seq,
        kind=EventKind.STEP_FAILED,
        position=key.position,
        attempts=key.attempt,
        data={"error": error, "timed_out": False},
    )
    return AdvanceMessage(run_id=key.run_id, agent=route.agent, queue=route.queue, priority=route.priority)

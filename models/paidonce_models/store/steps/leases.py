"""Renews the leases of a process, releases and defers steps, and writes usage with the heartbeat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from paidonce_models.states import AttemptOutcome, RunState, StepState
from paidonce_models.store.budgets.spending import release
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.state_guards import (
    attempt_may_become,
    run_may_become,
    step_is,
    step_is_claimable,
    step_may_become,
)


@dataclass(frozen=True, slots=True)
class LeaseKey:
    """A lease: the attempt of a step that a process executes."""

    run_id: str
    position: int
    attempt: int


_RENEWABLE = (
    f"lease_owner = :worker AND {step_is(StepState.RUNNING, StepState.CANCELLED, StepState.UNKNOWN, column='state')}"
)
_RENEWED = (
    f"lease_expires_at_us = CASE WHEN {step_is(StepState.UNKNOWN, column='state')} THEN NULL "
    "ELSE paidonce_now() + :lease_us END"
)
# Races with reclaiming and with cancelling. Attempt and owner are compared by the statement that renews, so a lease
# that was reclaimed is not revived; a step cancelled meanwhile stays leased until its body has been stopped.
_RENEW_SQLITE = (
    f"UPDATE steps SET {_RENEWED} WHERE (run_id, position, attempt) IN "
    "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]') "
    f"FROM json_each(:held)) AND {_RENEWABLE} RETURNING run_id, position, attempt, state"
)
# The same without waiting for locks: a batch of completions locks many of these rows at once, and the two could
# deadlock. A row that is locked is being completed, cancelled or reclaimed: until that is committed, it is seen here as
# it was and counts as held. Its lease is renewed the next time, long before it expires.
_RENEW_POSTGRESQL = (
    "WITH held AS MATERIALIZED (SELECT (entry->>0)::text AS run_id, (entry->>1)::int AS position, "
    "(entry->>2)::int AS attempt FROM json_array_elements(CAST(:held AS json)) AS entry), "
    "seen AS MATERIALIZED (SELECT step.* FROM held CROSS JOIN LATERAL (SELECT run_id, position, attempt, state "
    "FROM steps WHERE steps.run_id = held.run_id AND steps.position = held.position AND steps.attempt = held.attempt "
    f"AND {_RENEWABLE} OFFSET 0) AS step), "
    "locked AS MATERIALIZED (SELECT step.* FROM held CROSS JOIN LATERAL (SELECT steps.ctid AS row FROM steps "
    "WHERE steps.run_id = held.run_id AND steps.position = held.position AND steps.attempt = held.attempt "
    f"AND {_RENEWABLE} FOR UPDATE SKIP LOCKED) AS step), "
    f"renewed AS (UPDATE steps SET {_RENEWED} FROM locked WHERE steps.ctid = locked.row "
    "RETURNING steps.run_id, steps.position, steps.attempt, steps.state) "
    "SELECT seen.run_id, seen.position, seen.attempt, coalesce(renewed.state, seen.state) AS state FROM seen "
    "LEFT JOIN renewed ON renewed.run_id = seen.run_id AND renewed.position = seen.position"
)
_RENEW_STATEMENTS = {"postgresql": text(_RENEW_POSTGRESQL), "sqlite": text(_RENEW_SQLITE)}
# Races with reclaiming: guarded by the attempt, so that a step that another worker runs by now is not released.
_HAND_BACK_STEP = text(
    "UPDATE steps SET state = 'scheduled', lease_owner = NULL, lease_expires_at_us = NULL, due_at_us = NULL, "
    "publish_at_us = paidonce_now() + :redeliver, publish_count = 0 "
    "WHERE run_id = :run_id AND position = :position AND attempt = :attempt "
    f"AND {step_may_become(StepState.SCHEDULED, only=[StepState.RUNNING])} RETURNING name, agent, queue, priority"
)
_HAND_BACK_ATTEMPT = text(
    "UPDATE attempts SET outcome = 'cancelled', ended_at_us = paidonce_now(), error = :error "
    "WHERE run_id = :run_id AND position = :position AND number = :attempt "
    f"AND {attempt_may_become(AttemptOutcome.CANCELLED)}"
)


def renew_leases(
    connection: Connection, *, worker: str, held: Sequence[LeaseKey], lease_us: int
) -> dict[LeaseKey, str]:
    """Renew all leases of this process in one statement; returns the state of each step that it still holds.

    A lease that is missing from the result was reclaimed. ``cancelled`` means that the
    step's body should be stopped; ``unknown`` is an at-most-once step that was given up
    and whose late end is still accepted. On PostgreSQL a step that somebody is writing at
    this moment counts as what it was before.
    """
    if not held:
        return {}
    rows = connection.execute(
        _RENEW_STATEMENTS[connection.dialect.name],
        {
            "held": json.dumps(sorted([key.run_id, key.position, key.attempt] for key in held)),
            "worker": worker,
            "lease_us": lease_us,
        },
    ).all()
    return {LeaseKey(row.run_id, row.position, row.attempt): row.state for row in rows}


def release_step(
    connection: Connection, key: LeaseKey, *, reason: str, redeliver_us: int = 1_000_000
) -> StepMessage | None:
    """Release a running step unfinished: it counts neither as failed nor as lost. Guarded by the attempt."""
    parameters: dict[str, object] = {"run_id": key.run_id, "position": key.position, "attempt": key.attempt}
    row = connection.execute(_HAND_BACK_STEP, {**parameters, "redeliver": redeliver_us}).first()
    if row is None:
        return None
    error = json.dumps({"type": "HandedBack", "code": "handed_back", "message": reason})
    connection.execute(_HAND_BACK_ATTEMPT, {**parameters, "error": error})
    release(connection, run_id=key.run_id, position=key.position, attempt=key.attempt, accepted=False)
    return StepMessage(
        run_id=key.run_id,
        position=key.position,
        name=row.name,
        agent=row.agent,
        queue=row.queue,
        priority=row.priority,
    )


# Races with a worker that holds the code: once it has claimed the step, the next message is not deferred.
_DEFER = text(
    "UPDATE steps SET publish_count = publish_count + 1, publish_at_us = paidonce_now() + :redeliver "
    "WHERE run_id = :run_id AND position = :position AND namespace = :namespace "
    f"AND {step_is_claimable()} RETURNING name, agent, queue, priority, publish_count, namespace"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Deferred:
    """A step whose message reached a worker that does not hold its code; ``bounces`` counts how often."""

    message: StepMessage
    namespace: str
    bounces: int


def defer_step(
    connection: Connection, *, namespace: str, run_id: str, position: int, redeliver_us: int
) -> Deferred | None:
    """Defer the step's next message; makes no attempt. ``None`` if the namespace has nothing to run there."""
    key = {"namespace": namespace, "run_id": run_id, "position": position}
    row = connection.execute(_DEFER, {**key, "redeliver": redeliver_us}).first()
    if row is None:
        return None
    message = StepMessage(
        run_id=run_id, position=position, name=row.name, agent=row.agent, queue=row.queue, priority=row.priority
    )
    return Deferred(message=message, namespace=row.namespace, bounces=row.publish_count)


# Races with the body's own end, which may be committed at the deadline: whoever finds the step running wins.
_UNKNOWN_STEP = text(
    "UPDATE steps SET state = 'unknown', lease_owner = NULL, lease_expires_at_us = NULL, error = :error "
    "WHERE run_id = :run_id AND position = :position AND attempt = :attempt "
    f"AND {step_may_become(StepState.UNKNOWN)}"
)
_UNKNOWN_ATTEMPT = text(
    "UPDATE attempts SET outcome = 'timed_out', ended_at_us = paidonce_now(), error = :error "
    "WHERE run_id = :run_id AND position = :position AND number = :attempt "
    f"AND {attempt_may_become(AttemptOutcome.TIMED_OUT)}"
)
_WAIT_FOR_PERSON = text(
    "UPDATE runs SET state = 'waiting', state_reason = 'unknown_outcome' "
    f"WHERE id = :run_id AND {run_may_become(RunState.WAITING, only=[RunState.RUNNING])} "
    "AND EXISTS (SELECT 1 FROM steps WHERE run_id = :run_id AND position = :position AND attempt = :attempt "
    f"AND {step_is(StepState.RUNNING, column='steps.state')})"
)


def mark_unknown(connection: Connection, key: LeaseKey, *, error: dict[str, object]) -> bool:
    """An at-most-once step timed out: it is unknown what it did; the run waits for a person."""
    parameters = {
        "run_id": key.run_id,
        "position": key.position,
        "attempt": key.attempt,
        "error": json.dumps(error),
    }
    # The run first, in the order of locks; guarded like the step, or a superseded attempt would stop the run.
    connection.execute(_WAIT_FOR_PERSON, parameters)
    if connection.execute(_UNKNOWN_STEP, parameters).rowcount != 1:
        return False
    connection.execute(_UNKNOWN_ATTEMPT, parameters)
    release(connection, run_id=key.run_id, position=key.position, attempt=key.attempt, accepted=False)
    return True

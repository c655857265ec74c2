"""Renewing the leases a process holds, handing steps back, and flushing usage with the heartbeat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from paidonce_models.store.messages import StepMessage
from paidonce_models.store.spending import release


@dataclass(frozen=True, slots=True)
class LeaseKey:
    """A lease: the attempt of a step that a process executes."""

    run_id: str
    position: int
    attempt: int


_HELD_POSTGRESQL = (
    "(SELECT (entry->>0)::text, (entry->>1)::int, (entry->>2)::int "
    "FROM json_array_elements(CAST(:held AS json)) AS entry)"
)
_HELD_SQLITE = (
    "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]') "
    "FROM json_each(:held))"
)
_RENEW = (
    "UPDATE steps SET lease_expires_at_us = CASE WHEN state = 'unknown' THEN NULL ELSE paidonce_now() + :lease_us END "
    "WHERE (run_id, position, attempt) IN {held} AND lease_owner = :worker "
    "AND state IN ('running', 'cancelled', 'unknown') RETURNING run_id, position, attempt, state"
)
_RENEW_STATEMENTS = {
    "postgresql": text(_RENEW.format(held=_HELD_POSTGRESQL)),
    "sqlite": text(_RENEW.format(held=_HELD_SQLITE)),
}
_HAND_BACK_STEP = text(
    "UPDATE steps SET state = 'scheduled', lease_owner = NULL, lease_expires_at_us = NULL, due_at_us = NULL, "
    "publish_at_us = paidonce_now() + :redeliver, publish_count = 0 "
    "WHERE run_id = :run_id AND position = :position AND attempt = :attempt AND state = 'running' "
    "RETURNING name, agent, queue, priority"
)
_HAND_BACK_ATTEMPT = text(
    "UPDATE attempts SET outcome = 'cancelled', ended_at_us = paidonce_now(), error = :error "
    "WHERE run_id = :run_id AND position = :position AND number = :attempt AND outcome IS NULL"
)


def renew_leases(
    connection: Connection, *, worker: str, held: Sequence[LeaseKey], lease_us: int
) -> dict[LeaseKey, str]:
    """Renew all leases of this process in one statement; returns the state of each step that is still its own.

    A lease that is missing from the answer has been taken back. One that says
    ``cancelled`` belongs to a step whose body should be stopped; ``unknown`` is an
    at-most-once step that was given up and whose late end is still welcome.
    """
    if not held:
        return {}
    rows = connection.execute(
        _RENEW_STATEMENTS[connection.dialect.name],
        {
            "held": json.dumps([[key.run_id, key.position, key.attempt] for key in held]),
            "worker": worker,
            "lease_us": lease_us,
        },
    ).all()
    return {LeaseKey(row.run_id, row.position, row.attempt): row.state for row in rows}


def hand_back(
    connection: Connection, key: LeaseKey, *, reason: str, redeliver_us: int = 1_000_000
) -> StepMessage | None:
    """Give a running step back unfinished: it counts neither as failed nor as lost. Guarded by the attempt."""
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


_DEFER = text(
    "UPDATE steps SET publish_count = publish_count + 1, publish_at_us = paidonce_now() + :redeliver "
    "WHERE run_id = :run_id AND position = :position AND namespace = :namespace "
    "AND state IN ('scheduled', 'retrying') RETURNING name, agent, queue, priority, publish_count, namespace"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Deferred:
    """A step whose message came to a worker that does not hold its code; ``bounces`` counts how often."""

    message: StepMessage
    namespace: str
    bounces: int


def defer_step(
    connection: Connection, *, namespace: str, run_id: str, position: int, redeliver_us: int
) -> Deferred | None:
    """Put off the step's next message; no attempt is made. ``None`` where the namespace has nothing to run there."""
    key = {"namespace": namespace, "run_id": run_id, "position": position}
    row = connection.execute(_DEFER, {**key, "redeliver": redeliver_us}).first()
    if row is None:
        return None
    message = StepMessage(
        run_id=run_id, position=position, name=row.name, agent=row.agent, queue=row.queue, priority=row.priority
    )
    return Deferred(message=message, namespace=row.namespace, bounces=row.publish_count)


_UNKNOWN_STEP = text(
    "UPDATE steps SET state = 'unknown', lease_owner = NULL, lease_expires_at_us = NULL, error = :error "
    "WHERE run_id = :run_id AND position = :position AND attempt = :attempt AND state = 'running'"
)
_UNKNOWN_ATTEMPT = text(
    "UPDATE attempts SET outcome = 'timed_out', ended_at_us = paidonce_now(), error = :error "
    "WHERE run_id = :run_id AND position = :position AND number = :attempt AND outcome IS NULL"
)
_WAIT_FOR_PERSON = text(
    "UPDATE runs SET state = 'waiting', state_reason = 'unknown_outcome' WHERE id = :run_id AND state = 'running' "
    "AND EXISTS (SELECT 1 FROM steps WHERE run_id = :run_id AND position = :position AND attempt = :attempt "
    "AND state = 'running')"
)


def mark_unknown(connection: Connection, key: LeaseKey, *, error: dict[str, object]) -> bool:
    """An at-most-once step ran out of time: nobody knows what it did; the run waits for a person."""
    parameters = {
        "run_id": key.run_id,
        "position": key.position,
        "attempt": key.attempt,
        "error": json.dumps(error),
    }
    # The run first, in the order of locks; guarded as the step is, or a superseded attempt would stop the run.
    connection.execute(_WAIT_FOR_PERSON, parameters)
    if connection.execute(_UNKNOWN_STEP, parameters).rowcount != 1:
        return False
    connection.execute(_UNKNOWN_ATTEMPT, parameters)
    release(connection, run_id=key.run_id, position=key.position, attempt=key.attempt, accepted=False)
    return True

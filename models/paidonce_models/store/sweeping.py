"""What the sweeper does: lead, publish again, fire timers, take back what vanished workers held.

``take_back`` and ``fire_timer`` each handle one step or run in its own
transaction, so that one stuck row never stops the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, text

from paidonce_models.store.events import REDELIVER_AFTER_US, EventKind, allocate_seq, insert_event
from paidonce_models.store.leases import LeaseKey
from paidonce_models.store.messages import AdvanceMessage, Message, StepMessage
from paidonce_models.store.spending import release

_LEAD = text(
    "INSERT INTO sweeps (namespace, shard, leader, lease_expires_at_us, swept_at_us) "
    "VALUES (:namespace, :shard, :leader, paidonce_now() + :lease_us, paidonce_now()) "
    "ON CONFLICT (namespace, shard) DO UPDATE SET leader = :leader, "
    "lease_expires_at_us = paidonce_now() + :lease_us, swept_at_us = paidonce_now() "
    "WHERE sweeps.leader = :leader OR sweeps.lease_expires_at_us < paidonce_now() RETURNING leader"
)
_RESIGN = text("UPDATE sweeps SET lease_expires_at_us = 0 WHERE namespace = :namespace AND leader = :leader")


def lead(connection: Connection, *, namespace: str, shard: int, leader: str, lease_us: int) -> bool:
    """Take or keep the lead of a shard; False while another sweeper's lease is alive."""
    row = connection.execute(
        _LEAD, {"namespace": namespace, "shard": shard, "leader": leader, "lease_us": lease_us}
    ).first()
    return row is not None


def resign(connection: Connection, *, namespace: str, leader: str) -> None:
    """Give up all leads of this sweeper."""
    connection.execute(_RESIGN, {"namespace": namespace, "leader": leader})


_BACK_OFF = "paidonce_now() + :redeliver * (CASE WHEN publish_count < 5 THEN 1 ELSE 4 END) * (publish_count + 1)"
_DUE_STEPS = text(
    f"UPDATE steps SET publish_count = publish_count + 1, publish_at_us = {_BACK_OFF} "
    "WHERE (run_id, position) IN (SELECT run_id, position FROM steps WHERE shard = :shard AND namespace = :namespace "
    "AND publish_at_us <= paidonce_now() AND state IN ('scheduled', 'retrying') "
    "ORDER BY publish_at_us LIMIT :most{lock}) "
    "RETURNING run_id, position, name, agent, queue, priority, publish_count"
)
_DUE_RUNS = text(
    f"UPDATE runs SET publish_count = publish_count + 1, publish_at_us = {_BACK_OFF} "
    "WHERE id IN (SELECT id FROM runs WHERE shard = :shard AND namespace = :namespace "
    "AND publish_at_us <= paidonce_now() AND consumed_seq < last_seq "
    "AND state NOT IN ('succeeded', 'failed', 'cancelled', 'blocked') ORDER BY publish_at_us LIMIT :most{lock}) "
    "RETURNING id, agent, queue, priority, publish_count"
)


def _dialected(statement: object) -> dict[str, object]:
    source = str(statement)
    return {
        "postgresql": text(source.replace("{lock}", " FOR UPDATE SKIP LOCKED")),
        "sqlite": text(source.replace("{lock}", "")),
    }


_DUE_STEP_STATEMENTS = _dialected(_DUE_STEPS)
_DUE_RUN_STATEMENTS = _dialected(_DUE_RUNS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """A message to publish again, and how often it was published by a sweeper before."""

    message: Message
    repeats: int


def take_due(connection: Connection, *, namespace: str, shard: int, most: int = 500) -> list[Due]:
    """What is due and unclaimed, to be published (again); each with a back-off of its own."""
    parameters = {"namespace": namespace, "shard": shard, "most": most, "redeliver": REDELIVER_AFTER_US}
    dialect = connection.dialect.name
    runs = connection.execute(_DUE_RUN_STATEMENTS[dialect], parameters).all()  # type: ignore[call-overload]
    steps = connection.execute(_DUE_STEP_STATEMENTS[dialect], parameters).all()  # type: ignore[call-overload]
    due = [
        Due(
            message=AdvanceMessage(run_id=row.id, agent=row.agent, queue=row.queue, priority=row.priority),
            repeats=row.publish_count - 1,
        )
        for row in runs
    ]
    return due + [
        Due(
            message=StepMessage(
                run_id=row.run_id,
                position=row.position,
                name=row.name,
                agent=row.agent,
                queue=row.queue,
                priority=row.priority,
            ),
            repeats=row.publish_count - 1,
        )
        for row in steps
    ]


_DUE_TIMERS = text(
    "SELECT id, agent, queue, priority, wake_at_us - paidonce_now() AS due_in_us FROM runs "
    "WHERE shard = :shard AND namespace = :namespace "
    "AND wake_at_us <= paidonce_now() + :ahead_us AND state NOT IN ('succeeded', 'failed', 'cancelled', 'blocked') "
    "ORDER BY wake_at_us LIMIT :most"
)
_FIRE = text(
    "UPDATE runs SET last_seq = last_seq + 1, wake_at_us = NULL, publish_at_us = paidonce_now() + :redeliver, "
    "publish_count = 0 WHERE id = :run_id AND wake_at_us <= paidonce_now() "
    "AND state NOT IN ('succeeded', 'failed', 'cancelled', 'blocked') "
    "RETURNING last_seq, namespace, agent, queue, priority"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DueTimer:
    """A run whose earliest timer is due, in ``due_in_us`` microseconds (negative: since then)."""

    run_id: str
    due_in_us: int


def due_timers(
    connection: Connection, *, namespace: str, shard: int, ahead_us: int = 0, most: int = 1000
) -> list[DueTimer]:
    """Runs whose earliest timer is due within ``ahead_us``."""
    rows = connection.execute(
        _DUE_TIMERS, {"namespace": namespace, "shard": shard, "ahead_us": ahead_us, "most": most}
    ).all()
    return [DueTimer(run_id=row.id, due_in_us=int(row.due_in_us)) for row in rows]


def fire_timer(connection: Connection, run_id: str) -> AdvanceMessage | None:
    """Append a timer event if the run's earliest timer is due by the store's clock; guarded by ``wake_at_us``."""
    row = connection.execute(_FIRE, {"run_id": run_id, "redeliver": REDELIVER_AFTER_US}).first()
    if row is None:
        return None
    insert_event(connection, namespace=row.namespace, run_id=run_id, seq=int(row.last_seq), kind=EventKind.TIMER)
    return AdvanceMessage(run_id=run_id, agent=row.agent, queue=row.queue, priority=row.priority)


_EXPIRED = text(
    "SELECT run_id, position, attempt FROM steps WHERE shard = :shard AND namespace = :namespace "
    "AND lease_expires_at_us < paidonce_now() AND (lease_expires_at_us < paidonce_now() - :frozen_us "
    "OR lease_owner IS NULL OR lease_owner NOT IN :living) ORDER BY lease_expires_at_us LIMIT :most"
).bindparams(bindparam("living", expanding=True))
_LOCK_RUN = text("SELECT id FROM runs WHERE id = :run_id FOR UPDATE")
_BLAMED = "(blamed + CAST(:alone AS INTEGER))"
_TAKE_BACK = text(
    "UPDATE steps SET lost = lost + CASE WHEN state = 'running' THEN 1 ELSE 0 END, "
    f"blamed = CASE WHEN state = 'running' THEN {_BLAMED} ELSE blamed END, "
    "state = CASE WHEN state <> 'running' THEN state WHEN delivery = 'at_most_once' THEN 'unknown' "
    f"WHEN {_BLAMED} >= max_lost THEN 'failed' ELSE 'scheduled' END, lease_expires_at_us = NULL, "
    "lease_owner = CASE WHEN state = 'running' AND delivery = 'at_most_once' THEN lease_owner ELSE NULL END, "
    "due_at_us = NULL, publish_count = 0, "
    f"publish_at_us = CASE WHEN state = 'running' AND delivery <> 'at_most_once' AND {_BLAMED} < max_lost "
    "THEN paidonce_now() + :redeliver ELSE NULL END, "
    f"finished_at_us = CASE WHEN state = 'running' AND delivery <> 'at_most_once' AND {_BLAMED} >= max_lost "
    "THEN paidonce_now() ELSE finished_at_us END "
    "WHERE run_id = :run_id AND position = :position AND attempt = :attempt "
    "AND (lease_expires_at_us < paidonce_now() OR CAST(:anyway AS INTEGER) = 1) "
    "AND lease_owner = coalesce(CAST(:owner AS VARCHAR), lease_owner) "
    "RETURNING state, lost, blamed, name, agent, queue, priority, namespace, root_run_id"
)
_LOSE = text(
    "UPDATE attempts SET outcome = 'lost', ended_at_us = paidonce_now(), error = :error "
    "WHERE run_id = :run_id AND position = :position AND number = :attempt AND outcome IS NULL"
)
_FAIL_STEP = text("UPDATE steps SET error = :error WHERE run_id = :run_id AND position = :position")
_WAIT_FOR_PERSON = text(
    "UPDATE runs SET state = 'waiting', state_reason = 'unknown_outcome' WHERE id = :run_id AND state = 'running'"
)
_AVOID = text(
    "INSERT INTO avoided (run_id, position, attempt, namespace, root_run_id, agent, reason, steps, calls, "
    "unpriced_calls, input_tokens, output_tokens, cost_nanousd, recorded_at_us) "
    "SELECT CAST(:run_id AS VARCHAR), CAST(:position AS INTEGER), CAST(:attempt AS INTEGER), :namespace, :root_run_id, "
    ":agent, 'lost', count(*), "
    "coalesce(sum(calls), 0), coalesce(sum(unpriced_calls), 0), sum(input_tokens), sum(output_tokens), "
    "sum(cost_nanousd), paidonce_now() FROM attempts WHERE run_id = :run_id AND outcome = 'accepted' "
    "ON CONFLICT (run_id, position, attempt) DO NOTHING"
)


def expired_leases(
    connection: Connection,
    *,
    namespace: str,
    shard: int,
    living: Sequence[str] = (),
    frozen_us: int = 0,
    most: int = 500,
) -> Sequence[LeaseKey]:
    """Steps whose lease has run out by the store's clock, and for ``living`` workers ``frozen_us`` longer than that.

    A process that lives and does not renew its leases computes or is stopped: it may come back and report.
    """
    parameters = {"namespace": namespace, "shard": shard, "living": [*living, ""], "frozen_us": frozen_us, "most": most}
    rows = connection.execute(_EXPIRED, parameters).all()
    return [LeaseKey(row.run_id, row.position, row.attempt) for row in rows]


_SHARING = text(
    "SELECT s.run_id, s.position, s.attempt, (SELECT count(*) FROM steps o WHERE o.namespace = s.namespace "
    "AND o.lease_expires_at_us IS NOT NULL AND o.lease_owner = s.lease_owner) AS held, s.lease_owner "
    "FROM steps s WHERE s.run_id = :run_id AND s.position = :position AND s.attempt = :attempt"
)


def company_of(connection: Connection, key: LeaseKey) -> tuple[str, int]:
    """Who holds the step and how many leases that process holds in all; ``("", 0)`` where nobody does."""
    row = connection.execute(_SHARING, {"run_id": key.run_id, "position": key.position, "attempt": key.attempt}).first()
    return ("", 0) if row is None or row.lease_owner is None else (str(row.lease_owner), int(row.held))


def take_back(
    connection: Connection, key: LeaseKey, *, why: str, alone: bool, anyway: bool = False, owner: str | None = None
) -> Message | None:
    """Declare an attempt lost and schedule its step again; returns the message to publish.

    Guarded by the attempt's number and the lease's expiry. ``anyway`` skips the
    expiry: the executing process is known to be dead; ``owner`` is that process,
    if nobody else may hold the lease by now. ``alone``: the step was all
    that its process ran, or it is known to have killed it. Only such a loss
    counts against the step, for among several nobody knows which one it was;
    after ``max_lost`` of them the step fails and the agent is told. Writes what
    this recovery avoids.
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

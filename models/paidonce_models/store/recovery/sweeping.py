"""Statements of the sweeper: leader election, republishing what is due, firing timers.

``fire_timer`` handles one run in its own transaction, so that one stuck row never stops the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, TextClause, text

from paidonce_models.states import RunState
from paidonce_models.store.messages import AdvanceMessage, Message, StepMessage
from paidonce_models.store.runs.events import REDELIVER_AFTER_US, EventKind, insert_event
from paidonce_models.store.state_guards import (
    run_is_open,
    step_is_claimable,
)

# Leader election. Sweepers that find the lease expired race for one row; the second waits for its lock, finds the
# lease renewed and gets no row back.
_LEAD = text(
    "INSERT INTO sweeps (namespace, shard, leader, lease_expires_at_us, swept_at_us) "
    "VALUES (:namespace, :shard, :leader, paidonce_now() + :lease_us, paidonce_now()) "
    "ON CONFLICT (namespace, shard) DO UPDATE SET leader = :leader, "
    "lease_expires_at_us = paidonce_now() + :lease_us, swept_at_us = paidonce_now() "
    "WHERE sweeps.leader = :leader OR sweeps.lease_expires_at_us < paidonce_now() RETURNING leader"
)
_RESIGN = text("UPDATE sweeps SET lease_expires_at_us = 0 WHERE namespace = :namespace AND leader = :leader")


def lead(connection: Connection, *, namespace: str, shard: int, leader: str, lease_us: int) -> bool:
    """Become or stay the leader of a shard; False while another sweeper's lease is valid."""
    row = connection.execute(
        _LEAD, {"namespace": namespace, "shard": shard, "leader": leader, "lease_us": lease_us}
    ).first()
    return row is not None


def resign(connection: Connection, *, namespace: str, leader: str) -> None:
    """Give up this sweeper's leadership of all shards."""
    connection.execute(_RESIGN, {"namespace": namespace, "leader": leader})


_MAY_GO_ON = run_is_open("runs.state", but=[RunState.BLOCKED])
_BACK_OFF = "paidonce_now() + :redeliver * (CASE WHEN publish_count < 5 THEN 1 ELSE 4 END) * (publish_count + 1)"
# Sweepers race with each other and with claims. A locked row is being worked on and is skipped; a row that is taken
# gets its next due time in the same statement, so that no other sweeper sends it meanwhile.
_DUE_STEPS = (
    f"UPDATE steps SET publish_count = publish_count + 1, publish_at_us = {_BACK_OFF} "
    "WHERE (run_id, position) IN (SELECT run_id, position FROM steps WHERE shard = :shard AND namespace = :namespace "
    f"AND publish_at_us <= paidonce_now() AND {step_is_claimable('steps.state')} "
    "ORDER BY publish_at_us LIMIT :most{lock}) "
    "RETURNING run_id, position, name, agent, queue, priority, publish_count"
)
_DUE_RUNS = (
    f"UPDATE runs SET publish_count = publish_count + 1, publish_at_us = {_BACK_OFF} "
    "WHERE id IN (SELECT id FROM runs WHERE shard = :shard AND namespace = :namespace "
    "AND publish_at_us <= paidonce_now() AND consumed_seq < last_seq "
    f"AND {_MAY_GO_ON} ORDER BY publish_at_us LIMIT :most{{lock}}) "
    "RETURNING id, agent, queue, priority, publish_count"
)


def _dialected(source: str) -> dict[str, TextClause]:
    return {
        "postgresql": text(source.replace("{lock}", " FOR UPDATE SKIP LOCKED")),
        "sqlite": text(source.replace("{lock}", "")),
    }


_DUE_STEP_STATEMENTS = _dialected(_DUE_STEPS)
_DUE_RUN_STATEMENTS = _dialected(_DUE_RUNS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """A message to publish again, and how often a sweeper published it before."""

    message: Message
    repeats: int


def take_due(connection: Connection, *, namespace: str, shard: int, most: int = 500) -> list[Due]:
    """What is due and unclaimed, to be published (again); each message has its own backoff."""
    parameters = {"namespace": namespace, "shard": shard, "most": most, "redeliver": REDELIVER_AFTER_US}
    dialect = connection.dialect.name
    runs = connection.execute(_DUE_RUN_STATEMENTS[dialect], parameters).all()
    steps = connection.execute(_DUE_STEP_STATEMENTS[dialect], parameters).all()
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
    f"AND wake_at_us <= paidonce_now() + :ahead_us AND {_MAY_GO_ON} "
    "ORDER BY wake_at_us LIMIT :most"
)
# Races with an advance, which may have set another timer or none: the time is compared again under the row's lock.
_FIRE = text(
    "UPDATE runs SET last_seq = last_seq + 1, wake_at_us = NULL, publish_at_us = paidonce_now() + :redeliver, "
    "publish_count = 0 WHERE id = :run_id AND wake_at_us <= paidonce_now() "
    f"AND {_MAY_GO_ON} "
    "RETURNING last_seq, namespace, agent, queue, priority"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DueTimer:
    """A run whose earliest timer is due, in ``due_in_us`` microseconds (negative: overdue)."""

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

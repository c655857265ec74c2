"""Statements on the processes that execute steps: which are alive, which are dead, and what the dead ones held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select, text

from paidonce_models.liveness.server_locks import SERVER_IDENTITY
from paidonce_models.states import RunState, StepState
from paidonce_models.store.columns import Step, col
from paidonce_models.store.runs.events import REDELIVER_AFTER_US
from paidonce_models.store.state_guards import run_is_open, step_is, step_is_claimable
from paidonce_models.store.steps.leases import LeaseKey


@dataclass(frozen=True, kw_only=True, slots=True)
class NewWitness:
    """What a process records about itself; ``lock_key`` and ``server`` if it holds an advisory lock."""

    worker: str
    namespace: str
    member_of: str
    place: str
    pid: int
    started: str
    lock_key: int | None = None
    server: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WitnessRow:
    """A process as others see it.

    ``lock_is_held`` is ``None`` if the lock proves nothing: there is none, or it was taken on another server. ``held``
    counts the steps that the process held when its death was detected; ``None`` before that.
    """

    worker: str
    member_of: str
    place: str
    pid: int
    started: str
    lock_is_held: bool | None
    held: int | None


_RECORD = text(
    "INSERT INTO witnesses "
    "(worker, namespace, member_of, place, pid, started, lock_key, server, since_us, seen_at_us, held) "
    "VALUES (:worker, :namespace, :member_of, :place, :pid, :started, :lock_key, :server, paidonce_now(), "
    "paidonce_now(), 0) "
    # A process that records that it is alive is not dead, whatever others have concluded.
    "ON CONFLICT (worker) DO UPDATE SET lock_key = :lock_key, server = :server, seen_at_us = paidonce_now(), "
    "died_at_us = NULL, held = 0"
)
_READ = (
    "SELECT w.worker, w.member_of, w.place, w.pid, w.started, {lock} AS lock_is_held, "
    "CASE WHEN w.died_at_us IS NULL THEN NULL ELSE w.held END AS held FROM witnesses w{locks} "
    "WHERE w.namespace = :namespace AND (w.place = :place OR CAST(:everywhere AS INTEGER) = 1 "
    "OR w.worker IN (SELECT leader FROM sweeps WHERE sweeps.namespace = :namespace))"
)
_READ_STATEMENTS = {
    "sqlite": text(_READ.format(lock="NULL", locks="")),
    # A lock on a bigint is listed in halves. Joined once: a subquery per row would read all locks each time.
    "postgresql": text(
        _READ.format(
            lock=f"CASE WHEN w.lock_key IS NULL OR w.server <> {SERVER_IDENTITY} THEN NULL "
            "ELSE l.objid IS NOT NULL END",
            locks=" LEFT JOIN (SELECT DISTINCT CAST(CAST(classid AS BIGINT) * 4294967296 + CAST(objid AS BIGINT) "
            "AS BIGINT) AS key, objid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted "
            "AND CAST(classid AS BIGINT) < 2147483648 "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) l ON l.key = w.lock_key",
        )
    ),
}
_LEASED = "lease_owner = :worker AND lease_expires_at_us IS NOT NULL"
# Several processes see the same death. The first one's count is kept, so that all agree on whether a step was alone.
_MARK_DEAD = text(
    "UPDATE witnesses SET died_at_us = paidonce_now(), "
    f"held = (SELECT count(*) FROM steps WHERE {_LEASED} AND {step_is(StepState.RUNNING)}) "
    "WHERE worker = :worker AND died_at_us IS NULL"
)
_HELD = text("SELECT held FROM witnesses WHERE worker = :worker AND died_at_us IS NOT NULL")
_LEASES = (
    select(col(Step.run_id), col(Step.position), col(Step.attempt))
    .where(col(Step.lease_owner) == bindparam("worker"), col(Step.lease_expires_at_us).is_not(None))
    .order_by(col(Step.run_id), col(Step.position))
)
# Not while steps are leased to it: they are found and reclaimed through this row.
_FORGET = text(
    "DELETE FROM witnesses WHERE worker = :worker AND died_at_us IS NOT NULL "
    f"AND NOT EXISTS (SELECT 1 FROM steps WHERE {_LEASED})"
)
_FORGET_SILENT = text(
    "DELETE FROM witnesses WHERE namespace = :namespace AND seen_at_us < paidonce_now() - :after_us "
    "AND NOT EXISTS (SELECT 1 FROM steps WHERE steps.lease_owner = witnesses.worker "
    "AND steps.lease_expires_at_us IS NOT NULL)"
)
# Not only first messages: if processes die one after the other, each may take the messages with it that were sent again
# after the previous death. But only a few times, so that deaths do not fill the queues with copies of a backlog.
_HASTEN = (
    "UPDATE {table} SET publish_at_us = paidonce_now() WHERE {key} IN (SELECT {columns} FROM {table} "
    "WHERE namespace = :namespace AND publish_at_us > paidonce_now() "
    "AND publish_at_us <= paidonce_now() + 5 * :redeliver AND publish_count < 5 AND {waits} "
    "ORDER BY publish_at_us LIMIT 1000{lock})"
)
_RUNS = {
    "table": "runs",
    "key": "id",
    "columns": "id",
    "waits": f"consumed_seq < last_seq AND {run_is_open(but=[RunState.BLOCKED])}",
}
_STEPS = {
    "table": "steps",
    "key": "(run_id, position)",
    "columns": "run_id, position",
    "waits": f"{step_is_claimable()} AND (due_at_us IS NULL OR due_at_us <= paidonce_now())",
}
# A locked row is being worked on and needs no message. Skipping it also means that transactions which take these rows
# in different orders cannot deadlock.
_HASTEN_STATEMENTS = {
    dialect: tuple(text(_HASTEN.format(**of, lock=lock)) for of in (_RUNS, _STEPS))
    for dialect, lock in (("sqlite", ""), ("postgresql", " FOR UPDATE SKIP LOCKED"))
}


def record_witness(connection: Connection, witness: NewWitness) -> None:
    """Record that this process is alive and how others can tell; called again whenever its lock changes."""
    connection.execute(
        _RECORD,
        {
            "worker": witness.worker,
            "namespace": witness.namespace,
            "member_of": witness.member_of,
            "place": witness.place,
            "pid": witness.pid,
            "started": witness.started,
            "lock_key": witness.lock_key,
            "server": witness.server,
        },
    )


def read_witnesses(connection: Connection, *, namespace: str, place: str, everywhere: bool) -> list[WitnessRow]:
    """The processes of this place and the leaders of the sweeping; with ``everywhere``, those of all places."""
    rows = connection.execute(
        _READ_STATEMENTS[connection.dialect.name],
        {"namespace": namespace, "place": place, "everywhere": 1 if everywhere else 0},
    )
    return [
        WitnessRow(
            worker=row.worker,
            member_of=row.member_of,
            place=row.place,
            pid=row.pid,
            started=row.started,
            lock_is_held=None if row.lock_is_held is None else bool(row.lock_is_held),
            held=row.held,
        )
        for row in rows
    ]


def mark_dead(connection: Connection, worker: str) -> int | None:
    """Record that a process has ended; returns how many steps it held then, ``None`` if it has recorded that it lives.

    The number is written once: several watchers that detect the death at once must agree on whether a step was alone.
    """
    connection.execute(_MARK_DEAD, {"worker": worker})
    held = connection.execute(_HELD, {"worker": worker}).scalar_one_or_none()
    return None if held is None else int(held)


def leases_of(connection: Connection, worker: str) -> Sequence[LeaseKey]:
    """The leases that a process still holds."""
    found = connection.execute(_LEASES, {"worker": worker})
    return [LeaseKey(run_id, position, attempt) for run_id, position, attempt in found]


def forget_witness(connection: Connection, worker: str) -> bool:
    """Delete the row of a dead process without leases; False if there is nothing to delete yet."""
    return connection.execute(_FORGET, {"worker": worker}).rowcount == 1


def forget_silent_witnesses(connection: Connection, namespace: str, *, after_us: int) -> None:
    """Delete the rows of processes that were silent for so long and hold nothing."""
    connection.execute(_FORGET_SILENT, {"namespace": namespace, "after_us": after_us})


def hasten_messages(connection: Connection, namespace: str) -> None:
    """Make recently published messages due now: a dead process may have taken them from the broker.

    The next sweep sends those again that are no longer in their queues.
    """
    for statement in _HASTEN_STATEMENTS[connection.dialect.name]:
        connection.execute(statement, {"namespace": namespace, "redeliver": REDELIVER_AFTER_US})

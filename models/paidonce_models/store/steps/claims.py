"""Claims a step: the lease, the next attempt number (the fence) and the attempt's row, in one commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from paidonce_models.payloads.documents import Encoded
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.states import StepState
from paidonce_models.store.payload_rows import read_payload, row_or_none
from paidonce_models.store.state_guards import step_is, step_is_claimable
from paidonce_models.store.steps.suspicion import IS_SUSPECT, Suspect


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimant:
    """Who takes a lease, on runs of which namespace, and for how long."""

    namespace: str
    worker: str
    lease_us: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A step that this worker now holds. ``claimed_at_us`` is the store's clock at the claim."""

    run_id: str
    position: int
    attempt: int
    namespace: str
    root_run_id: str
    agent: str
    kind: str
    name: str
    queue: str
    priority: int
    lost: int
    failed: int
    claimed_at_us: int
    consumed_seq: int
    """The run's ``consumed_seq`` at the claim."""
    elapsed_us: int
    """Since the step's first claim, without parked time."""
    arguments: Encoded
    blamed: int = 0
    """How many of the ``lost`` attempts are blamed on the step."""
    has_reservations: bool = False
    """Whether budgets apply: whatever ends this attempt must release its reservations."""


# In two parts, so that the lineage is not read if there are no budgets at all.
_IN_FORCE = "SELECT 1 FROM budgets WHERE budgets.namespace = runs.namespace AND budgets.replaced_at_us IS NULL"
HAS_BUDGETS = {
    "postgresql": "paidonce_has_budgets(runs.namespace, runs.lineage)",
    "sqlite": f"(CASE WHEN EXISTS ({_IN_FORCE}) THEN EXISTS ({_IN_FORCE} AND budgets.subject IN "
    "(SELECT json_extract(value, '$[0]') FROM json_each(runs.lineage))) ELSE 0 END)",
}
"""Whether a budget applies to a row of ``runs``. A claim must then reserve first: see ``budgeted_claims``."""

CLAIMABLE = (
    "steps.run_id = :run_id AND steps.position = :position AND steps.namespace = :namespace "
    f"AND {step_is_claimable('steps.state')} AND steps.kind <> 'agent' "
    "AND (steps.due_at_us IS NULL OR steps.due_at_us <= paidonce_now())"
)
# Two deliveries, or two workers, race for one step. The second waits for the row's lock and finds the step running.
# The attempt's number, counted up here, is the fence: a report of an earlier attempt matches no guard from now on.
_CLAIM = (
    "UPDATE steps SET state = 'running', attempt = attempt + 1, lease_owner = :worker, "
    "lease_expires_at_us = paidonce_now() + :lease_us, publish_at_us = NULL, "
    "started_at_us = coalesce(started_at_us, paidonce_now()) "
    f"WHERE {CLAIMABLE}{{unless}} "
    "RETURNING run_id, position, attempt, namespace, root_run_id, agent, kind, name, queue, priority, lost, failed, "
    "blamed, args_id, lease_expires_at_us - :lease_us AS claimed_at_us, "
    "(SELECT consumed_seq FROM runs WHERE runs.id = steps.run_id) AS consumed_seq, "
    "paidonce_now() - started_at_us - parked_us AS elapsed_us"
)
# The claim itself checks: a budget may have been set after the caller read the run, and then attempts must reserve.
_UNLESS_BUDGETED = {
    dialect: f" AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.id = steps.run_id AND {has_budgets})"
    for dialect, has_budgets in HAS_BUDGETS.items()
}
_ATTEMPT_COLUMNS = (
    "run_id, position, number, namespace, root_run_id, agent, step, worker, claimed_at_us, calls, unpriced_calls"
)
_UNLESS_SUSPECT = {True: "", False: f" AND NOT {IS_SUSPECT}"}
"""By whether the claimant also takes suspects."""
_TAKE_LEASE = {
    (dialect, suspects): text(_CLAIM.format(unless=unless_suspect + unless))
    for dialect, unless in _UNLESS_BUDGETED.items()
    for suspects, unless_suspect in _UNLESS_SUSPECT.items()
}
_TAKE_RESERVED_LEASE = text(_CLAIM.format(unless=""))
_INSERT_ATTEMPT = text(
    f"INSERT INTO attempts ({_ATTEMPT_COLUMNS}) VALUES (:run_id, :position, :attempt, :namespace, :root_run_id, "
    ":agent, :name, :worker, :claimed_at_us, 0, 0)"
)
_PAYLOAD = text("SELECT codec, inline FROM payloads WHERE namespace = :namespace AND id = :id")
# One statement that commits by itself: there is no lease without the attempt's row, which records what it spends.
_CLAIM_AT_ONCE = {
    suspects: text(
        f"WITH claimed AS ({_CLAIM.format(unless=unless_suspect + _UNLESS_BUDGETED['postgresql'])}), "
        f"opened AS (INSERT INTO attempts ({_ATTEMPT_COLUMNS}) "
        "SELECT run_id, position, attempt, namespace, root_run_id, agent, name, :worker, claimed_at_us, 0, 0 "
        "FROM claimed) "
        "SELECT claimed.*, payloads.codec, payloads.inline FROM claimed "
        "LEFT JOIN payloads ON payloads.namespace = claimed.namespace AND payloads.id = claimed.args_id"
    )
    for suspects, unless_suspect in _UNLESS_SUSPECT.items()
}
_FIND_SUSPECT = text(f"SELECT lost, blamed FROM steps WHERE {CLAIMABLE} AND {IS_SUSPECT}")


def claim_step(
    connection: Connection,
    *,
    namespace: str,
    run_id: str,
    position: int,
    worker: str,
    lease_us: int,
    suspects: bool = True,
    memory: PayloadMemory | None = None,
) -> Claim | None:
    """Claim the step, or return ``None`` if it is finished, held, cancelled, not yet due or has a budget.

    Guard: only a step of the namespace that is scheduled or retrying and due is claimed, and its row's lock makes the
    second of two racing claims see it running. The ids come from a message, which anyone may have sent: a step of
    another namespace is for its owners to execute, with their code and keys. A step whose run has a budget is left to
    ``claim_within_budgets``. ``suspects`` False: a step that may kill whoever runs it is also left, to those that
    isolate it.
    """
    parameters: dict[str, Any] = {"namespace": namespace, "run_id": run_id, "position": position}
    parameters |= {"worker": worker, "lease_us": lease_us}
    if connection.dialect.name == "postgresql":
        row = connection.execute(_CLAIM_AT_ONCE[suspects], parameters).first()
        if row is None:
            return None
        joined = row_or_none(row)
    else:
        row = take_lease(connection, **parameters, suspects=suspects)
        if row is None:
            return None
        payload = connection.execute(_PAYLOAD, {"namespace": row.namespace, "id": row.args_id}).first()
        joined = None if payload is None else row_or_none(payload)
    return claim_of(connection, row, joined, memory)


_FIND = text(
    "SELECT run_id, position, attempt, namespace, root_run_id, agent, kind, name, queue, priority, lost, failed, "
    "blamed, args_id, paidonce_now() AS claimed_at_us, paidonce_now() - started_at_us - parked_us AS elapsed_us, "
    "(SELECT consumed_seq FROM runs WHERE runs.id = steps.run_id) AS consumed_seq, "
    "(SELECT count(*) FROM reservations r WHERE r.run_id = steps.run_id AND r.position = steps.position "
    "AND r.attempt = steps.attempt) AS reservations "
    f"FROM steps WHERE run_id = :run_id AND lease_owner = :worker AND {step_is(StepState.RUNNING)} ORDER BY position"
)


def find_suspect(connection: Connection, *, namespace: str, run_id: str, position: int) -> Suspect | None:
    """Why a claimable step is left to those that isolate it; ``None`` if it is not."""
    key = {"namespace": namespace, "run_id": run_id, "position": position}
    row = connection.execute(_FIND_SUSPECT, key).first()
    return None if row is None else Suspect(lost=row.lost, blamed=row.blamed)


def find_claims(
    connection: Connection, *, run_id: str, worker: str, memory: PayloadMemory | None = None
) -> list[Claim]:
    """What a worker holds of a run: for a claim whose response was lost, so that its commit is in doubt."""
    rows = connection.execute(_FIND, {"run_id": run_id, "worker": worker}).all()
    return [claim_of(connection, row, None, memory, has_reservations=row.reservations > 0) for row in rows]


def claim_of(
    connection: Connection,
    row: Row[Any],
    joined: tuple[str, bytes] | None,
    memory: PayloadMemory | None,
    *,
    has_reservations: bool = False,
) -> Claim:
    """The claim of a step's row, with its arguments; ``joined`` is their payload's root if it was read."""
    prefetched = {row.args_id: joined} if joined is not None else None
    return Claim(
        run_id=row.run_id,
        position=row.position,
        attempt=row.attempt,
        namespace=row.namespace,
        root_run_id=row.root_run_id,
        agent=row.agent,
        kind=row.kind,
        name=row.name,
        queue=row.queue,
        priority=row.priority,
        lost=row.lost,
        failed=row.failed,
        blamed=row.blamed,
        claimed_at_us=int(row.claimed_at_us),
        consumed_seq=int(row.consumed_seq),
        elapsed_us=int(row.elapsed_us),
        arguments=read_payload(connection, row.namespace, row.args_id, prefetched=prefetched, memory=memory),
        has_reservations=has_reservations,
    )


def take_lease(
    connection: Connection,
    *,
    namespace: str,
    run_id: str,
    position: int,
    worker: str,
    lease_us: int,
    has_reserved: bool = False,
    suspects: bool = True,
) -> Row[tuple[Any, ...]] | None:
    """``claim_step`` without reading the arguments, within the caller's transaction.

    ``has_reserved``: the caller has checked the budgets in this transaction.
    """
    statement = _TAKE_RESERVED_LEASE if has_reserved else _TAKE_LEASE[connection.dialect.name, suspects]
    row = connection.execute(
        statement,
        {"namespace": namespace, "run_id": run_id, "position": position, "worker": worker, "lease_us": lease_us},
    ).first()
    if row is None:
        return None
    connection.execute(
        _INSERT_ATTEMPT,
        {
            "run_id": row.run_id,
            "position": row.position,
            "attempt": row.attempt,
            "namespace": row.namespace,
            "root_run_id": row.root_run_id,
            "agent": row.agent,
            "name": row.name,
            "worker": worker,
            "claimed_at_us": row.claimed_at_us,
        },
    )
    return row

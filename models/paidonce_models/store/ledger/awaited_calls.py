"""Calls whose usage is still to come: kept while an attempt polls for it, of unknown usage once the attempt is lost.

A background response costs money from its first response on, and reports how much in a later one. ``calls`` is never
edited, so such a call cannot be written before that. It is kept here instead, under its later id.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, text

from paidonce_models.store.ledger.call_rows import NewCalls, insert_calls_of
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_models.usage import CallKind, CallRecord, CallStatus, UsageSource

ENDED_LONG_AGO_US: Final = 600 * 1_000_000
"""A live process writes the late calls of an ended attempt with its next heartbeat; after this time it must be dead."""
SETTLED_AT_ONCE: Final = 500
CALLS_AT_ONCE: Final = 500
"""Ids per statement; SQLite accepts some thousands of parameters."""

# The run's row supplies the namespace. A cost may be reported while the usage is awaited, so a row is replaced.
_KEEP = text(
    "INSERT INTO awaited_calls (id, namespace, run_id, position, attempt, step, record, since_us) "
    "SELECT CAST(:id AS VARCHAR), namespace, id, CAST(:position AS INTEGER), CAST(:attempt AS INTEGER), "
    "CAST(:step AS VARCHAR), CAST(:record AS TEXT), paidonce_now() FROM runs WHERE id = :run_id "
    "ON CONFLICT (id) DO UPDATE SET record = excluded.record"
)
# Guarded by the ledger: the completion that holds the call may not be committed yet, and its worker may die before.
_FORGET_WRITTEN = text(
    "DELETE FROM awaited_calls WHERE id IN :ids AND EXISTS (SELECT 1 FROM calls WHERE calls.id = awaited_calls.id)"
).bindparams(bindparam("ids", expanding=True))
_STILL_KEPT = text("SELECT id FROM awaited_calls WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
_TAKE_OF_ATTEMPT = text(
    "DELETE FROM awaited_calls WHERE run_id = :run_id AND position = :position AND attempt = :attempt "
    "RETURNING step, record"
)
_LEFT_BEHIND = text(
    "SELECT DISTINCT w.run_id, w.position, w.attempt FROM awaited_calls w JOIN attempts a "
    "ON a.run_id = w.run_id AND a.position = w.position AND a.number = w.attempt "
    "WHERE w.namespace = :namespace AND a.outcome IS NOT NULL AND a.ended_at_us < paidonce_now() - :age_us LIMIT :most"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewAwaitedCall:
    """A call of one attempt whose usage is still to come; ``record`` has no tokens and no price."""

    key: LeaseKey
    step: str
    record: CallRecord


def keep_awaited(connection: Connection, awaited: Sequence[NewAwaitedCall]) -> None:
    """Insert these calls, or replace what is kept of them. Does nothing for runs that do not exist."""
    if awaited:
        connection.execute(_KEEP, [_row(each) for each in awaited])


def forget_written(connection: Connection, call_ids: Collection[str]) -> set[str]:
    """Delete those calls that the ledger has; returns which of all are not kept any more, whoever deleted them."""
    over: set[str] = set()
    asked = list(call_ids)
    for first in range(0, len(asked), CALLS_AT_ONCE):
        ids = asked[first : first + CALLS_AT_ONCE]
        connection.execute(_FORGET_WRITTEN, {"ids": ids})
        over |= {*ids} - {str(each) for each in connection.execute(_STILL_KEPT, {"ids": ids}).scalars()}
    return over


def settle_as_unknown(connection: Connection, key: LeaseKey) -> None:
    """The usage of this attempt's calls is no longer awaited: write what is known of them to the ledger.

    A call that the ledger already has is not written again.
    """
    found = connection.execute(
        _TAKE_OF_ATTEMPT, {"run_id": key.run_id, "position": key.position, "attempt": key.attempt}
    ).all()
    if found:
        new = NewCalls(
            run_id=key.run_id,
            position=key.position,
            attempt=key.attempt,
            step=found[0].step,
            records=[_record(row.record) for row in found],
        )
        insert_calls_of(connection, [new])


def settle_left_behind(connection: Connection, namespace: str) -> None:
    """``settle_as_unknown`` for attempts that ended long ago, in a process that died before its last heartbeat."""
    given = {"namespace": namespace, "age_us": ENDED_LONG_AGO_US, "most": SETTLED_AT_ONCE}
    for row in connection.execute(_LEFT_BEHIND, given).all():
        settle_as_unknown(connection, LeaseKey(row.run_id, row.position, row.attempt))


def _row(awaited: NewAwaitedCall) -> dict[str, object]:
    known = {name: value for name, value in asdict(awaited.record).items() if value is not None}
    return {
        "id": awaited.record.id,
        "run_id": awaited.key.run_id,
        "position": awaited.key.position,
        "attempt": awaited.key.attempt,
        "step": awaited.step,
        "record": json.dumps(known),
    }


def _record(stored: str) -> CallRecord:
    known: dict[str, Any] = json.loads(stored)
    known["kind"] = CallKind(known["kind"])
    known["usage_source"] = UsageSource(known["usage_source"])
    known["status"] = CallStatus(known["status"])
    return CallRecord(**known)

"""Every change of a circuit, recorded by the process that made it; for people who want to know what happened."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, select, text

from paidonce_models.ids import uuid7
from paidonce_models.instants import moment_of
from paidonce_models.store.columns import BreakerTransition, col, cols, rows_of

_INSERT = text(
    "INSERT INTO breaker_transitions (id, namespace, circuit, from_state, to_state, reason, worker, at_us) "
    "VALUES (:id, :namespace, :circuit, :from_state, :to_state, :reason, :worker, paidonce_now()) "
    "ON CONFLICT (id) DO NOTHING"
)
_READ = (
    select(
        *cols(BreakerTransition.circuit, BreakerTransition.from_state, BreakerTransition.to_state),
        *cols(BreakerTransition.reason, BreakerTransition.worker, BreakerTransition.at_us),
    )
    .where(col(BreakerTransition.namespace) == bindparam("namespace"))
    .order_by(col(BreakerTransition.at_us).desc(), col(BreakerTransition.id).desc())
    .limit(bindparam("most"))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransitionView:
    """One change of a circuit."""

    circuit: str
    from_state: str
    to_state: str
    reason: str
    worker: str
    at: datetime


def record_transition(
    connection: Connection, *, namespace: str, circuit: str, from_state: str, to_state: str, reason: str, worker: str
) -> None:
    """Append one; the store's clock dates it."""
    connection.execute(
        _INSERT,
        {
            "id": uuid7(),
            "namespace": namespace,
            "circuit": circuit,
            "from_state": from_state,
            "to_state": to_state,
            "reason": reason,
            "worker": worker,
        },
    )


def read_transitions(connection: Connection, namespace: str, *, most: int = 20) -> list[TransitionView]:
    """The newest changes first."""
    found = connection.execute(_READ, {"namespace": namespace, "most": most})
    return [
        TransitionView(
            circuit=row.circuit,
            from_state=row.from_state,
            to_state=row.to_state,
            reason=row.reason,
            worker=row.worker,
            at=moment_of(row.at_us),
        )
        for row in rows_of(BreakerTransition, found)
    ]

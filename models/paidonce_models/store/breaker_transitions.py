"""Every change of a circuit, as the process that made it tells the store; for people who ask what happened."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from paidonce_models.ids import uuid7
from paidonce_models.instants import moment_of

_INSERT = text(
    "INSERT INTO breaker_transitions (id, namespace, circuit, from_state, to_state, reason, worker, at_us) "
    "VALUES (:id, :namespace, :circuit, :from_state, :to_state, :reason, :worker, paidonce_now()) "
    "ON CONFLICT (id) DO NOTHING"
)
_READ = text(
    "SELECT circuit, from_state, to_state, reason, worker, at_us FROM breaker_transitions "
    "WHERE namespace = :namespace ORDER BY at_us DESC, id DESC LIMIT :most"
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
    return [
        TransitionView(
            circuit=row.circuit,
            from_state=row.from_state,
            to_state=row.to_state,
            reason=row.reason,
            worker=row.worker,
            at=moment_of(int(row.at_us)),
        )
        for row in connection.execute(_READ, {"namespace": namespace, "most": most})
    ]

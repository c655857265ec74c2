"""A run's event history: allocating a sequence number under the run's lock, appending, reading."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, text

from paidonce_models.payloads.documents import Encoded
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.store.payload_rows import read_payload, row_or_none
from paidonce_models.store.state_guards import run_is_open

REDELIVER_AFTER_US = 5_000_000
"""How long an unread event or an unclaimed step waits before the sweeper publishes its message again."""


class EventKind(StrEnum):
    """What can happen to a run."""

    STARTED = "started"
    STEP_SUCCEEDED = "step_succeeded"
    STEP_FAILED = "step_failed"
    TIMER = "timer"
    CANCEL = "cancel"


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One recorded input of a run. ``payload`` is a result's JSON, ``data`` small facts such as an error."""

    seq: int
    kind: EventKind
    recorded_at_us: int
    position: int | None = None
    attempts: int | None = None
    payload: Encoded | None = None
    data: dict[str, object] | None = None


# Writers of events race for numbers. Each number is allocated from the run's row, whose lock is held until the commit,
# so an event can be read only after all its predecessors. A run that has ended allocates none.
_ALLOCATE = text(
    "UPDATE runs SET last_seq = last_seq + 1, publish_at_us = paidonce_now() + :redeliver, publish_count = 0 "
    f"WHERE id = :run_id AND {run_is_open()} RETURNING last_seq, namespace"
)
_INSERT = text(
    "INSERT INTO run_events (run_id, seq, namespace, kind, position, attempts, payload_id, data, recorded_at_us) "
    "VALUES (:run_id, :seq, :namespace, :kind, :position, :attempts, :payload_id, :data, "
    "coalesce(:recorded_at_us, paidonce_now()))"
)
_READ = text(
    "SELECT e.seq, e.kind, e.position, e.attempts, e.payload_id, e.data, e.recorded_at_us, p.codec, p.inline "
    "FROM run_events e LEFT JOIN payloads p ON p.namespace = e.namespace AND p.id = e.payload_id "
    "WHERE e.run_id = :run_id AND e.seq > :after ORDER BY e.seq LIMIT :most"
)


def allocate_seq(connection: Connection, run_id: str) -> int | None:
    """Lock the run and allocate its next sequence number; ``None`` if the run has ended (then write no event)."""
    row = connection.execute(_ALLOCATE, {"run_id": run_id, "redeliver": REDELIVER_AFTER_US}).first()
    return None if row is None else int(row.last_seq)


def insert_event(
    connection: Connection,
    *,
    namespace: str,
    run_id: str,
    seq: int,
    kind: EventKind,
    position: int | None = None,
    attempts: int | None = None,
    payload_id: str | None = None,
    data: dict[str, object] | None = None,
    recorded_at_us: int | None = None,
) -> None:
    """Append the event under a number that this transaction allocated. ``recorded_at_us`` ``None``: the store's now."""
    connection.execute(
        _INSERT,
        {
            "run_id": run_id,
            "seq": seq,
            "namespace": namespace,
            "kind": kind.value,
            "position": position,
            "attempts": attempts,
            "payload_id": payload_id,
            "data": None if data is None else json.dumps(data),
            "recorded_at_us": recorded_at_us,
        },
    )


def read_events(
    connection: Connection,
    namespace: str,
    run_id: str,
    after: int,
    most: int = 10_000,
    memory: PayloadMemory | None = None,
) -> list[Event]:
    """The events after a sequence number, in order, with their payloads; at most ``most``."""
    rows = connection.execute(_READ, {"run_id": run_id, "after": after, "most": most}).all()
    return [event_of(connection, namespace, row, memory) for row in rows]


def event_of(connection: Connection, namespace: str, row: Row[Any], memory: PayloadMemory | None) -> Event:
    """The event from a row that is joined with its payload's root."""
    payload = None
    if row.payload_id is not None:
        joined = row_or_none(row)
        prefetched = {row.payload_id: joined} if joined is not None else None
        payload = read_payload(connection, namespace, row.payload_id, prefetched=prefetched, memory=memory)
    return Event(
        seq=int(row.seq),
        kind=EventKind(row.kind),
        recorded_at_us=int(row.recorded_at_us),
        position=row.position,
        attempts=row.attempts,
        payload=payload,
        data=None if row.data is None else json.loads(row.data),
    )

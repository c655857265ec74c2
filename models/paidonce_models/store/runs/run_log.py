"""Reads a run from where a process left off: head, new events and recorded steps in one statement."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Connection, Row, text

from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.store.runs.events import Event, event_of
from paidonce_models.store.runs.history import RecordedStep
from paidonce_models.store.runs.runs_head import HEAD_COLUMNS, RunHead, head_of

_STEPS_POSTGRESQL = "CAST(json_agg(json_build_array(position, kind, name, args_id, created_seq)) AS TEXT)"
_STEPS_SQLITE = "json_group_array(json_array(position, kind, name, args_id, created_seq))"
_READ = (
    "SELECT {head}, e.seq, e.kind, e.position, e.attempts, e.payload_id, "
    "e.data, e.recorded_at_us, p.codec, p.inline, "
    "(SELECT {steps} FROM steps WHERE steps.run_id = :run_id AND steps.position >= :first "
    "AND (SELECT last_seq FROM runs WHERE id = :run_id) <= :after + :most) AS recorded "
    "FROM runs LEFT JOIN run_events e ON e.run_id = runs.id AND e.seq > :after "
    "LEFT JOIN payloads p ON p.namespace = e.namespace AND p.id = e.payload_id "
    "WHERE runs.id = :run_id AND runs.namespace = :namespace ORDER BY e.seq LIMIT :most"
)
_STEPS = {"postgresql": _STEPS_POSTGRESQL, "sqlite": _STEPS_SQLITE}
_READ_STATEMENTS = {
    dialect: text(_READ.format(head=head, steps=_STEPS[dialect])) for dialect, head in HEAD_COLUMNS.items()
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLog:
    """The result; ``recorded`` has the steps from the requested position on, by position."""

    head: RunHead
    events: list[Event]
    recorded: dict[int, RecordedStep]
    is_cut: bool
    """Whether there are more events than requested; then no step was read."""


def read_log(
    connection: Connection,
    namespace: str,
    run_id: str,
    *,
    after: int,
    first: int,
    most: int,
    memory: PayloadMemory | None = None,
) -> RunLog | None:
    """The run, its events after ``after`` and its steps from position ``first`` on.

    ``None`` if the namespace has no such run. For a process that is at most ``most`` events behind.
    """
    rows = connection.execute(
        _READ_STATEMENTS[connection.dialect.name],
        {"namespace": namespace, "run_id": run_id, "after": after, "first": first, "most": most},
    ).all()
    if not rows:
        return None
    head = head_of(rows[0])
    return RunLog(
        head=head,
        events=[event_of(connection, head.namespace, row, memory) for row in rows if row.seq is not None],
        recorded=_recorded(rows[0]),
        is_cut=head.last_seq > after + most,
    )


def _recorded(row: Row[tuple[object, ...]]) -> dict[int, RecordedStep]:
    listed = json.loads(row.recorded or "[]")
    return {
        position: RecordedStep(
            position=position, kind=kind, name=name, arguments_id=arguments_id, created_seq=created_seq
        )
        for position, kind, name, arguments_id, created_seq in listed
    }

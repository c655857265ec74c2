"""What the agent requested by its event history, to be compared with what the code requests now."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedStep:
    """A recorded step; ``arguments_id`` addresses its arguments by content."""

    position: int
    kind: str
    name: str
    arguments_id: str
    created_seq: int


_READ = text(
    "SELECT position, kind, name, args_id, created_seq FROM steps WHERE run_id = :run_id AND position >= :first "
    "AND created_seq <= :consumed_seq ORDER BY position"
)


def read_recorded_steps(
    connection: Connection, run_id: str, *, first: int, consumed_seq: int
) -> dict[int, RecordedStep]:
    """The recorded steps from a position on that the events up to ``consumed_seq`` led to."""
    rows = connection.execute(_READ, {"run_id": run_id, "first": first, "consumed_seq": consumed_seq})
    return {
        row.position: RecordedStep(
            position=row.position,
            kind=row.kind,
            name=row.name,
            arguments_id=row.args_id,
            created_seq=int(row.created_seq),
        )
        for row in rows
    }

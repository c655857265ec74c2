"""What a simulation of the fleet asks the store: when something is due next, and which runs belong together.

For ``paidonce.testing``, which moves its clock instead of waiting. Reads only.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

_NEXT_DUE = text(
    "SELECT min(due_at_us) FROM ("
    "SELECT min(wake_at_us) AS due_at_us FROM runs WHERE namespace = :namespace AND wake_at_us IS NOT NULL "
    "AND state NOT IN ('succeeded', 'failed', 'cancelled', 'blocked') "
    "UNION ALL SELECT min(publish_at_us) FROM runs WHERE namespace = :namespace AND publish_at_us IS NOT NULL "
    "AND consumed_seq < last_seq AND state NOT IN ('succeeded', 'failed', 'cancelled', 'blocked') "
    "UNION ALL SELECT min(publish_at_us) FROM steps WHERE namespace = :namespace AND publish_at_us IS NOT NULL "
    "AND state IN ('scheduled', 'retrying') "
    "UNION ALL SELECT min(lease_expires_at_us) + 1 FROM steps WHERE namespace = :namespace "
    "AND lease_expires_at_us IS NOT NULL) AS dues"
)
_FAMILY = text("SELECT id FROM runs WHERE root_run_id = :root_run_id ORDER BY depth, id")


def next_due_us(connection: Connection, namespace: str) -> int | None:
    """When the sweeper would next find something to do, in microseconds; ``None`` where nothing will ever be due."""
    due: int | None = connection.execute(_NEXT_DUE, {"namespace": namespace}).scalar_one_or_none()
    return due


def family_of(connection: Connection, root_run_id: str) -> list[str]:
    """A root run and its descendants, parents first."""
    return [str(run_id) for run_id in connection.execute(_FAMILY, {"root_run_id": root_run_id}).scalars()]

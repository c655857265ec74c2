"""The store's queries for a simulated fleet: when something is due next, and which runs belong together.

For ``paidonce.testing``, which moves its clock instead of waiting. Reads only.
"""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, func, select, union_all

from paidonce_models.states import CLAIMABLE, RUN_TERMINAL, RunState
from paidonce_models.store.circuits.parked_reasons import IS_PARKED
from paidonce_models.store.columns import ParkedStep, Run, Step, col, constants, rows

_UNBLOCKED = col(Run.state).not_in(constants([*sorted(RUN_TERMINAL), RunState.BLOCKED]))
_CLAIMABLE = col(Step.state).in_(constants(CLAIMABLE))
_DUES = union_all(
    select(func.min(col(Run.wake_at_us)).label("due_at_us")).where(
        col(Run.namespace) == bindparam("namespace"), col(Run.wake_at_us).is_not(None), _UNBLOCKED
    ),
    select(func.min(col(Run.publish_at_us))).where(
        col(Run.namespace) == bindparam("namespace"),
        col(Run.publish_at_us).is_not(None),
        col(Run.consumed_seq) < col(Run.last_seq),
        _UNBLOCKED,
    ),
    select(func.min(col(Step.publish_at_us))).where(
        col(Step.namespace) == bindparam("namespace"), col(Step.publish_at_us).is_not(None), _CLAIMABLE
    ),
    select(func.min(col(Step.lease_expires_at_us)) + 1).where(
        col(Step.namespace) == bindparam("namespace"), col(Step.lease_expires_at_us).is_not(None)
    ),
    *(
        select(func.min(column))
        .select_from(rows(ParkedStep))
        .join(rows(Step), IS_PARKED)
        .where(col(ParkedStep.namespace) == bindparam("namespace"))
        for column in (col(ParkedStep.due_at_us), col(ParkedStep.deadline_at_us))
    ),
).subquery("dues")
_NEXT_DUE = select(func.min(_DUES.c.due_at_us))
_FAMILY = (
    select(col(Run.id)).where(col(Run.root_run_id) == bindparam("root_run_id")).order_by(col(Run.depth), col(Run.id))
)


def next_due_us(connection: Connection, namespace: str) -> int | None:
    """When the sweeper would next find something to do, in microseconds; ``None`` if nothing will ever be due."""
    due: int | None = connection.execute(_NEXT_DUE, {"namespace": namespace}).scalar_one_or_none()
    return due


def family_of(connection: Connection, root_run_id: str) -> list[str]:
    """A root run and its descendants, parents first."""
    return [str(run_id) for run_id in connection.execute(_FAMILY, {"root_run_id": root_run_id}).scalars()]

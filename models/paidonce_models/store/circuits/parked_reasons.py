"""Why a step is parked, for people."""

from __future__ import annotations

from sqlalchemy import Connection, and_, bindparam, select

from paidonce_models.instants import moment_of
from paidonce_models.states import StepState
from paidonce_models.store.columns import ParkedStep, Step, col, rows

IS_PARKED = and_(
    col(Step.run_id) == col(ParkedStep.run_id),
    col(Step.position) == col(ParkedStep.position),
    col(Step.state) == StepState.PARKED.value,
)
"""Joins a row of ``parked_steps`` with its step."""
_WAITS = (
    select(col(ParkedStep.position), col(ParkedStep.circuit), col(ParkedStep.since_us), col(ParkedStep.due_at_us))
    .select_from(rows(ParkedStep))
    .join(rows(Step), IS_PARKED)
    .where(col(ParkedStep.run_id) == bindparam("run_id"))
    .order_by(col(ParkedStep.position))
)


def why_parked(connection: Connection, run_id: str) -> dict[int, str]:
    """For each parked step of a run: its circuit, since when it waits, and its latest next try."""
    reasons = {}
    for position, circuit, since_us, due_at_us in connection.execute(_WAITS, {"run_id": run_id}):
        since, due = (f"{moment_of(at_us):%Y-%m-%d %H:%M:%S} UTC" for at_us in (since_us, due_at_us))
        reasons[position] = f"circuit {circuit} is open; it waits since {since} and is tried again at {due}"
    return reasons

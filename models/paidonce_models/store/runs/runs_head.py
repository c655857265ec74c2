"""Reads a run's head: what an advance needs before it feeds the agent."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Row, text

from paidonce_models.states import RunState
from paidonce_models.store.runs.run_states import HAS_STOPPED_STEPS
from paidonce_models.store.steps.claims import HAS_BUDGETS


@dataclass(frozen=True, kw_only=True, slots=True)
class RunHead:
    """The part of a run's row that determines its next advance."""

    id: str
    namespace: str
    shard: int
    agent: str
    agent_version: str | None
    python_minor: str | None
    state: RunState
    state_reason: str | None
    last_seq: int
    consumed_seq: int
    depth: int
    root_run_id: str
    parent_run_id: str | None
    parent_position: int | None
    priority: int
    queue: str
    input_id: str | None
    has_budgets: bool = False
    """Whether a budget applied when this was read: then no step is claimed without a reservation."""
    has_stopped_steps: bool = False
    """Whether steps were held or parked when this was read: then its state is not only what its agent awaits."""


_OWN_COLUMNS = tuple(field.name for field in fields(RunHead) if not field.name.startswith("has_"))
HEAD_COLUMNS = {
    dialect: ", ".join(
        [f"runs.{name}" for name in _OWN_COLUMNS]
        + [f"{has_budgets} AS has_budgets", f"{HAS_STOPPED_STEPS.format(run_id='runs.id')} AS has_stopped_steps"]
    )
    for dialect, has_budgets in HAS_BUDGETS.items()
}
"""The columns of ``runs`` that ``head_of`` needs, by dialect."""
_READ = {
    dialect: text(f"SELECT {columns} FROM runs WHERE id = :run_id AND namespace = :namespace")
    for dialect, columns in HEAD_COLUMNS.items()
}


_NAMESPACE = text("SELECT namespace FROM runs WHERE id = :run_id")


def read_head(connection: Connection, namespace: str, run_id: str) -> RunHead | None:
    """The run's head, or ``None`` if the namespace has no such run."""
    parameters = {"namespace": namespace, "run_id": run_id}
    row = connection.execute(_READ[connection.dialect.name], parameters).first()
    if row is None:
        return None
    return head_of(row)


def namespace_of(connection: Connection, run_id: str) -> str | None:
    """The run's namespace, whichever it is; ``None`` if there is no such run."""
    found: str | None = connection.execute(_NAMESPACE, {"run_id": run_id}).scalar_one_or_none()
    return found


def head_of(row: Row[Any]) -> RunHead:
    """The head from a row with these columns."""
    values: dict[str, Any] = {name: getattr(row, name) for name in _OWN_COLUMNS}
    values["state"] = RunState(row.state)
    values["has_budgets"] = bool(row.has_budgets)
    values["has_stopped_steps"] = bool(row.has_stopped_steps)
    return RunHead(**values)

"""Budgets in the store: reading those in force, setting, replacing and removing one, keeping declared ones up to date.

A row is never rewritten: another amount ends the row in force and begins a new one, so that what held when can be
read later. Who sets a budget wakes nobody: the sweeper lets go on what has room now (``held_steps``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, text

from paidonce_models.budgets import Budget, Period, Source, Unit, agent_subject
from paidonce_models.ids import uuid7

_ADVISORY_LOCK: Final = 0x9A1D0CD

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(current_schema(), :key))")
_COLUMNS = "subject, period, unit, source, amount"
_IN_FORCE = f"SELECT {_COLUMNS} FROM budgets WHERE namespace = :namespace AND replaced_at_us IS NULL"
_READ = text(f"{_IN_FORCE} ORDER BY {_COLUMNS}")
_OF_SUBJECTS = {
    "postgresql": text(
        f"{_IN_FORCE} AND subject IN (SELECT json_array_elements_text(CAST(:subjects AS json))) ORDER BY {_COLUMNS}"
    ),
    "sqlite": text(f"{_IN_FORCE} AND subject IN (SELECT value FROM json_each(:subjects)) ORDER BY {_COLUMNS}"),
}
_END = text(
    "UPDATE budgets SET replaced_at_us = paidonce_now() WHERE namespace = :namespace AND subject = :subject "
    "AND period = :period AND unit = :unit AND source = :source AND replaced_at_us IS NULL RETURNING amount"
)
_INSERT = text(
    "INSERT INTO budgets (id, namespace, subject, period, unit, source, amount, created_at_us) "
    "VALUES (:id, :namespace, :subject, :period, :unit, :source, :amount, paidonce_now())"
)


def read_budgets(connection: Connection, namespace: str, subjects: Sequence[str] | None = None) -> list[Budget]:
    """The budgets in force; those of ``subjects`` only, if given."""
    if subjects is None:
        rows = connection.execute(_READ, {"namespace": namespace})
    else:
        parameters = {"namespace": namespace, "subjects": json.dumps(list(subjects))}
        rows = connection.execute(_OF_SUBJECTS[connection.dialect.name], parameters)
    return [budget_of(row) for row in rows]


def budget_of(row: Row[Any]) -> Budget:
    """The budget of a row that has its columns."""
    return Budget(
        subject=row.subject,
        period=Period(row.period),
        unit=Unit(row.unit),
        amount=int(row.amount),
        source=Source(row.source),
    )


def set_budget(connection: Connection, namespace: str, budget: Budget) -> int | None:
    """Put the budget in force; the amount it had before, ``None`` where there was none. Needs a write transaction."""
    _one_at_a_time(connection)
    before = _amount_of(connection, namespace, budget)
    if before != budget.amount:
        connection.execute(_END, _key(namespace, budget))
        connection.execute(_INSERT, {**_key(namespace, budget), "id": uuid7(), "amount": budget.amount})
    return before


def remove_budget(connection: Connection, namespace: str, budget: Budget) -> int | None:
    """Take the budget out of force, whatever its amount; the amount it had, ``None`` where there was none."""
    _one_at_a_time(connection)
    amount: int | None = connection.execute(_END, _key(namespace, budget)).scalar_one_or_none()
    return amount


def declare_budgets(connection: Connection, namespace: str, agent: str, limits: Mapping[Unit, int]) -> None:
    """Keep what an agent's decorator says: the newest worker that holds the agent decides."""
    declared = {
        budget.unit: budget
        for budget in read_budgets(connection, namespace, [agent_subject(agent)])
        if budget.source is Source.DECLARED
    }
    wanted = {
        unit: Budget(subject=agent_subject(agent), period=Period.RUN, unit=unit, amount=amount, source=Source.DECLARED)
        for unit, amount in limits.items()
    }
    if declared == wanted:
        return
    for unit in sorted(declared.keys() - wanted.keys()):
        remove_budget(connection, namespace, declared[unit])
    for unit in sorted(wanted):
        set_budget(connection, namespace, wanted[unit])


def _one_at_a_time(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK, {"key": _ADVISORY_LOCK})


def _amount_of(connection: Connection, namespace: str, budget: Budget) -> int | None:
    for each in read_budgets(connection, namespace, [budget.subject]):
        if (each.period, each.unit, each.source) == (budget.period, budget.unit, budget.source):
            return each.amount
    return None


def _key(namespace: str, budget: Budget) -> dict[str, object]:
    return {
        "namespace": namespace,
        "subject": budget.subject,
        "period": budget.period.value,
        "unit": budget.unit.value,
        "source": budget.source.value,
    }

"""Budgets in the store: reading those in force, setting, replacing and removing one, syncing declared ones.

A row is never rewritten: a new amount ends the row in force and starts a new one, so that the history can be read
later. Setting a budget releases nothing: the sweeper releases the steps that now have room (``held_steps``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, select, text

from paidonce_models.budgets import Budget, Period, Source, Unit, agent_subject
from paidonce_models.ids import uuid7
from paidonce_models.store.columns import StoredBudget, col, cols, row_of

_ADVISORY_LOCK: Final = 0x9A1D0CD

# Transactions that set budgets race: two that found none in force would both insert one. SQLite has one writer anyway.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(current_schema(), :key))")
_READ = (
    select(
        *cols(StoredBudget.subject, StoredBudget.period, StoredBudget.unit, StoredBudget.source, StoredBudget.amount)
    )
    .where(col(StoredBudget.namespace) == bindparam("namespace"), col(StoredBudget.replaced_at_us).is_(None))
    .order_by(
        *cols(StoredBudget.subject, StoredBudget.period, StoredBudget.unit, StoredBudget.source, StoredBudget.amount)
    )
)
# Claims read these, with the run's row locked: one text that the driver keeps prepared however many the subjects are.
_COLUMNS = "subject, period, unit, source, amount"
_IN_FORCE = f"SELECT {_COLUMNS} FROM budgets WHERE namespace = :namespace AND replaced_at_us IS NULL"
_OF_SUBJECTS = {
    "postgresql": text(
        f"{_IN_FORCE} AND subject IN (SELECT json_array_elements_text(CAST(:subjects AS json))) ORDER BY {_COLUMNS}"
    ),
    "sqlite": text(f"{_IN_FORCE} AND subject IN (SELECT value FROM json_each(:subjects)) ORDER BY {_COLUMNS}"),
}
# A row is ended once; what replaced it is another row.
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
    budget = row_of(StoredBudget, row)
    return Budget(
        subject=budget.subject,
        period=Period(budget.period),
        unit=Unit(budget.unit),
        amount=int(budget.amount),
        source=Source(budget.source),
    )


def set_budget(connection: Connection, namespace: str, budget: Budget) -> int | None:
    """Put the budget in force; returns its previous amount, ``None`` if there was none. Needs a write transaction."""
    _one_at_a_time(connection)
    before = _amount_of(connection, namespace, budget)
    if before != budget.amount:
        connection.execute(_END, _key(namespace, budget))
        connection.execute(_INSERT, {**_key(namespace, budget), "id": uuid7(), "amount": budget.amount})
    return before


def remove_budget(connection: Connection, namespace: str, budget: Budget) -> int | None:
    """Take the budget out of force, whatever its amount; returns that amount, ``None`` if there was none."""
    _one_at_a_time(connection)
    amount: int | None = connection.execute(_END, _key(namespace, budget)).scalar_one_or_none()
    return amount


def declare_budgets(connection: Connection, namespace: str, agent: str, limits: Mapping[Unit, int]) -> None:
    """Store the limits of an agent's decorator: the newest worker that holds the agent decides."""
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

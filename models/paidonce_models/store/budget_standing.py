"""Reading where budgets stand: their accounts, and why a step is held."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from paidonce_models.budgets import Basis, Budget, Period, Unit, rank, refusal_text, run_subject
from paidonce_models.store.budget_rules import budget_of, read_budgets

_SPAN_NOW = {
    "postgresql": "to_char(to_timestamp(paidonce_now() / 1000000) AT TIME ZONE 'UTC', "
    "CASE b.period WHEN 'month' THEN 'YYYY-MM' ELSE 'YYYY-MM-DD' END)",
    "sqlite": "strftime(CASE b.period WHEN 'month' THEN '%Y-%m' ELSE '%Y-%m-%d' END, "
    "paidonce_now() / 1000000, 'unixepoch')",
}
_NOW = """
WITH accounts AS (
    SELECT b.id AS budget_id, a.key, a.spent, a.reserved, a.unpriced_calls, (
        SELECT count(*) FROM held_steps h JOIN steps s ON s.run_id = h.run_id AND s.position = h.position
        WHERE h.namespace = a.namespace AND h.account = a.key AND s.state = 'held'
    ) AS held_steps
    FROM budgets b JOIN budget_accounts a ON a.namespace = b.namespace AND a.period = b.period AND a.unit = b.unit
        AND (a.subject = b.subject OR (b.period = 'run' AND 'run=' || a.span = b.subject))
        AND (b.period = 'run' OR a.span = {now})
    WHERE b.namespace = :namespace AND b.replaced_at_us IS NULL
)
SELECT b.subject, b.period, b.unit, b.source, b.amount, count(a.key) AS accounts, coalesce(sum(a.spent), 0) AS spent,
    coalesce(sum(a.reserved), 0) AS reserved, coalesce(sum(a.unpriced_calls), 0) AS unpriced_calls,
    coalesce(sum(a.held_steps), 0) AS held_steps
FROM budgets b LEFT JOIN accounts a ON a.budget_id = b.id
WHERE b.namespace = :namespace AND b.replaced_at_us IS NULL
GROUP BY b.subject, b.period, b.unit, b.source, b.amount ORDER BY b.subject, b.period, b.unit, b.source
"""
"""The view ``budgets_now`` by the store's clock, which on SQLite no other client knows."""
_HELD = text(
    "SELECT h.position, h.amount, h.basis, a.subject, a.period, a.unit, a.span, a.spent, a.reserved, a.namespace "
    "FROM held_steps h JOIN steps s ON s.run_id = h.run_id AND s.position = h.position AND s.state = 'held' "
    "JOIN budget_accounts a ON a.namespace = h.namespace AND a.key = h.account WHERE h.run_id = :run_id "
    "ORDER BY h.position"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetStanding:
    """A budget and what its accounts hold now: of a day or month the current one, of runs all together."""

    budget: Budget
    accounts: int
    spent: int
    reserved: int
    unpriced_calls: int
    """With these, ``spent`` is a lower bound."""
    held_steps: int

    @property
    def left(self) -> int | None:
        """What is neither spent nor reserved, below 0 where it is overdrawn; ``None`` for a budget of each run."""
        if self.budget.period is Period.RUN:
            return None
        return self.budget.amount - self.spent - self.reserved


def read_budgets_now(connection: Connection, namespace: str) -> list[BudgetStanding]:
    """The budgets in force and what their accounts hold."""
    now = _NOW.format(now=_SPAN_NOW[connection.dialect.name])
    return [
        BudgetStanding(
            budget=budget_of(row),
            accounts=int(row.accounts),
            spent=int(row.spent),
            reserved=int(row.reserved),
            unpriced_calls=int(row.unpriced_calls),
            held_steps=int(row.held_steps),
        )
        for row in connection.execute(text(now), {"namespace": namespace})
    ]


def why_held(connection: Connection, run_id: str) -> dict[int, str]:
    """For each held step of a run the budget that holds it, what it wants and what is left."""
    reasons = {}
    for row in connection.execute(_HELD, {"run_id": run_id}).all():
        period, unit = Period(row.period), Unit(row.unit)
        subjects = [row.subject, run_subject(row.span)] if period is Period.RUN else [row.subject]
        budgets = [
            each
            for each in read_budgets(connection, row.namespace, subjects)
            if (each.period, each.unit) == (period, unit)
        ]
        if not budgets:
            reasons[row.position] = f"the budget {row.subject} per={period} {unit} was removed; it goes on in a moment"
            continue
        budget = max(budgets, key=rank)
        reasons[row.position] = refusal_text(
            budget.name,
            row.span,
            limit=budget.amount,
            amount=int(row.amount),
            available=budget.amount - int(row.spent) - int(row.reserved),
            unit=unit,
            basis=Basis(row.basis),
        )
    return reasons

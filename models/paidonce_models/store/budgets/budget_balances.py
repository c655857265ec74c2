"""Reads the balances of budgets, and why a step is held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, case, func, literal_column, or_, select

from paidonce_models.budgets import Basis, Budget, Period, Unit, rank, refusal_text, run_subject
from paidonce_models.states import StepState
from paidonce_models.store.budgets.budget_rules import budget_of, read_budgets
from paidonce_models.store.columns import (
    STORE_NOW,
    BudgetAccount,
    HeldStep,
    Step,
    StoredBudget,
    col,
    cols,
    row_of,
    rows,
)

_IS_HELD = and_(
    col(Step.run_id) == col(HeldStep.run_id),
    col(Step.position) == col(HeldStep.position),
    col(Step.state) == StepState.HELD.value,
)
_HELD = (
    select(
        *cols(HeldStep.position, HeldStep.amount, HeldStep.basis, BudgetAccount.subject, BudgetAccount.period),
        *cols(BudgetAccount.unit, BudgetAccount.span, BudgetAccount.spent, BudgetAccount.reserved),
        col(BudgetAccount.namespace),
    )
    .select_from(rows(HeldStep))
    .join(rows(Step), _IS_HELD)
    .join(
        rows(BudgetAccount),
        and_(col(BudgetAccount.namespace) == col(HeldStep.namespace), col(BudgetAccount.key) == col(HeldStep.account)),
    )
    .where(col(HeldStep.run_id) == bindparam("run_id"))
    .order_by(col(HeldStep.position))
)


def _span_now(dialect: str) -> ColumnElement[str]:
    """The UTC day or month, by the budget's period, of the store's clock."""
    is_month, seconds = col(StoredBudget.period) == Period.MONTH.value, STORE_NOW // 1_000_000
    if dialect == "sqlite":
        return func.strftime(case((is_month, "%Y-%m"), else_="%Y-%m-%d"), seconds, "unixepoch")
    return func.to_char(
        func.timezone("UTC", func.to_timestamp(seconds)), case((is_month, "YYYY-MM"), else_="YYYY-MM-DD")
    )


def _budgets_now(dialect: str) -> Select[Any]:
    """The view ``budgets_now`` by the store's clock, which on SQLite no other client knows."""
    is_in_force = and_(
        col(StoredBudget.namespace) == bindparam("namespace"), col(StoredBudget.replaced_at_us).is_(None)
    )
    of_run = col(StoredBudget.period) == Period.RUN.value
    held_steps = (
        select(func.count())
        .select_from(rows(HeldStep))
        .join(rows(Step), _IS_HELD)
        .where(col(HeldStep.namespace) == col(BudgetAccount.namespace), col(HeldStep.account) == col(BudgetAccount.key))
        .correlate(rows(BudgetAccount))
        .scalar_subquery()
    )
    accounts = (
        select(
            col(StoredBudget.id).label("budget_id"),
            *cols(BudgetAccount.key, BudgetAccount.spent, BudgetAccount.reserved, BudgetAccount.unpriced_calls),
            held_steps.label("held_steps"),
        )
        .select_from(rows(StoredBudget))
        .join(
            rows(BudgetAccount),
            and_(
                col(BudgetAccount.namespace) == col(StoredBudget.namespace),
                col(BudgetAccount.period) == col(StoredBudget.period),
                col(BudgetAccount.unit) == col(StoredBudget.unit),
                or_(
                    col(BudgetAccount.subject) == col(StoredBudget.subject),
                    and_(of_run, literal_column("'run='").concat(col(BudgetAccount.span)) == col(StoredBudget.subject)),
                ),
                or_(of_run, col(BudgetAccount.span) == _span_now(dialect)),
            ),
        )
        .where(is_in_force)
        .cte("accounts")
    )
    budget = cols(
        StoredBudget.subject, StoredBudget.period, StoredBudget.unit, StoredBudget.source, StoredBudget.amount
    )
    return (
        select(
            *budget,
            func.count(accounts.c.key).label("accounts"),
            func.coalesce(func.sum(accounts.c.spent), 0).label("spent"),
            func.coalesce(func.sum(accounts.c.reserved), 0).label("reserved"),
            func.coalesce(func.sum(accounts.c.unpriced_calls), 0).label("unpriced_calls"),
            func.coalesce(func.sum(accounts.c.held_steps), 0).label("held_steps"),
        )
        .select_from(rows(StoredBudget))
        .outerjoin(accounts, accounts.c.budget_id == col(StoredBudget.id))
        .where(is_in_force)
        .group_by(*budget)
        .order_by(*budget[:-1])
    )


_NOW = {dialect: _budgets_now(dialect) for dialect in ("sqlite", "postgresql")}


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetStanding:
    """A budget and its balance: for a day or month the current one, for runs that of all together."""

    budget: Budget
    accounts: int
    spent: int
    reserved: int
    unpriced_calls: int
    """If above 0, ``spent`` is a lower bound."""
    held_steps: int

    @property
    def left(self) -> int | None:
        """What is neither spent nor reserved, below 0 if overdrawn; ``None`` for a budget of each run."""
        if self.budget.period is Period.RUN:
            return None
        return self.budget.amount - self.spent - self.reserved


def read_budgets_now(connection: Connection, namespace: str) -> list[BudgetStanding]:
    """The budgets in force and what their accounts hold."""
    found = connection.execute(_NOW[connection.dialect.name], {"namespace": namespace})
    return [
        BudgetStanding(
            budget=budget_of(row),
            accounts=int(row.accounts),
            spent=int(row.spent),
            reserved=int(row.reserved),
            unpriced_calls=int(row.unpriced_calls),
            held_steps=int(row.held_steps),
        )
        for row in found
    ]


def why_held(connection: Connection, run_id: str) -> dict[int, str]:
    """For each held step of a run: the budget that holds it, what it needs and what is left."""
    reasons = {}
    for row in connection.execute(_HELD, {"run_id": run_id}).all():
        held, account = row_of(HeldStep, row), row_of(BudgetAccount, row)
        period, unit = Period(account.period), Unit(account.unit)
        subjects = [account.subject, run_subject(account.span)] if period is Period.RUN else [account.subject]
        budgets = [
            each
            for each in read_budgets(connection, account.namespace, subjects)
            if (each.period, each.unit) == (period, unit)
        ]
        if not budgets:
            removed = f"{account.subject} per={period} {unit}"
            reasons[held.position] = f"the budget {removed} was removed; it continues shortly"
            continue
        budget = max(budgets, key=rank)
        reasons[held.position] = refusal_text(
            budget.name,
            account.span,
            limit=budget.amount,
            amount=int(held.amount),
            available=budget.amount - int(account.spent) - int(account.reserved),
            unit=unit,
            basis=Basis(held.basis),
        )
    return reasons

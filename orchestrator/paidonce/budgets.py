"""Budgets for programs: ``set_budget(database, "agent=research", per="day", usd="20")``.

The same as ``paidonce budget``. A subject is ``agent=NAME``, ``tag:NAME=VALUE``, ``run=ID`` or ``all``; a budget
applies to each run, UTC day or UTC month of it. A run uses its own budgets and those of all its ancestors. What an
exhausted budget holds continues within a sweep of raising or removing it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from paidonce.budget_texts import budget_amount, budget_period, budget_subject
from paidonce.settings import load_settings
from paidonce_models.budgets import RUN, Budget, Period, Source, Unit, run_subject
from paidonce_models.database.transactions import Database
from paidonce_models.errors import InvalidInput
from paidonce_models.store.budgets import budget_rules
from paidonce_models.store.budgets.budget_balances import BudgetStanding, read_budgets_now
from paidonce_models.store.queries import resolve_run

__all__ = ["Budget", "BudgetStanding", "Period", "Source", "Unit", "list_budgets", "remove_budget", "set_budget"]


def set_budget(
    database: Database,
    subject: str,
    *,
    per: str | None = None,
    usd: str | int | Decimal | None = None,
    tokens: int | None = None,
    steps: int | None = None,
    namespace: str | None = None,
) -> list[tuple[Budget, int | None]]:
    """Put a budget in force for each given amount; returns each with its previous amount, ``None`` for a new one.

    Raises ``InvalidInput``, and ``NotFound`` for a run that does not exist; then nothing is changed.
    """
    space = load_settings().namespace if namespace is None else namespace
    given = {Unit.USD: usd, Unit.TOKENS: tokens, Unit.STEPS: steps}
    amounts = {unit: budget_amount(unit, amount) for unit, amount in given.items() if amount is not None}
    if not amounts:
        raise InvalidInput("a budget needs an amount: usd=20, tokens=1000000 or steps=200")
    budgets = [
        Budget(subject=known, period=period, unit=unit, amount=amounts[unit])
        for known, period in [_known(database, space, subject, per)]
        for unit in amounts
    ]
    before = database.transact(
        lambda connection: [budget_rules.set_budget(connection, space, budget) for budget in budgets]
    )
    return list(zip(budgets, before, strict=True))


def remove_budget(
    database: Database, subject: str, *, per: str | None = None, units: Sequence[str], namespace: str | None = None
) -> Mapping[Unit, int | None]:
    """Take budgets out of force; returns their amounts, ``None`` if there was none. Declared ones stay in the code."""
    space = load_settings().namespace if namespace is None else namespace
    known, period = _known(database, space, subject, per)
    wanted = [Unit(unit) for unit in units]
    return database.transact(
        lambda connection: {
            unit: budget_rules.remove_budget(
                connection, space, Budget(subject=known, period=period, unit=unit, amount=0)
            )
            for unit in wanted
        }
    )


def list_budgets(database: Database, *, namespace: str | None = None) -> list[BudgetStanding]:
    """The budgets in force and their current balances."""
    with database.read_at_once() as connection:
        return read_budgets_now(connection, load_settings().namespace if namespace is None else namespace)


def _known(database: Database, namespace: str, subject: str, per: str | None) -> tuple[str, Period]:
    checked = budget_subject(subject)
    period = budget_period(checked, per)
    if checked.startswith(RUN):
        with database.read() as connection:
            checked = run_subject(resolve_run(connection, namespace, checked.removeprefix(RUN)))
    return checked, period

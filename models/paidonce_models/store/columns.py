"""The columns of the tables, for statements that read: checked by the type checker, light at run time.

Columns are defined only in ``tables``, but importing that takes longer than any command that reads (decision 0024).
So the type checker sees here the classes of ``tables``, and reports a column that does not exist. At run time ``Run``
is a light object that makes a column of any attribute's name. Such columns have no types: values are returned as the
driver returns them.

    select(col(Run.state), col(Run.state_reason)).where(col(Run.id) == bindparam("run_id"))

Statements that write, and those of a step's life, are text: their guards and locks are what matters in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import BigInteger, ColumnClause, ColumnElement, FromClause, func, literal, table

if TYPE_CHECKING:
    from paidonce_models.tables import (
        Attempt,
        Avoided,
        BreakerTransition,
        BudgetAccount,
        Call,
        HeldStep,
        ParkedStep,
        Run,
        RunAlias,
        Step,
        StoredBlockedStep,
        StoredBudget,
        StoredPriceRow,
        Worker,
    )

__all__ = [
    "STORE_NOW",
    "Attempt",
    "Avoided",
    "BreakerTransition",
    "BudgetAccount",
    "Call",
    "HeldStep",
    "ParkedStep",
    "Run",
    "RunAlias",
    "Step",
    "StoredBlockedStep",
    "StoredBudget",
    "StoredPriceRow",
    "Worker",
    "alias",
    "col",
    "cols",
    "constant",
    "constants",
    "named",
    "row_of",
    "rows",
    "rows_of",
]

T = TypeVar("T")


class _Names:
    """A table, or another name of one: each attribute is a column of it."""

    def __init__(self, rows: FromClause) -> None:
        self.__rows = rows

    def __getattr__(self, name: str) -> ColumnClause[Any]:
        return ColumnClause(name, _selectable=self.__rows)


def named(name: str) -> Any:
    """A table or view whose columns are named as attributes. Whoever takes it says which class they are checked by."""
    return _Names(table(name))


if not TYPE_CHECKING:
    Attempt = named("attempts")
    Avoided = named("avoided")
    BreakerTransition = named("breaker_transitions")
    BudgetAccount = named("budget_accounts")
    Call = named("calls")
    HeldStep = named("held_steps")
    ParkedStep = named("parked_steps")
    Run = named("runs")
    RunAlias = named("run_aliases")
    Step = named("steps")
    StoredBlockedStep = named("blocked_steps")
    StoredBudget = named("budgets")
    StoredPriceRow = named("price_rows")
    Worker = named("workers")

STORE_NOW: ColumnElement[int] = func.paidonce_now(type_=BigInteger)
"""The store's clock, in microseconds since the epoch."""


def col(column: T) -> ColumnElement[T]:
    """The column that the type checker takes for a value of it."""
    return cast("ColumnElement[T]", column)


def cols(*columns: object) -> tuple[ColumnElement[Any], ...]:
    """The same for several; read their rows by ``rows_of``."""
    return cast("tuple[ColumnElement[Any], ...]", columns)


def constant(value: str) -> ColumnElement[str]:
    """A value that is part of the statement: an index with a condition serves only statements that spell it out."""
    return literal(value, literal_execute=True)


def constants(values: Iterable[str]) -> list[ColumnElement[str]]:
    """For ``in_`` with values that are always the same: the statement is one text, not made anew for each list."""
    return [literal(str(value)) for value in values]


def rows(of: type[object]) -> FromClause:
    """The table itself, to join with."""
    found: FromClause = getattr(of, "_Names__rows")  # noqa: B009 - the class that the type checker sees has none
    return found


def alias(of: type[T], name: str) -> type[T]:
    """The table by another name, where a statement reads it twice."""
    return cast("type[T]", _Names(rows(of).alias(name)))


def row_of(of: type[T], row: object) -> T:
    """The row that a statement found, by the names of the table; what was not selected is an ``AttributeError``."""
    return cast("T", row)


def rows_of(of: type[T], found: Iterable[object]) -> Iterable[T]:
    """The same for all rows."""
    return cast("Iterable[T]", found)

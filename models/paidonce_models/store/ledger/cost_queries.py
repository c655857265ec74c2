"""Reading a table of costs: typed rows from the statement in ``cost_statements``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Row, text

from paidonce_models.store.ledger.cost_statements import (
    LEDGER,
    MEASURES,
    CostQuestion,
    cost_statement,
    kept_sums,
    with_literals,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CostRow:
    """One line of a table of costs. Money in nano-dollars; ``None`` is unknown, never 0.

    ``names`` holds what the row is grouped by, ``None`` where the call has none (no tool, no such tag). Sums are of
    what is known: with ``unpriced_calls`` the cost is a lower bound. ``possibly_billed_nanousd`` is the estimated
    unknown rest of ``lost_attempts``, never a part of the cost; 0 without any, ``None`` where no estimate has a basis.
    ``lost_without_estimate`` of them add nothing to it.
    """

    names: Mapping[str, str | None]
    calls: int
    unpriced_calls: int
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cost_nanousd: int | None
    possibly_billed_nanousd: int | None
    lost_attempts: int
    lost_without_estimate: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CostTable:
    """The rows, and their total. ``others`` sums what a limit left out, ``others_rows`` of them."""

    by: tuple[str, ...]
    rows: tuple[CostRow, ...]
    total: CostRow
    others: CostRow | None = None
    others_rows: int = 0

    @property
    def others_calls(self) -> int:
        """How many calls a limit left out."""
        return 0 if self.others is None else self.others.calls


def read_costs(connection: Connection, question: CostQuestion) -> CostTable:
    """The costs, from kept sums where there are any. One statement: its parts add up to its total."""
    sql, parameters = cost_statement(question, kept_sums(question), connection.dialect.name)
    rows, others, others_rows, total = [], None, 0, None
    for row in connection.execute(text(sql), parameters):
        if row.line == "row":
            rows.append(_cost_row(row, question))
        elif row.line == "total":
            total = _cost_row(row, question, named=False)
        elif row.place > 0:
            others, others_rows = _cost_row(row, question, named=False), int(row.place)
    if total is None:
        raise LookupError("the statement of costs has no total")
    return CostTable(by=tuple(question.by), rows=tuple(rows), total=total, others=others, others_rows=others_rows)


def recomputing_sql(question: CostQuestion, dialect: str) -> str:
    """The same figures from the ledger's own rows, as text that ``psql`` or ``sqlite3`` runs."""
    sql, parameters = cost_statement(question, LEDGER, dialect)
    return with_literals(sql, parameters)


def _cost_row(row: Row[tuple[object, ...]], question: CostQuestion, *, named: bool = True) -> CostRow:
    values = {name: _integer(getattr(row, name)) for name in MEASURES}
    names = {name: _text(getattr(row, f"d{number}")) for number, name in enumerate(question.by, start=1)}
    return CostRow(names=names if named else {}, **values)  # type: ignore[arg-type]  # counts are never NULL


def _integer(value: object) -> int | None:
    return None if value is None else int(str(value))


def _text(value: object) -> str | None:
    return None if value is None else str(value)

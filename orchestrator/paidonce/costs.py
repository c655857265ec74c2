"""What runs cost, as typed rows: ``read_costs(database, by=["agent", "cause"])``.

The same figures as ``paidonce costs`` and ``paidonce bill``. Money is integer nano-dollars (1 USD is 1,000,000,000),
unknown is ``None`` and never 0, and the rows of a table add up to its total exactly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from paidonce.settings import load_settings
from paidonce_models.database.transactions import Database
from paidonce_models.errors import InvalidInput
from paidonce_models.store.ledger.cost_queries import CostRow, CostTable, recomputing_sql
from paidonce_models.store.ledger.cost_queries import read_costs as _read_costs
from paidonce_models.store.ledger.cost_statements import CostQuestion, Dimension, tag_of
from paidonce_models.store.ledger.itemised_bills import ItemisedBill, read_itemised_bill

__all__ = [
    "CostQuestion",
    "CostRow",
    "CostTable",
    "ItemisedBill",
    "answer",
    "cost_question",
    "costs_sql",
    "read_bill",
    "read_costs",
]

LONG_LIST_LIMIT = 100
"""The default row limit of a table by run or by tag; the rest is one line, and in the total."""
_SPAN = re.compile(r"(\d{1,5})([dw])")


def cost_question(
    *,
    namespace: str | None = None,
    by: Sequence[str] = (),
    since: str | date | timedelta | None = None,
    agent: str | None = None,
    limit: int | None = None,
    today: date | None = None,
) -> CostQuestion:
    """Build a question. ``since`` is a first UTC day, or a span that ends today: ``7d`` is today and six days before.

    A ``datetime`` means its UTC day; a naive one is in local time.

    ``limit`` ``None`` is 100 for a grouping by run or tag and no limit otherwise; ``namespace`` and ``today`` default
    to the setting and the current UTC date. Raises ``InvalidInput``.
    """
    long_list = any(name == Dimension.RUN or tag_of(name) is not None for name in by)
    return CostQuestion(
        namespace=load_settings().namespace if namespace is None else namespace,
        by=tuple(by),
        since_day=_first_day(since, datetime.now(tz=UTC).date() if today is None else today),
        agent=agent,
        limit=LONG_LIST_LIMIT if limit is None and long_list else limit,
    )


def read_costs(
    database: Database,
    *,
    by: Sequence[str] = (),
    since: str | date | timedelta | None = None,
    agent: str | None = None,
    limit: int | None = None,
    namespace: str | None = None,
) -> CostTable:
    """Costs grouped by any of agent, step, tool, model, run, cause, day and ``tag:NAME``; see ``cost_question``."""
    return answer(database, cost_question(by=by, since=since, agent=agent, limit=limit, namespace=namespace))


def answer(database: Database, question: CostQuestion) -> CostTable:
    """The table for a question, read in one snapshot."""
    with database.read_at_once() as connection:
        return _read_costs(connection, question)


def read_bill(database: Database, run_id: str) -> ItemisedBill:
    """One run's bill down to its calls. Raises ``NotFound``."""
    with database.read_at_once() as connection:
        return read_itemised_bill(connection, run_id)


def costs_sql(database: Database, question: CostQuestion) -> str:
    """SQL for the store's engine that recomputes the table from the ledger's rows."""
    return recomputing_sql(question, database.dialect)


def _first_day(since: str | date | timedelta | None, today: date) -> str | None:
    if since is None:
        return None
    if isinstance(since, timedelta):
        return _days_ago(today, since.days, str(since))
    if isinstance(since, str):
        span = _SPAN.fullmatch(since)
        if span is not None:
            return _days_ago(today, int(span[1]) * (7 if span[2] == "w" else 1), since)
        try:
            since = date.fromisoformat(since)
        except ValueError:
            raise InvalidInput(
                f"since {since!r}: expected a span of UTC days or weeks such as 7d or 4w, or a date such as "
                f"{today.isoformat()}; costs are kept by day"
            ) from None
    if isinstance(since, datetime):  # which is also a date
        since = since.astimezone(UTC).date()
    return since.isoformat()


def _days_ago(today: date, days: int, given: str) -> str:
    if days < 1:
        raise InvalidInput(f"since {given!r}: expected at least one day; 1d is today")
    try:
        return (today - timedelta(days=days - 1)).isoformat()
    except OverflowError:
        raise InvalidInput(f"since {given!r}: there is no such day") from None

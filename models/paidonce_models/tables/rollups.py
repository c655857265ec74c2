"""``daily_costs``, ``run_costs`` and ``run_totals``: sums of the calls whose cause cannot change any more.

Each call is counted either here (``calls.rolled_up`` is 1) or by reading its own row (0), never in both: the marker
is set in the transaction that adds the call to these sums (``store.rolling_up``). Never read one of these tables
alone; the views ``cost_facts`` and ``run_cost_facts`` add what is not rolled up yet. A name that is unknown is the
empty text here, because it is part of a key; money and tokens that are unknown are NULL.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class _Sums(Row):
    """The sums of each table."""

    calls: int = Field(sa_type=BigInteger)
    unpriced_calls: int = Field(sa_type=BigInteger)
    input_tokens: int | None = Field(default=None, sa_type=BigInteger)
    cache_read_tokens: int | None = Field(default=None, sa_type=BigInteger)
    cache_write_tokens: int | None = Field(default=None, sa_type=BigInteger)
    output_tokens: int | None = Field(default=None, sa_type=BigInteger)
    reasoning_tokens: int | None = Field(default=None, sa_type=BigInteger)
    cost_nanousd: int | None = Field(default=None, sa_type=BigInteger)


class DailyCost(_Sums, table=True):
    """Settled calls of one UTC day that share agent, step, tool, model and cause.

    ``retry_calls`` are those of a second or later attempt, or sent again by the client's library (``http_retry``).
    """

    __tablename__ = "daily_costs"

    namespace: str = Field(primary_key=True, max_length=100)
    day: str = Field(primary_key=True, max_length=10)
    agent: str = Field(primary_key=True, max_length=200)
    step: str = Field(primary_key=True, max_length=200)
    tool: str = Field(primary_key=True, max_length=200)
    model: str = Field(primary_key=True, max_length=200)
    cause: str = Field(primary_key=True, max_length=20)
    estimated_calls: int = Field(sa_type=BigInteger)
    missing_calls: int = Field(sa_type=BigInteger)
    retry_calls: int = Field(sa_type=BigInteger)
    retry_cost_nanousd: int | None = Field(default=None, sa_type=BigInteger)


class RunCost(_Sums, table=True):
    """Settled calls of one run and UTC day that share a cause; has what a run is grouped by."""

    __tablename__ = "run_costs"

    namespace: str = Field(primary_key=True, max_length=100)
    run_id: str = Field(primary_key=True, max_length=36)
    day: str = Field(primary_key=True, max_length=10)
    cause: str = Field(primary_key=True, max_length=20)
    root_run_id: str = Field(max_length=36)
    agent: str = Field(max_length=200)
    tags: str = Field(sa_type=Text)


class RunTotal(_Sums, table=True):
    """All settled calls of one run: the sums of ``run_costs``, for queries without a day or a cause."""

    __tablename__ = "run_totals"

    namespace: str = Field(primary_key=True, max_length=100)
    run_id: str = Field(primary_key=True, max_length=36)
    agent: str = Field(max_length=200)
    tags: str = Field(sa_type=Text)

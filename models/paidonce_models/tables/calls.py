"""``calls``: the append-only ledger of provider requests; ``avoided``: what was not paid again."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, SmallInteger, Text, text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class Call(Row, table=True):
    """One provider request or paid tool call; never changed once written.

    Carries agent and tags itself and has no foreign key to ``runs``: money
    outlives erased prompts. Unknown is NULL, never 0. ``input_tokens`` includes
    cache reads and writes. Unit prices are nano-dollars per million tokens.
    ``day`` is the UTC date of ``started_at_us``, for partitions and roll-ups;
    ``rolled_up`` is 1 once the call is counted in ``daily_costs`` and ``run_costs``.
    """

    __tablename__ = "calls"
    __table_args__ = (
        Index("ix_calls_attempt", "run_id", "position", "attempt"),
        Index("ix_calls_day", "namespace", "day"),
        Index(
            "ix_calls_unrolled",
            "namespace",
            "day",
            sqlite_where=text("rolled_up = 0"),
            postgresql_where=text("rolled_up = 0"),
        ),
    )

    id: str = Field(primary_key=True, max_length=36)
    day: str = Field(primary_key=True, max_length=10)
    namespace: str = Field(max_length=100)
    run_id: str = Field(max_length=36)
    root_run_id: str = Field(max_length=36)
    agent: str = Field(max_length=200)
    tags: str = Field(default="{}", sa_type=Text)
    position: int
    step: str = Field(max_length=200)
    attempt: int
    tool: str | None = Field(default=None, max_length=200)
    kind: str = Field(max_length=20)
    provider: str | None = Field(default=None, max_length=100)
    model_requested: str | None = Field(default=None, max_length=200)
    model_billed: str | None = Field(default=None, max_length=200)
    input_tokens: int | None = Field(default=None, sa_type=BigInteger)
    cache_read_tokens: int | None = Field(default=None, sa_type=BigInteger)
    cache_write_tokens: int | None = Field(default=None, sa_type=BigInteger)
    output_tokens: int | None = Field(default=None, sa_type=BigInteger)
    reasoning_tokens: int | None = Field(default=None, sa_type=BigInteger)
    usage_source: str = Field(max_length=20)
    status: str = Field(max_length=20)
    http_retry: int = Field(default=0, sa_type=SmallInteger)
    provider_request_id: str | None = Field(default=None, max_length=200)
    started_at_us: int = Field(sa_type=BigInteger)
    duration_us: int | None = Field(default=None, sa_type=BigInteger)
    cost_nanousd: int | None = Field(default=None, sa_type=BigInteger)
    input_cost_nanousd: int | None = Field(default=None, sa_type=BigInteger)
    cache_read_cost_nanousd: int | None = Field(default=None, sa_type=BigInteger)
    cache_write_cost_nanousd: int | None = Field(default=None, sa_type=BigInteger)
    output_cost_nanousd: int | None = Field(default=None, sa_type=BigInteger)
    other_cost_nanousd: int | None = Field(default=None, sa_type=BigInteger)
    price_source: str | None = Field(default=None, max_length=200)
    input_nanousd_per_mtok: int | None = Field(default=None, sa_type=BigInteger)
    cache_read_nanousd_per_mtok: int | None = Field(default=None, sa_type=BigInteger)
    cache_write_nanousd_per_mtok: int | None = Field(default=None, sa_type=BigInteger)
    output_nanousd_per_mtok: int | None = Field(default=None, sa_type=BigInteger)
    rolled_up: int = Field(default=0, sa_type=SmallInteger)


class Avoided(Row, table=True):
    """What one recovery did not repeat: the run's finished steps, at their recorded cost.

    One row for each lost attempt that made a run recover; never added to spend.
    """

    __tablename__ = "avoided"

    run_id: str = Field(primary_key=True, max_length=36)
    position: int = Field(primary_key=True)
    attempt: int = Field(primary_key=True)
    namespace: str = Field(max_length=100)
    root_run_id: str = Field(max_length=36)
    agent: str = Field(max_length=200)
    reason: str = Field(max_length=20)
    steps: int
    calls: int
    unpriced_calls: int
    input_tokens: int | None = Field(default=None, sa_type=BigInteger)
    output_tokens: int | None = Field(default=None, sa_type=BigInteger)
    cost_nanousd: int | None = Field(default=None, sa_type=BigInteger)
    recorded_at_us: int = Field(sa_type=BigInteger)

"""``attempts``: one row for each time a worker claimed a step, written before money is spent."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, Text, text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class Attempt(Row, table=True):
    """One execution of a step by one worker, with the sums of its recorded calls.

    ``outcome`` is NULL while the attempt is running. The sums cover the calls that are
    known; ``cost_nanousd`` is NULL if none of them has a price, and ``unpriced_calls`` is
    the number of those without. ``ix_attempts_paid`` finds the recent costs of a step, the
    basis of what a lost attempt of it may be billed.
    """

    __tablename__ = "attempts"
    __table_args__ = (
        Index(
            "ix_attempts_lost",
            "namespace",
            "claimed_at_us",
            sqlite_where=text("outcome = 'lost'"),
            postgresql_where=text("outcome = 'lost'"),
        ),
        Index(
            "ix_attempts_paid",
            "namespace",
            "agent",
            "step",
            "claimed_at_us",
            sqlite_where=text("outcome = 'accepted' AND calls > 0"),
            postgresql_where=text("outcome = 'accepted' AND calls > 0"),
        ),
    )

    run_id: str = Field(primary_key=True, max_length=36)
    position: int = Field(primary_key=True)
    number: int = Field(primary_key=True)
    namespace: str = Field(max_length=100)
    root_run_id: str = Field(max_length=36)
    agent: str = Field(max_length=200)
    step: str = Field(max_length=200)
    worker: str = Field(max_length=200)
    claimed_at_us: int = Field(sa_type=BigInteger)
    ended_at_us: int | None = Field(default=None, sa_type=BigInteger)
    outcome: str | None = Field(default=None, max_length=20)
    error: str | None = Field(default=None, sa_type=Text)
    traceback: str | None = Field(default=None, sa_type=Text)
    calls: int = 0
    unpriced_calls: int = 0
    input_tokens: int | None = Field(default=None, sa_type=BigInteger)
    output_tokens: int | None = Field(default=None, sa_type=BigInteger)
    cost_nanousd: int | None = Field(default=None, sa_type=BigInteger)

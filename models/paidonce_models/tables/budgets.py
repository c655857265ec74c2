"""``budgets``: limits; ``budget_accounts``: what is spent and reserved per period; ``reservations``: by attempt."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, SmallInteger, Text, text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class StoredBudget(Row, table=True):
    """A limit on what a subject's runs may spend in a period; in force while ``replaced_at_us`` is NULL.

    Never deleted, and changed once at most: when another amount replaces it or
    it is removed. ``amount`` is in nano-dollars, tokens or steps, by ``unit``.
    """

    __tablename__ = "budgets"
    __table_args__ = (
        Index(
            "uq_budgets_in_force",
            "namespace",
            "subject",
            "period",
            "unit",
            "source",
            unique=True,
            sqlite_where=text("replaced_at_us IS NULL"),
            postgresql_where=text("replaced_at_us IS NULL"),
        ),
    )

    id: str = Field(primary_key=True, max_length=36)
    namespace: str = Field(max_length=100)
    subject: str = Field(sa_type=Text)
    period: str = Field(max_length=10)
    unit: str = Field(max_length=10)
    source: str = Field(max_length=10)
    amount: int = Field(sa_type=BigInteger)
    created_at_us: int = Field(sa_type=BigInteger)
    replaced_at_us: int | None = Field(default=None, sa_type=BigInteger)


class BudgetAccount(Row, table=True):
    """One run, UTC day or UTC month (``span``) of a budget: known spend, and what running attempts have reserved.

    ``spent`` is a lower bound where there are ``unpriced_calls``. Where the
    period is a run, ``subject`` is that run's agent whichever rule applies.
    """

    __tablename__ = "budget_accounts"

    namespace: str = Field(primary_key=True, max_length=100)
    key: str = Field(primary_key=True, sa_type=Text)
    subject: str = Field(sa_type=Text)
    period: str = Field(max_length=10)
    unit: str = Field(max_length=10)
    span: str = Field(max_length=36)
    spent: int = Field(default=0, sa_type=BigInteger)
    reserved: int = Field(default=0, sa_type=BigInteger)
    unpriced_calls: int = Field(default=0, sa_type=BigInteger)
    opened_at_us: int = Field(sa_type=BigInteger)


class StoredReservation(Row, table=True):
    """What an attempt has reserved in an account (``amount``) and what is left of that (``remaining``).

    ``spent`` is what the attempt has really spent there so far. ``sample`` is 1 in one row per unit of an accepted
    attempt with known cost: a basis of the estimates for later attempts of the step.
    """

    __tablename__ = "reservations"
    __table_args__ = (
        Index(
            "ix_reservations_sample",
            "namespace",
            "agent",
            "step",
            "unit",
            "ended_at_us",
            sqlite_where=text("sample = 1"),
            postgresql_where=text("sample = 1"),
        ),
    )

    run_id: str = Field(primary_key=True, max_length=36)
    position: int = Field(primary_key=True)
    attempt: int = Field(primary_key=True)
    account: str = Field(primary_key=True, sa_type=Text)
    namespace: str = Field(max_length=100)
    agent: str = Field(max_length=200)
    step: str = Field(max_length=200)
    unit: str = Field(max_length=10)
    basis: str = Field(max_length=10)
    amount: int = Field(sa_type=BigInteger)
    remaining: int = Field(sa_type=BigInteger)
    spent: int = Field(default=0, sa_type=BigInteger)
    unpriced_calls: int = 0
    sample: int = Field(default=0, sa_type=SmallInteger)
    ended_at_us: int | None = Field(default=None, sa_type=BigInteger)

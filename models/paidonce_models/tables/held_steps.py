"""``held_steps``: one row for each step that a budget holds."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, SmallInteger, Text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class HeldStep(Row, table=True):
    """A step that is ``held``, the account without room for it, and the amount that its attempt needed there.

    The step's own state decides: a row whose step is no longer held means nothing, and the sweeper deletes it.
    """

    __tablename__ = "held_steps"
    __table_args__ = (Index("ix_held_steps_account", "namespace", "shard", "account", "since_us"),)

    run_id: str = Field(primary_key=True, max_length=36)
    position: int = Field(primary_key=True)
    namespace: str = Field(max_length=100)
    shard: int = Field(sa_type=SmallInteger)
    account: str = Field(sa_type=Text)
    basis: str = Field(max_length=10)
    amount: int = Field(sa_type=BigInteger)
    since_us: int = Field(sa_type=BigInteger)

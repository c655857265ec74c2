"""``awaited_calls``: paid calls whose usage is still to come, so that they survive the worker that waits for it."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, Text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class AwaitedCall(Row, table=True):
    """A background response or batch whose usage an attempt polls for.

    The heartbeat inserts the row and deletes it once ``calls`` has one with the same id. If the attempt is lost first,
    ``record`` (the call as JSON, its tokens and cost unknown) is what ``calls`` gets.
    """

    __tablename__ = "awaited_calls"
    __table_args__ = (Index("ix_awaited_calls_attempt", "run_id", "position", "attempt"),)

    id: str = Field(primary_key=True, max_length=36)
    namespace: str = Field(max_length=100)
    run_id: str = Field(max_length=36)
    position: int
    attempt: int
    step: str = Field(max_length=200)
    record: str = Field(sa_type=Text)
    since_us: int = Field(sa_type=BigInteger)

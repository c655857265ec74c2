"""``workers``: which are alive and which code they hold; ``sweeps``: who leads the sweeping of a shard."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, SmallInteger, Text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class Worker(Row, table=True):
    """A worker process group and what it holds: ``holdings`` is JSON ``{"agents": [...], "steps": [...]}``."""

    __tablename__ = "workers"
    __table_args__ = (Index("ix_workers_seen", "namespace", "seen_at_us"),)

    id: str = Field(primary_key=True, max_length=200)
    namespace: str = Field(max_length=100)
    hostname: str = Field(max_length=200)
    pid: int
    python_minor: str = Field(max_length=10)
    queues: str = Field(default="[]", sa_type=Text)
    holdings: str = Field(default="{}", sa_type=Text)
    started_at_us: int = Field(sa_type=BigInteger)
    seen_at_us: int = Field(sa_type=BigInteger)
    stopped_at_us: int | None = Field(default=None, sa_type=BigInteger)


class Sweep(Row, table=True):
    """The lease of the sweeper that leads a shard."""

    __tablename__ = "sweeps"

    namespace: str = Field(primary_key=True, max_length=100)
    shard: int = Field(primary_key=True, sa_type=SmallInteger)
    leader: str = Field(max_length=200)
    lease_expires_at_us: int = Field(sa_type=BigInteger)
    swept_at_us: int = Field(sa_type=BigInteger)

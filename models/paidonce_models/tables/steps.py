"""``steps``: one row for each thing an agent requested: a step, a tool call, a child run."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, SmallInteger, Text, text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class Step(Row, table=True):
    """A step of a run, numbered from 1 in the order in which the agent requested it.

    ``created_seq`` is the event of the run's history whose consumption led to it.

    ``attempt`` is the number of the newest attempt and the fence of every write by a
    worker. ``lost`` counts attempts whose worker vanished, ``blamed`` those of them that
    ran alone or are known to have killed their process, ``failed`` those that count towards
    the retry policy. ``publish_at_us`` is when the sweeper publishes the step's message
    (again) unless it was claimed by then. ``parked_us`` is how long it was parked for open
    circuits, which counts towards no timeout.
    """

    __tablename__ = "steps"
    __table_args__ = (
        Index(
            "ix_steps_publish",
            "shard",
            "publish_at_us",
            sqlite_where=text("publish_at_us IS NOT NULL"),
            postgresql_where=text("publish_at_us IS NOT NULL"),
        ),
        Index(
            "ix_steps_lease",
            "shard",
            "lease_expires_at_us",
            sqlite_where=text("lease_expires_at_us IS NOT NULL"),
            postgresql_where=text("lease_expires_at_us IS NOT NULL"),
        ),
        Index(
            "ix_steps_standing",
            "run_id",
            sqlite_where=text("state IN ('held', 'parked', 'blocked')"),
            postgresql_where=text("state IN ('held', 'parked', 'blocked')"),
        ),
    )

    run_id: str = Field(primary_key=True, max_length=36)
    position: int = Field(primary_key=True)
    namespace: str = Field(max_length=100)
    shard: int = Field(default=0, sa_type=SmallInteger)
    root_run_id: str = Field(max_length=36)
    agent: str = Field(max_length=200)
    kind: str = Field(max_length=10)
    name: str = Field(max_length=200)
    queue: str = Field(max_length=200)
    priority: int = Field(default=5, sa_type=SmallInteger)
    delivery: str = Field(default="at_least_once", max_length=20)
    max_lost: int = 5
    args_id: str = Field(max_length=64)
    created_seq: int = Field(sa_type=BigInteger)
    child_run_id: str | None = Field(default=None, max_length=36)
    state: str = Field(max_length=20)
    attempt: int = 0
    lost: int = 0
    blamed: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    failed: int = 0
    lease_owner: str | None = Field(default=None, max_length=200)
    lease_expires_at_us: int | None = Field(default=None, sa_type=BigInteger)
    due_at_us: int | None = Field(default=None, sa_type=BigInteger)
    publish_at_us: int | None = Field(default=None, sa_type=BigInteger)
    publish_count: int = 0
    parked_us: int = Field(default=0, sa_type=BigInteger)
    result_id: str | None = Field(default=None, max_length=64)
    error: str | None = Field(default=None, sa_type=Text)
    created_at_us: int = Field(sa_type=BigInteger)
    started_at_us: int | None = Field(default=None, sa_type=BigInteger)
    finished_at_us: int | None = Field(default=None, sa_type=BigInteger)

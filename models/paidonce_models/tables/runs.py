"""``runs``: one row for each execution of an agent; ``run_aliases``: other names of a run."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, SmallInteger, Text, UniqueConstraint, text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class Run(Row, table=True):
    """One execution of an agent.

    ``last_seq`` is the number of the newest event of the run's history, ``consumed_seq``
    that of the newest event which its coroutine was fed; both change only under this row's
    lock. ``wake_at_us`` is the agent's earliest timer. ``publish_at_us`` is when the
    sweeper sends an ``advance`` message (again) unless the history was consumed by then.
    ``lineage`` is JSON: the subjects of budgets of the run, its ancestors' and its own
    (see ``paidonce_models.budgets``).
    """

    __tablename__ = "runs"
    __table_args__ = (
        UniqueConstraint("namespace", "agent", "key", name="uq_runs_key"),
        Index("ix_runs_state", "namespace", "state", "created_at_us"),
        Index("ix_runs_parent", "parent_run_id", "parent_position"),
        Index("ix_runs_root", "root_run_id"),
        Index(
            "ix_runs_publish",
            "shard",
            "publish_at_us",
            sqlite_where=text("publish_at_us IS NOT NULL"),
            postgresql_where=text("publish_at_us IS NOT NULL"),
        ),
        Index(
            "ix_runs_wake",
            "shard",
            "wake_at_us",
            sqlite_where=text("wake_at_us IS NOT NULL"),
            postgresql_where=text("wake_at_us IS NOT NULL"),
        ),
    )

    id: str = Field(primary_key=True, max_length=36)
    namespace: str = Field(max_length=100)
    shard: int = Field(default=0, sa_type=SmallInteger)
    agent: str = Field(max_length=200)
    agent_version: str | None = Field(default=None, max_length=100)
    python_minor: str | None = Field(default=None, max_length=10)
    key: str | None = Field(default=None, sa_type=Text)
    state: str = Field(max_length=20)
    state_reason: str | None = Field(default=None, max_length=50)
    priority: int = Field(default=5, sa_type=SmallInteger)
    queue: str = Field(max_length=200)
    input_id: str | None = Field(default=None, max_length=64)
    input_sha256: str | None = Field(default=None, max_length=64)
    tags: str = Field(default="{}", sa_type=Text)
    lineage: str = Field(default="[]", sa_type=Text)
    parent_run_id: str | None = Field(default=None, max_length=36)
    parent_position: int | None = None
    root_run_id: str = Field(max_length=36)
    depth: int = Field(default=0, sa_type=SmallInteger)
    forked_from_run: str | None = Field(default=None, max_length=36)
    forked_at_seq: int | None = Field(default=None, sa_type=BigInteger)
    trace_context: str | None = Field(default=None, sa_type=Text)
    last_seq: int = Field(default=0, sa_type=BigInteger)
    consumed_seq: int = Field(default=0, sa_type=BigInteger)
    wake_at_us: int | None = Field(default=None, sa_type=BigInteger)
    publish_at_us: int | None = Field(default=None, sa_type=BigInteger)
    publish_count: int = 0
    cancel_requested_at_us: int | None = Field(default=None, sa_type=BigInteger)
    blocked_signature: str | None = Field(default=None, max_length=200)
    result_id: str | None = Field(default=None, max_length=64)
    error: str | None = Field(default=None, sa_type=Text)
    created_at_us: int = Field(sa_type=BigInteger)
    started_at_us: int | None = Field(default=None, sa_type=BigInteger)
    finished_at_us: int | None = Field(default=None, sa_type=BigInteger)


class RunAlias(Row, table=True):
    """Another name of a run, such as the id of the Celery task that submitted it."""

    __tablename__ = "run_aliases"

    namespace: str = Field(primary_key=True, max_length=100)
    alias: str = Field(primary_key=True, max_length=255)
    run_id: str = Field(max_length=36)

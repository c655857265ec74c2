"""The first schema: runs, their logs, steps, attempts, the ledger, payloads and workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_NOW = """
CREATE OR REPLACE FUNCTION paidonce_now() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
        + coalesce(nullif(current_setting('paidonce.clock_offset_us', true), ''), '0')::bigint
$$
"""


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_NOW)
    op.create_table(
        "attempts",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("root_run_id", sa.String(length=36), nullable=False),
        sa.Column("agent", sa.String(length=200), nullable=False),
        sa.Column("step", sa.String(length=200), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=False),
        sa.Column("claimed_at_us", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_us", sa.BigInteger(), nullable=True),
        sa.Column("outcome", sa.String(length=20), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.Column("calls", sa.Integer(), nullable=False),
        sa.Column("unpriced_calls", sa.Integer(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cost_nanousd", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "position", "number"),
    )
    op.create_table(
        "avoided",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("root_run_id", sa.String(length=36), nullable=False),
        sa.Column("agent", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.String(length=20), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("calls", sa.Integer(), nullable=False),
        sa.Column("unpriced_calls", sa.Integer(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cost_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("recorded_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "position", "attempt"),
    )
    op.create_table(
        "calls",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("root_run_id", sa.String(length=36), nullable=False),
        sa.Column("agent", sa.String(length=200), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("step", sa.String(length=200), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("tool", sa.String(length=200), nullable=True),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("provider", sa.String(length=100), nullable=True),
        sa.Column("model_requested", sa.String(length=200), nullable=True),
        sa.Column("model_billed", sa.String(length=200), nullable=True),
        sa.Column("input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cache_read_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=True),
        sa.Column("usage_source", sa.String(length=20), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("http_retry", sa.SmallInteger(), nullable=False),
        sa.Column("provider_request_id", sa.String(length=200), nullable=True),
        sa.Column("started_at_us", sa.BigInteger(), nullable=False),
        sa.Column("duration_us", sa.BigInteger(), nullable=True),
        sa.Column("cost_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("input_cost_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("cache_read_cost_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_cost_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("output_cost_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("other_cost_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("price_source", sa.String(length=200), nullable=True),
        sa.Column("input_nanousd_per_mtok", sa.BigInteger(), nullable=True),
        sa.Column("cache_read_nanousd_per_mtok", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_nanousd_per_mtok", sa.BigInteger(), nullable=True),
        sa.Column("output_nanousd_per_mtok", sa.BigInteger(), nullable=True),
        sa.Column("rolled_up", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", "day"),
    )
    op.create_index("ix_calls_attempt", "calls", ["run_id", "position", "attempt"], unique=False)
    op.create_index("ix_calls_day", "calls", ["namespace", "day"], unique=False)
    op.create_table(
        "payloads",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("codec", sa.String(length=30), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("inline", sa.LargeBinary(), nullable=True),
        sa.Column("uri", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("namespace", "id"),
    )
    op.create_table(
        "run_aliases",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("alias", sa.String(length=255), nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "alias"),
    )
    op.create_table(
        "run_events",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=30), nullable=False),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=True),
        sa.Column("payload_id", sa.String(length=64), nullable=True),
        sa.Column("data", sa.Text(), nullable=True),
        sa.Column("recorded_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "seq"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("agent", sa.String(length=200), nullable=False),
        sa.Column("agent_version", sa.String(length=100), nullable=True),
        sa.Column("python_minor", sa.String(length=10), nullable=True),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("state_reason", sa.String(length=50), nullable=True),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("queue", sa.String(length=200), nullable=False),
        sa.Column("input_id", sa.String(length=64), nullable=True),
        sa.Column("input_sha256", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("parent_run_id", sa.String(length=36), nullable=True),
        sa.Column("parent_position", sa.Integer(), nullable=True),
        sa.Column("root_run_id", sa.String(length=36), nullable=False),
        sa.Column("depth", sa.SmallInteger(), nullable=False),
        sa.Column("forked_from_run", sa.String(length=36), nullable=True),
        sa.Column("forked_at_seq", sa.BigInteger(), nullable=True),
        sa.Column("trace_context", sa.Text(), nullable=True),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("consumed_seq", sa.BigInteger(), nullable=False),
        sa.Column("wake_at_us", sa.BigInteger(), nullable=True),
        sa.Column("publish_at_us", sa.BigInteger(), nullable=True),
        sa.Column("publish_count", sa.Integer(), nullable=False),
        sa.Column("cancel_requested_at_us", sa.BigInteger(), nullable=True),
        sa.Column("blocked_signature", sa.String(length=200), nullable=True),
        sa.Column("result_id", sa.String(length=64), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("started_at_us", sa.BigInteger(), nullable=True),
        sa.Column("finished_at_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("namespace", "agent", "key", name="uq_runs_key"),
    )
    op.create_index("ix_runs_parent", "runs", ["parent_run_id", "parent_position"], unique=False)
    op.create_index(
        "ix_runs_publish",
        "runs",
        ["shard", "publish_at_us"],
        unique=False,
        sqlite_where=sa.text("publish_at_us IS NOT NULL"),
        postgresql_where=sa.text("publish_at_us IS NOT NULL"),
    )
    op.create_index("ix_runs_root", "runs", ["root_run_id"], unique=False)
    op.create_index("ix_runs_state", "runs", ["namespace", "state", "created_at_us"], unique=False)
    op.create_index(
        "ix_runs_wake",
        "runs",
        ["shard", "wake_at_us"],
        unique=False,
        sqlite_where=sa.text("wake_at_us IS NOT NULL"),
        postgresql_where=sa.text("wake_at_us IS NOT NULL"),
    )
    op.create_table(
        "steps",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("root_run_id", sa.String(length=36), nullable=False),
        sa.Column("agent", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("queue", sa.String(length=200), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("delivery", sa.String(length=20), nullable=False),
        sa.Column("max_lost", sa.Integer(), nullable=False),
        sa.Column("args_id", sa.String(length=64), nullable=False),
        sa.Column("created_seq", sa.BigInteger(), nullable=False),
        sa.Column("child_run_id", sa.String(length=36), nullable=True),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lost", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=200), nullable=True),
        sa.Column("lease_expires_at_us", sa.BigInteger(), nullable=True),
        sa.Column("due_at_us", sa.BigInteger(), nullable=True),
        sa.Column("publish_at_us", sa.BigInteger(), nullable=True),
        sa.Column("publish_count", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.String(length=64), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("started_at_us", sa.BigInteger(), nullable=True),
        sa.Column("finished_at_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "position"),
    )
    op.create_index(
        "ix_steps_lease",
        "steps",
        ["shard", "lease_expires_at_us"],
        unique=False,
        sqlite_where=sa.text("lease_expires_at_us IS NOT NULL"),
        postgresql_where=sa.text("lease_expires_at_us IS NOT NULL"),
    )
    op.create_index(
        "ix_steps_publish",
        "steps",
        ["shard", "publish_at_us"],
        unique=False,
        sqlite_where=sa.text("publish_at_us IS NOT NULL"),
        postgresql_where=sa.text("publish_at_us IS NOT NULL"),
    )
    op.create_table(
        "sweeps",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("leader", sa.String(length=200), nullable=False),
        sa.Column("lease_expires_at_us", sa.BigInteger(), nullable=False),
        sa.Column("swept_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "shard"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("hostname", sa.String(length=200), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("python_minor", sa.String(length=10), nullable=False),
        sa.Column("queues", sa.Text(), nullable=False),
        sa.Column("holdings", sa.Text(), nullable=False),
        sa.Column("started_at_us", sa.BigInteger(), nullable=False),
        sa.Column("seen_at_us", sa.BigInteger(), nullable=False),
        sa.Column("stopped_at_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_workers_seen", "workers", ["namespace", "seen_at_us"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_workers_seen", table_name="workers")
    op.drop_table("workers")
    op.drop_table("sweeps")
    op.drop_index(
        "ix_steps_publish",
        table_name="steps",
        sqlite_where=sa.text("publish_at_us IS NOT NULL"),
        postgresql_where=sa.text("publish_at_us IS NOT NULL"),
    )
    op.drop_index(
        "ix_steps_lease",
        table_name="steps",
        sqlite_where=sa.text("lease_expires_at_us IS NOT NULL"),
        postgresql_where=sa.text("lease_expires_at_us IS NOT NULL"),
    )
    op.drop_table("steps")
    op.drop_index(
        "ix_runs_wake",
        table_name="runs",
        sqlite_where=sa.text("wake_at_us IS NOT NULL"),
        postgresql_where=sa.text("wake_at_us IS NOT NULL"),
    )
    op.drop_index("ix_runs_state", table_name="runs")
    op.drop_index("ix_runs_root", table_name="runs")
    op.drop_index(
        "ix_runs_publish",
        table_name="runs",
        sqlite_where=sa.text("publish_at_us IS NOT NULL"),
        postgresql_where=sa.text("publish_at_us IS NOT NULL"),
    )
    op.drop_index("ix_runs_parent", table_name="runs")
    op.drop_table("runs")
    op.drop_table("run_events")
    op.drop_table("run_aliases")
    op.drop_table("payloads")
    op.drop_index("ix_calls_day", table_name="calls")
    op.drop_index("ix_calls_attempt", table_name="calls")
    op.drop_table("calls")
    op.drop_table("avoided")
    op.drop_table("attempts")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION paidonce_now()")

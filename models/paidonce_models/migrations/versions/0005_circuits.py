"""Circuits: the steps that wait for one, and every change of one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_REFUSED_CALLS = """
CREATE VIEW refused_calls AS
SELECT v.namespace, v.agent, s.name AS step, count(*) AS steps, CAST(sum(v.calls) AS BIGINT) AS refused_calls
FROM avoided v JOIN steps s ON s.run_id = v.run_id AND s.position = v.position
WHERE v.reason = 'circuit_open' GROUP BY v.namespace, v.agent, s.name
"""


def upgrade() -> None:
    op.create_table(
        "parked_steps",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("circuit", sa.String(length=200), nullable=False),
        sa.Column("since_us", sa.BigInteger(), nullable=False),
        sa.Column("parked_at_us", sa.BigInteger(), nullable=False),
        sa.Column("due_at_us", sa.BigInteger(), nullable=False),
        sa.Column("deadline_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "position"),
    )
    op.create_index("ix_parked_steps_circuit", "parked_steps", ["namespace", "shard", "circuit", "since_us"])
    op.create_table(
        "breaker_transitions",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("circuit", sa.String(length=200), nullable=False),
        sa.Column("from_state", sa.String(length=20), nullable=False),
        sa.Column("to_state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_breaker_transitions_circuit", "breaker_transitions", ["namespace", "circuit", "at_us"])
    op.add_column("steps", sa.Column("parked_us", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(sa.text(_REFUSED_CALLS))


def downgrade() -> None:
    op.execute("DROP VIEW refused_calls")
    op.drop_column("steps", "parked_us")
    op.drop_table("breaker_transitions")
    op.drop_table("parked_steps")

"""One row of sums for each run, next to those by day and cause: half as many rows where neither is asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_COUNTS = ("calls", "unpriced_calls")
_KNOWN_SUMS = (
    *("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "cost_nanousd"),
)


def upgrade() -> None:
    op.create_table(
        "run_totals",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("agent", sa.String(length=200), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in _KNOWN_SUMS),
        sa.PrimaryKeyConstraint("namespace", "run_id"),
    )
    columns = (*_COUNTS, *_KNOWN_SUMS)
    op.execute(
        f"INSERT INTO run_totals (namespace, run_id, agent, tags, {', '.join(columns)}) "
        f"SELECT namespace, run_id, min(agent), min(tags), {', '.join(f'sum({name})' for name in columns)} "
        "FROM run_costs GROUP BY namespace, run_id"
    )


def downgrade() -> None:
    op.drop_table("run_totals")

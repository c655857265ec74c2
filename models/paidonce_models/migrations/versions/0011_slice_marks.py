"""Which process advances a run, so that an agent whose code ends its process is found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "slice_marks",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=False),
        sa.Column("signature", sa.String(length=200), nullable=False),
        sa.Column("deaths", sa.Integer(), nullable=False),
        sa.Column("marked_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index("ix_slice_marks_worker", "slice_marks", ["worker"])


def downgrade() -> None:
    op.drop_table("slice_marks")

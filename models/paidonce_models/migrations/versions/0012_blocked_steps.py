"""Steps whose paid result, or whose arguments, do not fit the code: what was paid is kept and not paid again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_STANDING = "ix_steps_standing"


def upgrade() -> None:
    op.create_table(
        "blocked_steps",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("step", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.String(length=50), nullable=False),
        sa.Column("form", sa.String(length=20), nullable=True),
        sa.Column("kept_id", sa.String(length=64), nullable=True),
        sa.Column("text_only", sa.Text(), nullable=False),
        sa.Column("shape", sa.String(length=64), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=False),
        sa.Column("since_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "position"),
    )
    op.create_index("ix_blocked_steps_step", "blocked_steps", ["namespace", "step"])
    _make_standing_index("'held', 'parked', 'blocked'")


def downgrade() -> None:
    _make_standing_index("'held', 'parked'")
    op.drop_table("blocked_steps")


def _make_standing_index(states: str) -> None:
    op.drop_index(_STANDING, table_name="steps")
    chosen = sa.text(f"state IN ({states})")
    op.create_index(_STANDING, "steps", ["run_id"], sqlite_where=chosen, postgresql_where=chosen)

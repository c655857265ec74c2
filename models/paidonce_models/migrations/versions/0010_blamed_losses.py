"""How many of a step's losses count against it: those of a process that ran nothing else."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A constant default: on both stores the table is not rewritten, and what is under way begins without blame.
    op.add_column("steps", sa.Column("blamed", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("steps", "blamed")

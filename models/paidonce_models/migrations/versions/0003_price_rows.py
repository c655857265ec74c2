"""Prices of one's own: dated rows on top of the price list."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "price_rows",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("provider", sa.String(length=100), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("valid_from_us", sa.BigInteger(), nullable=False),
        sa.Column("valid_until_us", sa.BigInteger(), nullable=True),
        sa.Column("input_nanousd_per_mtok", sa.BigInteger(), nullable=False),
        sa.Column("cache_read_nanousd_per_mtok", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_nanousd_per_mtok", sa.BigInteger(), nullable=True),
        sa.Column("output_nanousd_per_mtok", sa.BigInteger(), nullable=True),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("namespace", "provider", "model", "valid_from_us", name="uq_price_rows_model_from"),
    )


def downgrade() -> None:
    op.drop_table("price_rows")

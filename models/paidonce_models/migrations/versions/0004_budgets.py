"""Budgets: limits, their accounts, what attempts have reserved, and the steps that are held."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_IN_FORCE = "replaced_at_us IS NULL"
_SAMPLE = "sample = 1"
_STANDING = "state IN ('held', 'parked')"

# What the accounts of a budget hold now; per run, those of all its runs together.
_BUDGETS_NOW = """
CREATE VIEW budgets_now AS
WITH accounts AS (
    SELECT b.id AS budget_id, a.key, a.spent, a.reserved, a.unpriced_calls, (
        SELECT count(*) FROM held_steps h JOIN steps s ON s.run_id = h.run_id AND s.position = h.position
        WHERE h.namespace = a.namespace AND h.account = a.key AND s.state = 'held'
    ) AS held_steps
    FROM budgets b JOIN budget_accounts a ON a.namespace = b.namespace AND a.period = b.period AND a.unit = b.unit
        AND (a.subject = b.subject OR (b.period = 'run' AND 'run=' || a.span = b.subject))
        AND (b.period = 'run' OR a.span = {now})
    WHERE b.replaced_at_us IS NULL
)
SELECT b.namespace, b.subject, b.period, b.unit, b.source, b.amount AS limit_amount, count(a.key) AS accounts,
    CAST(coalesce(sum(a.spent), 0) AS BIGINT) AS spent, CAST(coalesce(sum(a.reserved), 0) AS BIGINT) AS reserved,
    CAST(coalesce(sum(a.unpriced_calls), 0) AS BIGINT) AS unpriced_calls,
    CAST(coalesce(sum(a.held_steps), 0) AS BIGINT) AS held_steps
FROM budgets b LEFT JOIN accounts a ON a.budget_id = b.id
WHERE b.replaced_at_us IS NULL
GROUP BY b.namespace, b.subject, b.period, b.unit, b.source, b.amount
"""
_NOW = {
    "postgresql": "to_char(to_timestamp(paidonce_now() / 1000000) AT TIME ZONE 'UTC', "
    "CASE b.period WHEN 'month' THEN 'YYYY-MM' ELSE 'YYYY-MM-DD' END)",
    "sqlite": "strftime(CASE b.period WHEN 'month' THEN '%Y-%m' ELSE '%Y-%m-%d' END, "
    "paidonce_now() / 1000000, 'unixepoch')",
}

# What the hot statements ask, as a function: written out it would make them longer than the driver keeps prepared.
_HAS_BUDGETS = """
CREATE FUNCTION paidonce_has_budgets(of_namespace text, of_lineage text) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM budgets WHERE namespace = of_namespace AND replaced_at_us IS NULL) THEN
        RETURN false;
    END IF;
    RETURN EXISTS (SELECT 1 FROM budgets WHERE namespace = of_namespace AND replaced_at_us IS NULL
        AND subject IN (SELECT entry->>0 FROM json_array_elements(CAST(of_lineage AS json)) AS entry));
END
$$
"""


def upgrade() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("period", sa.String(length=10), nullable=False),
        sa.Column("unit", sa.String(length=10), nullable=False),
        sa.Column("source", sa.String(length=10), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("replaced_at_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "uq_budgets_in_force",
        "budgets",
        ["namespace", "subject", "period", "unit", "source"],
        unique=True,
        sqlite_where=sa.text(_IN_FORCE),
        postgresql_where=sa.text(_IN_FORCE),
    )
    op.create_table(
        "budget_accounts",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("period", sa.String(length=10), nullable=False),
        sa.Column("unit", sa.String(length=10), nullable=False),
        sa.Column("span", sa.String(length=36), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("unpriced_calls", sa.BigInteger(), nullable=False),
        sa.Column("opened_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "key"),
    )
    op.create_table(
        "reservations",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("agent", sa.String(length=200), nullable=False),
        sa.Column("step", sa.String(length=200), nullable=False),
        sa.Column("unit", sa.String(length=10), nullable=False),
        sa.Column("basis", sa.String(length=10), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("remaining", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("unpriced_calls", sa.Integer(), nullable=False),
        sa.Column("sample", sa.SmallInteger(), nullable=False),
        sa.Column("ended_at_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "position", "attempt", "account"),
    )
    op.create_index(
        "ix_reservations_sample",
        "reservations",
        ["namespace", "agent", "step", "unit", "ended_at_us"],
        sqlite_where=sa.text(_SAMPLE),
        postgresql_where=sa.text(_SAMPLE),
    )
    op.create_table(
        "held_steps",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("basis", sa.String(length=10), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("since_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "position"),
    )
    op.create_index("ix_held_steps_account", "held_steps", ["namespace", "shard", "account", "since_us"])
    op.create_index(
        "ix_steps_standing",
        "steps",
        ["run_id"],
        sqlite_where=sa.text(_STANDING),
        postgresql_where=sa.text(_STANDING),
    )
    op.add_column("runs", sa.Column("lineage", sa.Text(), nullable=False, server_default="[]"))
    _fill_lineages()
    if op.get_bind().dialect.name == "postgresql":
        op.execute(sa.text(_HAS_BUDGETS))
    op.execute(sa.text(_BUDGETS_NOW.format(now=_NOW[op.get_bind().dialect.name]).replace(":", "\\:")))


def _fill_lineages() -> None:
    """Of runs that are under way; ended ones draw on nothing any more."""
    connection = op.get_bind()
    lineages: dict[str, list[list[str]]] = {}
    runs = connection.execute(
        sa.text(
            "SELECT id, agent, tags, parent_run_id FROM runs "
            "WHERE state NOT IN ('succeeded', 'failed', 'cancelled') ORDER BY depth, id"
        )
    ).all()
    for run in runs:
        shared = lineages.get(run.parent_run_id)
        if shared is None:
            tags = sorted(json.loads(run.tags).items())
            shared = [["all", run.id], *([f"tag:{name}={value}", run.id] for name, value in tags)]
        lineages[run.id] = [*shared, [f"agent={run.agent}", run.id], [f"run={run.id}", run.id]]
    for run_id, lineage in lineages.items():
        connection.execute(
            sa.text("UPDATE runs SET lineage = :lineage WHERE id = :id"),
            {"id": run_id, "lineage": json.dumps(lineage)},
        )


def downgrade() -> None:
    op.execute("DROP VIEW budgets_now")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION paidonce_has_budgets(text, text)")
    op.drop_column("runs", "lineage")
    op.drop_index("ix_steps_standing", table_name="steps")
    for table in ("held_steps", "reservations", "budget_accounts", "budgets"):
        op.drop_table(table)

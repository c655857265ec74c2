"""Views mended: runs of wholly unknown cost count, a family's sum stands by its root, any client reads budgets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_ENDED = "('succeeded', 'failed', 'cancelled')"
_KNOWN_SUMS = (
    *("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "cost_nanousd"),
)
_CALL_SUMS = ", ".join(
    [f"CAST(coalesce(sum({name}), 0) AS BIGINT) AS {name}" for name in ("calls", "unpriced_calls")]
    + [f"CAST(sum({name}) AS BIGINT) AS {name}" for name in _KNOWN_SUMS]
)
_OWN = f"run_id, agent, root_run_id, calls, unpriced_calls, {', '.join(_KNOWN_SUMS)}"


def _per_successful_run(*, counts_all: bool) -> str:
    """With ``counts_all`` runs without any known money count for what they lack; percentiles are of known money."""
    nothing_known = ", t.cost_nanousd IS NULL" if counts_all else ""
    only_known = "" if counts_all else " AND t.cost_nanousd IS NOT NULL"
    return f"""
CREATE VIEW costs_per_successful_run AS
WITH trees AS (
    SELECT namespace, root_run_id, {_CALL_SUMS} FROM run_cost_facts GROUP BY namespace, root_run_id
), ended AS (
    SELECT r.namespace, r.agent, r.state, t.cost_nanousd, t.unpriced_calls,
        row_number() OVER (PARTITION BY r.namespace, r.agent, r.state{nothing_known} ORDER BY t.cost_nanousd) AS place,
        count(*) OVER (PARTITION BY r.namespace, r.agent, r.state{nothing_known}) AS places
    FROM runs r JOIN trees t ON t.namespace = r.namespace AND t.root_run_id = r.id
    WHERE r.state IN {_ENDED}{only_known}
), finished AS (
    SELECT namespace, agent, count(*) AS ended_runs, sum(CASE WHEN state = 'succeeded' THEN 1 ELSE 0 END) AS successes
    FROM runs WHERE id = root_run_id AND state IN {_ENDED} GROUP BY namespace, agent
), spent AS (
    SELECT namespace, agent, sum(cost_nanousd) AS cost_nanousd, sum(unpriced_calls) AS unpriced_calls,
        min(CASE WHEN state = 'succeeded' AND place * 100 >= places * 50 THEN cost_nanousd END) AS p50,
        min(CASE WHEN state = 'succeeded' AND place * 100 >= places * 95 THEN cost_nanousd END) AS p95
    FROM ended GROUP BY namespace, agent
)
SELECT f.namespace, f.agent, CAST(f.ended_runs AS BIGINT) AS ended_runs,
    CAST(f.successes AS BIGINT) AS successful_runs, CAST(s.cost_nanousd AS BIGINT) AS cost_nanousd,
    CAST(coalesce(s.unpriced_calls, 0) AS BIGINT) AS unpriced_calls,
    CAST(s.cost_nanousd AS BIGINT) / nullif(CAST(f.successes AS BIGINT), 0) AS cost_per_success_nanousd,
    CAST(s.p50 AS BIGINT) AS p50_cost_nanousd, CAST(s.p95 AS BIGINT) AS p95_cost_nanousd
FROM finished f LEFT JOIN spent s ON s.namespace = f.namespace AND s.agent = f.agent
"""


# A root that spent nothing itself has a row all the same, or what its child runs spent would have no place.
_COSTS_BY_RUN = f"""
CREATE VIEW costs_by_run AS
WITH own AS (
    SELECT namespace, run_id, agent, root_run_id, {_CALL_SUMS} FROM run_cost_facts
    GROUP BY namespace, run_id, agent, root_run_id
), trees AS (
    SELECT namespace, root_run_id, CAST(sum(cost_nanousd) AS BIGINT) AS tree_cost_nanousd
    FROM run_cost_facts GROUP BY namespace, root_run_id
)
SELECT o.namespace, {", ".join(f"o.{name}" for name in _OWN.split(", "))}, t.tree_cost_nanousd
FROM own o LEFT JOIN trees t ON t.namespace = o.namespace AND t.root_run_id = o.run_id
UNION ALL
SELECT t.namespace, r.id, r.agent, r.id, 0, 0, {", ".join(["CAST(NULL AS BIGINT)"] * len(_KNOWN_SUMS))},
    t.tree_cost_nanousd
FROM trees t JOIN runs r ON r.id = t.root_run_id
WHERE NOT EXISTS (SELECT 1 FROM own o WHERE o.namespace = t.namespace AND o.run_id = t.root_run_id)
"""
_COSTS_BY_RUN_BEFORE = (
    "CREATE VIEW costs_by_run AS SELECT f.namespace, f.run_id, f.agent, f.root_run_id, "
    f"{_CALL_SUMS} FROM run_cost_facts f GROUP BY f.namespace, f.run_id, f.agent, f.root_run_id"
)

# On SQLite only: the function paidonce_now() is there for Paidonce's own connections, and for no other client.
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
_FORMAT = "CASE b.period WHEN 'month' THEN '%Y-%m' ELSE '%Y-%m-%d' END"
_NOW = f"strftime({_FORMAT}, 'now')"
_NOW_BEFORE = f"strftime({_FORMAT}, paidonce_now() / 1000000, 'unixepoch')"


def upgrade() -> None:
    _replace(_COSTS_BY_RUN, _per_successful_run(counts_all=True), now=_NOW)


def downgrade() -> None:
    _replace(_COSTS_BY_RUN_BEFORE, _per_successful_run(counts_all=False), now=_NOW_BEFORE)


def _replace(costs_by_run: str, per_successful_run: str, *, now: str) -> None:
    views = {"costs_by_run": costs_by_run, "costs_per_successful_run": per_successful_run}
    if op.get_bind().dialect.name == "sqlite":
        views["budgets_now"] = _BUDGETS_NOW.format(now=now)
    for name in views:
        op.execute(f"DROP VIEW {name}")
    for statement in views.values():
        op.execute(sa.text(statement))

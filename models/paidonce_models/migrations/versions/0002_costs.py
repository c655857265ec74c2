"""Cost views, the sums they read, and the indexes that keep them fast; see ``docs/reference/costs.md``."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ENDED = "('succeeded', 'failed', 'cancelled')"
_TOKENS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
_KNOWN_SUMS = (*_TOKENS, "cost_nanousd")


def _sums(*counts: str, known: tuple[str, ...] = _KNOWN_SUMS) -> str:
    """Counts are 0 for no rows, sums of what is known are NULL when nothing is known."""
    return ", ".join(
        [f"CAST(coalesce(sum({name}), 0) AS BIGINT) AS {name}" for name in counts]
        + [f"CAST(sum({name}) AS BIGINT) AS {name}" for name in known]
    )


_CALL_SUMS = _sums("calls", "unpriced_calls")

_LEDGER_CALLS = f"""
CREATE VIEW ledger_calls AS
SELECT c.namespace, c.id, c.day, c.run_id, c.root_run_id, c.agent, c.tags, c.position, c.step, c.attempt,
    nullif(c.tool, '') AS tool, c.kind, c.provider,
    nullif(coalesce(nullif(c.model_billed, ''), c.model_requested), '') AS model,
    CASE
        WHEN root.state IS NULL OR a.run_id IS NULL THEN 'unknown'
        WHEN root.state NOT IN {_ENDED} OR a.outcome IS NULL THEN 'open'
        WHEN a.outcome <> 'accepted' THEN a.outcome
        WHEN root.state = 'succeeded' THEN 'useful'
        ELSE 'abandoned'
    END AS cause,
    c.status, c.http_retry, c.usage_source, c.provider_request_id, c.started_at_us, c.duration_us,
    {", ".join(f"c.{name}" for name in _KNOWN_SUMS)}, c.price_source,
    CASE WHEN c.cost_nanousd IS NULL
        AND NOT (c.status = 'failed' AND c.input_tokens IS NULL AND c.output_tokens IS NULL)
        THEN 1 ELSE 0 END AS unpriced_calls,
    CASE WHEN c.usage_source = 'estimated' THEN 1 ELSE 0 END AS estimated_calls,
    CASE WHEN c.usage_source = 'missing' THEN 1 ELSE 0 END AS missing_calls,
    CASE WHEN c.attempt > 1 OR c.http_retry > 0 THEN 1 ELSE 0 END AS retry_calls,
    CASE WHEN c.attempt > 1 OR c.http_retry > 0 THEN c.cost_nanousd END AS retry_cost_nanousd,
    1 AS calls, c.rolled_up
FROM calls c
LEFT JOIN attempts a ON a.run_id = c.run_id AND a.position = c.position AND a.number = c.attempt
LEFT JOIN runs root ON root.id = c.root_run_id
"""

_DAILY_MEASURES = (
    f"calls, unpriced_calls, estimated_calls, missing_calls, retry_calls, {', '.join(_KNOWN_SUMS)}, retry_cost_nanousd"
)
_COST_FACTS = f"""
CREATE VIEW cost_facts AS
SELECT namespace, day, agent, step, nullif(tool, '') AS tool, nullif(model, '') AS model, cause, {_DAILY_MEASURES}
FROM daily_costs
UNION ALL
SELECT namespace, day, agent, step, tool, model, cause, {_DAILY_MEASURES} FROM ledger_calls WHERE rolled_up = 0
"""

_RUN_COLUMNS = (
    f"namespace, run_id, root_run_id, day, agent, tags, cause, calls, unpriced_calls, {', '.join(_KNOWN_SUMS)}"
)
_RUN_COST_FACTS = f"""
CREATE VIEW run_cost_facts AS
SELECT {_RUN_COLUMNS} FROM run_costs UNION ALL SELECT {_RUN_COLUMNS} FROM ledger_calls WHERE rolled_up = 0
"""


def _costs_by(name: str) -> str:
    return f"CREATE VIEW costs_by_{name} AS SELECT namespace, {name}, {_CALL_SUMS} FROM cost_facts " + (
        f"GROUP BY namespace, {name}"
    )


_COSTS_BY_STEP = (
    f"CREATE VIEW costs_by_step AS SELECT namespace, agent, step, {_CALL_SUMS} FROM cost_facts "
    "GROUP BY namespace, agent, step"
)
_COSTS_BY_RUN = (
    "CREATE VIEW costs_by_run AS SELECT f.namespace, f.run_id, f.agent, f.root_run_id, "
    f"{_CALL_SUMS} FROM run_cost_facts f GROUP BY f.namespace, f.run_id, f.agent, f.root_run_id"
)
_COSTS_BY_TAG = {
    "postgresql": "json_each_text(CAST(f.tags AS json)) AS tag",
    "sqlite": "json_each(f.tags) AS tag",
}
_RETRY_COSTS = (
    "CREATE VIEW retry_costs_by_tool AS SELECT namespace, tool, CAST(sum(calls) AS BIGINT) AS calls, "
    "CAST(sum(retry_calls) AS BIGINT) AS retry_calls, CAST(sum(cost_nanousd) AS BIGINT) AS cost_nanousd, "
    "CAST(sum(retry_cost_nanousd) AS BIGINT) AS retry_cost_nanousd, "
    "CAST(sum(CASE WHEN cause NOT IN ('useful', 'open') THEN cost_nanousd END) AS BIGINT) AS wasted_cost_nanousd "
    "FROM cost_facts GROUP BY namespace, tool"
)
_DATA_QUALITY = (
    "CREATE VIEW data_quality AS SELECT namespace, agent, "
    + ", ".join(
        f"CAST(sum({name}) AS BIGINT) AS {name}"
        for name in ("calls", "estimated_calls", "missing_calls", "unpriced_calls")
    )
    + ", "
    + ", ".join(
        f"100.0 * sum({name}_calls) / sum(calls) AS {name}_percent" for name in ("estimated", "missing", "unpriced")
    )
    + " FROM cost_facts GROUP BY namespace, agent"
)

_PER_SUCCESSFUL_RUN = f"""
CREATE VIEW costs_per_successful_run AS
WITH trees AS (
    SELECT namespace, root_run_id, {_CALL_SUMS} FROM run_cost_facts GROUP BY namespace, root_run_id
), ended AS (
    SELECT r.namespace, r.agent, r.state, t.cost_nanousd, t.unpriced_calls,
        row_number() OVER (PARTITION BY r.namespace, r.agent, r.state ORDER BY t.cost_nanousd) AS place,
        count(*) OVER (PARTITION BY r.namespace, r.agent, r.state) AS places
    FROM runs r JOIN trees t ON t.namespace = r.namespace AND t.root_run_id = r.id
    WHERE r.state IN {_ENDED} AND t.cost_nanousd IS NOT NULL
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

# Parallel attempts that one crash cut off leave one row each; a program that starts over would have done so once.
_AVOIDED_BY_RUN = """
CREATE VIEW avoided_by_run AS
WITH recoveries AS (
    SELECT v.*, a.worker, a.claimed_at_us, max(a.ended_at_us) OVER (PARTITION BY v.run_id, a.worker
        ORDER BY a.claimed_at_us, v.position, v.attempt ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS until_us
    FROM avoided v JOIN attempts a ON a.run_id = v.run_id AND a.position = v.position AND a.number = v.attempt
), numbered AS (
    SELECT r.*, sum(CASE WHEN claimed_at_us < until_us THEN 0 ELSE 1 END) OVER (PARTITION BY run_id, worker
        ORDER BY claimed_at_us, position, attempt ROWS UNBOUNDED PRECEDING) AS crash
    FROM recoveries r
), crashes AS (
    SELECT namespace, run_id, agent, reason, worker, crash, max(steps) AS steps, max(cost_nanousd) AS cost_nanousd,
        max(unpriced_calls) AS unpriced_calls
    FROM numbered GROUP BY namespace, run_id, agent, reason, worker, crash
)
SELECT namespace, run_id, agent, reason, count(*) AS crashes, CAST(sum(steps) AS BIGINT) AS steps_not_repeated,
    CAST(sum(unpriced_calls) AS BIGINT) AS unpriced_calls, CAST(sum(cost_nanousd) AS BIGINT) AS cost_nanousd
FROM crashes GROUP BY namespace, run_id, agent, reason
"""
_AVOIDED = """
CREATE VIEW avoided_costs AS
SELECT namespace, agent, reason, count(*) AS runs, CAST(sum(crashes) AS BIGINT) AS crashes,
    CAST(sum(steps_not_repeated) AS BIGINT) AS steps_not_repeated,
    CAST(sum(unpriced_calls) AS BIGINT) AS unpriced_calls, CAST(sum(cost_nanousd) AS BIGINT) AS cost_nanousd
FROM avoided_by_run GROUP BY namespace, agent, reason
"""

_DAY_OF_CLAIM = {
    "postgresql": "to_char(to_timestamp(a.claimed_at_us / 1000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
    "sqlite": "date(a.claimed_at_us / 1000000, 'unixepoch')",
}
_POSSIBLY_BILLED = f"""
CREATE VIEW possibly_billed AS
WITH lost AS (
    SELECT a.namespace, {{day}} AS day, a.run_id, a.root_run_id, a.agent, r.tags, a.position, a.step,
        a.number AS attempt, CASE WHEN root.state IN {_ENDED} THEN 'lost' ELSE 'open' END AS cause,
        a.cost_nanousd AS recorded_nanousd
    FROM attempts a JOIN runs r ON r.id = a.run_id JOIN runs root ON root.id = a.root_run_id
    WHERE a.outcome = 'lost'
), means AS MATERIALIZED (
    SELECT s.namespace, s.agent, s.step, (
        SELECT CAST(sum(p.cost_nanousd) AS BIGINT) / count(*) FROM (
            SELECT b.cost_nanousd FROM attempts b
            WHERE b.namespace = s.namespace AND b.agent = s.agent AND b.step = s.step AND b.outcome = 'accepted'
                AND b.calls > 0 AND b.unpriced_calls = 0 AND b.cost_nanousd IS NOT NULL
            ORDER BY b.claimed_at_us DESC LIMIT 100
        ) p
    ) AS mean_nanousd
    FROM (SELECT DISTINCT namespace, agent, step FROM lost) s
)
SELECT l.namespace, l.day, l.run_id, l.root_run_id, l.agent, l.tags, l.position, l.step, l.attempt, l.cause,
    l.recorded_nanousd, m.mean_nanousd AS basis_nanousd,
    CASE WHEN m.mean_nanousd > coalesce(l.recorded_nanousd, 0)
        THEN m.mean_nanousd - coalesce(l.recorded_nanousd, 0)
        WHEN m.mean_nanousd IS NOT NULL THEN 0 END AS estimate_nanousd
FROM lost l JOIN means m ON m.namespace = l.namespace AND m.agent = l.agent AND m.step = l.step
"""

_UNUSUAL_RUNS = """
CREATE VIEW unusual_runs AS
WITH sizes AS (
    SELECT r.namespace, r.agent, r.id AS run_id, r.state, s.steps, c.cost_nanousd
    FROM runs r
    LEFT JOIN (SELECT run_id, count(*) AS steps FROM steps GROUP BY run_id) s ON s.run_id = r.id
    LEFT JOIN (SELECT namespace, run_id, CAST(sum(cost_nanousd) AS BIGINT) AS cost_nanousd FROM run_cost_facts
        GROUP BY namespace, run_id) c ON c.namespace = r.namespace AND c.run_id = r.id
), by_steps AS (
    SELECT namespace, agent, min(CASE WHEN place * 2 >= places THEN steps END) AS median_steps FROM (
        SELECT namespace, agent, steps, row_number() OVER (PARTITION BY namespace, agent ORDER BY steps) AS place,
            count(*) OVER (PARTITION BY namespace, agent) AS places
        FROM sizes WHERE steps IS NOT NULL) ranked GROUP BY namespace, agent
), by_cost AS (
    SELECT namespace, agent, min(CASE WHEN place * 2 >= places THEN cost_nanousd END) AS median_cost_nanousd FROM (
        SELECT namespace, agent, cost_nanousd,
            row_number() OVER (PARTITION BY namespace, agent ORDER BY cost_nanousd) AS place,
            count(*) OVER (PARTITION BY namespace, agent) AS places
        FROM sizes WHERE cost_nanousd IS NOT NULL) ranked GROUP BY namespace, agent
)
SELECT z.namespace, z.agent, z.run_id, z.state, z.steps, t.median_steps, z.cost_nanousd, m.median_cost_nanousd
FROM sizes z
LEFT JOIN by_steps t ON t.namespace = z.namespace AND t.agent = z.agent
LEFT JOIN by_cost m ON m.namespace = z.namespace AND m.agent = z.agent
WHERE z.steps > 3 * t.median_steps OR z.cost_nanousd > 3 * m.median_cost_nanousd
"""

_VIEWS = (
    "ledger_calls",
    "cost_facts",
    "run_cost_facts",
    *(f"costs_by_{name}" for name in ("agent", "step", "tool", "model", "day", "cause", "run", "tag")),
    "retry_costs_by_tool",
    "data_quality",
    "costs_per_successful_run",
    "avoided_by_run",
    "avoided_costs",
    "possibly_billed",
    "unusual_runs",
)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    _create_tables()
    for statement in (
        _LEDGER_CALLS,
        _COST_FACTS,
        _RUN_COST_FACTS,
        *(_costs_by(name) for name in ("agent", "tool", "model", "day", "cause")),
        _COSTS_BY_STEP,
        _COSTS_BY_RUN,
        f"CREATE VIEW costs_by_tag AS SELECT f.namespace, tag.key AS tag, tag.value AS value, {_CALL_SUMS} "
        f"FROM run_cost_facts f, {_COSTS_BY_TAG[dialect]} GROUP BY f.namespace, tag.key, tag.value",
        _RETRY_COSTS,
        _DATA_QUALITY,
        _PER_SUCCESSFUL_RUN,
        _AVOIDED_BY_RUN,
        _AVOIDED,
        _POSSIBLY_BILLED.format(day=_DAY_OF_CLAIM[dialect]),
        _UNUSUAL_RUNS,
    ):
        op.execute(sa.text(statement.replace(":", "\\:")))


def _create_tables() -> None:
    op.create_table(
        "daily_costs",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("agent", sa.String(length=200), nullable=False),
        sa.Column("step", sa.String(length=200), nullable=False),
        sa.Column("tool", sa.String(length=200), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("cause", sa.String(length=20), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("calls", "unpriced_calls", "estimated_calls", "missing_calls", "retry_calls")
        ),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in (*_KNOWN_SUMS, "retry_cost_nanousd")),
        sa.PrimaryKeyConstraint("namespace", "day", "agent", "step", "tool", "model", "cause"),
    )
    op.create_table(
        "run_costs",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("cause", sa.String(length=20), nullable=False),
        sa.Column("root_run_id", sa.String(length=36), nullable=False),
        sa.Column("agent", sa.String(length=200), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("calls", "unpriced_calls")),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in _KNOWN_SUMS),
        sa.PrimaryKeyConstraint("namespace", "run_id", "day", "cause"),
    )
    for name, table, columns, condition in (
        ("ix_calls_unrolled", "calls", ["namespace", "day"], "rolled_up = 0"),
        ("ix_attempts_lost", "attempts", ["namespace", "claimed_at_us"], "outcome = 'lost'"),
        (
            "ix_attempts_paid",
            "attempts",
            ["namespace", "agent", "step", "claimed_at_us"],
            "outcome = 'accepted' AND calls > 0",
        ),
    ):
        op.create_index(name, table, columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition))


def downgrade() -> None:
    for name in reversed(_VIEWS):
        op.execute(f"DROP VIEW {name}")
    op.execute("UPDATE calls SET rolled_up = 0 WHERE rolled_up <> 0")
    op.drop_index("ix_attempts_paid", table_name="attempts")
    op.drop_index("ix_attempts_lost", table_name="attempts")
    op.drop_index("ix_calls_unrolled", table_name="calls")
    op.drop_table("run_costs")
    op.drop_table("daily_costs")

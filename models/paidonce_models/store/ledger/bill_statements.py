"""SQL that recomputes every figure of a run's bill from rows, as text for ``psql`` or ``sqlite3``.

Reads the ledger's calls rather than the sums that ``bills`` reads, so that the two can be compared. A figure of a bill
that none of these statements yields would be unfounded.
"""

from __future__ import annotations

from paidonce_models.store.ledger.cost_statements import TOKEN_COLUMNS, with_literals

_TOKENS = ", ".join(f"sum({name}) AS {name}" for name in TOKEN_COLUMNS)
_STATEMENTS = (
    "-- Money by step, attempt and cause. Without GROUP BY the same columns are the run's own sums.\n"
    "SELECT position, step, attempt, cause, count(*) AS calls, sum(unpriced_calls) AS unpriced_calls,\n"
    f"    {_TOKENS},\n"
    "    sum(cost_nanousd) AS cost_nanousd\n"
    "FROM ledger_calls WHERE run_id = :run_id GROUP BY position, step, attempt, cause ORDER BY position, attempt",
    "-- What lost attempts may also have been billed, and the mean cost of their step that the estimate is based on.\n"
    "SELECT position, attempt, recorded_nanousd, basis_nanousd, estimate_nanousd FROM possibly_billed\n"
    "WHERE run_id = :run_id ORDER BY position, attempt",
    "-- What its recoveries did not pay again.\n"
    "SELECT crashes, steps_not_repeated, cost_nanousd FROM avoided_by_run WHERE run_id = :run_id",
    """-- The lines under "Bill": of the run itself, and of the run together with its child runs.
WITH RECURSIVE tree (id) AS (
    SELECT id FROM runs WHERE id = :run_id
    UNION ALL SELECT runs.id FROM runs JOIN tree ON runs.parent_run_id = tree.id
), members AS (
    SELECT 'run itself' AS part, id FROM runs WHERE id = :run_id UNION ALL SELECT 'with child runs', id FROM tree
), tried AS (
    SELECT m.part, sum(CASE WHEN a.outcome = 'accepted' THEN 1 ELSE 0 END) AS steps_paid, count(*) AS attempts,
        sum(CASE WHEN a.outcome IN ('lost', 'fenced') THEN 1 ELSE 0 END) AS attempts_lost
    FROM members m JOIN attempts a ON a.run_id = m.id GROUP BY m.part
), spent AS (
    SELECT m.part, count(*) AS calls, sum(c.unpriced_calls) AS unpriced_calls, sum(c.input_tokens) AS input_tokens,
        sum(c.output_tokens) AS output_tokens, sum(c.cost_nanousd) AS cost_nanousd,
        sum(CASE WHEN a.outcome IN ('lost', 'fenced') THEN c.cost_nanousd END) AS lost_nanousd
    FROM members m JOIN ledger_calls c ON c.run_id = m.id
    LEFT JOIN attempts a ON a.run_id = c.run_id AND a.position = c.position AND a.number = c.attempt GROUP BY m.part
), kept AS (
    SELECT m.part, sum(v.steps_not_repeated) AS steps_not_repeated, sum(v.cost_nanousd) AS avoided_nanousd
    FROM members m JOIN avoided_by_run v ON v.run_id = m.id GROUP BY m.part
)
SELECT p.part, p.runs - 1 AS child_runs, t.steps_paid, k.steps_not_repeated, t.attempts, t.attempts_lost, s.calls,
    s.unpriced_calls, s.input_tokens, s.output_tokens, s.cost_nanousd, s.lost_nanousd, k.avoided_nanousd,
    CASE WHEN s.cost_nanousd IS NOT NULL OR k.avoided_nanousd IS NOT NULL
        THEN coalesce(s.cost_nanousd, 0) + coalesce(k.avoided_nanousd, 0) END AS starting_over_nanousd
FROM (SELECT part, count(*) AS runs FROM members GROUP BY part) p
LEFT JOIN tried t ON t.part = p.part LEFT JOIN spent s ON s.part = p.part LEFT JOIN kept k ON k.part = p.part
ORDER BY p.part""",
    "-- Each call.\n"
    "SELECT position, attempt, tool, model, status, http_retry, duration_us, "
    f"{', '.join(TOKEN_COLUMNS)},\n"
    "    cost_nanousd, price_source, provider_request_id\n"
    "FROM ledger_calls WHERE run_id = :run_id ORDER BY position, attempt, started_at_us, id",
    "-- How long the run, its steps and their attempts took; NULL for what has not ended.\n"
    "SELECT 0 AS position, 0 AS attempt, finished_at_us - created_at_us AS duration_us FROM runs WHERE id = :run_id\n"
    "UNION ALL SELECT position, 0, finished_at_us - started_at_us FROM steps WHERE run_id = :run_id\n"
    "UNION ALL SELECT position, number, ended_at_us - claimed_at_us FROM attempts WHERE run_id = :run_id\n"
    "ORDER BY position, attempt",
)


def recomputing_statements(run_id: str) -> list[str]:
    """The statements for one run, each under a comment that says what it computes."""
    return [with_literals(statement, {"run_id": run_id}) for statement in _STATEMENTS]

"""A store with a million calls, generated in the database: what the questions of ``benchmarks.ledger`` are asked of.

The shape is that of a busy quarter: 5 agents, 4 steps each, 5 models, 4 tools, 90 days, 20 calls a run, runs tagged
with one of 10,000 customers. A twentieth of the runs failed, one in a hundred is under way, one call in twenty belongs
to a failed attempt, and one run in fifty has lost an attempt.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from paidonce_models.database.transactions import Database

NAMESPACE = "default"
CALLS_PER_RUN = 20
CUSTOMERS = 10_000
FIRST_DAY_US = 1_788_220_800_000_000
DAY_US = 86_400_000_000
DAYS = 90

_SERIES = {
    "postgresql": "generate_series(0, {last}) AS s(n)",
    "sqlite": "(WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < {last}) SELECT n FROM s) AS s",
}
_DATE = {
    "postgresql": "to_char(to_timestamp(({us}) / 1000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
    "sqlite": "date(({us}) / 1000000, 'unixepoch')",
}
_PADDED = {"postgresql": "lpad(CAST({n} AS VARCHAR), 12, '0')", "sqlite": "printf('%012d', {n})"}
_STARTED = f"{FIRST_DAY_US} + CAST(s.n AS BIGINT) * {DAYS * DAY_US - 1} / {{runs}}"
_STATE = (
    "CASE WHEN s.n % 100 = 99 THEN 'running' WHEN s.n % 20 = 7 THEN 'failed' WHEN s.n % 50 = 3 THEN 'cancelled' "
    "ELSE 'succeeded' END"
)


def fill(database: Database, calls: int) -> None:
    """Write runs, steps, attempts and calls, none of them rolled up; a few bulk statements per table."""
    runs = calls // CALLS_PER_RUN
    for statement in _statements(database.dialect, runs):
        with database.engine.connect() as connection:
            connection = connection.execution_options(paidonce_write=True)
            with connection.begin():
                _patient(connection)
                connection.execute(text(statement.replace(":", "\\:")))


def settle(database: Database) -> None:
    """What a database does for itself after a while: up-to-date statistics, no dead rows."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not database.is_sqlite:
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("VACUUM ANALYZE"))


def _patient(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL enable_seqscan = on"))


def _statements(dialect: str, runs: int) -> Sequence[str]:
    def series(count: int) -> str:
        return _SERIES[dialect].format(last=count - 1)

    def run_id(number: str) -> str:
        return f"'00000000-0000-7000-8000-' || {_PADDED[dialect].format(n=number)}"

    def in_run(number: str) -> str:
        return f"({number} / {CALLS_PER_RUN})"

    def tags(run: str) -> str:
        return f"""'{{"customer": "c' || ({run} * 7 % {CUSTOMERS}) || '", "tier": "t' || ({run} % 3) || '"}}'"""

    started = _STARTED.format(runs=runs)
    call_started = (
        f"{FIRST_DAY_US} + CAST({in_run('s.n')} AS BIGINT) * {DAYS * DAY_US - 1} / {runs} + s.n % {CALLS_PER_RUN}"
    )
    agent, position = "'agent-' || ({run} % 5)", f"(s.n % {CALLS_PER_RUN}) / 2 + 1"
    step = f"'step-' || ((s.n % {CALLS_PER_RUN}) / 2 % 4)"
    # Every tenth call was made by a first attempt that failed, and in every fiftieth run by one that was lost.
    number = "CASE WHEN s.n % 20 = 0 THEN 1 WHEN s.n % 20 = 1 THEN 2 ELSE 1 END"
    outcome = (
        f"CASE WHEN s.n % 20 = 0 THEN CASE WHEN {in_run('s.n')} % 50 = 11 THEN 'lost' ELSE 'failed' END "
        "ELSE 'accepted' END"
    )
    cost = "CASE WHEN s.n % 97 = 0 THEN NULL ELSE 1000 + (CAST(s.n AS BIGINT) * 7919) % 50000000 END"
    # One attempt for every two calls, but two of one call each at each run's first step.
    attempts = f"SELECT s.n FROM {series(runs * CALLS_PER_RUN)} WHERE s.n % 2 = 0 OR s.n % 20 = 1"
    return (
        "INSERT INTO runs (id, namespace, shard, agent, state, priority, queue, tags, root_run_id, depth, last_seq, "
        "consumed_seq, publish_count, created_at_us, started_at_us, finished_at_us) "
        f"SELECT {run_id('s.n')}, '{NAMESPACE}', 0, {agent.format(run='s.n')}, {_STATE}, 5, 'paidonce.default', "
        f"{tags('s.n')}, {run_id('s.n')}, 0, 1, 1, 0, {started}, {started}, {started} FROM {series(runs)}",
        "INSERT INTO attempts (run_id, position, number, namespace, root_run_id, agent, step, worker, claimed_at_us, "
        "ended_at_us, outcome, calls, unpriced_calls, cost_nanousd) "
        f"SELECT {run_id(in_run('s.n'))}, {position}, {number}, '{NAMESPACE}', {run_id(in_run('s.n'))}, "
        f"{agent.format(run=in_run('s.n'))}, {step}, 'w', {call_started}, {call_started}, {outcome}, 2, 0, {cost} "
        f"FROM ({attempts}) s",
        "INSERT INTO calls (id, day, namespace, run_id, root_run_id, agent, tags, position, step, attempt, tool, kind, "
        "provider, model_requested, model_billed, input_tokens, cache_read_tokens, output_tokens, usage_source, "
        "status, http_retry, started_at_us, duration_us, cost_nanousd, input_cost_nanousd, rolled_up) "
        f"SELECT {run_id('s.n').replace('-7000-', '-7001-')}, {_DATE[dialect].format(us=call_started)}, "
        f"'{NAMESPACE}', {run_id(in_run('s.n'))}, {run_id(in_run('s.n'))}, {agent.format(run=in_run('s.n'))}, "
        f"{tags(in_run('s.n'))}, {position}, {step}, {number}, "
        "CASE WHEN s.n % 3 = 0 THEN 'tool-' || (s.n % 4) END, 'llm', 'openai', 'model', 'model-' || (s.n % 5), "
        f"1000 + s.n % 5000, s.n % 500, 100 + s.n % 900, 'provider', 'ok', 0, {call_started}, 900000, {cost}, {cost}, "
        f"0 FROM {series(runs * CALLS_PER_RUN)}",
    )

"""Adds calls whose cause is final to the sums ``daily_costs``, ``run_costs`` and ``run_totals``.

A call's cause follows from its attempt's outcome and its root run's state. It is final once the root run and the
call's own run have ended and the attempt's outcome cannot change any more: a ``lost`` attempt may still become
``fenced`` when its zombie reports, so it stays out, like every running one. Nothing is ever removed from the sums. See
decision 0014.

The marker and the sums change in one transaction, so that a reader counts each call exactly once: by its row while
``rolled_up`` is 0, in the sums afterwards. Calls that are written later have their own rows, with the marker at 0.
"""

from __future__ import annotations

import json

from sqlalchemy import Connection, text

from paidonce_models.store.state_guards import run_has_ended

ROLL_UP_BATCH = 1_000

# Scalar subqueries, because they never become joins: with statistics from before a roll-up PostgreSQL would join all
# attempts with all calls to find the few that are left. So the partial index is read and each call is looked up.
_SETTLED = (
    "SELECT c.id, c.day FROM calls c WHERE c.namespace = :namespace AND c.rolled_up = 0 "
    "AND (SELECT a.outcome FROM attempts a WHERE a.run_id = c.run_id AND a.position = c.position "
    "AND a.number = c.attempt) <> 'lost' "
    f"AND {run_has_ended('(SELECT own.state FROM runs own WHERE own.id = c.run_id)')} "
    f"AND {run_has_ended('(SELECT root.state FROM runs root WHERE root.id = c.root_run_id)')} "
    "ORDER BY c.day LIMIT :most"
)
_SETTLED_STATEMENTS = {
    "postgresql": text(f"{_SETTLED} FOR UPDATE OF c SKIP LOCKED"),
    "sqlite": text(_SETTLED),
}
_CHOSEN = {
    "postgresql": "(SELECT entry->>0, entry->>1 FROM json_array_elements(CAST(:chosen AS json)) AS entry)",
    "sqlite": "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:chosen))",
}
_TOKENS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
_DAILY_COUNTS = ("calls", "unpriced_calls", "estimated_calls", "missing_calls", "retry_calls")
_DAILY_SUMS = (*_TOKENS, "cost_nanousd", "retry_cost_nanousd")
_DAILY_KEY = {
    "namespace": "namespace",
    "day": "day",
    "agent": "agent",
    "step": "step",
    "tool": "coalesce(tool, '')",
    "model": "coalesce(model, '')",
    "cause": "cause",
}
_RUN_COUNTS = ("calls", "unpriced_calls")
_RUN_SUMS = (*_TOKENS, "cost_nanousd")
_RUN_KEY = {name: name for name in ("namespace", "run_id", "day", "cause")}
_TOTAL_KEY = {name: name for name in ("namespace", "run_id")}
_TOTAL_CARRIED = {"agent": "min(agent)", "tags": "min(tags)"}
_RUN_CARRIED = {"root_run_id": "min(root_run_id)"} | _TOTAL_CARRIED


def _add_to(
    table: str, key: dict[str, str], carried: dict[str, str], counts: tuple[str, ...], sums: tuple[str, ...]
) -> str:
    """Insert sums or add to existing ones; rows in the order of their keys, so that two writers never deadlock."""
    columns = [*key, *carried, *counts, *sums]
    values = [*key.values(), *carried.values(), *(f"sum({name})" for name in (*counts, *sums))]
    added = [f"{name} = {table}.{name} + excluded.{name}" for name in counts]
    added += [f"{name} = coalesce({table}.{name} + excluded.{name}, {table}.{name}, excluded.{name})" for name in sums]
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} FROM ledger_calls "
        f"WHERE (id, day) IN {{chosen}} GROUP BY {', '.join(key.values())} ORDER BY {', '.join(key.values())} "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {', '.join(added)}"
    )


_ADD_DAILY = _add_to("daily_costs", _DAILY_KEY, {}, _DAILY_COUNTS, _DAILY_SUMS)
_ADD_RUNS = _add_to("run_costs", _RUN_KEY, _RUN_CARRIED, _RUN_COUNTS, _RUN_SUMS)
_ADD_TOTALS = _add_to("run_totals", _TOTAL_KEY, _TOTAL_CARRIED, _RUN_COUNTS, _RUN_SUMS)
# Last, in the same transaction as the sums and only rows that are locked by it: each call is counted once.
_MARK = "UPDATE calls SET rolled_up = 1 WHERE (id, day) IN {chosen} AND rolled_up = 0"
_STATEMENTS = {
    dialect: [text(statement.format(chosen=chosen)) for statement in (_ADD_DAILY, _ADD_RUNS, _ADD_TOTALS, _MARK)]
    for dialect, chosen in _CHOSEN.items()
}


def roll_up(connection: Connection, namespace: str, *, most: int = ROLL_UP_BATCH) -> int:
    """Add up to ``most`` settled calls to the sums and mark them; returns how many.

    Several processes may do it at once: on PostgreSQL each locks its own rows first and skips those of others, on
    SQLite there is one writer. Must run in a write transaction.
    """
    dialect = connection.dialect.name
    rows = connection.execute(_SETTLED_STATEMENTS[dialect], {"namespace": namespace, "most": most}).all()
    if not rows:
        return 0
    chosen = json.dumps([[row.id, row.day] for row in rows])
    for statement in _STATEMENTS[dialect]:
        connection.execute(statement, {"chosen": chosen})
    return len(rows)

"""Inserts new runs with their inputs, first events and aliases: one statement on PostgreSQL, however many they are.

One parameter holds all runs as JSON: the driver takes longer to write arrays of parameters than the server to insert
the rows. What it writes is what ``submission`` writes on SQLite.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import orjson
from sqlalchemy import Connection

from paidonce_models.database.plain_statements import Rows, execute_plain
from paidonce_models.database.transactions import Database
from paidonce_models.payloads.addressing import PayloadRow
from paidonce_models.store.runs.events import REDELIVER_AFTER_US

_GIVEN: Final = {
    "id": "text",
    "shard": "smallint",
    "agent": "text",
    "agent_version": "text",
    "key": "text",
    "priority": "smallint",
    "queue": "text",
    "input_id": "text",
    "input_sha256": "text",
    "tags": "text",
    "lineage": "text",
    "parent_run_id": "text",
    "parent_position": "integer",
    "root_run_id": "text",
    "depth": "smallint",
    "trace_context": "text",
}
"""The columns that a new run brings along, and their types in JSON."""
_COLUMNS: Final = ", ".join(_GIVEN)
# The rows are inserted in the order in which they are given, payloads by id and runs by key: two statements that share
# some wait for each other, and cannot deadlock. Event and alias are selected from the runs that were created: where a
# key was taken, neither is written. An id that is there already was written by the same submission, whose response was
# lost.
INSERT_AT_ONCE: Final = (
    "WITH given AS MATERIALIZED (SELECT * FROM json_to_recordset(%(runs)s::json) AS g ("
    f"{', '.join(f'{name} {kind}' for name, kind in _GIVEN.items())}, alias text)), "
    "stored AS (INSERT INTO payloads (namespace, id, codec, size, sha256, inline) "
    "SELECT %(namespace)s::varchar, p.id, p.codec, p.size, p.sha256, decode(p.inline, 'base64') "
    "FROM json_to_recordset(%(payloads)s::json) AS p (id text, codec text, size bigint, sha256 text, inline text) "
    "ON CONFLICT (namespace, id) DO NOTHING), "
    f"created AS (INSERT INTO runs ({_COLUMNS}, namespace, state, last_seq, consumed_seq, publish_count, "
    f"publish_at_us, created_at_us) SELECT {_COLUMNS}, %(namespace)s::varchar, 'pending', 1, 0, 0, "
    f"paidonce_now() + {REDELIVER_AFTER_US}, paidonce_now() FROM given ON CONFLICT DO NOTHING RETURNING id, input_id), "
    "logged AS (INSERT INTO run_events (run_id, seq, namespace, kind, payload_id, recorded_at_us) "
    "SELECT id, 1, %(namespace)s::varchar, 'started', input_id, paidonce_now() FROM created), "
    "aliased AS (INSERT INTO run_aliases (namespace, alias, run_id) "
    "SELECT %(namespace)s::varchar, given.alias, created.id FROM given JOIN created ON created.id = given.id "
    "WHERE given.alias IS NOT NULL ON CONFLICT (namespace, alias) DO NOTHING) SELECT id FROM created"
)

# One index lookup for each run. In a nearly empty table the planner takes any index on the namespace to be as good as
# the one on the keys, and the plan is kept: only the index on the keys has the runs in the order that is requested.
# A run without a key can be found only by its id.
FIND_AT_ONCE: Final = (
    "SELECT known.* FROM json_to_recordset(%(runs)s::json) AS g (id text, agent text, key text) "
    "CROSS JOIN LATERAL (SELECT id, agent, key, input_id, input_sha256, queue, priority FROM runs "
    "WHERE namespace = %(namespace)s AND (agent, key) >= (g.agent, g.key) ORDER BY namespace, agent, key LIMIT 1) "
    "AS known WHERE known.agent = g.agent AND known.key = g.key UNION ALL "
    "SELECT runs.id, runs.agent, runs.key, runs.input_id, runs.input_sha256, runs.queue, runs.priority "
    "FROM json_to_recordset(%(runs)s::json) AS g (id text, key text) JOIN runs ON runs.id = g.id WHERE g.key IS NULL"
)


class KnownRun(NamedTuple):
    """A run that was there already."""

    id: str
    agent: str
    key: str | None
    input_id: str
    input_sha256: str
    queue: str
    priority: int


def find_at_once(connection: Connection, namespace: str, runs: Iterable[tuple[str, str, str | None]]) -> list[KnownRun]:
    """The stored runs of these agents and keys; where the key is ``None``, of these ids. Given as id, agent, key."""
    given = [{"id": run_id, "agent": agent, "key": key} for run_id, agent, key in runs]
    found = execute_plain(connection, FIND_AT_ONCE, {"namespace": namespace, "runs": _json(given)})
    return [KnownRun(*row) for row in found]


def insert_at_once(
    connection: Connection, namespace: str, runs: Sequence[Mapping[str, object]], payloads: Iterable[PayloadRow]
) -> set[object]:
    """Insert the runs of which neither key nor id is there yet, and return their ids."""
    return _ids(execute_plain(connection, INSERT_AT_ONCE, _parameters(namespace, runs, payloads)))


def insert_alone(
    database: Database, namespace: str, runs: Sequence[Mapping[str, object]], payloads: Iterable[PayloadRow]
) -> set[object] | None:
    """The same in a transaction of its own, at the lowest cost; ``None`` where only ``insert_at_once`` is possible."""
    if database.is_sqlite:
        return None
    rows = database.transact_plain(INSERT_AT_ONCE, _parameters(namespace, runs, payloads))
    return None if rows is None else _ids(rows)


def _ids(rows: Rows) -> set[object]:
    return {run_id for (run_id,) in rows}


def _parameters(
    namespace: str, runs: Sequence[Mapping[str, object]], payloads: Iterable[PayloadRow]
) -> dict[str, object]:
    unique = {row.id: row for row in payloads}
    stored = [
        {
            "id": row.id,
            "codec": row.codec,
            "size": row.size,
            "sha256": row.sha256,
            "inline": base64.b64encode(row.inline).decode(),
        }
        for _, row in sorted(unique.items())
    ]
    given = [{name: run[name] for name in (*_GIVEN, "alias") if run[name] is not None} for run in runs]
    return {"namespace": namespace, "runs": _json(given), "payloads": _json(stored)}


def _json(rows: object) -> str:
    try:
        return orjson.dumps(rows).decode()
    except TypeError:  # a lone surrogate: the driver refuses it, as it does in any other statement
        return json.dumps(rows, ensure_ascii=False)

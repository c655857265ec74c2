"""Creating runs: a submission is durable once its transaction commits; the same key gives the same run.

Many runs are created at once as one is: a single statement on PostgreSQL (``bulk_insert``), a few on SQLite.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, bindparam, text

from paidonce_models.budgets import Lineage, lineage_of, lineage_to_json
from paidonce_models.database.transactions import Database
from paidonce_models.errors import InvalidInput, KeyConflict
from paidonce_models.ids import new_run_id
from paidonce_models.payloads.addressing import PayloadRow
from paidonce_models.payloads.payload_parts import SplitPayload
from paidonce_models.store.payload_rows import insert_payloads, load_payload
from paidonce_models.store.runs.bulk_insert import KnownRun, find_at_once, insert_alone, insert_at_once
from paidonce_models.store.runs.events import REDELIVER_AFTER_US


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """A run to create. ``input_sha256`` is the hash of the canonical input, by which keys are compared."""

    namespace: str
    agent: str
    input: SplitPayload
    input_sha256: str
    queue: str
    key: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: int = 5
    shard: int = 0
    alias: str | None = None
    trace_context: str | None = None
    agent_version: str | None = None
    parent_run_id: str | None = None
    parent_position: int | None = None
    root_run_id: str | None = None
    depth: int = 0
    run_id: str | None = None
    lineage: Lineage | None = None
    """Of a child run: its parent's."""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """The run of a submission; ``created`` is False if its key was known."""

    run_id: str
    created: bool
    queue: str
    priority: int


Outcome = Submitted | KeyConflict
"""What became of one of several submissions."""
Parameters = dict[str, object]

# Producers of the same key race: the unique key lets one in, the others wait for its commit and read its run. An id
# that is there already was written by the same submission, whose response was lost.
_INSERT_RUN = text(
    "INSERT INTO runs (id, namespace, shard, agent, agent_version, key, state, priority, queue, input_id, "
    "input_sha256, tags, lineage, parent_run_id, parent_position, root_run_id, depth, trace_context, last_seq, "
    "consumed_seq, publish_at_us, publish_count, error, created_at_us, finished_at_us) "
    "VALUES (:id, :namespace, :shard, :agent, :agent_version, :key, :state, :priority, :queue, :input_id, "
    ":input_sha256, :tags, :lineage, :parent_run_id, :parent_position, :root_run_id, :depth, :trace_context, :seq, 0, "
    "CASE WHEN :seq = 0 THEN NULL ELSE paidonce_now() + :redeliver END, 0, :error, paidonce_now(), "
    "CASE WHEN :seq = 0 THEN paidonce_now() ELSE NULL END) ON CONFLICT DO NOTHING"
)
_STARTED = text(
    "INSERT INTO run_events (run_id, seq, namespace, kind, payload_id, recorded_at_us) "
    "VALUES (:id, 1, :namespace, 'started', :input_id, paidonce_now()) ON CONFLICT DO NOTHING"
)
_IDS = text("SELECT id FROM runs WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
_KNOWN = text(
    "SELECT id, agent, key, input_id, input_sha256, queue, priority FROM runs WHERE id IN :ids "
    "OR (namespace = :namespace AND agent = :agent AND key IN :keys)"
).bindparams(bindparam("ids", expanding=True), bindparam("keys", expanding=True))
# The first run of an alias keeps it.
_ALIAS = text(
    "INSERT INTO run_aliases (namespace, alias, run_id) VALUES (:namespace, :alias, :run_id) "
    "ON CONFLICT (namespace, alias) DO NOTHING"
)
_SHOWN_INPUT_BYTES = 300


def submit_run(connection: Connection, new: NewRun) -> Submitted:
    """Insert the run and its first event, or find the run of the same key.

    The unique key (namespace, agent, key) decides a race of producers. Raises
    ``KeyConflict`` if the key belongs to a run with another input. A new run is one
    statement on PostgreSQL; a known key may need several.
    """
    (outcome,) = submit_runs(connection, [new])
    if isinstance(outcome, KeyConflict):
        raise outcome
    return outcome


def submit_runs(connection: Connection, runs: Sequence[NewRun]) -> list[Outcome]:
    """The same for several runs of one namespace, of which no two have the same agent and key.

    A conflict is returned in its place; the other runs are created all the same. If ``run_id`` is given, the call may
    be repeated when it is not known whether it was committed: it then finds the runs that it has created.
    """
    runs = [new if new.run_id is not None else replace(new, run_id=new_run_id()) for new in runs]
    rows = _rows(runs)
    if connection.dialect.name == "postgresql":
        created = insert_at_once(connection, *rows)
    else:
        created = _insert(connection, *rows)
    return _outcomes(runs, created, lambda missing: _existing(connection, missing))


def store_runs(database: Database, runs: Sequence[NewRun]) -> list[Outcome]:
    """``submit_runs`` in a transaction of its own, which is repeated if its response is lost: each has a ``run_id``.

    Raises ``StoreError``.
    """
    created = insert_alone(database, *_rows(runs))
    if created is None:
        return database.transact(lambda connection: submit_runs(connection, runs), single=True, repeatable=True)

    def existing(missing: Sequence[tuple[NewRun, str]]) -> list[Outcome]:
        return database.transact(lambda connection: _existing(connection, missing), single=True)

    return _outcomes(runs, created, existing)


def submit_failed_run(connection: Connection, new: NewRun, error: dict[str, object]) -> Submitted:
    """Record a submission that cannot run as a ``failed`` run that holds the error; it has no events."""
    insert_payloads(connection, new.namespace, new.input.rows)
    parameters = _parameters(new, state="failed", error=json.dumps(error))
    run_id = str(parameters["id"])
    if connection.execute(_INSERT_RUN, parameters).rowcount != 1:
        (known,) = _existing(connection, [(new, run_id)], compare=False)
        if isinstance(known, KeyConflict):
            raise known
        return known
    _add_alias(connection, new, run_id)
    return Submitted(run_id=run_id, created=True, queue=new.queue, priority=new.priority)


def _rows(runs: Sequence[NewRun]) -> tuple[str, list[Parameters], list[PayloadRow]]:
    """The namespace, and the rows of runs and payloads."""
    # Producers with the same keys have one order, so that they wait for each other and cannot deadlock. Runs without a
    # key stay in the order of their submission.
    ordered = sorted(runs, key=lambda new: (new.agent, new.key or "")) if len(runs) > 1 else runs
    payloads = [row for new in runs for row in new.input.rows]
    return runs[0].namespace, [_parameters(new, state="pending", error=None) for new in ordered], payloads


def _outcomes(
    runs: Sequence[NewRun],
    created: Set[object],
    existing: Callable[[Sequence[tuple[NewRun, str]]], Sequence[Outcome]],
) -> list[Outcome]:
    outcomes: list[Outcome | None] = [
        Submitted(run_id=str(new.run_id), created=True, queue=new.queue, priority=new.priority)
        if new.run_id in created
        else None
        for new in runs
    ]
    missing = [index for index, outcome in enumerate(outcomes) if outcome is None]
    if missing:
        found = existing([(runs[index], str(runs[index].run_id)) for index in missing])
        for index, outcome in zip(missing, found, strict=True):
            outcomes[index] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def _insert(
    connection: Connection, namespace: str, rows: Sequence[Parameters], payloads: Sequence[PayloadRow]
) -> set[object]:
    """On SQLite, where a transaction that writes is alone. Returns the ids of the runs that it created."""
    insert_payloads(connection, namespace, payloads)
    connection.execute(_INSERT_RUN, rows)
    created = set(connection.execute(_IDS, {"ids": [row["id"] for row in rows]}).scalars())
    new = [row for row in rows if row["id"] in created]
    if new:
        connection.execute(_STARTED, new)
    aliases = [
        {"namespace": namespace, "alias": row["alias"], "run_id": row["id"]} for row in new if row["alias"] is not None
    ]
    if aliases:
        connection.execute(_ALIAS, aliases)
    return created


def _parameters(new: NewRun, *, state: str, error: str | None) -> Parameters:
    if not 0 <= new.priority <= 9:
        raise InvalidInput(f"priority {new.priority} of agent {new.agent!r}; expected 0 to 9, 9 goes first")
    run_id = new.run_id or new_run_id()
    return {
        "id": run_id,
        "namespace": new.namespace,
        "shard": new.shard,
        "agent": new.agent,
        "agent_version": new.agent_version,
        "key": new.key,
        "state": state,
        "priority": new.priority,
        "queue": new.queue,
        "input_id": new.input.root_id,
        "input_sha256": new.input_sha256,
        "tags": json.dumps(dict(new.tags), sort_keys=True),
        "lineage": lineage_to_json(lineage_of(run_id, new.agent, new.tags, new.lineage)),
        "parent_run_id": new.parent_run_id,
        "parent_position": new.parent_position,
        "root_run_id": new.root_run_id or run_id,
        "depth": new.depth,
        "trace_context": new.trace_context,
        "seq": 0 if state == "failed" else 1,
        "redeliver": REDELIVER_AFTER_US,
        "error": error,
        "alias": new.alias,
    }


def _existing(connection: Connection, runs: Sequence[tuple[NewRun, str]], *, compare: bool = True) -> list[Outcome]:
    """The stored runs of these keys, in order; without a key those of these ids, which an earlier try has created."""
    found = {
        (row.agent, row.key) if row.key is not None else (row.agent, row.id): row for row in _known(connection, runs)
    }
    outcomes: list[Outcome] = []
    for new, run_id in runs:
        row = found[new.agent, new.key if new.key is not None else run_id]
        if compare and row.input_sha256 != new.input_sha256:
            outcomes.append(_conflict(connection, new, row.id, row.input_id))
            continue
        _add_alias(connection, new, row.id)
        outcomes.append(Submitted(run_id=row.id, created=row.id == run_id, queue=row.queue, priority=row.priority))
    return outcomes


def _known(connection: Connection, runs: Sequence[tuple[NewRun, str]]) -> list[KnownRun]:
    namespace = runs[0][0].namespace
    if connection.dialect.name == "postgresql":
        return find_at_once(connection, namespace, [(run_id, new.agent, new.key) for new, run_id in runs])
    known: list[KnownRun] = []
    for agent in dict.fromkeys(new.agent for new, _ in runs):
        own = [(new, run_id) for new, run_id in runs if new.agent == agent]
        parameters = {
            "namespace": namespace,
            "agent": agent,
            "ids": [run_id for new, run_id in own if new.key is None],
            "keys": [new.key for new, _ in own if new.key is not None],
        }
        known += [KnownRun(*row) for row in connection.execute(_KNOWN, parameters)]
    return known


def _conflict(connection: Connection, new: NewRun, run_id: str, input_id: str) -> KeyConflict:
    recorded = load_payload(connection, new.namespace, input_id)
    given = load_payload(connection, new.namespace, new.input.root_id)
    return KeyConflict(
        f"key {new.key!r} of agent {new.agent!r} already belongs to run {run_id} with another input: "
        f"recorded {_shown(recorded)}, given {_shown(given)}; use a new key, or the recorded input to get that run",
        run_id=run_id,
    )


def _add_alias(connection: Connection, new: NewRun, run_id: str) -> None:
    if new.alias is not None:
        connection.execute(_ALIAS, {"namespace": new.namespace, "alias": new.alias, "run_id": run_id})


def _shown(data: bytes) -> str:
    shown = data[:_SHOWN_INPUT_BYTES].decode("utf-8", errors="replace")
    return shown if len(data) <= _SHOWN_INPUT_BYTES else f"{shown}… ({len(data)} bytes)"

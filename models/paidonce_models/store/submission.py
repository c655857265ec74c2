"""Creating runs: a submission is durable once its transaction commits; the same key gives the same run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from paidonce_models.budgets import Lineage, lineage_of, lineage_to_json
from paidonce_models.errors import InvalidInput, KeyConflict
from paidonce_models.ids import new_run_id
from paidonce_models.payloads import SplitPayload
from paidonce_models.store.events import REDELIVER_AFTER_US, EventKind, insert_event
from paidonce_models.store.payload_rows import STORED, insert_payloads, load_payload, stored_parameters


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
    """The run that a submission led to; ``created`` is False where the key was known."""

    run_id: str
    created: bool
    queue: str
    priority: int


_INSERT = (
    "INSERT INTO runs (id, namespace, shard, agent, agent_version, key, state, priority, queue, input_id, "
    "input_sha256, tags, lineage, parent_run_id, parent_position, root_run_id, depth, trace_context, last_seq, "
    "consumed_seq, publish_at_us, publish_count, error, created_at_us, finished_at_us) "
    "VALUES (:id, :namespace, :shard, :agent, :agent_version, :key, :state, :priority, :queue, :input_id, "
    ":input_sha256, :tags, :lineage, :parent_run_id, :parent_position, :root_run_id, :depth, :trace_context, :seq, 0, "
    "CASE WHEN :seq = 0 THEN NULL ELSE paidonce_now() + :redeliver END, 0, :error, paidonce_now(), "
    "CASE WHEN :seq = 0 THEN paidonce_now() ELSE NULL END) "
    "ON CONFLICT (namespace, agent, key) DO NOTHING RETURNING id"
)
_INSERT_RUN = text(_INSERT)
_INSERT_AT_ONCE = text(
    f"WITH {STORED}, created AS ({_INSERT}), "
    "logged AS (INSERT INTO run_events (run_id, seq, namespace, kind, payload_id, recorded_at_us) "
    "SELECT id, 1, CAST(:namespace AS VARCHAR), 'started', CAST(:input_id AS VARCHAR), paidonce_now() FROM created), "
    "aliased AS (INSERT INTO run_aliases (namespace, alias, run_id) "
    "SELECT CAST(:namespace AS VARCHAR), CAST(:alias AS VARCHAR), id FROM created "
    "WHERE CAST(:alias AS VARCHAR) IS NOT NULL ON CONFLICT (namespace, alias) DO NOTHING) SELECT id FROM created"
)
_BY_KEY = text(
    "SELECT id, namespace, input_id, input_sha256, queue, priority FROM runs "
    "WHERE namespace = :namespace AND agent = :agent AND key = :key"
)
_ALIAS = text(
    "INSERT INTO run_aliases (namespace, alias, run_id) VALUES (:namespace, :alias, :run_id) "
    "ON CONFLICT (namespace, alias) DO NOTHING"
)
_SHOWN_INPUT_BYTES = 300


def submit_run(connection: Connection, new: NewRun) -> Submitted:
    """Insert the run and its first event, or find the run of the same key.

    The unique key (namespace, agent, key) decides a race of producers. Raises
    ``KeyConflict`` where the key belongs to a run with another input. A new run
    is one statement on PostgreSQL; what is done about a known key may be several.
    """
    parameters = _parameters(new, state="pending", error=None)
    if connection.dialect.name == "postgresql":
        everything = {**parameters, **stored_parameters(new.input.rows), "alias": new.alias}
        run_id = connection.execute(_INSERT_AT_ONCE, everything).scalar_one_or_none()
        if run_id is None:
            return _existing(connection, new)
    else:
        insert_payloads(connection, new.namespace, new.input.rows)
        run_id = connection.execute(_INSERT_RUN, parameters).scalar_one_or_none()
        if run_id is None:
            return _existing(connection, new)
        started = EventKind.STARTED
        insert_event(
            connection, namespace=new.namespace, run_id=run_id, seq=1, kind=started, payload_id=new.input.root_id
        )
        _add_alias(connection, new, run_id)
    return Submitted(run_id=run_id, created=True, queue=new.queue, priority=new.priority)


def submit_failed_run(connection: Connection, new: NewRun, error: dict[str, object]) -> Submitted:
    """Record a submission that cannot run as a ``failed`` run that holds the error; it has no events."""
    insert_payloads(connection, new.namespace, new.input.rows)
    parameters = _parameters(new, state="failed", error=json.dumps(error))
    run_id = connection.execute(_INSERT_RUN, parameters).scalar_one_or_none()
    if run_id is None:
        return _existing(connection, new, compare=False)
    _add_alias(connection, new, run_id)
    return Submitted(run_id=run_id, created=True, queue=new.queue, priority=new.priority)


def _parameters(new: NewRun, *, state: str, error: str | None) -> dict[str, object]:
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
    }


def _existing(connection: Connection, new: NewRun, *, compare: bool = True) -> Submitted:
    row = connection.execute(_BY_KEY, {"namespace": new.namespace, "agent": new.agent, "key": new.key}).one()
    if compare and row.input_sha256 != new.input_sha256:
        recorded = load_payload(connection, new.namespace, row.input_id)
        given = load_payload(connection, new.namespace, new.input.root_id)
        raise KeyConflict(
            f"key {new.key!r} of agent {new.agent!r} already belongs to run {row.id} with another input: "
            f"recorded {_shown(recorded)}, given {_shown(given)}; use a new key, or the recorded input to get that run",
            run_id=str(row.id),
        )
    _add_alias(connection, new, str(row.id))
    return Submitted(run_id=str(row.id), created=False, queue=row.queue, priority=row.priority)


def _add_alias(connection: Connection, new: NewRun, run_id: str) -> None:
    if new.alias is not None:
        connection.execute(_ALIAS, {"namespace": new.namespace, "alias": new.alias, "run_id": run_id})


def _shown(data: bytes) -> str:
    shown = data[:_SHOWN_INPUT_BYTES].decode("utf-8", errors="replace")
    return shown if len(data) <= _SHOWN_INPUT_BYTES else f"{shown}… ({len(data)} bytes)"

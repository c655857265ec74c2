"""Who is alive, what code it holds, and which runs stand still because nobody holds theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, bindparam, text

from paidonce_models.budgets import Unit
from paidonce_models.queues import DEFAULT_QUEUE
from paidonce_models.store.blocked_steps import restate_blocked_runs
from paidonce_models.store.bounds import UNBLOCKED, limit_parameters
from paidonce_models.store.budget_rules import declare_budgets
from paidonce_models.store.messages import AdvanceMessage, Message


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldAgent:
    """An agent that a worker can advance; ``signature`` changes with its code, runs start on ``queue``."""

    name: str
    version: str
    signature: str
    queue: str = DEFAULT_QUEUE
    limits: Mapping[Unit, int] = field(default_factory=dict)
    """What its decorator allows each run to spend; of several versions the last one's counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """A worker and the code it holds."""

    worker: str
    namespace: str
    hostname: str
    pid: int
    python_minor: str
    queues: Sequence[str]
    agents: Sequence[HeldAgent] = ()
    steps: Sequence[str] = field(default=())
    bounds: Mapping[str, int] = field(default_factory=dict)
    """What it allows a run, by the reason with which a run that asks for more is blocked."""


_REGISTER = text(
    "INSERT INTO workers (id, namespace, hostname, pid, python_minor, queues, holdings, started_at_us, seen_at_us) "
    "VALUES (:id, :namespace, :hostname, :pid, :python_minor, :queues, :holdings, paidonce_now(), paidonce_now()) "
    "ON CONFLICT (id) DO UPDATE SET seen_at_us = paidonce_now(), stopped_at_us = NULL, queues = :queues, "
    "holdings = :holdings"
)
_SEEN = text("UPDATE workers SET seen_at_us = paidonce_now() WHERE id = :id")
_STOPPED = text("UPDATE workers SET seen_at_us = paidonce_now(), stopped_at_us = paidonce_now() WHERE id = :id")
_LIVE = text(
    "SELECT id, hostname, pid, queues, holdings, seen_at_us FROM workers "
    "WHERE namespace = :namespace AND seen_at_us > paidonce_now() - :within_us AND stopped_at_us IS NULL"
)
_HOLDINGS = text(
    "SELECT holdings FROM workers WHERE namespace = :namespace "
    "ORDER BY stopped_at_us IS NOT NULL, seen_at_us DESC LIMIT 50"
)
_FORGET = text("DELETE FROM workers WHERE namespace = :namespace AND seen_at_us < paidonce_now() - :after_us")
_UNBLOCK = text(
    "UPDATE runs SET state = 'running', state_reason = NULL, error = NULL, blocked_signature = NULL, "
    "publish_count = 0, "
    "publish_at_us = CASE WHEN consumed_seq < last_seq THEN paidonce_now() + :redeliver ELSE NULL END "
    "WHERE namespace = :namespace AND state = 'blocked' AND agent = :agent "
    f"AND (agent_version IS NULL OR agent_version = :version) AND {UNBLOCKED} RETURNING id, agent, queue, priority"
)
_UNBLOCK_HELD = text(
    "UPDATE runs SET state = 'running', state_reason = NULL, error = NULL, blocked_signature = NULL, "
    "publish_count = 0, "
    "publish_at_us = CASE WHEN consumed_seq < last_seq THEN paidonce_now() + :redeliver ELSE NULL END "
    "WHERE namespace = :namespace AND state = 'blocked' AND state_reason = 'no_worker' "
    "AND blocked_signature IN :names RETURNING id, agent, queue, priority"
).bindparams(bindparam("names", expanding=True))
_ROUTE = text(
    "UPDATE runs SET queue = :queue, publish_count = 0, publish_at_us = paidonce_now() WHERE namespace = :namespace "
    "AND agent = :agent AND queue = :default_queue AND consumed_seq = 0 AND parent_run_id IS NULL "
    "AND state NOT IN ('succeeded', 'failed', 'cancelled')"
)
"""Guarded by ``consumed_seq``: only a run that has not begun may have been submitted before anybody said its queue."""
_REPUBLISH_STEPS = text(
    "UPDATE steps SET publish_at_us = paidonce_now(), publish_count = 0 WHERE namespace = :namespace "
    "AND state IN ('scheduled', 'retrying') AND publish_at_us IS NOT NULL AND name IN :names "
    "AND (due_at_us IS NULL OR due_at_us <= paidonce_now())"
).bindparams(bindparam("names", expanding=True))


def register_worker(connection: Connection, registration: Registration) -> list[Message]:
    """Record the worker and let runs go on that were blocked for want of its code or limits; returns what to publish.

    The limits that its agents declare are in force from now on. Runs that were submitted before any worker held their
    agent are on the default queue; those that have not begun move to the agent's own.
    """
    connection.execute(
        _REGISTER,
        {
            "id": registration.worker,
            "namespace": registration.namespace,
            "hostname": registration.hostname,
            "pid": registration.pid,
            "python_minor": registration.python_minor,
            "queues": json.dumps(list(registration.queues)),
            "holdings": json.dumps(
                {
                    "agents": [[held.name, held.version, held.signature, held.queue] for held in registration.agents],
                    "steps": list(registration.steps),
                }
            ),
        },
    )
    limits = {held.name: held.limits for held in registration.agents}
    for agent in sorted(limits):
        declare_budgets(connection, registration.namespace, agent, limits[agent])
    rows: list[Row[Any]] = []
    for held in registration.agents:
        if held.queue != DEFAULT_QUEUE:
            connection.execute(
                _ROUTE,
                {
                    "namespace": registration.namespace,
                    "agent": held.name,
                    "queue": held.queue,
                    "default_queue": DEFAULT_QUEUE,
                },
            )
        rows += connection.execute(
            _UNBLOCK,
            {
                "namespace": registration.namespace,
                "agent": held.name,
                "version": held.version,
                "signature": held.signature,
                "redeliver": 1_000_000,
                **limit_parameters(registration.bounds),
            },
        ).all()
    if rows:
        restate_blocked_runs(connection, registration.namespace)
    names = [held.name for held in registration.agents] + list(registration.steps)
    if names:
        parameters = {"namespace": registration.namespace, "names": names}
        rows += connection.execute(_UNBLOCK_HELD, {**parameters, "redeliver": 1_000_000}).all()
        connection.execute(_REPUBLISH_STEPS, parameters)
    return [AdvanceMessage(run_id=row.id, agent=row.agent, queue=row.queue, priority=row.priority) for row in rows]


def worker_seen(connection: Connection, worker: str) -> None:
    """Say that the worker is alive."""
    connection.execute(_SEEN, {"id": worker})


def worker_stopped(connection: Connection, worker: str) -> None:
    """Say that the worker has stopped on purpose."""
    connection.execute(_STOPPED, {"id": worker})


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveWorker:
    """A worker that was seen lately."""

    worker: str
    queues: frozenset[str]
    agents: frozenset[tuple[str, str]]
    steps: frozenset[str]
    seen_at_us: int


def live_workers(connection: Connection, namespace: str, *, within_us: int) -> list[LiveWorker]:
    """The workers that were seen within that time and have not said that they stopped."""
    live = []
    for row in connection.execute(_LIVE, {"namespace": namespace, "within_us": within_us}):
        holdings = json.loads(row.holdings)
        live.append(
            LiveWorker(
                worker=row.id,
                queues=frozenset(json.loads(row.queues)),
                agents=frozenset((name, version) for name, version, *_ in holdings.get("agents", [])),
                steps=frozenset(holdings.get("steps", [])),
                seen_at_us=int(row.seen_at_us),
            )
        )
    return live


def queue_of_agent(connection: Connection, namespace: str, agent: str) -> str:
    """The queue on which workers say that runs of the agent start; the default where nobody holds it."""
    for row in connection.execute(_HOLDINGS, {"namespace": namespace}):
        for name, _, _, *queue in json.loads(row.holdings).get("agents", []):
            if name == agent and queue:
                return str(queue[0])
    return DEFAULT_QUEUE


def forget_workers(connection: Connection, namespace: str, *, after_us: int) -> int:
    """Delete the rows of workers that were not heard of for so long; returns how many."""
    return connection.execute(_FORGET, {"namespace": namespace, "after_us": after_us}).rowcount

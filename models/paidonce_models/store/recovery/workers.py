"""Which workers are alive and what code they hold; registering one unblocks the runs that waited for its code.

Runs are blocked for want of a worker in ``blocking.blocked_runs``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, text

from paidonce_models.budgets import Unit
from paidonce_models.queues import DEFAULT_QUEUE
from paidonce_models.states import RunState
from paidonce_models.store.blocking.blocked_steps import update_blocked_run_states
from paidonce_models.store.blocking.run_limits import IS_UNBLOCKED, limit_parameters
from paidonce_models.store.budgets.budget_rules import declare_budgets
from paidonce_models.store.columns import STORE_NOW, Worker, col
from paidonce_models.store.messages import AdvanceMessage, Message
from paidonce_models.store.state_guards import run_is_open, run_may_become, step_is_claimable


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldAgent:
    """An agent that a worker can advance; ``signature`` changes with its code, runs start on ``queue``."""

    name: str
    version: str
    signature: str
    queue: str = DEFAULT_QUEUE
    limits: Mapping[Unit, int] = field(default_factory=dict)
    """The budgets per run that its decorator declares; of several versions the last one's count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """A worker and the code that it holds."""

    worker: str
    namespace: str
    hostname: str
    pid: int
    python_minor: str
    queues: Sequence[str]
    agents: Sequence[HeldAgent] = ()
    steps: Sequence[str] = field(default=())
    bounds: Mapping[str, int] = field(default_factory=dict)
    """Its limits for a run, by the reason with which a run that exceeds one is blocked."""


# A worker whose row was deleted or says that it has stopped counts as live again.
_REGISTER = text(
    "INSERT INTO workers (id, namespace, hostname, pid, python_minor, queues, holdings, started_at_us, seen_at_us) "
    "VALUES (:id, :namespace, :hostname, :pid, :python_minor, :queues, :holdings, paidonce_now(), paidonce_now()) "
    "ON CONFLICT (id) DO UPDATE SET seen_at_us = paidonce_now(), stopped_at_us = NULL, queues = :queues, "
    "holdings = :holdings"
)
_SEEN = text("UPDATE workers SET seen_at_us = paidonce_now() WHERE id = :id")
_STOPPED = text("UPDATE workers SET seen_at_us = paidonce_now(), stopped_at_us = paidonce_now() WHERE id = :id")
_LIVE = select(col(Worker.id), col(Worker.queues), col(Worker.holdings), col(Worker.seen_at_us)).where(
    col(Worker.namespace) == bindparam("namespace"),
    col(Worker.seen_at_us) > STORE_NOW - bindparam("within_us"),
    col(Worker.stopped_at_us).is_(None),
)
_HOLDINGS = (
    select(col(Worker.holdings))
    .where(col(Worker.namespace) == bindparam("namespace"))
    .order_by(col(Worker.stopped_at_us).is_not(None), col(Worker.seen_at_us).desc())
    .limit(50)
)
_FORGET = text("DELETE FROM workers WHERE namespace = :namespace AND seen_at_us < paidonce_now() - :after_us")
# Workers that register at the same time race: each blocked run is returned only to the one that unblocks it, which
# publishes it.
_UNBLOCK = text(
    "UPDATE runs SET state = 'running', state_reason = NULL, error = NULL, blocked_signature = NULL, "
    "publish_count = 0, "
    "publish_at_us = CASE WHEN consumed_seq < last_seq THEN paidonce_now() + :redeliver ELSE NULL END "
    f"WHERE namespace = :namespace AND {run_may_become(RunState.RUNNING, only=[RunState.BLOCKED])} AND agent = :agent "
    f"AND (agent_version IS NULL OR agent_version = :version) AND {IS_UNBLOCKED} RETURNING id, agent, queue, priority"
)
_UNBLOCK_HELD = text(
    "UPDATE runs SET state = 'running', state_reason = NULL, error = NULL, blocked_signature = NULL, "
    "publish_count = 0, "
    "publish_at_us = CASE WHEN consumed_seq < last_seq THEN paidonce_now() + :redeliver ELSE NULL END "
    f"WHERE namespace = :namespace AND {run_may_become(RunState.RUNNING, only=[RunState.BLOCKED])} "
    "AND state_reason = 'no_worker' AND blocked_signature IN :names RETURNING id, agent, queue, priority"
).bindparams(bindparam("names", expanding=True))
_ROUTE = text(
    "UPDATE runs SET queue = :queue, publish_count = 0, publish_at_us = paidonce_now() WHERE namespace = :namespace "
    "AND agent = :agent AND queue = :default_queue AND consumed_seq = 0 AND parent_run_id IS NULL "
    f"AND {run_is_open()}"
)
"""Guarded by ``consumed_seq``: only a run that has not started may have been submitted before its queue was known."""
# Guarded by the state: a step that was claimed meanwhile needs no message.
_REPUBLISH_STEPS = text(
    "UPDATE steps SET publish_at_us = paidonce_now(), publish_count = 0 WHERE namespace = :namespace "
    f"AND {step_is_claimable()} AND publish_at_us IS NOT NULL AND name IN :names "
    "AND (due_at_us IS NULL OR due_at_us <= paidonce_now())"
).bindparams(bindparam("names", expanding=True))


def register_worker(connection: Connection, registration: Registration) -> list[Message]:
    """Record the worker and unblock the runs that were blocked for want of its code or limits; returns what to publish.

    The budgets that its agents declare are in force from now on. Runs that were submitted before any worker held their
    agent are on the default queue; those that have not started move to the agent's own.
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
            route_waiting_runs(connection, registration.namespace, held.name, held.queue)
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
        update_blocked_run_states(connection, registration.namespace)
    names = [held.name for held in registration.agents] + list(registration.steps)
    if names:
        parameters = {"namespace": registration.namespace, "names": names}
        rows += connection.execute(_UNBLOCK_HELD, {**parameters, "redeliver": 1_000_000}).all()
        connection.execute(_REPUBLISH_STEPS, parameters)
    return [AdvanceMessage(run_id=row.id, agent=row.agent, queue=row.queue, priority=row.priority) for row in rows]


def route_waiting_runs(connection: Connection, namespace: str, agent: str, queue: str) -> None:
    """Move the agent's runs that wait on the default queue and have not started to its own; they are published soon."""
    connection.execute(_ROUTE, {"namespace": namespace, "agent": agent, "queue": queue, "default_queue": DEFAULT_QUEUE})


def worker_seen(connection: Connection, worker: str) -> None:
    """Record that the worker is alive."""
    connection.execute(_SEEN, {"id": worker})


def worker_stopped(connection: Connection, worker: str) -> None:
    """Record that the worker has stopped on purpose."""
    connection.execute(_STOPPED, {"id": worker})


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveWorker:
    """A worker that was seen recently."""

    worker: str
    queues: frozenset[str]
    agents: frozenset[tuple[str, str]]
    steps: frozenset[str]
    seen_at_us: int


def live_workers(connection: Connection, namespace: str, *, within_us: int) -> list[LiveWorker]:
    """The workers that were seen within that time and have not recorded that they stopped."""
    live = []
    found = connection.execute(_LIVE, {"namespace": namespace, "within_us": within_us})
    for worker, queues, stored, seen_at_us in found:
        holdings = json.loads(stored)
        live.append(
            LiveWorker(
                worker=worker,
                queues=frozenset(json.loads(queues)),
                agents=frozenset((name, version) for name, version, *_ in holdings.get("agents", [])),
                steps=frozenset(holdings.get("steps", [])),
                seen_at_us=seen_at_us,
            )
        )
    return live


def queue_of_agent(connection: Connection, namespace: str, agent: str) -> str:
    """The queue on which runs of the agent start, by its workers; the default queue if no worker holds it."""
    return registered_queue(connection, namespace, agent) or DEFAULT_QUEUE


def registered_queue(connection: Connection, namespace: str, agent: str) -> str | None:
    """The same; ``None`` if no worker holds it."""
    for holdings in connection.execute(_HOLDINGS, {"namespace": namespace}).scalars():
        for name, _, _, *queue in json.loads(holdings).get("agents", []):
            if name == agent and queue:
                return str(queue[0])
    return None


def forget_workers(connection: Connection, namespace: str, *, after_us: int) -> int:
    """Delete the rows of workers that were silent for so long; returns how many."""
    return connection.execute(_FORGET, {"namespace": namespace, "after_us": after_us}).rowcount

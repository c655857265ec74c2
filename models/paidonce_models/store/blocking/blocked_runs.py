"""Blocked runs: code and event history differ, or no live worker holds their code."""

from __future__ import annotations

import json

from sqlalchemy import Connection, text

from paidonce_models.queues import DEFAULT_QUEUE, PREFIX
from paidonce_models.states import RunState
from paidonce_models.store.recovery.workers import live_workers, registered_queue, route_waiting_runs
from paidonce_models.store.state_guards import run_is_open, run_may_become, step_is_claimable

# Races with a worker whose code fits: once it has advanced the run, consumed_seq has changed and nothing is blocked.
_BLOCK = text(
    "UPDATE runs SET state = 'blocked', state_reason = :reason, error = :error, blocked_signature = :signature, "
    "publish_at_us = NULL WHERE id = :run_id AND consumed_seq = :from_seq "
    f"AND {run_is_open()}"
)


def block_run(
    connection: Connection, *, run_id: str, from_seq: int, reason: str, error: dict[str, object], signature: str
) -> bool:
    """Block a run whose code cannot continue; its events stay unread. Guarded by ``consumed_seq``."""
    return (
        connection.execute(
            _BLOCK,
            {
                "run_id": run_id,
                "from_seq": from_seq,
                "reason": reason,
                "error": json.dumps(error),
                "signature": signature,
            },
        ).rowcount
        == 1
    )


_UNCLAIMED_STEPS = text(
    "SELECT DISTINCT name, queue FROM steps WHERE shard = :shard AND namespace = :namespace "
    f"AND publish_at_us IS NOT NULL AND {step_is_claimable()} "
    "AND coalesce(due_at_us, created_at_us) < paidonce_now() - :patience_us"
)
_UNREAD_RUNS = text(
    "SELECT DISTINCT agent, agent_version, queue FROM runs WHERE shard = :shard AND namespace = :namespace "
    "AND publish_at_us IS NOT NULL AND consumed_seq < last_seq "
    f"AND {run_is_open(but=[RunState.BLOCKED])} "
    "AND created_at_us < paidonce_now() - :patience_us"
)
# This and the next repeat the conditions under which the wait was found: what was claimed or advanced since then is not
# blocked.
_BLOCK_FOR_STEP = text(
    "UPDATE runs SET state = 'blocked', state_reason = 'no_worker', error = :error, blocked_signature = :name "
    f"WHERE {run_may_become(RunState.BLOCKED, only=[RunState.RUNNING, RunState.WAITING])} "
    "AND id IN (SELECT run_id FROM steps WHERE namespace = :namespace "
    "AND shard = :shard AND name = :name AND queue = :queue AND publish_at_us IS NOT NULL "
    f"AND {step_is_claimable('steps.state')} AND coalesce(due_at_us, created_at_us) < paidonce_now() - :patience_us)"
)
_BLOCK_FOR_AGENT = text(
    "UPDATE runs SET state = 'blocked', state_reason = 'no_worker', error = :error, blocked_signature = :name "
    "WHERE namespace = :namespace AND shard = :shard AND agent = :name AND queue = :queue "
    "AND coalesce(agent_version, '') = :version AND publish_at_us IS NOT NULL AND consumed_seq < last_seq "
    f"AND {run_is_open(but=[RunState.BLOCKED])} "
    "AND created_at_us < paidonce_now() - :patience_us"
)


def block_unheld(connection: Connection, *, namespace: str, shard: int, patience_us: int) -> int:
    """Block runs that have waited this long for code that no worker seen in that time holds; returns how many.

    Runs that wait on the default queue although a live worker has registered their agent on another one move there.
    """
    common: dict[str, object] = {"namespace": namespace, "shard": shard, "patience_us": patience_us}
    live = live_workers(connection, namespace, within_us=patience_us)
    blocked = 0
    for row in connection.execute(_UNCLAIMED_STEPS, common).all():
        if any(row.name in worker.steps and row.queue in worker.queues for worker in live):
            continue
        error = _error(f"step {row.name!r}", row.queue, patience_us)
        blocked += connection.execute(
            _BLOCK_FOR_STEP, {**common, "name": row.name, "queue": row.queue, "error": error}
        ).rowcount
    for row in connection.execute(_UNREAD_RUNS, common).all():
        held = any(
            row.queue in worker.queues
            and any(name == row.agent and row.agent_version in (None, version) for name, version in worker.agents)
            for worker in live
        )
        if held:
            continue
        if row.queue == DEFAULT_QUEUE:
            # Submitted just before a worker registered the agent on a queue of its own.
            queue = registered_queue(connection, namespace, row.agent)
            if queue is not None and queue != DEFAULT_QUEUE and any(queue in worker.queues for worker in live):
                route_waiting_runs(connection, namespace, row.agent, queue)
        version = f" version {row.agent_version!r}" if row.agent_version else ""
        error = _error(f"agent {row.agent!r}{version}", row.queue, patience_us)
        blocked += connection.execute(
            _BLOCK_FOR_AGENT,
            {**common, "name": row.agent, "queue": row.queue, "version": row.agent_version or "", "error": error},
        ).rowcount
    return blocked


def _error(what: str, queue: str, patience_us: int) -> str:
    takes = "" if queue == DEFAULT_QUEUE else f" --queues {queue.removeprefix(PREFIX)}"
    return json.dumps(
        {
            "type": "NoWorker",
            "code": "no_worker",
            "message": f"no live worker has held {what} and consumed queue {queue!r} for {patience_us // 1_000_000} s; "
            f"start a worker with the module that defines it (paidonce worker MODULE{takes}), "
            "and the run continues automatically",
        }
    )

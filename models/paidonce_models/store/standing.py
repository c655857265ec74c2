"""The state of a run whose steps stand still although its agent waits for them.

An advance knows what the agent awaits, not whether budgets hold it. So whatever holds a step or lets one go says the
run's state anew, from its steps: ``running`` while any can proceed, else that of the earliest that is open. It is not
``blocked`` while a timer or a child run may still wake the agent: no timer of a blocked run fires, and nobody advances
it.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

HAS_STANDING_STEPS = (
    "EXISTS (SELECT 1 FROM steps WHERE steps.run_id = {run_id} AND steps.state IN ('held', 'parked', 'blocked'))"
)
"""For the statements that write a run's state from what its agent awaits: they leave such runs to ``restate_run``."""

_EARLIEST = (
    "(SELECT steps.{column} FROM steps WHERE steps.run_id = runs.id "
    "AND steps.state NOT IN ('succeeded', 'failed', 'cancelled') ORDER BY steps.position LIMIT 1)"
)
_CAN_PROCEED = (
    "(consumed_seq < last_seq OR EXISTS (SELECT 1 FROM steps WHERE steps.run_id = runs.id AND steps.kind <> 'agent' "
    "AND steps.state IN ('scheduled', 'running', 'retrying')))"
)
_MAY_BE_WOKEN = (
    "(wake_at_us IS NOT NULL OR EXISTS (SELECT 1 FROM steps WHERE steps.run_id = runs.id AND steps.kind = 'agent' "
    "AND steps.state NOT IN ('succeeded', 'failed', 'cancelled')))"
)
_STANDS = (
    f"(CASE WHEN {_EARLIEST.format(column='state')} = 'blocked' AND {_MAY_BE_WOKEN} THEN 'waiting' "
    f"ELSE {_EARLIEST.format(column='state')} END)"
)
BLOCKED_STEP_REASONS = "('result_not_storable', 'step_does_not_fit')"
"""Why runs are blocked whose earliest open step is: their code may be fine, so that no agent's code sets them going."""
_BLOCKED_REASON = (
    "(SELECT blocked_steps.reason FROM blocked_steps WHERE blocked_steps.run_id = runs.id "
    f"AND blocked_steps.position = {_EARLIEST.format(column='position')})"
)
_RESTATE = (
    f"UPDATE runs SET state = CASE WHEN {_CAN_PROCEED} THEN 'running' ELSE "
    f"CASE {_STANDS} WHEN 'held' THEN 'paused' WHEN 'parked' THEN 'parked' "
    "WHEN 'blocked' THEN 'blocked' ELSE 'waiting' END END, "
    f"state_reason = CASE WHEN {_CAN_PROCEED} THEN NULL ELSE "
    f"CASE {_STANDS} WHEN 'held' THEN 'budget' WHEN 'parked' THEN 'circuit_open' "
    f"WHEN 'unknown' THEN 'unknown_outcome' WHEN 'blocked' THEN {_BLOCKED_REASON} END END, "
    f"error = CASE WHEN NOT {_CAN_PROCEED} AND {_STANDS} = 'blocked' "
    f"THEN {_EARLIEST.format(column='error')} WHEN state = 'blocked' THEN NULL ELSE error END "
    "WHERE id = :run_id AND (state IN ('running', 'waiting', 'paused', 'parked') "
    f"OR state = 'blocked' AND state_reason IN {BLOCKED_STEP_REASONS})"
)
_RESTATE_RUN = text(_RESTATE)
_STALE = (
    "SELECT id FROM runs WHERE namespace = :namespace AND shard = :shard AND state = 'running' "
    "AND id IN (SELECT run_id FROM held_steps WHERE namespace = :namespace AND shard = :shard "
    "UNION SELECT blocked_steps.run_id FROM blocked_steps JOIN steps ON steps.run_id = blocked_steps.run_id "
    "AND steps.position = blocked_steps.position AND steps.state = 'blocked' "
    "WHERE blocked_steps.namespace = :namespace) "
    f"AND NOT {_CAN_PROCEED}{{lock}}"
)
_STALE_STATEMENTS = {
    "postgresql": text(_STALE.replace("{lock}", " FOR UPDATE SKIP LOCKED")),
    "sqlite": text(_STALE.replace("{lock}", "")),
}


def restate_run(connection: Connection, run_id: str) -> None:
    """Say the run's state by what its steps do. Under the run's lock; does nothing to a run that ended or is blocked.

    Only for runs with an open step: one that waits for a timer alone is ``waiting`` by its advance.
    """
    connection.execute(_RESTATE_RUN, {"run_id": run_id})


def restate_stale_runs(connection: Connection, *, namespace: str, shard: int) -> None:
    """The same for runs of held or blocked steps that claim to be running: an advance that raced with that said so.

    Each is locked first and its steps are read after that: a state from an older view could block a run whose step
    has just been let go, for good.
    """
    stale = connection.execute(
        _STALE_STATEMENTS[connection.dialect.name], {"namespace": namespace, "shard": shard}
    ).all()
    for row in stale:
        restate_run(connection, row.id)

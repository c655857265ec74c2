"""The state of a run with stopped steps (held, parked or blocked) that its agent waits for.

An advance knows what the agent awaits, not whether budgets hold it. So whatever stops or releases a step updates the
run's state from its steps: ``running`` if any can proceed, else by the earliest open one. It is not ``blocked`` while a
timer or a child run may still wake the agent: no timer of a blocked run fires, and a blocked run is not advanced.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from paidonce_models.states import RunState, StepState
from paidonce_models.store.state_guards import run_may_become, step_is, step_is_open

HAS_STOPPED_STEPS = (
    "EXISTS (SELECT 1 FROM steps WHERE steps.run_id = {run_id} "
    f"AND {step_is(StepState.HELD, StepState.PARKED, StepState.BLOCKED, column='steps.state')})"
)
"""For the statements that write a run's state from what its agent awaits; leave such runs to ``update_run_state``."""

_EARLIEST = (
    "(SELECT steps.{column} FROM steps WHERE steps.run_id = runs.id "
    f"AND {step_is_open('steps.state')} ORDER BY steps.position LIMIT 1)"
)
_CAN_PROCEED = (
    "(consumed_seq < last_seq OR EXISTS (SELECT 1 FROM steps WHERE steps.run_id = runs.id AND steps.kind <> 'agent' "
    f"AND {step_is(StepState.SCHEDULED, StepState.RUNNING, StepState.RETRYING, column='steps.state')}))"
)
_MAY_BE_WOKEN = (
    "(wake_at_us IS NOT NULL OR EXISTS (SELECT 1 FROM steps WHERE steps.run_id = runs.id AND steps.kind = 'agent' "
    f"AND {step_is_open('steps.state')}))"
)
_STATE_OF_EARLIEST = (
    f"(CASE WHEN {_EARLIEST.format(column='state')} = 'blocked' AND {_MAY_BE_WOKEN} THEN 'waiting' "
    f"ELSE {_EARLIEST.format(column='state')} END)"
)
BLOCKED_STEP_REASONS = "('result_not_storable', 'step_does_not_fit')"
"""The reasons of runs that are blocked because their earliest open step is: new agent code does not unblock them."""
_BLOCKED_REASON = (
    "(SELECT blocked_steps.reason FROM blocked_steps WHERE blocked_steps.run_id = runs.id "
    f"AND blocked_steps.position = {_EARLIEST.format(column='position')})"
)
_BEGUN: Final = (RunState.RUNNING, RunState.WAITING, RunState.PARKED, RunState.PAUSED)
_STATED: Final = (*_BEGUN, RunState.BLOCKED)
# Steps are held, parked and released while the run advances. Whoever does that locks the run first, so the steps'
# states do not change between being read here and the write of the run's state.
_UPDATE = (
    f"UPDATE runs SET state = CASE WHEN {_CAN_PROCEED} THEN 'running' ELSE "
    f"CASE {_STATE_OF_EARLIEST} WHEN 'held' THEN 'paused' WHEN 'parked' THEN 'parked' "
    "WHEN 'blocked' THEN 'blocked' ELSE 'waiting' END END, "
    f"state_reason = CASE WHEN {_CAN_PROCEED} THEN NULL ELSE "
    f"CASE {_STATE_OF_EARLIEST} WHEN 'held' THEN 'budget' WHEN 'parked' THEN 'circuit_open' "
    f"WHEN 'unknown' THEN 'unknown_outcome' WHEN 'blocked' THEN {_BLOCKED_REASON} END END, "
    f"error = CASE WHEN NOT {_CAN_PROCEED} AND {_STATE_OF_EARLIEST} = 'blocked' "
    f"THEN {_EARLIEST.format(column='error')} WHEN state = 'blocked' THEN NULL ELSE error END "
    f"WHERE id = :run_id AND ({run_may_become(*_STATED, only=_BEGUN)} "
    f"OR {run_may_become(*_STATED, only=[RunState.BLOCKED])} AND state_reason IN {BLOCKED_STEP_REASONS})"
)
_UPDATE_RUN_STATE = text(_UPDATE)
# An advance may have read the steps before one was held, and have written ``running`` afterwards. The row is locked, so
# nothing changes until the state has been written again; rows that another transaction has locked are skipped.
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


def update_run_state(connection: Connection, run_id: str) -> None:
    """Set the run's state by its steps. Under the run's lock; does nothing to a run that has ended or is blocked.

    Only for runs with an open step: one that waits only for a timer is ``waiting`` by its advance.
    """
    connection.execute(_UPDATE_RUN_STATE, {"run_id": run_id})


def update_stale_run_states(connection: Connection, *, namespace: str, shard: int) -> None:
    """The same for runs of held or blocked steps in state ``running``: an advance that raced with the stop wrote that.

    Each run is locked before its steps are read: a state from an older view could block a run for good whose step has
    just been released.
    """
    stale = connection.execute(
        _STALE_STATEMENTS[connection.dialect.name], {"namespace": namespace, "shard": shard}
    ).all()
    for row in stale:
        update_run_state(connection, row.id)

"""Steps held by a budget: without an attempt, until their account has room again.

A held step costs nothing: no worker, no attempt, no message, no due time. Whatever makes room (a raised or removed
limit, a new UTC day, an attempt that cost less than it had reserved), the sweeper finds it and releases steps, the
oldest first and no more than there is room for; their claims decide again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, bindparam, select, text

from paidonce_models.budgets import (
    Balance,
    Basis,
    Budget,
    Period,
    Refusal,
    Unit,
    has_room,
    rank,
    run_subject,
    span_of,
)
from paidonce_models.instants import moment_of
from paidonce_models.states import CLAIMABLE, StepState
from paidonce_models.store.budgets.budget_rules import read_budgets
from paidonce_models.store.columns import STORE_NOW, BudgetAccount, HeldStep, Step, col, cols, constant, row_of, rows
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.runs.events import REDELIVER_AFTER_US
from paidonce_models.store.runs.run_states import update_run_state
from paidonce_models.store.state_guards import step_is, step_may_become

# Guarded by the state, under the run's lock: a step that was claimed or cancelled before is not held.
_HOLD = text(
    "UPDATE steps SET state = 'held', publish_at_us = NULL WHERE run_id = :run_id AND position = :position "
    f"AND {step_may_become(StepState.HELD)}"
)
_INSERT = text(
    "INSERT INTO held_steps (run_id, position, namespace, shard, account, basis, amount, since_us) "
    "SELECT run_id, position, namespace, shard, :account, :basis, :amount, paidonce_now() FROM steps "
    "WHERE run_id = :run_id AND position = :position "
    "ON CONFLICT (run_id, position) DO UPDATE SET account = excluded.account, basis = excluded.basis, "
    "amount = excluded.amount"
)


def hold_step(connection: Connection, *, run_id: str, position: int, refusal: Refusal) -> None:
    """Hold a step until the account has room. The caller has locked its run and checked that it can be claimed.

    A step that was released in vain keeps its place in the queue of its account.
    """
    key = {"run_id": run_id, "position": position}
    if connection.execute(_HOLD, key).rowcount != 1:
        return
    parameters = {"account": refusal.account.key, "basis": refusal.basis.value, "amount": refusal.amount}
    connection.execute(_INSERT, {**key, **parameters})
    update_run_state(connection, run_id)


_TIDY = text(
    "DELETE FROM held_steps WHERE namespace = :namespace AND shard = :shard AND NOT EXISTS (SELECT 1 FROM steps "
    "WHERE steps.run_id = held_steps.run_id AND steps.position = held_steps.position "
    f"AND {step_is(StepState.HELD, *CLAIMABLE, column='steps.state')})"
)
_OF_SHARD = and_(col(HeldStep.namespace) == bindparam("namespace"), col(HeldStep.shard) == bindparam("shard"))
_HOLDING = select(
    *cols(BudgetAccount.key, BudgetAccount.subject, BudgetAccount.period, BudgetAccount.unit, BudgetAccount.span),
    *cols(BudgetAccount.spent, BudgetAccount.reserved),
    STORE_NOW.label("now_us"),
).where(
    col(BudgetAccount.namespace) == bindparam("namespace"),
    col(BudgetAccount.key).in_(select(col(HeldStep.account)).distinct().where(_OF_SHARD)),
)
_WAITING = (
    select(col(HeldStep.run_id), col(HeldStep.position), col(HeldStep.amount), col(HeldStep.basis))
    .select_from(rows(HeldStep))
    .join(
        rows(Step),
        and_(
            col(Step.run_id) == col(HeldStep.run_id),
            col(Step.position) == col(HeldStep.position),
            col(Step.state) == constant(StepState.HELD.value),
        ),
    )
    .where(_OF_SHARD, col(HeldStep.account) == bindparam("account"))
    .order_by(*cols(HeldStep.since_us, HeldStep.run_id, HeldStep.position))
    .limit(bindparam("most"))
)


@dataclass(frozen=True, slots=True)
class HeldKey:
    """The key of a held step."""

    run_id: str
    position: int


def steps_with_room(connection: Connection, *, namespace: str, shard: int, most: int = 500) -> list[HeldKey]:
    """The held steps that could start now, as far as the account that holds them is concerned; oldest first in each."""
    place: dict[str, object] = {"namespace": namespace, "shard": shard}
    accounts = connection.execute(_HOLDING, place).all()
    if not accounts:
        return []
    budgets = read_budgets(connection, namespace)
    found: list[HeldKey] = []
    for row in accounts:
        account, now_us = row_of(BudgetAccount, row), int(row.now_us)
        waiting = connection.execute(_WAITING, {**place, "account": account.key, "most": most}).all()
        limit = _limit(budgets, account.subject, Period(account.period), Unit(account.unit), account.span, now_us)
        reserved = account.reserved
        for run_id, position, amount, basis in waiting:
            if limit is not None:
                balance = Balance(spent=account.spent, reserved=reserved)
                if not has_room(amount, Basis(basis), limit=limit, balance=balance):
                    break
                reserved += amount
            found.append(HeldKey(run_id, position))
    return found


def _limit(budgets: Sequence[Budget], subject: str, period: Period, unit: Unit, span: str, now_us: int) -> int | None:
    """The current limit of an account; ``None`` if there is none: the budget was removed, or its day is over."""
    if period is not Period.RUN and span_of(period, "", moment_of(now_us)) != span:
        return None
    subjects = {subject, run_subject(span)} if period is Period.RUN else {subject}
    candidates = [each for each in budgets if (each.period, each.unit) == (period, unit) and each.subject in subjects]
    return max(candidates, key=rank).amount if candidates else None


# The run's row before the step's, as a claim does that may hold the step anew.
_LOCK_RUN = text("SELECT id FROM runs WHERE id = :run_id FOR UPDATE")
# Sweepers and whoever cancels the step race: only the first finds it held.
_LET_GO = text(
    "UPDATE steps SET state = 'scheduled', publish_count = 0, publish_at_us = paidonce_now() + :redeliver "
    "WHERE run_id = :run_id AND position = :position "
    f"AND {step_may_become(StepState.SCHEDULED, only=[StepState.HELD])} RETURNING name, agent, queue, priority"
)


def let_go(connection: Connection, key: HeldKey) -> StepMessage | None:
    """Schedule a held step again; its claim reserves, or holds it again in its old place. Guarded by its state."""
    parameters: dict[str, object] = {"run_id": key.run_id, "position": key.position}
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_RUN, parameters)
    row = connection.execute(_LET_GO, {**parameters, "redeliver": REDELIVER_AFTER_US}).first()
    if row is None:
        return None
    update_run_state(connection, key.run_id)
    return StepMessage(
        run_id=key.run_id,
        position=key.position,
        name=row.name,
        agent=row.agent,
        queue=row.queue,
        priority=row.priority,
    )


def tidy_held_steps(connection: Connection, *, namespace: str, shard: int) -> int:
    """Delete the rows of steps that were started, finished or cancelled; returns how many."""
    return connection.execute(_TIDY, {"namespace": namespace, "shard": shard}).rowcount

"""Steps that a budget holds: put aside without an attempt, and let go once their account has room again.

A held step costs nothing: no worker, no attempt, no message, no due time. Whatever makes room (a raised or removed
limit, a new UTC day, an attempt that cost less than it had reserved) is found by the sweeper, oldest step first and
no more of them than there is room for; their claims decide anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

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
from paidonce_models.store.budget_rules import read_budgets
from paidonce_models.store.events import REDELIVER_AFTER_US
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.standing import restate_run

_HOLD = text(
    "UPDATE steps SET state = 'held', publish_at_us = NULL WHERE run_id = :run_id AND position = :position "
    "AND state IN ('scheduled', 'retrying')"
)
_INSERT = text(
    "INSERT INTO held_steps (run_id, position, namespace, shard, account, basis, amount, since_us) "
    "SELECT run_id, position, namespace, shard, :account, :basis, :amount, paidonce_now() FROM steps "
    "WHERE run_id = :run_id AND position = :position "
    "ON CONFLICT (run_id, position) DO UPDATE SET account = excluded.account, basis = excluded.basis, "
    "amount = excluded.amount"
)


def hold_step(connection: Connection, *, run_id: str, position: int, refusal: Refusal) -> None:
    """Put a step aside until the account has room. The caller has locked its run and seen that it can be claimed.

    One that was let go in vain keeps its place in the queue of its account.
    """
    key = {"run_id": run_id, "position": position}
    if connection.execute(_HOLD, key).rowcount != 1:
        return
    parameters = {"account": refusal.account.key, "basis": refusal.basis.value, "amount": refusal.amount}
    connection.execute(_INSERT, {**key, **parameters})
    restate_run(connection, run_id)


_TIDY = text(
    "DELETE FROM held_steps WHERE namespace = :namespace AND shard = :shard AND NOT EXISTS (SELECT 1 FROM steps "
    "WHERE steps.run_id = held_steps.run_id AND steps.position = held_steps.position "
    "AND steps.state IN ('held', 'scheduled', 'retrying'))"
)
_HOLDING = text(
    "SELECT a.key, a.subject, a.period, a.unit, a.span, a.spent, a.reserved, paidonce_now() AS now_us "
    "FROM budget_accounts a WHERE a.namespace = :namespace AND a.key IN (SELECT DISTINCT h.account FROM held_steps h "
    "WHERE h.namespace = :namespace AND h.shard = :shard)"
)
_WAITING = text(
    "SELECT h.run_id, h.position, h.amount, h.basis FROM held_steps h JOIN steps s ON s.run_id = h.run_id "
    "AND s.position = h.position AND s.state = 'held' WHERE h.namespace = :namespace AND h.shard = :shard "
    "AND h.account = :account ORDER BY h.since_us, h.run_id, h.position LIMIT :most"
)


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A held step."""

    run_id: str
    position: int


def steps_with_room(connection: Connection, *, namespace: str, shard: int, most: int = 500) -> list[HeldKey]:
    """The held steps that could be begun now, as far as the account goes that held them; oldest first in each."""
    place: dict[str, object] = {"namespace": namespace, "shard": shard}
    accounts = connection.execute(_HOLDING, place).all()
    if not accounts:
        return []
    budgets = read_budgets(connection, namespace)
    found: list[HeldKey] = []
    for row in accounts:
        waiting = connection.execute(_WAITING, {**place, "account": row.key, "most": most}).all()
        limit = _limit(budgets, row.subject, Period(row.period), Unit(row.unit), row.span, int(row.now_us))
        reserved = int(row.reserved)
        for step in waiting:
            if limit is not None:
                balance = Balance(spent=int(row.spent), reserved=reserved)
                if not has_room(int(step.amount), Basis(step.basis), limit=limit, balance=balance):
                    break
                reserved += int(step.amount)
            found.append(HeldKey(step.run_id, step.position))
    return found


def _limit(budgets: Sequence[Budget], subject: str, period: Period, unit: Unit, span: str, now_us: int) -> int | None:
    """What limits an account now; ``None`` where nothing does: the budget was removed, or its day is over."""
    if period is not Period.RUN and span_of(period, "", moment_of(now_us)) != span:
        return None
    subjects = {subject, run_subject(span)} if period is Period.RUN else {subject}
    candidates = [each for each in budgets if (each.period, each.unit) == (period, unit) and each.subject in subjects]
    return max(candidates, key=rank).amount if candidates else None


_LOCK_RUN = text("SELECT id FROM runs WHERE id = :run_id FOR UPDATE")
_LET_GO = text(
    "UPDATE steps SET state = 'scheduled', publish_count = 0, publish_at_us = paidonce_now() + :redeliver "
    "WHERE run_id = :run_id AND position = :position AND state = 'held' RETURNING name, agent, queue, priority"
)


def let_go(connection: Connection, key: HeldKey) -> StepMessage | None:
    """Schedule a held step again; its claim reserves, or holds it anew in its old place. Guarded by its state."""
    parameters: dict[str, object] = {"run_id": key.run_id, "position": key.position}
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_RUN, parameters)
    row = connection.execute(_LET_GO, {**parameters, "redeliver": REDELIVER_AFTER_US}).first()
    if row is None:
        return None
    restate_run(connection, key.run_id)
    return StepMessage(
        run_id=key.run_id,
        position=key.position,
        name=row.name,
        agent=row.agent,
        queue=row.queue,
        priority=row.priority,
    )


def tidy_held_steps(connection: Connection, *, namespace: str, shard: int) -> int:
    """Delete what is left of steps that were begun, finished or cancelled; returns how many."""
    return connection.execute(_TIDY, {"namespace": namespace, "shard": shard}).rowcount

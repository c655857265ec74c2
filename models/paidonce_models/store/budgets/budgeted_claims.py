"""Claims a step of a run with budgets: reserves the attempt's expected cost, or holds the step.

One transaction locks the run's row, the step, and last the accounts in the order of their keys, so that each of any
number of racing claims sees what the earlier ones have reserved. If no estimate is too small, no account is ever
overdrawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from paidonce_models.budgets import (
    Account,
    Basis,
    Estimate,
    Maxima,
    Refusal,
    Reservation,
    Unit,
    accounts_of,
    lineage_from_json,
    reserve,
)
from paidonce_models.instants import moment_of
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.store.budgets.budget_accounts import lock_balances
from paidonce_models.store.budgets.budget_rules import read_budgets
from paidonce_models.store.budgets.held_steps import hold_step
from paidonce_models.store.steps.claims import CLAIMABLE, Claim, claim_of, take_lease

SAMPLES = 20
"""How many of a step's last accepted attempts are the basis of an estimate: the most expensive of them."""

# The run, then the step, then accounts by key: claims, completions and reclaiming lock in this order.
_LOCK_RUN = text("SELECT id FROM runs WHERE id = :run_id AND namespace = :namespace FOR UPDATE")
# The step is locked before money is reserved for it, so that a claim that comes second finds it running.
_FIND = (
    "SELECT steps.name, steps.agent, steps.attempt, runs.namespace, runs.lineage, paidonce_now() AS now_us "
    f"FROM steps JOIN runs ON runs.id = steps.run_id WHERE {CLAIMABLE}"
)
_FIND_STATEMENTS = {"postgresql": text(f"{_FIND} FOR UPDATE OF steps"), "sqlite": text(_FIND)}
_RESERVED_BEFORE = text(
    "SELECT max(spent) AS most FROM (SELECT spent FROM reservations WHERE namespace = :namespace AND agent = :agent "
    "AND step = :step AND unit = :unit AND sample = 1 ORDER BY ended_at_us DESC LIMIT :samples) AS lately"
)
_SPENT_BEFORE = text(
    "SELECT max(cost_nanousd) AS usd, max(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)) AS tokens FROM ("
    "SELECT cost_nanousd, input_tokens, output_tokens FROM attempts WHERE namespace = :namespace AND agent = :agent "
    "AND step = :step AND outcome = 'accepted' AND calls > 0 AND unpriced_calls = 0 "
    "ORDER BY claimed_at_us DESC LIMIT :samples) AS lately"
)
# Relative, under the accounts' locks that the balances were read with: nobody else has reserved in between.
_RESERVE = text(
    "UPDATE budget_accounts SET reserved = reserved + :reserved, spent = spent + :spent "
    "WHERE namespace = :namespace AND key = :account"
)
_INSERT = text(
    "INSERT INTO reservations (run_id, position, attempt, account, namespace, agent, step, unit, basis, amount, "
    "remaining, spent, unpriced_calls, sample) VALUES (:run_id, :position, :attempt, :account, :namespace, :agent, "
    ":step, :unit, :basis, :amount, :amount, 0, 0, 0)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectations:
    """Estimates of an attempt's cost where the ledger has no history: maxima by step, and the settings' guesses."""

    maxima: Callable[[str], Maxima]
    guesses: Mapping[Unit, int]


def claim_within_budgets(
    connection: Connection,
    *,
    namespace: str,
    run_id: str,
    position: int,
    worker: str,
    lease_us: int,
    expectations: Expectations,
    memory: PayloadMemory | None = None,
) -> Claim | Refusal | None:
    """Claim the step and reserve its expected cost; a ``Refusal`` if an account had no room and the step is held.

    ``None`` if the namespace has nothing to claim there. If no budget applies (any more), it is an ordinary claim.
    """
    key: dict[str, object] = {"namespace": namespace, "run_id": run_id, "position": position}
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_RUN, key)
    step = connection.execute(_FIND_STATEMENTS[connection.dialect.name], key).first()
    if step is None:
        return None
    lineage = lineage_from_json(step.lineage)
    budgets = read_budgets(connection, step.namespace, [entry.subject for entry in lineage])
    accounts = accounts_of(budgets, lineage, moment_of(int(step.now_us)))
    reservations: Sequence[Reservation] = ()
    if accounts:
        estimates = {
            unit: _estimate(connection, step, unit, expectations)
            for unit in sorted({account.budget.unit for account in accounts})
        }
        answer = reserve(accounts, lock_balances(connection, step.namespace, accounts), estimates)
        if isinstance(answer, Refusal):
            hold_step(connection, run_id=run_id, position=position, refusal=answer)
            return answer
        reservations = answer
    row = take_lease(
        connection,
        namespace=namespace,
        run_id=run_id,
        position=position,
        worker=worker,
        lease_us=lease_us,
        has_reserved=True,
    )
    if row is None:
        return None
    for reservation in reservations:
        _write(connection, row, reservation)
    return claim_of(connection, row, None, memory, has_reservations=any(map(_is_kept, reservations)))


def _estimate(connection: Connection, step: Row[Any], unit: Unit, expectations: Expectations) -> Estimate:
    """Its declared maximum, else the most expensive of its last accepted attempts, else a guess."""
    if unit is Unit.STEPS:  # another attempt is not another step
        return Estimate(amount=1 if step.attempt == 0 else 0, basis=Basis.DECLARED)
    declared = expectations.maxima(step.name).of(unit)
    if declared is not None:
        return Estimate(amount=declared, basis=Basis.DECLARED)
    key = {"namespace": step.namespace, "agent": step.agent, "step": step.name, "samples": SAMPLES}
    most = connection.execute(_RESERVED_BEFORE, {**key, "unit": unit.value}).scalar_one()
    if most is None:
        most = getattr(connection.execute(_SPENT_BEFORE, key).one(), unit.value)
    if most is not None:
        return Estimate(amount=int(most), basis=Basis.LEARNED)
    return Estimate(amount=expectations.guesses[unit], basis=Basis.GUESS)


def _is_kept(reservation: Reservation) -> bool:
    """Steps are counted when they start: nothing is released later."""
    return reservation.account.budget.unit is not Unit.STEPS


def _write(connection: Connection, claimed: Row[Any], reservation: Reservation) -> None:
    account: Account = reservation.account
    kept = _is_kept(reservation)
    moved = {"reserved": reservation.amount if kept else 0, "spent": 0 if kept else reservation.amount}
    if reservation.amount:
        connection.execute(_RESERVE, {**moved, "namespace": claimed.namespace, "account": account.key})
    if kept:
        connection.execute(
            _INSERT,
            {
                "run_id": claimed.run_id,
                "position": claimed.position,
                "attempt": claimed.attempt,
                "account": account.key,
                "namespace": claimed.namespace,
                "agent": claimed.agent,
                "step": claimed.name,
                "unit": account.budget.unit.value,
                "basis": reservation.basis.value,
                "amount": reservation.amount,
            },
        )

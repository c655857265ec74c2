"""One run's bill down to its calls."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from paidonce_models.causes import Cause
from paidonce_models.errors import NotFound
from paidonce_models.store.itemised_bills import ItemisedBill, add_up, read_itemised_bill, recomputing_statements
from paidonce_models.store.sweeping import take_back
from tests.models.ledger_acts import Lives
from tests.models.stored_runs import SECOND_US, Store, failure, key_of, paid_call, succeeded, success


def bill_of(store: Store, run_id: str) -> ItemisedBill:
    with store.database.read_at_once() as connection:
        return read_itemised_bill(connection, run_id)


def test_a_run_is_steps_attempts_and_calls(store: Store) -> None:
    run_id = store.running(steps=2)
    store.clock.move(SECOND_US)
    first = store.claimed(run_id)
    store.clock.move(2 * SECOND_US)
    store.complete(replace(failure(first, retry_after_us=0), calls=[paid_call(first), paid_call(first)]))
    store.clock.move(SECOND_US)
    store.complete(success(store.claimed(run_id)))
    lost = store.claimed(run_id, 2)
    store.transact(take_back, key_of(lost), why="gone", anyway=True)
    found = bill_of(store, run_id)
    assert [(step.position, step.name, step.spent.calls) for step in found.steps] == [
        (1, "module.work", 3),
        (2, "module.work", 0),
    ]
    assert [(each.outcome, each.cause, each.spent.calls) for each in found.steps[0].attempts] == [
        ("failed", Cause.OPEN, 2),
        ("accepted", Cause.OPEN, 1),
    ]
    assert abs((found.steps[0].attempts[0].duration_us or 0) - 2 * SECOND_US) < SECOND_US
    assert (found.lost_attempts, found.lost_without_estimate) == (1, 0)
    assert (
        found.steps[1].attempts[0].possibly_billed_nanousd
        == found.possibly_billed_nanousd
        == paid_call(lost).cost_nanousd
    )
    store.advance(run_id, end=succeeded())
    assert [cause for cause, _ in bill_of(store, run_id).by_cause] == [Cause.USEFUL, Cause.FAILED]


def test_a_run_that_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(NotFound, match="no run 'r0'"):
        bill_of(store, "r0")


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_every_bill_adds_up_and_its_sql_recomputes_it(shared_store: Store, seed: int) -> None:
    shared_store.clear()
    lives = Lives(shared_store, random.Random(seed))
    for _ in range(60):
        lives.act()
    for run_id in lives.runs:
        found = bill_of(shared_store, run_id)
        assert found.spent == add_up(spent for _, spent in found.by_cause)
        with shared_store.database.read_at_once() as connection:
            money, rest, avoided = (
                connection.execute(text(statement.replace(":", "\\:"))).all()
                for statement in recomputing_statements(run_id)
            )
            (kept,) = connection.execute(
                text("SELECT coalesce(sum(calls), 0) FROM run_cost_facts WHERE run_id = :run_id"), {"run_id": run_id}
            ).one()
        assert found.spent.calls == kept
        from_rows = {(row.position, row.attempt): (row.cause, row.calls, _whole(row.cost_nanousd)) for row in money}
        assert from_rows == {
            (step.position, attempt.number): (attempt.cause, attempt.spent.calls, attempt.spent.cost_nanousd)
            for step in found.steps
            for attempt in step.attempts
            if attempt.calls
        }
        assert len(rest) == found.lost_attempts
        assert sum(row.steps_not_repeated for row in avoided) == found.bill.steps_not_repeated
        costs = [_whole(row.cost_nanousd) for row in avoided if row.cost_nanousd is not None]
        assert (sum(costs) if costs else None) == found.bill.avoided_cost_nanousd
        assert (found.bill.calls, found.bill.unpriced_calls) == (found.spent.calls, found.spent.unpriced_calls)
        assert found.bill.cost_nanousd == found.spent.cost_nanousd


def _whole(value: object) -> int | None:
    return None if value is None else int(str(value))

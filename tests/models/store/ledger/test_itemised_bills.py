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
from paidonce_models.store.ledger.bill_statements import recomputing_statements
from paidonce_models.store.ledger.bills import Bill
from paidonce_models.store.ledger.itemised_bills import ItemisedBill, add_up, read_itemised_bill
from paidonce_models.store.recovery.lost_steps import reclaim_step
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
    store.transact(reclaim_step, key_of(lost), why="gone", alone=True, anyway=True)
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
            money, rest, avoided, lines, calls, _ = (
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
        itself, family = ({name: _known(name, value) for name, value in row._mapping.items()} for row in lines)
        assert itself == _lines("run itself", found.bill, 0)
        assert family == _lines("with child runs", found.bill.tree or found.bill, found.bill.child_runs)
        assert [(row.position, row.attempt, row.cost_nanousd) for row in calls] == [
            (step.position, attempt.number, made.spent.cost_nanousd)
            for step in found.steps
            for attempt in step.attempts
            for made in attempt.calls
        ]


def _lines(part: str, bill: Bill, child_runs: int) -> dict[str, object]:
    return {
        "part": part,
        "child_runs": child_runs,
        "steps_paid": bill.steps_paid or None,
        "steps_not_repeated": bill.steps_not_repeated or None,
        "attempts": bill.attempts or None,
        "attempts_lost": bill.attempts_lost or None,
        "calls": bill.calls or None,
        "unpriced_calls": bill.unpriced_calls or None,
        "input_tokens": bill.input_tokens,
        "output_tokens": bill.output_tokens,
        "cost_nanousd": bill.cost_nanousd,
        "lost_nanousd": bill.lost_cost_nanousd,
        "avoided_nanousd": bill.avoided_cost_nanousd,
        "starting_over_nanousd": bill.starting_over_cost_nanousd,
    }


COUNTS = ("steps_paid", "steps_not_repeated", "attempts", "attempts_lost", "calls", "unpriced_calls")


def _known(name: str, value: object) -> object:
    """PostgreSQL's sums are decimals; a count over no rows at all is NULL."""
    if value is None or isinstance(value, str):
        return value
    return int(str(value)) or (None if name in COUNTS else 0)


def _whole(value: object) -> int | None:
    return None if value is None else int(str(value))

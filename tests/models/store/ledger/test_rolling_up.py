"""Which calls are moved into the kept sums, and when: once, and not before their cause is final."""

from __future__ import annotations

from dataclasses import replace

from paidonce_models.store.ledger.call_rows import insert_calls
from paidonce_models.store.ledger.rolling_up import roll_up
from paidonce_models.store.recovery.lost_steps import reclaim_step
from tests.models.stored_runs import NAMESPACE, PRICE_NANOUSD, Store, key_of, paid_call, succeeded, success


def rolled(store: Store, namespace: str = NAMESPACE) -> int:
    """How many calls are moved now."""
    return store.transact(roll_up, namespace)


def test_a_call_is_moved_once_when_its_run_has_ended_and_only_with_its_namespace(store: Store) -> None:
    run_id = store.running()
    store.complete(success(store.claimed(run_id)))
    assert rolled(store) == 0
    store.advance(run_id, end=succeeded())
    assert rolled(store, "others") == 0
    assert [rolled(store), rolled(store)] == [1, 0]
    row = store.row("SELECT calls, cost_nanousd FROM run_totals")
    assert tuple(row) == (1, PRICE_NANOUSD)


def test_the_calls_of_a_child_wait_for_the_end_of_the_root(store: Store) -> None:
    root = store.submit().run_id
    store.advance(root, children=1)
    child = store.row("SELECT id FROM runs WHERE parent_run_id = :id", id=root).id
    store.advance(child, steps=1)
    store.complete(success(store.claimed(child)))
    store.advance(child, end=succeeded())
    assert rolled(store) == 0
    store.advance(root, end=succeeded())
    assert rolled(store) == 1


def test_the_calls_of_a_child_that_goes_on_after_its_root_wait_for_its_own_end(store: Store) -> None:
    root = store.submit().run_id
    store.advance(root, children=1)
    child = store.row("SELECT id FROM runs WHERE parent_run_id = :id", id=root).id
    store.advance(child, steps=1)
    store.complete(success(store.claimed(child)))
    store.advance(root, end=succeeded())
    assert rolled(store) == 0, "the child may be cleaning up"
    store.advance(child, end=succeeded())
    assert rolled(store) == 1


def test_what_a_lost_attempt_spent_waits_as_its_zombie_may_yet_report(store: Store) -> None:
    run_id = store.running()
    zombie = store.claimed(run_id)
    store.transact(insert_calls, zombie, [paid_call(zombie)])
    store.transact(reclaim_step, key_of(zombie), why="gone", alone=True, anyway=True)
    store.complete(success(store.claimed(run_id, worker="w2")))
    store.advance(run_id, end=succeeded())
    assert [rolled(store), rolled(store)] == [1, 0]
    store.complete(success(zombie))
    assert rolled(store) == 2
    causes = store.rows("SELECT cause, sum(cost_nanousd) AS cost FROM run_costs GROUP BY cause ORDER BY cause")
    assert [(row.cause, row.cost) for row in causes] == [("fenced", 2 * PRICE_NANOUSD), ("useful", PRICE_NANOUSD)]


def test_calls_that_are_moved_later_add_to_what_is_there_and_unknown_ones_take_nothing_away(store: Store) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    store.complete(success(claim))
    store.advance(run_id, end=succeeded())
    assert rolled(store) == 1
    unknown = replace(paid_call(claim), cost_nanousd=None, other_cost_nanousd=None, input_tokens=5)
    for late in (unknown, paid_call(claim)):
        store.transact(insert_calls, claim, [late])
        assert rolled(store) == 1
    for table in ("run_totals", "run_costs", "daily_costs"):
        row = store.row(f"SELECT calls, unpriced_calls, input_tokens, cost_nanousd FROM {table}")
        assert tuple(row) == (3, 1, 5, 2 * PRICE_NANOUSD), table

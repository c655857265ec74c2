"""Claims: what one tells of the step's time so far, and what a worker finds again after a lost answer."""

from __future__ import annotations

from paidonce_models.budgets import Budget, Period, Unit
from paidonce_models.store.budgets.budget_rules import set_budget
from paidonce_models.store.circuits.parked_steps import ParkedKey, Parking, park_step, unpark_step
from paidonce_models.store.steps.claims import find_claims
from tests.models.stored_runs import NAMESPACE, SECOND_US, Store, failure

PARKING = Parking(circuit="search", retry_in_us=SECOND_US, most_us=3600 * SECOND_US)
SLOW_MACHINE_US = 30 * SECOND_US


def test_the_time_of_a_step_counts_from_its_first_claim_without_what_was_parked(store: Store) -> None:
    run_id = store.running()
    first = store.claimed(run_id)
    assert 0 <= first.elapsed_us < SLOW_MACHINE_US
    store.clock.move(100 * SECOND_US)
    store.complete(failure(first, retry_after_us=SECOND_US))
    store.transact(park_step, namespace=NAMESPACE, run_id=run_id, position=1, parking=PARKING)
    store.clock.move(1_000 * SECOND_US)
    store.transact(unpark_step, ParkedKey(run_id, 1))
    store.clock.move(100 * SECOND_US)
    claim = store.claimed(run_id)
    (found,) = store.read(find_claims, run_id=run_id, worker="w1")
    for each in (claim, found):
        assert abs(each.elapsed_us - 200 * SECOND_US) < SLOW_MACHINE_US


def test_the_time_of_a_step_leaves_out_each_time_that_it_was_parked(store: Store) -> None:
    run_id = store.running()
    for _ in range(2):
        store.complete(failure(store.claimed(run_id), retry_after_us=0))
        store.transact(park_step, namespace=NAMESPACE, run_id=run_id, position=1, parking=PARKING)
        store.clock.move(1_000 * SECOND_US)
        store.transact(unpark_step, ParkedKey(run_id, 1))
    assert store.claimed(run_id).elapsed_us < SLOW_MACHINE_US


def test_a_worker_finds_its_own_claims_and_nobody_elses(store: Store) -> None:
    run_id = store.running(steps=3)
    for position, worker in ((1, "w1"), (2, "w2"), (3, "w1")):
        store.claimed(run_id, position, worker)
    found = store.read(find_claims, run_id=run_id, worker="w1")
    assert [(claim.position, claim.attempt) for claim in found] == [(1, 1), (3, 1)]
    assert not any(claim.has_reservations for claim in found)


def test_a_claim_that_is_found_again_knows_that_it_has_reserved(store: Store) -> None:
    budget = Budget(subject="all", period=Period.DAY, unit=Unit.USD, amount=1_000)
    store.transact(set_budget, NAMESPACE, budget)
    run_id = store.running()
    assert store.claimed(run_id).has_reservations
    (found,) = store.read(find_claims, run_id=run_id, worker="w1")
    assert found.has_reservations

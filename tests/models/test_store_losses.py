"""What a loss counts: against a step that ran alone or is known to have killed its process, and against no other."""

from __future__ import annotations

import json

from paidonce_models.store.adoption import adopt, hand_back_own
from paidonce_models.store.leases import LeaseKey, hand_back, renew_leases
from paidonce_models.store.messages import AdvanceMessage, StepMessage
from paidonce_models.store.queries import read_attempts
from paidonce_models.store.sweeping import company_of, take_back
from tests.models.stored_runs import LEASE_US, SECOND_US, Store, key_of, success


def lose(store: Store, run_id: str, *, alone: bool, position: int = 1) -> object:
    """A worker takes the step and vanishes."""
    claim = store.claimed(run_id, position)
    store.clock.move(LEASE_US + SECOND_US)
    return store.transact(take_back, key_of(claim), why="killed (signal 11, SIGSEGV)", alone=alone)


def step(store: Store, run_id: str, position: int = 1) -> tuple[str, int, int]:
    row = store.row("SELECT state, lost, blamed FROM steps WHERE run_id = :r AND position = :p", r=run_id, p=position)
    return row.state, row.lost, row.blamed


def test_losses_in_company_never_fail_a_step(store: Store) -> None:
    run_id = store.running(max_lost=2)
    for lost in range(1, 8):
        assert isinstance(lose(store, run_id, alone=False), StepMessage)
        assert step(store, run_id) == ("scheduled", lost, 0)


def test_losses_alone_fail_it_with_what_became_of_the_last(store: Store) -> None:
    run_id = store.running(max_lost=2)
    lose(store, run_id, alone=False)
    assert isinstance(lose(store, run_id, alone=True), StepMessage)
    lose(store, run_id, alone=False)
    assert step(store, run_id) == ("scheduled", 3, 1)
    assert isinstance(lose(store, run_id, alone=True), AdvanceMessage)
    assert step(store, run_id) == ("failed", 4, 2)
    error = json.loads(store.row("SELECT error FROM steps WHERE run_id = :r", r=run_id).error)
    assert (error["code"], error["lost"], error["blamed"]) == ("attempts_lost", 4, 2)
    assert "lost 2 workers that ran nothing else, 4 in all" in error["message"]
    assert "SIGSEGV" in error["message"] and "max_lost=" in error["message"]


def test_a_claim_says_how_many_losses_count(store: Store) -> None:
    run_id = store.running()
    lose(store, run_id, alone=False)
    lose(store, run_id, alone=True)
    claim = store.claimed(run_id)
    assert (claim.lost, claim.blamed, claim.attempt) == (2, 1, 3)


def test_a_cancelled_step_that_is_lost_is_blamed_for_nothing(store: Store) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    store.advance(run_id, cancelled=(1,))
    store.transact(take_back, key_of(claim), why="dead", alone=True, anyway=True)
    assert step(store, run_id) == ("cancelled", 0, 0)


def test_who_was_in_company_is_read_from_the_leases(store: Store) -> None:
    run_id = store.running(steps=4)
    first, second, other = (store.claimed(run_id, p, "w2" if p == 3 else "w1") for p in (1, 2, 3))
    assert store.read(company_of, key_of(first)) == ("w1", 2)
    assert store.read(company_of, key_of(other)) == ("w2", 1)
    store.complete(success(second))
    assert store.read(company_of, key_of(first)) == ("w1", 1)
    assert store.read(company_of, LeaseKey(run_id, 4, 1)) == ("", 0)
    assert store.read(company_of, LeaseKey("nobody", 4, 1)) == ("", 0)


def test_an_adopted_lease_is_the_other_process_to_renew_and_to_lose(store: Store) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    key = key_of(claim)
    store.clock.move(LEASE_US - SECOND_US)
    assert store.transact(adopt, key, owner="w1", to="w1-host", lease_us=LEASE_US)
    store.clock.move(2 * SECOND_US)
    assert store.transact(take_back, key, why="dead", alone=True) is None, "it has been renewed"
    assert store.transact(renew_leases, worker="w1", held=[key], lease_us=LEASE_US) == {}
    assert store.transact(renew_leases, worker="w1-host", held=[key], lease_us=LEASE_US) == {key: "running"}
    assert [attempt.worker for attempt in store.read(read_attempts, run_id, 1)] == ["w1-host"]
    store.complete(success(claim))
    assert step(store, run_id)[0] == "succeeded"


def test_only_a_lease_that_is_still_its_owners_is_adopted(store: Store) -> None:
    run_id = store.running(steps=2)
    key = key_of(store.claimed(run_id))
    assert not store.transact(adopt, key, owner="w2", to="host", lease_us=LEASE_US), "never its lease"
    store.transact(hand_back, key, reason="stopping")
    assert not store.transact(adopt, key, owner="w1", to="host", lease_us=LEASE_US), "handed back"
    again = store.claimed(run_id)
    assert not store.transact(adopt, key, owner="w1", to="host", lease_us=LEASE_US), "another attempt"
    store.complete(success(again))
    assert not store.transact(adopt, key_of(again), owner="w1", to="host", lease_us=LEASE_US), "finished"
    assert [attempt.worker for attempt in store.read(read_attempts, run_id, 1)] == ["w1", "w1"]


def test_a_cancelled_step_is_adopted_so_that_somebody_ends_its_attempt(store: Store) -> None:
    run_id = store.running()
    key = key_of(store.claimed(run_id))
    store.advance(run_id, cancelled=(1,))
    assert store.transact(adopt, key, owner="w1", to="host", lease_us=LEASE_US)
    assert store.transact(renew_leases, worker="host", held=[key], lease_us=LEASE_US) == {key: "cancelled"}


def test_what_was_adopted_is_not_handed_back_by_its_former_owner(store: Store) -> None:
    run_id = store.running()
    key = key_of(store.claimed(run_id))
    store.transact(adopt, key, owner="w1", to="host", lease_us=LEASE_US)
    assert store.transact(hand_back_own, key, owner="w1", reason="no answer") is None
    assert step(store, run_id)[0] == "running"
    assert isinstance(store.transact(hand_back_own, key, owner="host", reason="no answer"), StepMessage)
    assert step(store, run_id) == ("scheduled", 0, 0)

"""What a loss counts: against a step that ran alone or is known to have killed its process, and against no other."""

from __future__ import annotations

import json

from paidonce_models.store.messages import AdvanceMessage, StepMessage
from paidonce_models.store.recovery.lost_steps import grant_lease, holding_of, reclaim_step
from paidonce_models.store.steps.claims import claim_step, find_suspect
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_models.store.steps.suspicion import Suspect
from tests.models.stored_runs import LEASE_US, NAMESPACE, SECOND_US, Store, key_of, success


def lose(store: Store, run_id: str, *, alone: bool, position: int = 1) -> object:
    """A worker takes the step and vanishes."""
    claim = store.claimed(run_id, position)
    store.clock.move(LEASE_US + SECOND_US)
    return store.transact(reclaim_step, key_of(claim), why="killed (signal 11, SIGSEGV)", alone=alone)


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
    store.transact(reclaim_step, key_of(claim), why="dead", alone=True, anyway=True)
    assert step(store, run_id) == ("cancelled", 0, 0)


def test_who_was_in_company_is_read_from_the_leases(store: Store) -> None:
    run_id = store.running(steps=4)
    first, second, other = (store.claimed(run_id, p, "w2" if p == 3 else "w1") for p in (1, 2, 3))

    def holds(key: LeaseKey) -> tuple[str, int]:
        holding = store.read(holding_of, key)
        return holding.owner, holding.held

    assert holds(key_of(first)) == ("w1", 2)
    assert holds(key_of(other)) == ("w2", 1)
    store.complete(success(second))
    assert holds(key_of(first)) == ("w1", 1)
    assert holds(LeaseKey(run_id, 4, 1)) == ("", 0)
    assert holds(LeaseKey("nobody", 4, 1)) == ("", 0)


def test_a_lease_is_granted_once_for_what_was_read(store: Store) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    store.clock.move(LEASE_US + SECOND_US)
    seen = store.read(holding_of, key_of(claim))
    granted = store.transact(grant_lease, seen, lease_us=LEASE_US)
    assert granted is not None and granted >= store.clock.now_us + LEASE_US
    assert granted == store.read(holding_of, key_of(claim)).expires_at_us
    assert store.transact(grant_lease, seen, lease_us=LEASE_US) is None, "it was granted, or renewed, meanwhile"
    assert store.transact(reclaim_step, key_of(claim), why="not heard of", alone=True) is None


def test_a_suspect_is_left_to_those_who_isolate_it(store: Store) -> None:
    run_id = store.running()
    lose(store, run_id, alone=False)
    first = store.transact(
        claim_step, namespace=NAMESPACE, run_id=run_id, position=1, worker="w1", lease_us=LEASE_US, suspects=False
    )
    assert first is not None, "one loss in company is no suspicion"
    assert store.read(find_suspect, namespace=NAMESPACE, run_id=run_id, position=1) is None, "it runs"
    store.transact(reclaim_step, key_of(first), why="dead", alone=False, anyway=True)
    assert store.read(find_suspect, namespace=NAMESPACE, run_id=run_id, position=1) == Suspect(lost=2, blamed=0)
    assert (
        store.transact(
            claim_step, namespace=NAMESPACE, run_id=run_id, position=1, worker="w1", lease_us=LEASE_US, suspects=False
        )
        is None
    )
    taken = store.transact(claim_step, namespace=NAMESPACE, run_id=run_id, position=1, worker="host", lease_us=LEASE_US)
    assert taken is not None and (taken.attempt, taken.lost) == (3, 2)


def test_a_second_loss_is_a_suspicion_and_the_first_none(store: Store) -> None:
    """Most workers that die were killed from outside: what ran there alone goes on as soon as any other."""
    run_id = store.running(steps=2)
    lose(store, run_id, alone=True)
    assert store.read(find_suspect, namespace=NAMESPACE, run_id=run_id, position=1) is None
    lose(store, run_id, alone=True)
    assert store.read(find_suspect, namespace=NAMESPACE, run_id=run_id, position=1) == Suspect(lost=2, blamed=2)


def test_what_was_lost_in_company_only_is_excluded_in_the_end() -> None:
    assert [Suspect(lost=lost, blamed=0).must_be_excluded for lost in range(1, 6)] == [False] * 3 + [True] * 2
    assert not Suspect(lost=5, blamed=2).must_be_excluded

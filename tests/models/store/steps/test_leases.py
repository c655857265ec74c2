"""Claims and leases: who holds a step, how it is renewed, handed back and taken back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from paidonce_models.store.messages import AdvanceMessage, StepMessage
from paidonce_models.store.queries import read_attempts, read_state
from paidonce_models.store.recovery.lost_steps import expired_leases, reclaim_step
from paidonce_models.store.recovery.sweeping import take_due
from paidonce_models.store.steps.claims import Claim
from paidonce_models.store.steps.completion import Acceptance
from paidonce_models.store.steps.leases import LeaseKey, mark_unknown, release_step, renew_leases
from tests.models.stored_runs import LEASE_US, NAMESPACE, SECOND_US, Store, failure, key_of, success

WORKERS = 6


def _step(store: Store, run_id: str, position: int = 1) -> tuple[str, int, int]:
    row = store.row("SELECT state, attempt, lost FROM steps WHERE run_id = :r AND position = :p", r=run_id, p=position)
    return row.state, row.attempt, row.lost


def _outcomes(store: Store, run_id: str, position: int = 1) -> list[str | None]:
    return [attempt.outcome for attempt in store.read(read_attempts, run_id, position)]


def test_of_workers_that_race_for_a_step_one_wins(store: Store) -> None:
    run_id = store.running(steps=5)
    barrier = Barrier(WORKERS)

    def race(worker: int) -> list[Claim | None]:
        claims = []
        for position in range(1, 6):
            barrier.wait()
            claims.append(store.claim(run_id, position, f"w{worker}"))
        return claims

    with ThreadPoolExecutor(WORKERS) as pool:
        claims = [claim for won in pool.map(race, range(WORKERS)) for claim in won if claim is not None]
    assert sorted(claim.position for claim in claims) == [1, 2, 3, 4, 5]
    (attempts,) = store.row("SELECT count(*) FROM attempts")
    assert attempts == 5


def test_a_claim_carries_the_arguments_and_the_stores_clock(store: Store) -> None:
    claim = store.claimed(store.running())
    assert claim.arguments == b'{"value": 1}'
    assert 0 <= claim.claimed_at_us - store.clock.now_us < SECOND_US
    assert (claim.attempt, claim.lost, claim.failed, claim.consumed_seq) == (1, 0, 0, 1)


def test_a_second_delivery_finds_a_live_lease_and_does_nothing(store: Store) -> None:
    run_id = store.running()
    store.claimed(run_id)
    assert store.claim(run_id, worker="w2") is None
    store.clock.move(LEASE_US * 10)
    assert store.claim(run_id, worker="w2") is None, "only the sweeper takes back"


def test_a_finished_step_is_not_claimed_again(store: Store) -> None:
    run_id = store.running(steps=2)
    store.complete(success(store.claimed(run_id, 1)))
    store.complete(failure(store.claimed(run_id, 2)))
    assert store.claim(run_id, 1) is None and store.claim(run_id, 2) is None


def test_a_retry_is_claimed_when_it_is_due_and_not_before(store: Store) -> None:
    run_id = store.running()
    store.complete(failure(store.claimed(run_id), retry_after_us=5 * SECOND_US))
    store.clock.move(4 * SECOND_US)
    assert store.claim(run_id) is None
    store.clock.move(2 * SECOND_US)
    claim = store.claimed(run_id)
    assert (claim.attempt, claim.failed) == (2, 1)


def test_a_child_run_is_no_step_to_claim(store: Store) -> None:
    run_id = store.submit().run_id
    store.advance(run_id, children=1)
    assert store.claim(run_id) is None


def test_renewing_answers_for_what_is_still_this_workers_own(store: Store) -> None:
    run_id = store.running(steps=4)
    mine, cancelled, taken, others = (store.claimed(run_id, p, "w2" if p == 4 else "w1") for p in (1, 2, 3, 4))
    store.advance(run_id, cancelled=(2,))
    store.transact(reclaim_step, key_of(taken), why="dead", alone=True, anyway=True)
    held = [key_of(claim) for claim in (mine, cancelled, taken, others)]
    states = store.transact(renew_leases, worker="w1", held=held, lease_us=LEASE_US)
    assert states == {key_of(mine): "running", key_of(cancelled): "cancelled"}
    assert store.transact(renew_leases, worker="w1", held=[], lease_us=LEASE_US) == {}


def test_a_heartbeat_for_an_old_attempt_does_not_renew_the_next_one_of_the_same_worker(store: Store) -> None:
    run_id = store.running()
    first = store.claimed(run_id)
    store.transact(release_step, key_of(first), reason="stopping")
    second = store.claimed(run_id)
    store.clock.move(LEASE_US - SECOND_US)
    assert store.transact(renew_leases, worker="w1", held=[key_of(first)], lease_us=LEASE_US) == {}
    store.clock.move(2 * SECOND_US)
    assert store.read(expired_leases, namespace=NAMESPACE, shard=0) == [key_of(second)]


def test_a_renewed_lease_does_not_expire(store: Store) -> None:
    claim = store.claimed(store.running())
    for _ in range(5):
        store.clock.move(LEASE_US - SECOND_US)
        store.transact(renew_leases, worker="w1", held=[key_of(claim)], lease_us=LEASE_US)
        assert store.transact(reclaim_step, key_of(claim), why="dead", alone=True) is None
    assert not store.read(expired_leases, namespace=NAMESPACE, shard=0)


def test_a_step_handed_back_counts_neither_as_lost_nor_as_failed(store: Store) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    message = store.transact(release_step, key_of(claim), reason="stopping")
    assert isinstance(message, StepMessage) and message.position == 1
    assert _step(store, run_id) == ("scheduled", 1, 0)
    assert _outcomes(store, run_id) == ["cancelled"]
    again = store.claimed(run_id, worker="w2")
    assert (again.attempt, again.lost, again.failed) == (2, 0, 0)


def test_only_the_newest_attempt_can_hand_back(store: Store) -> None:
    run_id = store.running()
    first = store.claimed(run_id)
    store.transact(release_step, key_of(first), reason="stopping")
    assert store.transact(release_step, key_of(first), reason="again") is None
    second = store.claimed(run_id, worker="w2")
    assert store.transact(release_step, key_of(first), reason="late") is None
    store.complete(success(second))
    assert store.transact(release_step, key_of(second), reason="late") is None
    assert _step(store, run_id)[0] == "succeeded"


def test_an_expired_lease_is_taken_back_once(store: Store) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    store.clock.move(LEASE_US - SECOND_US)
    assert not store.read(expired_leases, namespace=NAMESPACE, shard=0)
    assert store.transact(reclaim_step, key_of(claim), why="dead", alone=True) is None
    store.clock.move(2 * SECOND_US)
    assert store.read(expired_leases, namespace=NAMESPACE, shard=0) == [key_of(claim)]
    assert isinstance(store.transact(reclaim_step, key_of(claim), why="dead", alone=True), StepMessage)
    assert store.transact(reclaim_step, key_of(claim), why="dead", alone=True) is None
    assert _step(store, run_id) == ("scheduled", 1, 1)
    assert _outcomes(store, run_id) == ["lost"]
    assert store.claimed(run_id, worker="w2").attempt == 2


def test_a_sweeper_that_read_long_ago_does_not_take_back_the_next_attempt(store: Store) -> None:
    run_id = store.running()
    first = store.claimed(run_id)
    store.transact(reclaim_step, key_of(first), why="dead", alone=True, anyway=True)
    store.claimed(run_id, worker="w2")
    store.clock.move(LEASE_US + SECOND_US)
    assert store.transact(reclaim_step, key_of(first), why="dead", alone=True) is None
    assert _step(store, run_id) == ("running", 2, 1)


def test_a_step_that_lost_its_last_worker_fails_and_its_agent_is_told(store: Store) -> None:
    run_id = store.running(max_lost=2)
    for expected in (StepMessage, AdvanceMessage):
        claim = store.claimed(run_id)
        store.clock.move(LEASE_US + SECOND_US)
        assert isinstance(store.transact(reclaim_step, key_of(claim), why="dead", alone=True), expected)
    assert _step(store, run_id) == ("failed", 2, 2)
    assert _outcomes(store, run_id) == ["lost", "lost"]
    event = store.row("SELECT kind, position FROM run_events WHERE run_id = :r AND seq = 2", r=run_id)
    assert (event.kind, event.position) == ("step_failed", 1)
    assert store.claim(run_id) is None


def test_what_a_recovery_did_not_repeat_is_entered_once_for_each_lost_attempt(store: Store) -> None:
    run_id = store.running(steps=2)
    done = success(store.claimed(run_id, 1))
    store.complete(done)
    lost = store.claimed(run_id, 2)
    store.clock.move(LEASE_US + SECOND_US)
    for _ in range(2):
        store.transact(reclaim_step, key_of(lost), why="dead", alone=True)
    avoided = store.row("SELECT position, attempt, steps, cost_nanousd FROM avoided")
    assert tuple(avoided) == (2, 1, 1, done.calls[0].cost_nanousd)


def test_the_lease_of_a_cancelled_step_ends_without_another_attempt(store: Store) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    store.advance(run_id, cancelled=(1,))
    store.clock.move(LEASE_US + SECOND_US)
    assert store.transact(reclaim_step, key_of(claim), why="dead", alone=True) is None
    assert _step(store, run_id) == ("cancelled", 1, 0)
    assert _outcomes(store, run_id) == ["lost"]
    assert not store.read(expired_leases, namespace=NAMESPACE, shard=0)


def test_an_at_most_once_step_that_was_lost_waits_for_a_person(store: Store) -> None:
    run_id = store.running(delivery="at_most_once")
    claim = store.claimed(run_id)
    store.clock.move(LEASE_US + SECOND_US)
    assert store.transact(reclaim_step, key_of(claim), why="dead", alone=True) is None
    assert _step(store, run_id)[0] == "unknown"
    assert store.read(read_state, NAMESPACE, run_id) == ("waiting", "unknown_outcome")
    assert store.claim(run_id) is None
    assert store.transact(take_due, namespace=NAMESPACE, shard=0) == []


def test_the_late_end_of_an_at_most_once_step_is_accepted(store: Store) -> None:
    run_id = store.running(delivery="at_most_once")
    claim = store.claimed(run_id)
    store.clock.move(LEASE_US + SECOND_US)
    store.transact(reclaim_step, key_of(claim), why="frozen", alone=True)
    held = [key_of(claim)]
    assert store.transact(renew_leases, worker="w1", held=held, lease_us=LEASE_US) == {key_of(claim): "unknown"}
    assert not store.read(expired_leases, namespace=NAMESPACE, shard=0)
    assert store.complete(success(claim, 42)) is Acceptance.ACCEPTED
    assert _step(store, run_id)[0] == "succeeded"
    assert _outcomes(store, run_id) == ["accepted"]
    assert not store.rows("SELECT * FROM avoided"), "nothing recovered from it"
    assert store.advance(run_id) is not None
    assert store.read(read_state, NAMESPACE, run_id) == ("running", None)


def test_the_late_failure_of_an_at_most_once_step_may_be_tried_again(store: Store) -> None:
    run_id = store.running(delivery="at_most_once")
    claim = store.claimed(run_id)
    store.clock.move(LEASE_US + SECOND_US)
    store.transact(reclaim_step, key_of(claim), why="frozen", alone=True)
    assert store.complete(failure(claim, retry_after_us=SECOND_US)) is Acceptance.ACCEPTED
    assert _step(store, run_id)[0] == "retrying"
    assert _outcomes(store, run_id) == ["failed"]
    assert store.read(read_state, NAMESPACE, run_id) == ("running", None)


def test_a_superseded_attempt_cannot_make_its_step_unknown(store: Store) -> None:
    run_id = store.running()
    first = store.claimed(run_id)
    store.transact(release_step, key_of(first), reason="stopping")
    store.claimed(run_id, worker="w2")
    assert not store.transact(mark_unknown, key_of(first), error={})
    assert _step(store, run_id)[0] == "running"
    assert store.read(read_state, NAMESPACE, run_id) == ("running", None)


@pytest.mark.parametrize("key", [LeaseKey("nobody", 1, 1)])
def test_a_lease_nobody_has_is_left_alone(store: Store, key: LeaseKey) -> None:
    assert store.transact(release_step, key, reason="stopping") is None
    assert store.transact(reclaim_step, key, why="dead", alone=True, anyway=True) is None
    assert store.transact(renew_leases, worker="w1", held=[key], lease_us=LEASE_US) == {}

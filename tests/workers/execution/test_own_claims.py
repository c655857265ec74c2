"""A claim whose answer was lost is found again by one thread, and no claim that a thread has is taken for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from paidonce import agent, step
from paidonce_models.errors import StoreUnreachable
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.steps.claims import Claim, claim_step
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_workers.execution.own_claims import OwnClaims
from tests.workers.stand import Stand


@step(name="owned.work")
def work() -> None: ...


@agent(name="owns")
async def owns() -> None:
    await work()


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand() as made:
        yield made


@pytest.fixture
def claim(stand: Stand) -> Claim:
    """A step that worker ``w1`` has claimed."""
    run_id = stand.submit(owns)
    stand.worker(owns, work).serve(stand.publisher.take()[0])
    made: Claim | None = stand.database.transact(
        lambda connection: claim_step(
            connection, namespace="default", run_id=run_id, position=1, worker="w1", lease_us=10_000_000
        )
    )
    assert made is not None
    return made


@pytest.fixture
def own(stand: Stand) -> OwnClaims:
    return OwnClaims(stand.database, "w1", lease_us=10_000_000)


def test_a_claim_in_doubt_is_found_by_one_thread(own: OwnClaims, claim: Claim) -> None:
    assert own.take_in_doubt(claim.run_id, 1) == claim
    assert own.take_in_doubt(claim.run_id) is None
    assert own.take(claim) is None, "its answer may have come late"


def test_a_claim_that_a_thread_has_is_not_in_doubt(own: OwnClaims, claim: Claim) -> None:
    assert own.take(claim) is claim
    assert own.take_in_doubt(claim.run_id) is None
    own.release(claim)
    assert own.take_in_doubt(claim.run_id) == claim


def test_other_workers_and_other_steps_claims_are_left(own: OwnClaims, stand: Stand, claim: Claim) -> None:
    assert own.take_in_doubt(claim.run_id, 2) is None
    assert OwnClaims(stand.database, "w2", lease_us=10_000_000).take_in_doubt(claim.run_id) is None


def test_the_lease_of_a_claim_in_doubt_begins_anew(own: OwnClaims, stand: Stand, claim: Claim) -> None:
    stand.pass_time(9)
    assert own.take_in_doubt(claim.run_id) is not None
    left_us = stand.column("steps", "lease_expires_at_us", claim.run_id) - stand.clock.now_us()
    assert left_us == 10_000_000, "nobody renewed it while it was in doubt"


def test_a_claim_is_left_that_has_ended_since_it_was_seen(
    own: OwnClaims, stand: Stand, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_of_run", lambda run_id: [claim])
    key = LeaseKey(claim.run_id, claim.position, claim.attempt)
    stand.database.transact(lambda c: reclaim_step(c, key, why="gone", alone=True, anyway=True))
    assert own.take_in_doubt(claim.run_id) is None
    assert own.take(claim) is claim, "it was released"


def test_a_claim_is_left_whose_step_was_cancelled_since_it_was_seen(
    own: OwnClaims, stand: Stand, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_of_run", lambda run_id: [claim])
    stand.cancel(claim.run_id)
    stand.serve(stand.worker(owns, work, name="worker-2"))
    assert stand.steps(claim.run_id)[0].state == "cancelled"
    assert own.take_in_doubt(claim.run_id) is None
    assert own.take(claim) is claim, "it was released"


def test_a_claim_is_left_while_the_store_is_away(own: OwnClaims, claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(key: LeaseKey) -> bool:
        raise StoreUnreachable("away")

    monkeypatch.setattr(own, "_renew", away)
    with pytest.raises(StoreUnreachable):
        own.take_in_doubt(claim.run_id)
    assert own.take(claim) is claim, "it was released"

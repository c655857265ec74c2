"""Steps that a stopping worker does not finish: released in the store at once, with a message for others."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from paidonce import agent, step
from paidonce_models.errors import StoreUnreachable
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.steps.claims import Claim, claim_step
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_workers.execution.eager_execution import EagerMessage
from paidonce_workers.process.released_steps import ReleasedSteps
from tests.workers.stand import Stand, StandWorker


@step(name="released.fetch")
def fetch(name: str) -> str:
    return name


@agent(name="releases")
async def releases(name: str) -> str:
    return await fetch(name)


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand() as made:
        yield made


def begun(stand: Stand) -> tuple[StandWorker, Claim]:
    """A worker that holds a claim of the first step of a run."""
    worker = stand.worker(fetch, releases)
    run_id = stand.submit(releases, {"name": "x"})
    worker.serve(stand.publisher.messages.popleft())
    stand.publisher.take()
    claim = stand.database.transact(
        lambda connection: claim_step(
            connection, namespace="default", run_id=run_id, position=1, worker=worker.name, lease_us=10**7
        )
    )
    assert claim is not None
    return worker, claim


def released(stand: Stand, worker: StandWorker, database: Any = None) -> ReleasedSteps:
    return ReleasedSteps(
        database=database or stand.database,
        publisher=stand.publisher,  # type: ignore[arg-type]  # what is used of it
        executor=worker.executor,
        store_waits=worker.store_waits,
    )


def expect_released(stand: Stand, claim: Claim) -> None:
    (found,) = stand.steps(claim.run_id)
    assert (found.state, found.lost) == ("scheduled", 0)
    (attempt,) = stand.attempts(claim.run_id)
    assert attempt.outcome == "cancelled" and attempt.error is not None and attempt.error["code"] == "handed_back"
    (message,) = stand.publisher.take()
    assert isinstance(message, StepMessage) and (message.run_id, message.position) == (claim.run_id, 1)


def test_a_held_step_is_released_and_others_hear_of_it(stand: Stand) -> None:
    worker, claim = begun(stand)
    key = LeaseKey(claim.run_id, 1, claim.attempt)
    released(stand, worker).release_held(["a task that is no step", key])
    expect_released(stand, claim)
    released(stand, worker).release_held([key])
    assert stand.publisher.take() == [], "it is nobody's to release any more"


def test_a_release_that_the_store_refuses_holds_up_no_other(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    worker, claim = begun(stand)
    refused = LeaseKey(claim.run_id, 2**70, 1)
    released(stand, worker).release_held([refused, LeaseKey(claim.run_id, 1, claim.attempt)])
    expect_released(stand, claim)
    assert "hand_back_refused" in [getattr(record, "event", "") for record in caplog.records]


def test_a_step_that_was_claimed_for_a_thread_and_not_begun_is_released(stand: Stand) -> None:
    worker, claim = begun(stand)
    message = StepMessage(run_id=claim.run_id, position=1, name=fetch.name, agent=releases.name, queue="q", priority=5)
    released(stand, worker).release_kept(EagerMessage(message=message, claim=claim))
    expect_released(stand, claim)


def test_a_message_without_a_claim_is_requeued_as_it_is(stand: Stand) -> None:
    worker, claim = begun(stand)
    message = StepMessage(run_id=claim.run_id, position=1, name=fetch.name, agent=releases.name, queue="q", priority=5)
    released(stand, worker).release_kept(EagerMessage(message=message))
    assert stand.publisher.take() == [message]
    assert stand.steps(claim.run_id)[0].state == "running"


def test_while_the_store_is_away_a_kept_step_is_left_to_the_sweeper(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    worker, claim = begun(stand)

    def away(_: object) -> object:
        raise StoreUnreachable("the store is away")

    message = StepMessage(run_id=claim.run_id, position=1, name=fetch.name, agent=releases.name, queue="q", priority=5)
    released(stand, worker, SimpleNamespace(transact=away)).release_kept(EagerMessage(message=message, claim=claim))
    assert stand.publisher.take() == []
    assert "store_away" in [getattr(record, "event", "") for record in caplog.records]

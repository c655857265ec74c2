"""What is due within moments: a convenience for speed, with the sweeper behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from paidonce import agent, step
from paidonce_models.errors import StoreUnreachable
from paidonce_models.store.messages import AdvanceMessage, StepMessage
from paidonce_models.store.steps.claims import Claim, claim_step
from paidonce_workers.execution.local_schedule import HORIZON_SECONDS, MOST_PENDING
from tests.workers.stand import Planned, Stand, StandWorker


@step(name="soon.work", queue="side")
def work() -> str:
    return "done"


@agent(name="soon")
async def sleeps() -> str:
    await asyncio.sleep(5)
    return await work()


@agent(name="soon-works")
async def works() -> str:
    return await work()


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand() as made:
        yield made


def claimed(stand: Stand) -> Claim:
    run_id = stand.submit(works, priority=7)
    stand.worker(works).serve(stand.publisher.messages.popleft())
    stand.publisher.take()
    claim = stand.database.transact(
        lambda connection: claim_step(
            connection, namespace="default", run_id=run_id, position=1, worker="w", lease_us=1
        )
    )
    assert claim is not None
    return claim


def planned(worker: StandWorker) -> list[float]:
    return [entry.seconds for entry in worker.deadlines.planned]


def test_a_retry_is_sent_when_it_falls_due_with_its_queue_and_priority(stand: Stand) -> None:
    worker, claim = stand.worker(works, work), claimed(stand)
    worker.local_schedule.retry_step(claim, 2.0)
    assert planned(worker) == [pytest.approx(2.0, abs=0.1)]
    assert stand.publisher.take() == []
    worker.deadlines.fall_due()
    assert stand.publisher.take() == [
        StepMessage(
            run_id=claim.run_id,
            position=1,
            name="soon.work",
            agent="soon-works",
            queue="paidonce.side",
            priority=7,
        )
    ]


def test_what_is_far_off_is_left_to_the_sweeper(stand: Stand) -> None:
    worker, claim = stand.worker(works, work), claimed(stand)
    worker.local_schedule.retry_step(claim, HORIZON_SECONDS + 1)
    worker.local_schedule.wake_run(claim.run_id, 2**60)
    worker.local_schedule.wake_run(claim.run_id, None)
    assert planned(worker) == []


def test_memory_stays_bounded(stand: Stand) -> None:
    worker, claim = stand.worker(works, work), claimed(stand)
    worker.deadlines.planned = [Planned(1.0, lambda: None)] * (MOST_PENDING + 1)
    worker.local_schedule.retry_step(claim, 1.0)
    assert len(worker.deadlines) == MOST_PENDING + 1


def test_a_timer_wakes_its_run_by_the_stores_clock(stand: Stand) -> None:
    worker = stand.worker(sleeps, work)
    run_id = stand.submit(sleeps)
    stand.serve(worker)
    worker.local_schedule.wake_run(run_id, 0)  # due by this machine's clock, not yet by the store's
    worker.deadlines.fall_due()
    assert stand.publisher.take() == []
    stand.pass_time(6)
    worker.local_schedule.wake_run(run_id, 0)
    worker.deadlines.fall_due()
    (message,) = stand.publisher.take()
    assert isinstance(message, AdvanceMessage) and message.run_id == run_id


def test_a_message_is_passed_on_only_to_a_worker_that_holds_its_code(stand: Stand) -> None:
    worker = stand.worker(works)
    step_message = StepMessage(
        run_id="r", position=1, name="soon.work", agent="soon-works", queue="paidonce.side", priority=5
    )
    advance_message = AdvanceMessage(run_id="r", agent="soon-works", queue="paidonce.default", priority=5)

    def passed_on() -> list[object]:
        worker.local_schedule.pass_on(step_message, 1)
        worker.local_schedule.pass_on(advance_message, 1)
        worker.deadlines.fall_due()
        return list(stand.publisher.take())

    assert passed_on() == []
    stand.register(works, work, queues=["paidonce.default"])
    assert passed_on() == [advance_message], "the step's queue is not served"
    stand.register(work, name="worker-2", queues=["paidonce.side"])
    assert passed_on() == [step_message, advance_message]
    stand.pass_time(20)
    assert passed_on() == [], "nobody has been seen lately"


def test_a_message_that_comes_back_often_is_passed_on_ever_later(stand: Stand) -> None:
    worker = stand.worker(works)
    message = AdvanceMessage(run_id="r", agent="a", queue="q", priority=5)
    for bounces in (1, 20):
        worker.local_schedule.pass_on(message, bounces)
    first, last = planned(worker)
    assert 0.05 <= first <= 0.31
    assert 0.8 <= last <= 4.9


def test_a_store_that_is_away_is_left_to_the_sweeper(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = stand.worker(sleeps, work)

    def away(*_: object, **__: object) -> None:
        raise StoreUnreachable("away")

    monkeypatch.setattr(stand.database, "transact", away)
    worker.local_schedule.wake_run("r", 0)
    worker.deadlines.fall_due()
    assert stand.publisher.take() == []


def test_an_advance_is_called_for_on_the_runs_queue(stand: Stand) -> None:
    claim = replace(claimed(stand))
    worker = stand.worker(work)
    worker.local_schedule.hand_on_advance(claim.run_id)
    assert stand.publisher.take() == [
        AdvanceMessage(run_id=claim.run_id, agent="soon-works", queue="paidonce.default", priority=7)
    ]

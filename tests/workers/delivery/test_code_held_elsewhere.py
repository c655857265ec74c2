"""Messages for code that this worker does not hold: requeued for a live worker that holds it, or left alone."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from paidonce import agent, step
from paidonce_models.errors import StoreUnreachable
from paidonce_models.store.messages import AdvanceMessage, StepMessage
from paidonce_workers.delivery.code_held_elsewhere import hand_on_advance, hand_on_step
from tests.workers.stand import Stand, StandWorker

NO_RUN = "01a22963-91bb-79da-b8ff-9a20da097171"


@step(name="elsewhere.fetch")
def fetch(name: str) -> str:
    return name


@agent(name="elsewhere")
async def elsewhere(name: str) -> str:
    return await fetch(name)


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand() as made:
        yield made


def process_of(stand: Stand, worker: StandWorker, database: Any = None, namespace: str = "default") -> Any:
    """What these functions use of a worker process."""
    return SimpleNamespace(
        database=database or stand.database,
        settings=SimpleNamespace(namespace=namespace),
        local_schedule=worker.local_schedule,
    )


def scheduled(stand: Stand) -> tuple[StandWorker, str]:
    """A worker, and a run whose first step waits."""
    worker = stand.worker(fetch, elsewhere)
    run_id = stand.submit(elsewhere, {"name": "x"})
    worker.serve(stand.publisher.messages.popleft())
    stand.publisher.take()
    return worker, run_id


def test_a_step_returns_to_the_queue_where_a_live_worker_holds_it(stand: Stand) -> None:
    worker, run_id = scheduled(stand)
    stand.register(fetch, elsewhere, name="another")
    stand.publisher.take()
    assert hand_on_step(process_of(stand, worker), {"run": run_id, "step": 1, "agent": "elsewhere"})
    assert stand.publisher.take() == [], "after a pause, or the message would come straight back"
    worker.deadlines.fall_due()
    (message,) = stand.publisher.take()
    assert isinstance(message, StepMessage) and (message.run_id, message.position) == (run_id, 1)
    assert stand.attempts(run_id) == []


def test_nobody_who_holds_it_means_no_message_now(stand: Stand) -> None:
    worker, run_id = scheduled(stand)
    assert hand_on_step(process_of(stand, worker), {"run": run_id, "step": 1})
    worker.deadlines.fall_due()
    assert stand.publisher.take() == []
    assert stand.steps(run_id)[0].state == "scheduled"


@pytest.mark.parametrize(
    "address",
    [{"run": NO_RUN, "step": 1}, {"run": "no id", "step": 1}, {"step": 1}, {"run": NO_RUN, "step": 10**30}],
    ids=["no such run", "no id", "no run", "no such number"],
)
def test_an_address_of_no_step_is_nobodys(stand: Stand, address: dict[str, Any]) -> None:
    assert not hand_on_step(process_of(stand, stand.worker(fetch)), address)


def test_a_step_of_another_namespace_is_nobodys(stand: Stand) -> None:
    worker, run_id = scheduled(stand)
    assert not hand_on_step(process_of(stand, worker, namespace="shop"), {"run": run_id, "step": 1})
    hand_on_advance(process_of(stand, worker, namespace="shop"), run_id)
    assert worker.deadlines.planned == []


def test_an_advance_returns_to_its_queue_until_the_run_has_ended(stand: Stand) -> None:
    worker, run_id = scheduled(stand)
    stand.register(fetch, elsewhere, name="another")
    stand.publisher.take()
    hand_on_advance(process_of(stand, worker), run_id)
    worker.deadlines.fall_due()
    (message,) = stand.publisher.take()
    assert isinstance(message, AdvanceMessage) and (message.run_id, message.agent) == (run_id, "elsewhere")
    worker.executor.execute(run_id, 1)
    stand.serve(worker)
    assert stand.run(run_id).state == "succeeded"
    hand_on_advance(process_of(stand, worker), run_id)
    hand_on_advance(process_of(stand, worker), NO_RUN)
    worker.deadlines.fall_due()
    assert stand.publisher.take() == []


def test_while_the_store_is_away_an_advance_is_left_to_the_sweeper(stand: Stand) -> None:
    def away() -> object:
        raise StoreUnreachable("the store is away")

    worker, run_id = scheduled(stand)
    hand_on_advance(process_of(stand, worker, SimpleNamespace(read=away)), run_id)
    assert worker.deadlines.planned == []

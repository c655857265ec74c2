"""What a worker does with a step that may kill it: it never claims it, and blames nobody for what nobody can know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from paidonce import agent, step, tool
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.steps.claims import claim_step
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_models.store.steps.suspicion import Suspect
from tests.workers.stand import Stand

during: list[Callable[[], object]] = []
"""What happens elsewhere while a body runs, once each."""


@step(name="suspects.work", max_lost=3)
def work() -> str:
    if during:
        during.pop()()
    return "done"


@tool(name="suspects.once", delivery="at_most_once")
def once() -> str:
    return work.fn()


@agent(name="suspects")
async def suspects() -> str:
    return str(await work())


@agent(name="suspects_once")
async def suspects_once() -> str:
    return str(await once())


HELD = (suspects, suspects_once, work, once)


@dataclass
class Recorded:
    """Stands for the isolation hosts."""

    takes: bool = True
    sent: list[tuple[StepMessage, Suspect]] = field(default_factory=list)

    def send(self, message: StepMessage, suspect: Suspect) -> bool:
        self.sent.append((message, suspect))
        return self.takes


@pytest.fixture
def stand() -> Iterator[Stand]:
    during.clear()
    with Stand() as made:
        yield made


def lost(stand: Stand, *, alone: bool, times: int) -> str:
    """A run whose step has lost so many workers."""
    run_id = stand.submit(suspects)
    stand.worker(*HELD).serve(stand.publisher.messages.popleft())
    for _ in range(times):
        claim = stand.database.transact(
            lambda connection: claim_step(
                connection, namespace="default", run_id=run_id, position=1, worker="gone", lease_us=1
            )
        )
        assert claim is not None
        key = LeaseKey(run_id, 1, claim.attempt)
        stand.database.transact(
            lambda connection, key=key: reclaim_step(connection, key, why="gone", alone=alone, anyway=True)  # type: ignore[misc]
        )
    stand.publisher.take()
    return run_id


@pytest.mark.parametrize(("alone", "times", "blamed"), [(True, 2, 2), (False, 2, 0)])
def test_a_suspect_is_sent_on_without_an_attempt(stand: Stand, alone: bool, times: int, blamed: int) -> None:
    isolation = Recorded()
    run_id = lost(stand, alone=alone, times=times)
    worker = stand.worker(*HELD, isolation=isolation)
    worker.executor.execute(run_id, 1, "suspects.work", "suspects")
    ((message, suspect),) = isolation.sent
    assert (message.run_id, message.position, message.name, message.agent) == (run_id, 1, "suspects.work", "suspects")
    assert suspect == Suspect(lost=times, blamed=blamed)
    assert len(stand.attempts(run_id)) == times
    assert stand.steps(run_id)[0].state == "scheduled"
    assert not worker.held.all()


def test_one_loss_in_company_is_no_suspicion(stand: Stand) -> None:
    isolation = Recorded()
    run_id = lost(stand, alone=False, times=1)
    stand.worker(*HELD, isolation=isolation).executor.execute(run_id, 1, "suspects.work", "suspects")
    assert stand.steps(run_id)[0].state == "succeeded" and not isolation.sent


def test_a_finished_or_running_suspect_is_not_sent(stand: Stand) -> None:
    isolation = Recorded()
    run_id = lost(stand, alone=False, times=2)
    stand.database.transact(
        lambda connection: claim_step(
            connection, namespace="default", run_id=run_id, position=1, worker="host", lease_us=10**9
        )
    )
    stand.worker(*HELD, isolation=isolation).executor.execute(run_id, 1, "suspects.work", "suspects")
    assert not isolation.sent


def test_where_there_is_no_host_the_worker_isolates_it_itself(stand: Stand) -> None:
    isolation = Recorded(takes=False)
    run_id = lost(stand, alone=False, times=2)
    stand.worker(*HELD, isolation=isolation).executor.execute(run_id, 1, "suspects.work", "suspects")
    (attempt,) = stand.attempts(run_id)[2:]
    assert attempt.outcome == "blocked" and attempt.error is not None, "code that is missing there is no failure"
    assert "no longer hold a step suspects.work" in str(attempt.error["message"]), "it ran in a child, without modules"


def test_memory_that_runs_out_beside_others_is_a_loss_that_blames_nobody(stand: Stand) -> None:
    isolation = Recorded()
    worker = stand.worker(*HELD, isolation=isolation)
    first, second = stand.submit(suspects), stand.submit(suspects)
    stand.publisher.take()
    worker.executor.advance(first)
    worker.executor.advance(second)

    def run_out() -> None:
        raise MemoryError

    during[:] = [run_out, lambda: worker.executor.execute(second, 1)]
    worker.executor.execute(first, 1)
    assert [stand.attempts(run)[0].outcome for run in (first, second)] == ["accepted", "lost"]
    assert (stand.steps(second)[0].state, stand.column("steps", "blamed", second)) == ("scheduled", 0)
    during[:] = [run_out]
    worker.executor.execute(second, 1)
    assert stand.attempts(second)[1].outcome == "failed", "alone it is its own failure"


def test_memory_that_runs_out_is_final_where_nothing_may_be_repeated(stand: Stand) -> None:
    worker = stand.worker(*HELD)
    first, second = stand.submit(suspects), stand.submit(suspects_once)
    stand.publisher.take()
    worker.executor.advance(first)
    worker.executor.advance(second)

    def run_out() -> None:
        raise MemoryError

    during[:] = [run_out, lambda: worker.executor.execute(second, 1)]
    worker.executor.execute(first, 1)
    assert stand.attempts(second)[0].outcome == "failed"

"""A step's thread that is struck at any line leaves no lease behind: its heartbeat would renew that for ever.

Under prefork a signal handler raises Celery's soft time limit in the thread that executes, between the claim and the
completion as well as in the body.
"""

from __future__ import annotations

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from paidonce import agent, step
from paidonce_models.states import AttemptOutcome, RunState
from paidonce_models.store.messages import StepMessage
from paidonce_workers.execution.attempt import Execution
from tests.workers.breakers.striking import strike_everywhere
from tests.workers.stand import LEASE_SECONDS, Stand, StandWorker

ran: list[int] = []


@step(name="struck.work")
def work() -> str:
    ran.append(1)
    return "done"


@agent(name="struck")
async def struck() -> str:
    return await work()


def scheduled(stand: Stand) -> tuple[StandWorker, StepMessage, str]:
    """A worker, and the message of a step that is scheduled."""
    worker, run_id = stand.worker(struck, work), stand.submit(struck)
    (advance,) = stand.publisher.take()
    worker.serve(advance)
    (message,) = stand.publisher.take()
    assert isinstance(message, StepMessage)
    return worker, message, run_id


@pytest.mark.timeout(120)
def test_a_thread_that_is_struck_anywhere_leaves_no_lease_behind() -> None:
    made: list[tuple[Stand, StandWorker, StepMessage]] = []

    def fresh() -> None:
        stand = Stand()
        worker, message, _ = scheduled(stand)
        made.append((stand, worker, message))
        ran.clear()

    def serve() -> None:
        _, worker, message = made[-1]
        worker.serve(message)

    fresh()
    in_or_after_the_body = 0
    for victim in strike_everywhere(serve, within=("/execution/executor.py",)):
        stand, worker, _ = made[-1]
        assert worker.held.all() == [], victim.struck_in
        if ran:
            in_or_after_the_body += 1
            assert not worker.executor.own._taken, victim.struck_in
        stand.__exit__()
        fresh()
    made[-1][0].__exit__()
    assert in_or_after_the_body > 20


def test_a_step_that_is_struck_between_its_body_and_its_completion_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Stand() as stand:
        worker, message, run_id = scheduled(stand)

        def strike(execution: Execution) -> None:
            raise SoftTimeLimitExceeded

        with monkeypatch.context() as patched, pytest.raises(SoftTimeLimitExceeded):
            patched.setattr(worker.executor, "finish", strike)
            worker.serve(message)
        sweeper, other = stand.sweeper(), stand.worker(struck, work, name="worker-2")
        for _ in range(4):
            stand.pass_time(LEASE_SECONDS / 2)
            worker.heartbeat.beat()
            stand.publisher.publish(sweeper.sweep_shard(0))
        stand.serve(other)
        assert [each.outcome for each in stand.attempts(run_id)] == [AttemptOutcome.LOST, AttemptOutcome.ACCEPTED]
        assert stand.run(run_id).state is RunState.SUCCEEDED

"""Executing a step: the claim first, the body, one completion; nothing that was paid is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from paidonce import Retry, StepFailed, agent, current_step, record_usage, step, tool
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreUnreachable
from paidonce_models.states import RunState
from paidonce_models.store.messages import AdvanceMessage, StepMessage
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_workers.bodies.interrupt import Reason
from paidonce_workers.execution.eager_execution import EagerExecution, current_eager_execution
from paidonce_workers.execution.executor import Executor
from tests.workers.stand import Stand, StandWorker

PRICE_NANOUSD = 2_000_000
ran: list[int] = []
during: dict[str, Callable[[], object]] = {}
"""What happens elsewhere while a body runs; a test sets it, the body calls it."""


@pytest.fixture
def stand() -> Iterator[Stand]:
    ran.clear()
    during.clear()
    with Stand() as made:
        yield made


def spend() -> None:
    record_usage(None, provider="openai", model="a model", input_tokens=10, output_tokens=5, cost_usd="0.002")


@step(name="executed.paid")
def paid(number: int) -> int:
    ran.append(number)
    spend()
    during.get("paid", lambda: None)()
    return number * 2


@step(name="executed.flaky", retry=Retry(max_attempts=3, base_seconds=4.0, retry_on=("ConnectionError",)))
def flaky(kind: str) -> None:
    spend()
    raise {"away": ConnectionError, "wrong": ValueError}[kind](kind)


@tool(name="executed.risky", retry=5, idempotent=False)
def risky() -> None:
    raise ConnectionError("who knows what happened")


@tool(name="executed.once", delivery="at_most_once", timeout=0.05)
async def once() -> None:
    during.get("once", lambda: None)()
    await asyncio.sleep(60)


@step(name="executed.large")
def large() -> str:
    return "x" * 5_000


@step(name="executed.opaque", retry=3)
def opaque() -> Any:
    return object()


class Opaque:
    """A class that pydantic knows nothing of."""


@step(name="executed.unstorable", retry=3)
def unstorable() -> Opaque:
    ran.append(1)
    return Opaque()


@step(name="executed.who")
def who() -> list[Any]:
    me = current_step()
    return [me.step, me.attempt, me.agent, me.name, me.idempotency_key.endswith("-1")]


@agent(name="executes-paid")
async def executes_paid(number: int) -> int:
    return await paid(number) + await paid(number + 1)


@agent(name="executes-flaky")
async def executes_flaky(kind: str) -> str:
    try:
        await flaky(kind)
    except StepFailed as error:
        return f"{error.error_type} after {error.attempts}"
    return "went well"


@agent(name="executes-risky")
async def executes_risky() -> int:
    try:
        await risky()
    except StepFailed as error:
        return error.attempts
    return 0


@agent(name="executes-once")
async def executes_once() -> None:
    await once()


@agent(name="executes-large")
async def executes_large() -> str:
    return await large()


@agent(name="executes-opaque")
async def executes_opaque() -> Any:
    return await opaque()


@agent(name="executes-unstorable")
async def executes_unstorable() -> Any:
    return await unstorable()


@agent(name="executes-who")
async def executes_who() -> list[Any]:
    return await who()


def test_a_run_goes_from_step_to_step_to_its_end(stand: Stand) -> None:
    run_id = stand.submit(executes_paid, {"number": 1})
    stand.serve(stand.worker(executes_paid, paid))
    run = stand.run(run_id)
    assert (run.state, run.result) == (RunState.SUCCEEDED, b"6")
    assert ran == [1, 2]
    for position in (1, 2):
        (attempt,) = stand.attempts(run_id, position)
        assert (attempt.outcome, attempt.cost_nanousd, attempt.calls) == ("accepted", PRICE_NANOUSD, 1)


def test_a_message_delivered_again_does_not_pay_again(stand: Stand) -> None:
    worker = stand.worker(executes_paid, paid)
    run_id = stand.submit(executes_paid, {"number": 1})
    delivered = []
    while stand.publisher.messages:
        message = stand.publisher.messages.popleft()
        delivered.append(message)
        worker.serve(message)
    for message in delivered:
        worker.serve(message)
        stand.worker(executes_paid, paid, name="worker-2").serve(message)
    assert ran == [1, 2]
    assert len(stand.attempts(run_id, 1)) == 1


def test_a_message_that_arrives_while_the_step_runs_does_nothing(stand: Stand) -> None:
    other = stand.worker(executes_paid, paid, name="worker-2")
    run_id = stand.submit(executes_paid, {"number": 1})
    during["paid"] = lambda: other.executor.execute(run_id, 1)
    stand.serve(stand.worker(executes_paid, paid))
    assert ran == [1, 2]


def test_a_superseded_attempt_is_fenced_and_its_spend_recorded(stand: Stand) -> None:
    other = stand.worker(executes_paid, paid, name="worker-2")
    run_id = stand.submit(executes_paid, {"number": 1})

    def lose_and_overtake() -> None:
        during.clear()
        stand.pass_time(11)
        key = LeaseKey(run_id, 1, 1)
        assert stand.database.transact(
            lambda connection: reclaim_step(connection, key, why="no heartbeat", alone=False)
        )
        other.executor.execute(run_id, 1)

    during["paid"] = lose_and_overtake
    stand.serve(stand.worker(executes_paid, paid))
    first, second = stand.attempts(run_id, 1)
    assert (first.outcome, second.outcome) == ("fenced", "accepted")
    assert (first.worker, second.worker) == ("worker-1", "worker-2")
    assert first.cost_nanousd == second.cost_nanousd == PRICE_NANOUSD
    assert stand.run(run_id).result == b"6"


def test_an_attempt_taken_back_and_not_yet_run_again_is_fenced_when_it_reports(stand: Stand) -> None:
    run_id = stand.submit(executes_paid, {"number": 1})

    def lose() -> None:
        during.clear()
        key = LeaseKey(run_id, 1, 1)
        stand.database.transact(
            lambda connection: reclaim_step(connection, key, why="no heartbeat", alone=False, anyway=True)
        )

    during["paid"] = lose
    worker = stand.worker(executes_paid, paid)
    stand.serve(worker)
    assert [attempt.outcome for attempt in stand.attempts(run_id)] == ["fenced"]
    assert stand.attempts(run_id)[0].cost_nanousd == PRICE_NANOUSD
    worker.executor.execute(run_id, 1)
    stand.serve(worker)
    assert [attempt.outcome for attempt in stand.attempts(run_id)] == ["fenced", "accepted"]
    assert stand.run(run_id).state is RunState.SUCCEEDED


def test_a_step_cancelled_while_it_ran_records_what_it_spent(stand: Stand) -> None:
    worker = stand.worker(executes_paid, paid)
    run_id = stand.submit(executes_paid, {"number": 1})

    def cancel() -> None:
        during.clear()
        stand.cancel(run_id)
        worker.executor.advance(run_id)

    during["paid"] = cancel
    stand.serve(worker)
    (attempt,) = stand.attempts(run_id)
    assert (attempt.outcome, attempt.cost_nanousd) == ("cancelled", PRICE_NANOUSD)
    assert stand.run(run_id).state is RunState.CANCELLED
    assert stand.column("steps", "lease_owner", run_id) is None
    assert ran == [1]


def test_a_failed_attempt_is_due_again_in_the_store_and_in_this_process(stand: Stand) -> None:
    worker = stand.worker(executes_flaky, flaky)
    run_id = stand.submit(executes_flaky, {"kind": "away"}, priority=8)
    stand.serve(worker)
    (shown,) = stand.steps(run_id)
    assert (shown.state, shown.attempts) == ("retrying", 1)
    due_us = stand.column("steps", "due_at_us", run_id) - stand.clock.now_us()
    assert 0 <= due_us <= 4_000_000
    assert stand.column("steps", "publish_at_us", run_id) == stand.column("steps", "due_at_us", run_id)
    worker.executor.execute(run_id, 1)  # too early
    assert len(stand.attempts(run_id)) == (1 if due_us else 2)
    stand.pass_time(5)
    worker.deadlines.fall_due()
    (message,) = stand.publisher.messages
    assert isinstance(message, StepMessage) and message.priority == 8
    stand.serve(worker)
    stand.pass_time(20)
    worker.deadlines.fall_due()
    stand.serve(worker)
    assert [attempt.outcome for attempt in stand.attempts(run_id)] == ["failed"] * 3
    assert [attempt.cost_nanousd for attempt in stand.attempts(run_id)] == [PRICE_NANOUSD] * 3
    assert stand.run(run_id).result == b'"ConnectionError after 3"'


def test_other_errors_than_the_named_ones_are_final(stand: Stand) -> None:
    run_id = stand.submit(executes_flaky, {"kind": "wrong"})
    stand.serve(stand.worker(executes_flaky, flaky))
    assert stand.run(run_id).result == b'"ValueError after 1"'
    (attempt,) = stand.attempts(run_id)
    assert attempt.traceback is not None and "ValueError: wrong" in attempt.traceback


def test_what_must_not_be_repeated_is_not_retried(stand: Stand) -> None:
    run_id = stand.submit(executes_risky)
    stand.serve(stand.worker(executes_risky, risky))
    assert stand.run(run_id).result == b"1"


def test_an_uncertain_outcome_waits_for_a_person(stand: Stand) -> None:
    worker = stand.worker(executes_once, once)
    run_id = stand.submit(executes_once)

    def run_out_of_time() -> None:
        spend()
        worker.deadlines.fall_due()

    during["once"] = run_out_of_time
    stand.serve(worker)
    (shown,) = stand.steps(run_id)
    assert shown.state == "unknown"
    run = stand.run(run_id)
    assert (run.state, run.state_reason) == (RunState.WAITING, "unknown_outcome")
    worker.executor.execute(run_id, 1)
    (attempt,) = stand.attempts(run_id)
    assert (attempt.calls, attempt.cost_nanousd) == (1, 2_000_000)


def test_a_step_that_is_not_held_is_handed_back(stand: Stand) -> None:
    run_id = stand.submit(executes_paid, {"number": 1})
    holder = stand.worker(executes_paid)
    holder.serve(stand.publisher.messages.popleft())
    holder.serve(stand.publisher.messages.popleft())
    (shown,) = stand.steps(run_id)
    assert (shown.state, shown.lost) == ("scheduled", 0)
    (attempt,) = stand.attempts(run_id)
    assert attempt.outcome == "cancelled" and attempt.error is not None and attempt.error["code"] == "handed_back"
    (message,) = stand.publisher.messages
    assert isinstance(message, StepMessage) and message.name == "executed.paid"
    stand.serve(stand.worker(executes_paid, paid))
    assert stand.run(run_id).result == b"6"


def test_a_step_handed_back_by_a_stopping_worker_counts_as_neither_failed_nor_lost(stand: Stand) -> None:
    worker = stand.worker(executes_paid, paid)
    run_id = stand.submit(executes_paid, {"number": 1})

    def stop() -> None:
        during.clear()
        assert worker.bodies.interrupt(LeaseKey(run_id, 1, 1), Reason.HANDED_BACK)
        for _ in range(10_000):
            pass  # an interrupt strikes between two bytecodes

    during["paid"] = stop
    stand.serve(worker)
    first, second = stand.attempts(run_id)
    assert (first.outcome, second.outcome) == ("cancelled", "accepted")
    assert first.error is not None and first.error["code"] == "handed_back"
    assert first.cost_nanousd == PRICE_NANOUSD
    shown = stand.steps(run_id)[0]
    assert (shown.state, shown.lost) == ("succeeded", 0)
    assert stand.column("steps", "failed", run_id) == 0


def test_a_result_over_the_limit_fails_the_step_naming_the_limit(stand: Stand) -> None:
    run_id = stand.submit(executes_large)
    stand.serve(stand.worker(executes_large, large, max_payload_bytes=4_000))
    error = stand.run(run_id).error
    assert error is not None and "4,000" in str(error["message"])


def test_a_result_that_cannot_be_stored_blocks_the_run_naming_it(stand: Stand) -> None:
    run_id = stand.submit(executes_opaque)
    stand.serve(stand.worker(executes_opaque, opaque))
    run = stand.run(run_id)
    assert (run.state, run.state_reason) == (RunState.BLOCKED, "result_not_storable")
    assert run.error is not None and "executed.opaque" in str(run.error["message"]) and "object" in str(run.error)
    assert len(stand.attempts(run_id)) == 1, "it would come out the same, and be paid each time"


def test_a_result_of_a_type_that_has_no_form_blocks_the_run_before_the_body_is_paid(stand: Stand) -> None:
    run_id = stand.submit(executes_unstorable)
    stand.serve(stand.worker(executes_unstorable, unstorable))
    run = stand.run(run_id)
    assert (run.state, run.state_reason) == (RunState.BLOCKED, "step_does_not_fit")
    assert run.error is not None and "values annotated Opaque cannot be stored" in str(run.error["message"])
    assert (ran, len(stand.attempts(run_id))) == ([], 1)


def test_a_body_knows_which_step_it_is(stand: Stand) -> None:
    run_id = stand.submit(executes_who)
    stand.serve(stand.worker(executes_who, who))
    assert stand.run(run_id).result == b'[1,1,"executes-who","executed.who",true]'


def test_a_worker_without_the_agent_commits_alone_and_calls_for_one_that_has_it(stand: Stand) -> None:
    run_id = stand.submit(executes_paid, {"number": 1})
    agents, tools = stand.worker(executes_paid), stand.worker(paid, name="tools")
    agents.serve(stand.publisher.messages.popleft())
    tools.serve(stand.publisher.messages.popleft())
    assert [shown.state for shown in stand.steps(run_id)] == ["succeeded"]
    (message,) = stand.publisher.messages
    assert isinstance(message, AdvanceMessage) and (message.run_id, message.agent) == (run_id, "executes-paid")


class LosesAnswers:
    """A store whose commits succeed and whose answers are lost, as many as it was told."""

    def __init__(self, executor: Executor, times: int) -> None:
        self._complete = executor._advancer.complete
        self.times = times

    def __call__(self, *args: Any, **options: Any) -> Any:
        result = self._complete(*args, **options)
        if self.times:
            self.times -= 1
            raise StoreUnreachable("the answer was lost")
        return result


def test_a_completion_whose_answer_was_lost_is_success_when_it_is_found_accepted(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = stand.worker(executes_paid, paid)
    without_waiting(worker, monkeypatch)
    monkeypatch.setattr(worker.executor._advancer, "complete", LosesAnswers(worker.executor, 1))
    run_id = stand.submit(executes_paid, {"number": 1})
    stand.serve(worker)
    sweep(stand, worker)
    assert stand.run(run_id).result == b"6"
    assert ran == [1, 2]
    assert [attempt.outcome for attempt in stand.attempts(run_id, 1)] == ["accepted"]
    assert stand.attempts(run_id, 1)[0].cost_nanousd == PRICE_NANOUSD


def losing_answers(database: Database, times: int, error: Exception | None = None) -> Callable[..., Any]:
    """``transact`` of a store whose commits succeed and whose answers are lost, as many as it is told."""
    transact = database.transact
    left = iter(range(times))

    def lossy(*args: Any, **options: Any) -> Any:
        result = transact(*args, **options)
        if next(left, None) is not None:
            raise error or StoreUnreachable("the answer was lost")
        return result

    return lossy


def test_a_claim_whose_answer_was_lost_is_found_again_and_costs_no_attempt(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = stand.worker(executes_paid, paid)
    without_waiting(worker, monkeypatch)
    run_id = stand.submit(executes_paid, {"number": 1})
    worker.serve(stand.publisher.take()[0])
    [message] = stand.publisher.take()
    with monkeypatch.context() as patch:
        patch.setattr(stand.database, "transact", losing_answers(stand.database, 1))
        worker.serve(message)
    stand.serve(worker)
    assert stand.run(run_id).result == b"6"
    assert ran == [1, 2]
    assert [attempt.outcome for attempt in stand.attempts(run_id, 1)] == ["accepted"]


@pytest.mark.parametrize("error", [StoreUnreachable("the answer was lost"), RuntimeError("something else struck")])
def test_a_step_taken_on_in_a_commit_whose_answer_was_lost_is_gone_on_with(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    worker = stand.worker(executes_paid, paid)
    without_waiting(worker, monkeypatch)
    run_id = stand.submit(executes_paid, {"number": 1})
    turn: EagerExecution[None] = EagerExecution(may_take=lambda queue, task: True, seconds=60.0)
    worker.serve(stand.publisher.take()[0])
    [message] = stand.publisher.take()
    token = current_eager_execution.set(turn)
    try:
        lossy = losing_answers(stand.database, 1, error)
        during["paid"] = lambda: monkeypatch.setattr(stand.database, "transact", lossy)
        worker.serve(message)
        during.clear()
        kept = turn.take()
        assert kept is not None
        assert kept.claim is not None
        worker.serve(kept.message)
    finally:
        current_eager_execution.reset(token)
    stand.serve(worker)
    assert stand.run(run_id).result == b"6"
    assert ran == [1, 2]
    assert [attempt.outcome for attempt in stand.attempts(run_id, 2)] == ["accepted"]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_runs_first_step_is_claimed_in_the_commit_of_its_advance_even_if_its_response_was_lost(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    worker = stand.worker(executes_paid, paid)
    without_waiting(worker, monkeypatch)
    run_id = stand.submit(executes_paid, {"number": 1})
    turn: EagerExecution[None] = EagerExecution(may_take=lambda queue, task: True, seconds=60.0)
    token = current_eager_execution.set(turn)
    try:
        with monkeypatch.context() as patch:
            if lost:
                patch.setattr(stand.database, "transact", losing_answers(stand.database, 1))
            [message] = stand.publisher.take()
            worker.serve(message)
        kept = turn.take()
        assert kept is not None and kept.claim is not None
        assert (kept.claim.position, kept.claim.attempt) == (1, 1)
        assert stand.publisher.take() == []
        assert stand.column("attempts", "claimed_at_us", run_id) == kept.claim.claimed_at_us
        while kept is not None:
            worker.serve(kept.message)
            kept = turn.take()
    finally:
        current_eager_execution.reset(token)
    assert stand.run(run_id).result == b"6"
    assert ran == [1, 2]
    assert [attempt.outcome for attempt in stand.attempts(run_id, 1)] == ["accepted"]


def test_a_claim_is_not_found_in_doubt_while_its_completion_waits_for_the_store(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body has ended and its lease is held no more, but it is not lost: a second delivery must not pay again."""
    worker = stand.worker(executes_paid, paid)
    run_id = stand.submit(executes_paid, {"number": 1})
    worker.serve(stand.publisher.take()[0])
    [message] = stand.publisher.take()
    complete, transact = worker.executor._advancer.complete, stand.database.transact
    pauses: list[str] = []

    def away_once(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(worker.executor._advancer, "complete", complete)
        raise StoreUnreachable("before the commit")

    def claims_are_away_once(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(stand.database, "transact", transact)
        raise StoreUnreachable("before the claim")

    def pause(seconds: float) -> bool:
        pauses.append("of the claim" if pauses else "of the completion")
        if len(pauses) == 1:
            monkeypatch.setattr(stand.database, "transact", claims_are_away_once)
            worker.serve(message)
        return False

    monkeypatch.setattr(worker.executor._advancer, "complete", away_once)
    monkeypatch.setattr(worker.store_waits._stopping, "wait", pause)
    worker.serve(message)
    assert pauses == ["of the completion", "of the claim"]
    stand.serve(worker)
    assert stand.run(run_id).result == b"6"
    assert ran == [1, 2]


def without_waiting(worker: StandWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.store_waits._stopping, "wait", lambda seconds: False)


def sweep(stand: Stand, worker: StandWorker) -> None:
    """What was not published for want of an answer, the sweeper publishes."""
    sweeper = stand.sweeper()
    for _ in range(3):
        stand.pass_time(6)
        sweeper.sweep()
        stand.serve(worker)

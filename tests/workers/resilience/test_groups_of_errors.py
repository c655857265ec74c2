"""A step whose parallel requests fail together: what its policy makes of the group."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from paidonce import Retry, agent, step
from paidonce.policies import describe_failure
from paidonce_models.errors import CircuitOpen
from paidonce_models.states import AttemptOutcome, RunState
from paidonce_workers.breakers.outcome import NEUTRAL, Effect, outcome_of
from paidonce_workers.execution.failure_completion import open_circuits_in
from tests.workers.stand import Stand


class Answered(Exception):
    """An answer with a status."""

    def __init__(self, status: int, retry_after: float | None = None) -> None:
        super().__init__(status)
        self.status_code = status
        self.retry_after = retry_after


raised: list[list[BaseException]] = []


async def fail(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


@step(name="groups.fetch", retry=Retry(max_attempts=3, base_seconds=0, retry_on=("http:429",)))
async def fetch() -> str:
    if not raised:
        return "fetched"
    errors = raised.pop(0)
    if any(isinstance(error, asyncio.CancelledError) for error in errors):
        raise BaseExceptionGroup("mixed", errors)
    async with asyncio.TaskGroup() as group:
        for error in errors:
            group.create_task(fail(error))
    return "never"


@agent(name="groups.fetcher")
async def fetcher() -> str:
    return await fetch()


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    raised.clear()


@pytest.mark.parametrize(
    "errors",
    [
        [Answered(429, 30), Answered(429, 7)],
        [Answered(429, 30), ExceptionGroup("inner", [Answered(429), Answered(429)])],
        [Answered(429, 30), asyncio.CancelledError()],
    ],
    ids=["two", "nested", "with a cancellation"],
)
def test_a_group_of_429_is_tried_again_after_the_longest_wait(errors: list[BaseException]) -> None:
    raised.append(errors)
    with Stand() as stand:
        worker = stand.worker(fetch, fetcher)
        run_id = stand.submit(fetcher)
        stand.serve(worker)
        assert [each.outcome for each in stand.attempts(run_id)] == [AttemptOutcome.FAILED]
        stand.pass_time(29)
        stand.sweeper().sweep()
        stand.serve(worker)
        assert len(stand.attempts(run_id)) == 1, "it waits as long as the more patient answer asked"
        stand.pass_time(2)
        worker.deadlines.fall_due()
        stand.sweeper().sweep()
        stand.serve(worker)
        assert stand.run(run_id).state is RunState.SUCCEEDED


def test_a_group_with_an_error_that_no_matcher_names_is_not_tried_again() -> None:
    raised.append([Answered(429), ValueError("of the code")])
    with Stand() as stand:
        worker = stand.worker(fetch, fetcher)
        run_id = stand.submit(fetcher)
        stand.serve(worker)
        assert stand.run(run_id).state is RunState.FAILED
        assert len(stand.attempts(run_id)) == 1


def test_only_a_group_of_open_circuits_is_one_and_any_of_them_is_waited_for() -> None:
    now = datetime.now(UTC)
    soon = CircuitOpen.of("a", since=now, retry_at=now + timedelta(seconds=5), reason="")
    late = CircuitOpen.of("b", since=now, retry_at=now + timedelta(seconds=50), reason="")
    by_hand = CircuitOpen.of("c", since=now, retry_at=None, reason="")
    assert open_circuits_in(ExceptionGroup("", [soon, late, by_hand])) == (late, late)
    assert open_circuits_in(ExceptionGroup("", [soon, Answered(503)])) == (None, soon)
    assert open_circuits_in(ValueError()) == (None, None)
    wrapped = RuntimeError("a client's own")
    wrapped.__cause__ = by_hand
    assert open_circuits_in(wrapped) == (by_hand, by_hand)


def test_a_breaker_counts_a_group_once_and_by_what_its_errors_are() -> None:
    found = outcome_of(ExceptionGroup("", [Answered(429, 30), Answered(429, 7)]), describe_failure)
    assert (found.effect, found.retry_after_seconds) == (Effect.FAILURE, 30.0)
    circuit = CircuitOpen.of("a", since=None, retry_at=None, reason="")
    assert outcome_of(ExceptionGroup("", [circuit, circuit]), describe_failure) is NEUTRAL
    assert outcome_of(BaseExceptionGroup("", [KeyboardInterrupt(), Answered(429)]), describe_failure) is NEUTRAL
    assert outcome_of(BaseExceptionGroup("", [asyncio.CancelledError()]), describe_failure) is NEUTRAL


class Own(BaseException):
    """Somebody's own, which no `except Exception` sees."""


@step(name="groups.leaves")
def leaves() -> None:
    raise Own("out")


@agent(name="groups.leaver")
async def leaver() -> None:
    await leaves()


def test_whatever_a_body_raises_ends_its_attempt() -> None:
    with Stand() as stand:
        worker = stand.worker(leaves, leaver)
        run_id = stand.submit(leaver)
        stand.serve(worker)
        assert stand.run(run_id).state is RunState.FAILED
        assert [each.outcome for each in stand.attempts(run_id)] == [AttemptOutcome.FAILED]

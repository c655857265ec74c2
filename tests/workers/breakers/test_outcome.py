"""What an error does to a circuit."""

from __future__ import annotations

import asyncio

import pytest
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from paidonce.policies import BreakerPolicy
from paidonce_models.errors import CircuitOpen
from paidonce_workers.bodies.interrupt import CancelInterrupt, HandBackInterrupt, TimeoutInterrupt
from paidonce_workers.breakers import NEUTRAL, SUCCESS, Failure, failure, outcome_of
from paidonce_workers.breakers.outcome import LONGEST_RETRY_AFTER_SECONDS, Effect
from tests.workers.breakers.conftest import by_type

NO_FAILURES = [
    asyncio.CancelledError(),
    KeyboardInterrupt(),
    SystemExit(1),
    GeneratorExit(),
    TimeoutInterrupt(),
    CancelInterrupt(),
    HandBackInterrupt(),
    Retry(),
    Ignore(),
    Reject(),
    SoftTimeLimitExceeded(),
    CircuitOpen.of("another", since=None, retry_at=None, reason="down"),
]


@pytest.mark.parametrize("error", NO_FAILURES, ids=lambda error: type(error).__name__)
def test_what_says_nothing_about_the_dependency_is_neither_success_nor_failure(error: BaseException) -> None:
    def never(_: BaseException) -> Failure:
        raise AssertionError("such an error is not for the classifier")

    assert outcome_of(error, never) is NEUTRAL


def test_any_other_error_is_a_failure_of_the_kinds_that_the_classifier_names() -> None:
    found = outcome_of(TimeoutError("late"), by_type)
    assert found.effect is Effect.FAILURE
    assert {"TimeoutError", "OSError", "Exception"} <= found.kinds


def test_a_failure_beside_what_says_nothing_is_a_failure() -> None:
    another = CircuitOpen.of("another", since=None, retry_at=None, reason="down")
    assert outcome_of(ExceptionGroup("both", [another, TimeoutError("late")]), by_type).effect is Effect.FAILURE
    assert outcome_of(ExceptionGroup("both", [another, Ignore()]), by_type) is NEUTRAL


def test_what_the_policy_ignores_is_neutral_and_success_stays_success() -> None:
    policy = BreakerPolicy(ignore=("http:404",))
    assert failure({"http:404", "http:4xx"}).unless_ignored(policy) is NEUTRAL
    assert failure({"http:503"}).unless_ignored(policy).effect is Effect.FAILURE
    assert SUCCESS.unless_ignored(policy) is SUCCESS


@pytest.mark.parametrize(
    ("seconds", "microseconds"),
    [
        (None, None),
        (0.0, 0),
        (2.5, 2_500_000),
        (float("inf"), int(LONGEST_RETRY_AFTER_SECONDS * 1e6)),
        (float("nan"), None),
        (-1.0, None),
    ],
)
def test_a_retry_after_is_believed_within_bounds(seconds: float | None, microseconds: int | None) -> None:
    assert failure({"http:429"}, seconds).retry_after_us == microseconds


def test_a_reason_stays_short_however_many_kinds_there_are() -> None:
    assert len(failure({f"kind-{number}" for number in range(100)}).detail) == 100

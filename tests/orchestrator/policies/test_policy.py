"""What follows from a policy: which failures are retried, how long a wait is, what a breaker ignores."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paidonce import NotSerialisable, StepFailed
from paidonce.policies import BreakerPolicy, Failure, Policy, RetryPolicy, describe_failure
from paidonce.policies.retry import Retry


def failure(*kinds: str) -> Failure:
    return Failure(kinds=frozenset({"Exception", *kinds}))


def highest(low: float, high: float) -> float:
    return high


@pytest.mark.parametrize(
    "error", [ValueError(), TimeoutError(), NotSerialisable(), StepFailed(), KeyboardInterrupt()], ids=repr
)
def test_a_retry_without_matchers_covers_what_the_decorators_retry_does(error: BaseException) -> None:
    assert RetryPolicy().covers(describe_failure(error)) == Retry().covers(error)


def test_a_result_that_cannot_be_stored_is_tried_again_only_where_it_is_named() -> None:
    assert not RetryPolicy(retry_on=("!http:4xx",)).covers(describe_failure(NotSerialisable()))
    assert RetryPolicy(retry_on=("NotSerialisable",)).covers(describe_failure(NotSerialisable()))


def test_a_retry_covers_what_it_names() -> None:
    retry = RetryPolicy(retry_on=("timeout", "http:5xx", "LookupError"))
    assert retry.covers(failure("timeout"))
    assert retry.covers(failure("http:503", "http:5xx"))
    assert retry.covers(describe_failure(KeyError()))
    assert not retry.covers(failure("http:429", "http:4xx"))


def test_a_retry_that_only_excepts_covers_the_rest() -> None:
    retry = RetryPolicy(retry_on=("!http:4xx",))
    assert retry.covers(failure("connection"))
    assert not retry.covers(failure("http:404", "http:4xx"))
    assert not retry.covers(describe_failure(KeyboardInterrupt()))


def test_waits_double_up_to_the_cap() -> None:
    retry = RetryPolicy(base_seconds=2.0, cap_seconds=10.0)
    assert [retry.delay_seconds(failures, highest) for failures in (1, 2, 3, 4, 5)] == [2.0, 4.0, 8.0, 10.0, 10.0]
    assert retry.delay_seconds(3, lambda low, high: low) == 0.0
    assert retry.delay_seconds(10**6, highest) == 10.0


def test_constant_waits_do_not_grow_and_no_jitter_is_exact() -> None:
    constant = RetryPolicy(backoff="constant", base_seconds=3.0, jitter="none")
    assert [constant.delay_seconds(failures, random.uniform) for failures in (1, 9)] == [3.0, 3.0]


def test_nobody_is_asked_again_before_they_said_and_waits_stay_spread() -> None:
    retry = RetryPolicy(base_seconds=1.0)
    assert retry.delay_seconds(1, lambda low, high: low, 20.0) == 20.0
    assert retry.delay_seconds(1, highest, 20.0) == 21.0
    assert RetryPolicy(base_seconds=1.0, honor_retry_after=False).delay_seconds(1, highest, 20.0) == 1.0
    assert retry.delay_seconds(1, highest, 0.0) == 1.0


@given(base=st.floats(0, 1e6), cap=st.floats(0, 1e6), failures=st.integers(1, 200), share=st.floats(0, 1))
def test_a_policys_waits_are_those_of_the_decorators_retry(
    base: float, cap: float, failures: int, share: float
) -> None:
    base = min(base, cap)
    policy = RetryPolicy(base_seconds=base, cap_seconds=cap)
    retry = Retry(base_seconds=base, cap_seconds=cap)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * share

    assert policy.delay_seconds(failures, uniform) == retry.delay_seconds(failures, uniform)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_breaker_ignores_wrong_requests(status: int) -> None:
    assert BreakerPolicy().ignores(failure(f"http:{status}", "http:4xx"))


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_a_breaker_counts_a_dependency_in_trouble(status: int) -> None:
    assert not BreakerPolicy().ignores(failure(f"http:{status}", f"http:{status // 100}xx"))


def test_a_breaker_counts_what_it_does_not_know() -> None:
    assert not BreakerPolicy().ignores(describe_failure(ValueError()))
    assert BreakerPolicy(ignore=("ValueError",)).ignores(describe_failure(UnicodeError()))


def test_a_policy_of_nobodys_making_retries_nothing_and_has_no_breaker() -> None:
    policy = Policy()
    assert (policy.name, policy.retry.max_attempts, policy.breaker, policy.retry_budget) == ("default", 1, None, None)

"""Retry budgets: the reference model, the script against it, and what a process brings to the fleet's bucket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paidonce.policies import RetryBudgetPolicy
from paidonce_workers.breakers.circuit_scripts import CircuitScripts, checker
from paidonce_workers.breakers.redis_connecting import connection_maker
from paidonce_workers.breakers.redis_link import Link
from paidonce_workers.breakers.retry_budgets import RetryBudgets
from tests.services.valkey import RedisServer
from tests.workers.breakers.conftest import MakeBreakers
from tests.workers.breakers.oracle import START_US, Clock
from tests.workers.breakers.retry_budget_model import LONGEST_SECONDS, Bucket, ask, deposit

pytestmark = pytest.mark.usefixtures("patient")

BUDGET = RetryBudgetPolicy(ratio=0.1, floor_per_second=1.0)
SECOND_US = 1_000_000
FLEET = 3

policies = st.builds(
    RetryBudgetPolicy,
    ratio=st.sampled_from([0.0, 0.1, 0.25, 1.0]),
    floor_per_second=st.sampled_from([0.0, 0.5, 1.0, 10.0]),
)
acts = st.lists(
    st.tuples(st.sampled_from(["ask", "ask", "deposit"]), st.integers(0, 50), st.sampled_from([0.0, 0.1, 1.0, 30.0])),
    min_size=1,
    max_size=40,
)


def asked(bucket: Bucket | None, times: int, now_us: int, policy: RetryBudgetPolicy = BUDGET) -> list[float]:
    """How long each of so many retries at one instant is put off."""
    waits = []
    for _ in range(times):
        bucket, wait = ask(bucket, policy, calls=0, now_us=now_us)
        waits.append(wait)
    return waits


def test_a_new_budget_lets_ten_seconds_of_the_floor_through_and_spreads_the_rest_evenly() -> None:
    waits = asked(None, 14, START_US)
    assert waits[:10] == [0.0] * 10
    assert waits[10:] == [1.0, 2.0, 3.0, 4.0]


def test_retries_never_exceed_the_share_and_the_floor_of_any_stretch() -> None:
    """A storm: 100 calls a second that all fail and ask for a retry, for a minute."""
    bucket: Bucket | None = None
    due: list[float] = []
    for second in range(60):
        for _ in range(100):
            bucket, wait = ask(bucket, BUDGET, calls=1, now_us=START_US + second * SECOND_US)
            due.append(second + wait)
    allowed = 0.1 * 100 + 1.0
    full = 10 + 0.1 * 100
    for begin in range(0, 60, 5):
        within = sum(begin <= at < begin + 10 for at in due)
        assert within <= full + 10 * allowed * 1.3, begin  # what calls bring is averaged, so not exact to the token
    assert len(due) == 6000, "put off, not dropped"


def test_calls_that_need_no_retry_pay_for_those_that_do() -> None:
    bucket = deposit(Bucket(balance=0.0, at_us=START_US), BUDGET, calls=50, now_us=START_US)
    assert asked(bucket, 6, START_US)[:5] == [0.0] * 5
    assert asked(bucket, 6, START_US)[5] == pytest.approx(1 / (1.0 + 0.5), abs=1e-9)


def test_a_budget_without_any_income_puts_off_as_long_as_can_be() -> None:
    none = RetryBudgetPolicy(ratio=0.1, floor_per_second=0.0)
    assert asked(None, 3, START_US, none) == [0.0, LONGEST_SECONDS, LONGEST_SECONDS]


def test_a_full_bucket_takes_no_more() -> None:
    bucket = deposit(None, BUDGET, calls=1_000_000, now_us=START_US)
    assert bucket.balance == 20.0


@given(policy=policies, steps=acts)
def test_the_bucket_stays_bounded_whatever_is_asked(
    policy: RetryBudgetPolicy, steps: list[tuple[str, int, float]]
) -> None:
    bucket: Bucket | None = None
    now_us = START_US
    for act, calls, passes in steps:
        now_us += int(passes * 1e6)
        if act == "ask":
            bucket, wait = ask(bucket, policy, calls=calls, now_us=now_us)
            assert 0.0 <= wait <= LONGEST_SECONDS
        else:
            bucket = deposit(bucket, policy, calls=calls, now_us=now_us)
        assert bucket.balance <= max(1.0, 10 * policy.floor_per_second + 100 * policy.ratio)
        assert bucket.balance >= -1.0 - LONGEST_SECONDS * (policy.floor_per_second + bucket.rate)


@pytest.fixture
def link(circuit_server: RedisServer, namespace: str) -> Iterator[Link]:
    url = circuit_server.url()
    made = Link(make=connection_maker(url, "TEST"), check=checker(namespace), address=url, setting="TEST")
    yield made
    made.close()


def test_the_script_does_what_the_model_does(link: Link, namespace: str) -> None:
    targets = iter(range(1_000_000))

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(policy=policies, steps=acts)
    def compare(policy: RetryBudgetPolicy, steps: list[tuple[str, int, float]]) -> None:
        clock, bucket, target = Clock(), None, f"target-{next(targets)}"
        rules = CircuitScripts(link, namespace, now_us=clock.now_us)
        for act, calls, passes in steps:
            clock.forward(passes)
            asks = act == "ask"
            wait = rules.put_off_seconds(target, policy, calls=calls, asks=asks, limit_seconds=20)
            if asks:
                bucket, expected = ask(bucket, policy, calls=calls, now_us=clock.us)
                assert wait == pytest.approx(expected, rel=1e-9, abs=1e-9)
            else:
                bucket = deposit(bucket, policy, calls=calls, now_us=clock.us)

    compare()


def test_one_bucket_serves_the_whole_fleet(circuit_server: RedisServer, make_breakers: MakeBreakers) -> None:
    fleet = [make_breakers(circuit_server.url()) for _ in range(FLEET)]
    waits = [fleet[number % FLEET].retry_allowed("search", BUDGET) for number in range(13)]
    assert waits[:10] == [0.0] * 10
    assert [round(wait) for wait in waits[10:]] == [1, 2, 3]
    assert fleet[0].retry_allowed("another", BUDGET) == 0.0


def test_counted_calls_travel_with_the_heartbeat_and_with_the_next_retry(
    circuit_server: RedisServer, make_breakers: MakeBreakers
) -> None:
    generous = RetryBudgetPolicy(ratio=1.0, floor_per_second=0.0)
    healthy, failing = make_breakers(circuit_server.url()), make_breakers(circuit_server.url())
    assert failing.retry_allowed("search", generous) == 0.0
    for _ in range(3):
        healthy.count_call("search", generous)
    healthy.renew()
    assert [failing.retry_allowed("search", generous) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert failing.retry_allowed("search", generous) > 0
    failing.count_call("search", generous)
    failing.count_call("search", generous)
    assert failing.retry_allowed("search", generous) == 0.0


def test_without_redis_a_process_keeps_a_budget_of_its_own(make_breakers: MakeBreakers) -> None:
    alone = make_breakers(None)
    waits = [alone.retry_allowed("search", BUDGET) for _ in range(12)]
    assert waits[:10] == [0.0] * 10
    assert [round(wait) for wait in waits[10:]] == [1, 2]


def test_each_counted_call_is_brought_once_with_a_retry_or_with_the_heartbeat() -> None:
    brought: list[tuple[int, bool]] = []

    def ask_redis(target: str, budget: RetryBudgetPolicy, calls: int, asks: bool) -> float:
        brought.append((calls, asks))
        return 0.0

    budget = RetryBudgetPolicy()
    budgets = RetryBudgets(ask_redis, lambda: 0)
    for _ in range(3):
        budgets.count_call("search", budget)
    budgets.put_off_seconds("search", budget)
    budgets.put_off_seconds("search", budget)
    budgets.count_call("search", budget)
    budgets.deposit()
    budgets.deposit()
    assert brought == [(3, True), (0, True), (1, False)]

"""What a process knows of a circuit when Redis goes away, and what it forgets when Redis is back."""

from __future__ import annotations

import time

import pytest

from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers import SUCCESS, Admission, CircuitBreakers, Outcome, Verdict, failure
from paidonce_workers.breakers.redis_link import LONGEST_PAUSE_SECONDS
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until
from tests.workers.breakers.conftest import MakeBreakers

pytestmark = pytest.mark.usefixtures("patient")

POLICY = BreakerPolicy(consecutive_failures=3, failure_rate=1.0, open_base_seconds=60, open_jitter=0)
DOWN = failure({"http:503"})
BACK_SECONDS = 10 * LONGEST_PAUSE_SECONDS


def call(breakers: CircuitBreakers, outcome: Outcome = SUCCESS, circuit: str = "search") -> Admission:
    admission = breakers.admit(circuit, POLICY, token=f"t{time.monotonic_ns()}")
    if admission.is_admitted:
        breakers.report(admission, outcome)
    return admission


def test_a_circuit_that_is_open_until_it_is_closed_by_hand_stays_so_without_redis(
    private_redis: RedisServer, make_breakers: MakeBreakers
) -> None:
    breakers = make_breakers(private_redis.url())
    breakers.force_open("search")
    private_redis.stop()
    for _ in range(3):
        refused = call(breakers)
        assert (refused.verdict, refused.is_shared, refused.wait_seconds) == (Verdict.REFUSED, False, None)


def test_a_circuit_stays_open_for_what_is_left_since_redis_was_last_heard(
    private_redis: RedisServer, make_breakers: MakeBreakers
) -> None:
    """Redis is heard, the process makes no call for a time, and Redis goes away."""
    breakers, open_seconds = make_breakers(private_redis.url()), 1.0
    breakers.force_open("short", open_seconds)
    breakers.force_open("long", 60)
    opened = time.monotonic()
    wait_until(lambda: time.monotonic() - opened > open_seconds, "its time is over")
    private_redis.stop()
    probe, refused = call(breakers, circuit="short"), call(breakers, circuit="long")
    assert (probe.verdict, probe.is_shared) == (Verdict.PROBE, False)
    assert (refused.verdict, refused.is_shared) == (Verdict.REFUSED, False)
    assert refused.wait_seconds is not None and refused.wait_seconds <= 60 - open_seconds


@pytest.mark.usefixtures("asks_each_time")
def test_what_a_process_has_counted_alone_is_forgotten_once_redis_has_answered(
    private_redis: RedisServer, make_breakers: MakeBreakers
) -> None:
    """It trips alone, Redis comes back and knows better, and goes away again."""
    breakers = make_breakers(private_redis.url())
    assert call(breakers).is_shared
    private_redis.stop()
    for _ in range(3):
        call(breakers, DOWN)
    assert not call(breakers).is_admitted
    private_redis.start()
    wait_until(lambda: call(breakers).is_shared, "Redis is back", BACK_SECONDS)
    private_redis.stop()
    admitted = call(breakers)
    assert (admitted.verdict, admitted.is_shared) == (Verdict.ADMITTED, False)

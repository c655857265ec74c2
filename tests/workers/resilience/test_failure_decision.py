"""What follows a failure, by the policy alone."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest

from paidonce.policies import BreakerPolicy, Policy, RetryPolicy, TimeoutPolicy, describe_failure
from paidonce_models.errors import CircuitOpen, InvalidInput
from paidonce_workers.resilience import Decision, Follows, ProviderFailure, decide

RETRIES = RetryPolicy(max_attempts=4, base_seconds=1.0, cap_seconds=3.0, jitter="none")
END, PARK = Decision(follows=Follows.END), Decision(follows=Follows.PARK)


def after(error: BaseException, policy: Policy | None = None, **given: Any) -> Decision:
    known: dict[str, Any] = {"failures": 1, "elapsed_seconds": 0.0, "idempotent": True}
    known |= {"was_probe": False, "is_open": False, **given}
    return decide(
        Policy(retry=RETRIES) if policy is None else policy,
        describe_failure(error),
        uniform=lambda low, high: high,
        **known,
    )


def retried_after(seconds: float) -> Decision:
    return Decision(follows=Follows.RETRY, wait_seconds=seconds)


def test_waits_grow_to_their_cap_and_tries_end() -> None:
    found = [after(ConnectionResetError(), failures=number) for number in range(1, 5)]
    assert found == [retried_after(1.0), retried_after(2.0), retried_after(3.0), END]


def test_nothing_is_tried_again_unless_asked_for() -> None:
    assert after(ConnectionResetError(), Policy()) == END


@pytest.mark.parametrize(
    ("retry_on", "error", "follows"),
    [
        ((), ValueError(), Follows.RETRY),
        ((), InvalidInput("a result that cannot be stored"), Follows.END),
        (("InvalidInput",), InvalidInput("a result that cannot be stored"), Follows.RETRY),
        (("connection",), ConnectionResetError(), Follows.RETRY),
        (("connection",), ValueError(), Follows.END),
        (("!ValueError",), ValueError(), Follows.END),
        (("!ValueError",), KeyError(), Follows.RETRY),
    ],
)
def test_only_what_is_worth_it(retry_on: tuple[str, ...], error: Exception, follows: Follows) -> None:
    policy = Policy(retry=RetryPolicy(max_attempts=3, retry_on=retry_on))
    assert after(error, policy).follows is follows


@pytest.mark.parametrize(
    ("error", "follows"),
    [
        (ConnectionResetError(), Follows.END),  # it may have acted
        (TimeoutError(), Follows.END),
        (httpx.ReadTimeout("late"), Follows.END),
        (ConnectionRefusedError(), Follows.RETRY),  # it cannot have
        (socket.gaierror(), Follows.RETRY),
        (httpx.ConnectError("refused"), Follows.RETRY),
        (httpx.ConnectTimeout("no answer"), Follows.RETRY),
        (CircuitOpen.of("other", since=None, retry_at=None, reason=""), Follows.RETRY),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_what_is_not_idempotent_is_tried_again_only_if_it_was_never_reached(error: Exception, follows: Follows) -> None:
    assert after(error, idempotent=False).follows is follows


def test_the_total_time_ends_tries() -> None:
    policy = Policy(retry=RETRIES, timeout=TimeoutPolicy(total_seconds=10.0))
    assert after(ConnectionResetError(), policy, elapsed_seconds=8.9) == retried_after(1.0)
    assert after(ConnectionResetError(), policy, elapsed_seconds=9.0) == END


def test_the_last_try_waits_with_the_others_if_the_circuit_is_open_now() -> None:
    policy = Policy(retry=RETRIES, breaker=BreakerPolicy())
    assert after(ConnectionResetError(), policy, failures=4, is_open=True) == PARK
    assert after(ConnectionResetError(), policy, failures=4) == END
    assert after(ConnectionResetError(), policy, failures=3, is_open=True) == retried_after(3.0)
    # Nobody has asked for another try, or none would help.
    assert after(ConnectionResetError(), Policy(breaker=BreakerPolicy()), is_open=True) == END
    assert after(InvalidInput("no"), policy, failures=4, is_open=True) == END
    assert after(ConnectionResetError(), policy, failures=4, is_open=True, idempotent=False) == END


def test_a_failed_probe_goes_back_to_those_who_wait() -> None:
    policy = Policy(breaker=BreakerPolicy(ignore=("ValueError",)))
    assert after(ConnectionResetError(), policy, was_probe=True) == PARK
    assert after(ConnectionResetError(), policy, was_probe=True, failures=99) == PARK
    # The other side has answered, or may have acted, or the step does not wait.
    assert after(ValueError(), policy, was_probe=True) == END
    assert after(ConnectionResetError(), policy, was_probe=True, idempotent=False) == END
    raises = Policy(breaker=BreakerPolicy(when_open="raise"))
    assert after(ConnectionResetError(), raises, was_probe=True) == END


def test_a_provider_that_is_down_costs_its_steps_no_tries_either() -> None:
    policy, down = Policy(retry=RETRIES), httpx.ConnectError("no")
    probe, watched = ProviderFailure(was_probe=True, is_open=True), ProviderFailure(was_probe=False, is_open=True)
    park = Decision(follows=Follows.PARK_FOR_PROVIDER)
    assert after(down, Policy(), provider=probe, failures=99) == park
    assert after(down, policy, provider=watched, failures=4) == park
    # There are tries left, nobody has asked for any, or the circuit lets calls through.
    assert after(down, policy, provider=watched, failures=3) == retried_after(3.0)
    assert after(down, Policy(), provider=watched) == END
    assert after(down, policy, provider=ProviderFailure(was_probe=False, is_open=False), failures=4) == END
    assert after(ConnectionResetError(), policy, provider=probe, idempotent=False) == END
    # A circuit of the step's own that fails as a probe comes first.
    assert after(down, Policy(breaker=BreakerPolicy()), was_probe=True, provider=probe) == PARK

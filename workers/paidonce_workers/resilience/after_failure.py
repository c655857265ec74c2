"""What follows a failed attempt: another try after a wait, sleep until its circuit may have healed, or the end.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from paidonce.policies import Failure, Policy

NEVER_ARRIVED = frozenset(
    {
        *("ConnectionRefusedError", "gaierror", "CircuitOpen"),
        *("ConnectError", "ConnectTimeout"),  # httpx and requests: while connecting
        *("ClientConnectorError", "NewConnectionError", "ConnectTimeoutError"),  # aiohttp, urllib3
    }
)
"""Kinds of failures in which the other side was never reached: what is not idempotent may be tried again."""


class Follows(StrEnum):
    """What is done."""

    RETRY = "retry"
    PARK = "park"
    PARK_FOR_PROVIDER = "park_for_provider"
    END = "end"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What is done; ``wait_seconds`` of a retry."""

    follows: Follows
    wait_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderFailure:
    """The last request of the attempt to a provider has failed, as its circuit counts failures, and whoever finds
    that circuit open is put aside. ``is_open`` is the circuit now, ``was_probe`` the request."""

    was_probe: bool
    is_open: bool


def decide(
    policy: Policy,
    failure: Failure,
    *,
    failures: int,
    elapsed_seconds: float,
    idempotent: bool,
    was_probe: bool,
    is_open: bool,
    provider: ProviderFailure | None = None,
    uniform: Callable[[float, float], float],
) -> Decision:
    """``failures`` counts this one; ``elapsed_seconds`` is since the first claim, without parked time. ``was_probe``
    says whether the attempt was one for the step's own circuit, ``is_open`` whether that is open now, after this
    failure.

    A probe that failed has shown that the circuit stays open: it was sent on behalf of all that wait, so its step
    goes back to them and it does not count. The same holds for the last try of a step that has retries, if its
    failure has opened the circuit or has come when it was open: the outage shall not cost the run. Whether the
    circuit is the step's or its provider's makes no difference.
    """
    may_repeat = idempotent or not failure.kinds.isdisjoint(NEVER_ARRIVED)
    is_covered = policy.retry.covers(failure)
    is_last_of_several = is_covered and failures >= policy.retry.max_attempts > 1
    breaker = policy.breaker
    may_park = breaker is not None and breaker.when_open == "park" and not breaker.ignores(failure)
    if may_repeat and may_park and (was_probe or (is_open and is_last_of_several)):
        return Decision(follows=Follows.PARK)
    if may_repeat and provider is not None and (provider.was_probe or (provider.is_open and is_last_of_several)):
        return Decision(follows=Follows.PARK_FOR_PROVIDER)
    if failures >= policy.retry.max_attempts or not may_repeat or not is_covered:
        return Decision(follows=Follows.END)
    wait = policy.retry.delay_seconds(failures, uniform, failure.retry_after_seconds)
    total = policy.timeout.total_seconds
    if total is not None and elapsed_seconds + wait >= total:
        return Decision(follows=Follows.END)
    return Decision(follows=Follows.RETRY, wait_seconds=wait)

"""Decides what follows a failed attempt: a retry after a wait, parking until its circuit may have closed, or the end.

Pure. ``execution.failure_completion`` calls it and makes the completion from its answer.
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
"""Kinds of failures in which the other side was never reached: a retry is safe even if the step is not idempotent."""


class Follows(StrEnum):
    """The kinds of consequence."""

    RETRY = "retry"
    PARK = "park"
    PARK_FOR_PROVIDER = "park_for_provider"
    END = "end"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The consequence, with ``wait_seconds`` for a retry."""

    follows: Follows
    wait_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderFailure:
    """The attempt's last provider request failed, by the rules of its circuit, and the policy parks steps while that
    circuit is open. ``is_open`` is the circuit's state now; ``was_probe`` is about the request."""

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
    """``failures`` includes this one; ``elapsed_seconds`` is since the first claim, without parked time. ``was_probe``
    is whether the attempt was a probe of the step's own circuit, ``is_open`` whether that circuit is open after this
    failure.

    A probe that failed has shown that the circuit must stay open. It ran on behalf of all parked steps, so its step
    is parked again and the failure does not count. The same holds for the last try of a step that has retries, if
    its failure opened the circuit or came while it was open: an outage must not cost the run. It makes no difference
    whether the circuit is the step's or its provider's.
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

"""The rules of a retry budget as plain functions: no clock, no network, no randomness.

One bucket of tokens for each target. A retry takes one token; every call brings
``ratio`` of one and every second ``floor_per_second``. An empty bucket is
overdrawn: a retry gets the moment at which its token will have come in, so it
asks once and is put off once, and retries that wait are spread out evenly
instead of coming back together. The oracle of ``retry_budget.lua``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from paidonce.policies import RetryBudgetPolicy

LONGEST_SECONDS = 3600.0
"""No retry is put off for longer."""
REMEMBERED_SECONDS = 10.0
"""How much of the floor a full bucket holds, and over how long the income from calls is averaged."""
CALLS_IN_A_FULL_BUCKET = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """A budget at one moment."""

    balance: float
    """Tokens; below zero, retries that were put off have theirs already."""
    at_us: int
    rate: float = 0.0
    """Tokens a second that calls have brought lately."""


def ask(bucket: Bucket | None, policy: RetryBudgetPolicy, *, calls: float, now_us: int) -> tuple[Bucket, float]:
    """One retry, after depositing for so many calls; the seconds that it is put off, 0 for now."""
    bucket = deposit(bucket, policy, calls=calls, now_us=now_us)
    income = policy.floor_per_second + bucket.rate
    wait_seconds = 0.0
    if bucket.balance < 1.0:
        wait_seconds = min(LONGEST_SECONDS, (1.0 - bucket.balance) / income) if income > 0 else LONGEST_SECONDS
    least = min(bucket.balance, -LONGEST_SECONDS * income)
    return Bucket(balance=max(bucket.balance - 1.0, least), at_us=bucket.at_us, rate=bucket.rate), wait_seconds


def deposit(bucket: Bucket | None, policy: RetryBudgetPolicy, *, calls: float, now_us: int) -> Bucket:
    """The bucket after what has come in until now. A new one holds ten seconds of the floor, at least one token."""
    start = max(1.0, policy.floor_per_second * REMEMBERED_SECONDS)
    full = max(1.0, policy.floor_per_second * REMEMBERED_SECONDS + policy.ratio * CALLS_IN_A_FULL_BUCKET)
    bucket = bucket if bucket is not None else Bucket(balance=start, at_us=now_us)
    passed_seconds = max(0, now_us - bucket.at_us) / 1e6
    deposited = calls * policy.ratio
    return Bucket(
        balance=min(full, bucket.balance + passed_seconds * policy.floor_per_second + deposited),
        at_us=now_us,
        rate=bucket.rate * math.exp(-passed_seconds / REMEMBERED_SECONDS) + deposited / REMEMBERED_SECONDS,
    )

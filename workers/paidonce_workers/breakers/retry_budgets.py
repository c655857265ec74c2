"""The retry budgets of a process: the fleet's buckets in Redis, or local buckets while Redis is away.

A call's deposit costs no round trip: it is counted here, and the count is sent with the target's next retry or with
the heartbeat.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Final

from paidonce.policies import RetryBudgetPolicy
from paidonce_workers.breakers.without_redis import Clock

LONGEST_SECONDS: Final = 3600.0
"""No retry is delayed for longer."""
REMEMBERED_SECONDS: Final = 10.0
"""How much of the floor a full bucket holds, and the window over which the income from calls is averaged."""
CALLS_IN_A_FULL_BUCKET: Final = 100.0

AskRedis = Callable[[str, RetryBudgetPolicy, int, bool], float | None]
"""Deposit so many calls of a target under its policy, and return the delay of a retry if one is requested.
``None``: Redis is away."""


class RetryBudgets:
    """Thread-safe."""

    def __init__(self, ask_redis: AskRedis, now_us: Clock) -> None:
        self._ask_redis = ask_redis
        self._now_us = now_us
        self._lock = threading.Lock()
        self._counted: dict[str, tuple[RetryBudgetPolicy, int]] = {}
        self._alone: dict[str, _Bucket] = {}

    def count_call(self, target: str, budget: RetryBudgetPolicy) -> None:
        """Count a call that is no retry."""
        with self._lock:
            _, calls = self._counted.get(target, (budget, 0))
            self._counted[target] = (budget, calls + 1)

    def put_off_seconds(self, target: str, budget: RetryBudgetPolicy) -> float:
        """How long to delay a retry, 0 for none. Takes its token."""
        with self._lock:
            _, calls = self._counted.pop(target, (budget, 0))
        return self._ask(target, budget, calls, asks=True)

    def deposit(self) -> None:
        """Send the counted deposits."""
        with self._lock:
            counted, self._counted = self._counted, {}
        for target, (budget, calls) in counted.items():
            self._ask(target, budget, calls, asks=False)

    def _ask(self, target: str, budget: RetryBudgetPolicy, calls: int, *, asks: bool) -> float:
        waits = self._ask_redis(target, budget, calls, asks)
        with self._lock:
            if waits is not None:
                self._alone.pop(target, None)
                return waits
            now_us = self._now_us()
            bucket = self._alone.setdefault(target, _Bucket(budget, now_us))
            return bucket.put_off_seconds(budget, calls, now_us, asks=asks)


class _Bucket:
    """A budget as one process counts it, by the rules of ``retry_budget.lua``."""

    def __init__(self, budget: RetryBudgetPolicy, now_us: int) -> None:
        self._balance = max(1.0, budget.floor_per_second * REMEMBERED_SECONDS)
        self._rate = 0.0
        self._at_us = now_us

    def put_off_seconds(self, budget: RetryBudgetPolicy, calls: int, now_us: int, *, asks: bool) -> float:
        """An empty bucket is overdrawn: the retry waits until its token will have come in."""
        floor, brought = budget.floor_per_second, calls * budget.ratio
        passed_seconds, self._at_us = (now_us - self._at_us) / 1e6, now_us
        full = max(1.0, floor * REMEMBERED_SECONDS + budget.ratio * CALLS_IN_A_FULL_BUCKET)
        balance = min(full, self._balance + passed_seconds * floor + brought)
        self._rate = self._rate * math.exp(-passed_seconds / REMEMBERED_SECONDS) + brought / REMEMBERED_SECONDS
        income = floor + self._rate
        self._balance = max(balance - 1.0, min(balance, -LONGEST_SECONDS * income)) if asks else balance
        if not asks or balance >= 1.0:
            return 0.0
        return min(LONGEST_SECONDS, (1.0 - balance) / income) if income else LONGEST_SECONDS

"""The retry budgets of a process: counts calls here, and brings them to the fleet's buckets now and then.

A call costs no round trip for its deposit: what was counted travels with the
next retry of the target, or with the heartbeat.
"""

from __future__ import annotations

import threading

from paidonce.policies import RetryBudgetPolicy
from paidonce_workers.breakers.deciding import Decider


class RetryBudgets:
    """Safe to use from many threads."""

    def __init__(self, decider: Decider) -> None:
        self._decider = decider
        self._lock = threading.Lock()
        self._counted: dict[str, tuple[RetryBudgetPolicy, int]] = {}

    def count_call(self, target: str, budget: RetryBudgetPolicy) -> None:
        """A call that is no retry was made."""
        with self._lock:
            _, calls = self._counted.get(target, (budget, 0))
            self._counted[target] = (budget, calls + 1)

    def put_off_seconds(self, target: str, budget: RetryBudgetPolicy) -> float:
        """How long a retry is to be put off, 0 for now; its token is taken with that."""
        with self._lock:
            _, calls = self._counted.pop(target, (budget, 0))
        return self._decider.put_off_seconds(target, budget, calls=calls, asks=True)

    def deposit(self) -> None:
        """Bring what was counted."""
        with self._lock:
            counted, self._counted = self._counted, {}
        for target, (budget, calls) in counted.items():
            self._decider.put_off_seconds(target, budget, calls=calls, asks=False)

"""The same rules for one process alone: what decides while Redis is away or not configured.

The clock is the process's own, monotonic and set once to the time of day, so
that instants can be shown. Nothing here waits for anything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from paidonce.policies import BreakerPolicy, RetryBudgetPolicy
from paidonce_workers.breakers import model, retry_budget_model
from paidonce_workers.breakers.circuit import Answer, Circuit, CircuitState, Standing
from paidonce_workers.breakers.outcome import Outcome
from paidonce_workers.breakers.retry_budget_model import Bucket


class RulesInProcess:
    """The circuits and retry budgets of one process. Safe to use from many threads."""

    def __init__(self, *, now_us: Callable[[], int] | None = None) -> None:
        """``now_us`` stands in for the clock in tests."""
        begun_us = int((time.time() - time.monotonic()) * 1e6)
        self.now_us = now_us if now_us is not None else lambda: begun_us + int(time.monotonic() * 1e6)
        self._lock = threading.Lock()
        self._circuits: dict[str, Circuit] = {}
        self._buckets: dict[str, Bucket] = {}

    def forget(self, circuit: str) -> None:
        """Redis has answered about this circuit. Outcomes of calls that are under way will be ignored."""
        if circuit in self._circuits:
            with self._lock:
                self._circuits.pop(circuit, None)

    def forget_budget(self, target: str) -> None:
        """Redis has answered about this budget."""
        if target in self._buckets:
            with self._lock:
                self._buckets.pop(target, None)

    def take_over(self, circuit: str, *, left_us: int | None, since_us: int, reason: str) -> None:
        """Open a circuit that is not known yet, as the fleet had it when Redis was last heard of."""
        now_us = self.now_us()
        with self._lock:
            self._circuits.setdefault(
                circuit,
                Circuit(
                    epoch=now_us,
                    state=CircuitState.OPEN,
                    since_us=since_us,
                    until_us=None if left_us is None else now_us + left_us,
                    reason=reason,
                ),
            )

    def admit(self, circuit: str, policy: BreakerPolicy, *, token: str, token_us: int) -> Answer:
        """Ask for one call."""
        with self._lock:
            after, answer = model.admit(
                self._circuits.get(circuit), policy, token=token, token_us=token_us, now_us=self.now_us()
            )
            self._circuits[circuit] = after
        return answer

    def report(
        self, circuit: str, policy: BreakerPolicy, *, epoch: int, token: str, outcome: Outcome, chance: float
    ) -> Answer:
        """Say how a call that was admitted in ``epoch`` has ended."""
        with self._lock:
            after, answer = model.report(
                self._circuits.get(circuit),
                policy,
                epoch=epoch,
                token=token,
                outcome=outcome,
                chance=chance,
                now_us=self.now_us(),
            )
            self._keep(circuit, after)
        return answer

    def renew(self, circuit: str, tokens: Iterable[str], *, token_us: int) -> bool:
        """Let probes hold their places for longer; whether any of them still had one."""
        with self._lock:
            after, found = model.renew(self._circuits.get(circuit), tokens, token_us=token_us, now_us=self.now_us())
            self._keep(circuit, after)
        return found

    def standing(self, circuit: str) -> Standing | None:
        """How it stands; ``None`` if it has never been asked for."""
        with self._lock:
            found = self._circuits.get(circuit)
            return None if found is None else model.standing(found, now_us=self.now_us())

    def names(self) -> Iterator[str]:
        """The names of all circuits that were asked for."""
        with self._lock:
            return iter(list(self._circuits))

    def put_off_seconds(self, target: str, budget: RetryBudgetPolicy, *, calls: float, asks: bool) -> float:
        """Deposit for calls and, if it ``asks``, take the token of one retry: how long that is put off, 0 for now."""
        with self._lock:
            bucket, now_us, wait_seconds = self._buckets.get(target), self.now_us(), 0.0
            if asks:
                bucket, wait_seconds = retry_budget_model.ask(bucket, budget, calls=calls, now_us=now_us)
            else:
                bucket = retry_budget_model.deposit(bucket, budget, calls=calls, now_us=now_us)
            self._buckets[target] = bucket
        return wait_seconds

    def _keep(self, circuit: str, after: Circuit | None) -> None:
        if after is not None:
            self._circuits[circuit] = after

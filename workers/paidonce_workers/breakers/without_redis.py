"""``CircuitAlone``: the circuit of one process, which decides while Redis is away or not configured.

A plain ``pybreaker.CircuitBreaker`` in memory counts failures in a row and moves. Around it is what it lacks: the
failure rate, open times that grow or that a server requested, one probe at a time, and epochs. pybreaker holds its lock
during a call, so it is only told afterwards how the call ended. Times are of the process's own clock: monotonic, set
once to the time of day.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import pybreaker

from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers.circuit_state import Answer, CircuitState, CircuitStatus, Transition, Verdict
from paidonce_workers.breakers.outcome import Effect, Outcome

MOST_IN_WINDOW: Final = 10_000
"""Outcomes kept for the rate: a busier window is judged by its newest ones."""
HIGHEST_POWER: Final = 60
LEAST_RETRY_AFTER_US: Final = 1_000_000
"""So that a server that answers ``Retry-After: 0`` is not probed without a pause."""

Clock = Callable[[], int]
_begun_us = int((time.time() - time.monotonic()) * 1e6)


def monotonic_us() -> int:
    """The default clock of a process."""
    return _begun_us + int(time.monotonic() * 1e6)


class CircuitAlone:
    """Thread-safe."""

    def __init__(
        self, policy: BreakerPolicy, now_us: Clock, seen: Answer | None = None, seconds_ago: float = 0.0
    ) -> None:
        """Starts in the state that Redis last reported (``seen``): open for the rest of its time, or closed."""
        self._now_us = now_us
        self._breaker = pybreaker.CircuitBreaker(success_threshold=policy.probes, throw_new_error_on_trip=False)
        self._lock = threading.Lock()
        self._epoch = now_us()
        self._since_us = 0
        self._until_us: int | None = 0
        self._reason = ""
        self._probes: dict[str, int] = {}
        """Tokens of probes in flight, and when each expires."""
        self._failed_probes = 0
        self._window: deque[tuple[int, bool]] = deque(maxlen=MOST_IN_WINDOW)
        """When calls ended while the circuit was closed, and whether they failed."""
        if seen is not None and seen.state is not CircuitState.CLOSED:
            self._breaker.open()
            self._since_us, self._reason = seen.since_us, seen.reason
            left_us = None if seen.until_us is None else seen.until_us - seen.now_us - int(seconds_ago * 1e6)
            self._until_us = None if left_us is None else now_us() + max(0, left_us)

    def admit(self, policy: BreakerPolicy, *, token: str, token_us: int) -> Answer:
        """Request permission for one call. A probe holds its place for ``token_us``, unless renewed or ended."""
        with self._lock:
            before, now = self._state(), self._now_us()
            if before is CircuitState.CLOSED:
                return self._answer(Verdict.ADMITTED)
            if before is CircuitState.OPEN:
                if self._until_us is None or now < self._until_us:
                    return self._answer(Verdict.REFUSED)
                self._breaker.half_open()
                self._begin_epoch()
            # pybreaker would permit every call in a half-open circuit.
            self._probes = {name: expiry for name, expiry in self._probes.items() if expiry > now}
            if token in self._probes or len(self._probes) < policy.probes:
                self._probes[token] = now + token_us
                return self._answer(Verdict.PROBE, before, "its time was over")
            refused = self._answer(Verdict.REFUSED)
            return replace(refused, reason="a probe is under way", until_us=min(self._probes.values()))

    def report(
        self, policy: BreakerPolicy, outcome: Outcome, *, epoch: int | None, token: str, chance: float
    ) -> Answer:
        """Report how a call ended that was permitted in ``epoch``, or (``None``) by Redis, which cannot be reached.

        ``chance``, from 0 to 1, decides the jitter.
        """
        with self._lock:
            before, failed = self._state(), outcome.effect is Effect.FAILURE
            is_lost = before is CircuitState.HALF_OPEN and token not in self._probes
            if is_lost or before is CircuitState.OPEN or epoch not in (None, self._epoch):
                return self._answer(Verdict.LATE)
            self._probes.pop(token, None)
            if outcome.effect is Effect.NEUTRAL:
                return self._answer(Verdict.COUNTED)
            why = self._count(policy, before, failed)
            if self._state() is not before:
                self._reason = f"{why} ({outcome.detail})" if failed and outcome.detail else why
                self._since_us = (self._since_us or self._now_us()) if failed else 0
                self._until_us = self._now_us() + self._open_us(policy, outcome.retry_after_us, chance) if failed else 0
                self._failed_probes = self._failed_probes if failed else 0
                self._begin_epoch()
            return self._answer(Verdict.COUNTED, before, self._reason)

    def renew(self, tokens: Iterable[str], *, token_us: int) -> None:
        """Extend the places of these probes."""
        with self._lock:
            self._probes |= {token: self._now_us() + token_us for token in tokens if token in self._probes}

    def status(self, circuit: str) -> CircuitStatus:
        """Its state, where this process is the whole fleet."""
        with self._lock:
            answer, now = self._answer(Verdict.DONE), self._now_us()
            return CircuitStatus(
                circuit=circuit,
                state=answer.state,
                epoch=answer.epoch,
                now_us=now,
                since_us=answer.since_us,
                until_us=answer.until_us,
                reason=answer.reason,
                consecutive_failures=self._breaker.fail_counter if answer.state is CircuitState.CLOSED else 0,
                failed_probes=self._failed_probes,
                probes_under_way=sum(expiry > now for expiry in self._probes.values()),
            )

    def _state(self) -> CircuitState:
        return CircuitState(self._breaker.current_state)

    def _begin_epoch(self) -> None:
        self._epoch += 1
        self._probes = {}
        self._window.clear()

    def _count(self, policy: BreakerPolicy, before: CircuitState, failed: bool) -> str:
        """Tell pybreaker, which may move the circuit; returns why, if it has."""
        row, passed = self._breaker.fail_counter + 1, self._breaker.success_counter + 1
        self._breaker.fail_max = policy.consecutive_failures
        with suppress(_Failed):
            self._breaker.call(_fail if failed else _succeed)
        if before is CircuitState.HALF_OPEN:
            self._failed_probes += failed
            return "a probe failed" if failed else f"probes succeeded: {passed}"
        now = self._now_us()
        self._window.append((now, failed))
        if failed and self._state() is CircuitState.CLOSED:  # pybreaker knows no rates
            seen = [each for at_us, each in self._window if at_us > now - policy.window_seconds * 1e6]
            if len(seen) >= policy.min_calls and sum(seen) / len(seen) >= policy.failure_rate:
                self._breaker.open()
                return f"failure rate: {100 * sum(seen) // len(seen)} % of {len(seen)} calls"
        return f"failures in a row: {row}"

    def _open_us(self, policy: BreakerPolicy, retry_after_us: int | None, chance: float) -> int:
        """How long it opens: as the server requested, else the base time, doubled by each failed probe, up to a cap."""
        doubled = policy.open_base_seconds * 1e6 * 2.0 ** min(self._failed_probes, HIGHEST_POWER)
        computed = int(min(policy.open_cap_seconds * 1e6, doubled) * (1.0 - policy.open_jitter * chance))
        return computed if retry_after_us is None else max(retry_after_us, min(LEAST_RETRY_AFTER_US, computed))

    def _answer(self, verdict: Verdict, before: CircuitState | None = None, why: str = "") -> Answer:
        state = self._state()
        return Answer(
            verdict=verdict,
            state=state,
            epoch=self._epoch,
            now_us=self._now_us(),
            since_us=self._since_us,
            until_us=self._until_us if state is CircuitState.OPEN else 0,
            reason=self._reason,
            transition=None if before in (None, state) else Transition(source=before, target=state, reason=why),
        )


class _Failed(Exception):
    """Tells pybreaker that a call has failed."""


def _fail() -> None:
    raise _Failed


def _succeed() -> None:
    pass

"""The circuits of a running attempt: tools that its body calls inline, and its requests to providers.

Found through a context variable, which follows ``async`` code, ``asyncio.to_thread`` and the threads that a step
starts. An inline call raises ``CircuitOpen`` if its circuit is open; it is retried in place, for a few seconds at most,
as its policy says.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final, TypeVar

from paidonce.declarations.registry import AnyStep
from paidonce.policies import BreakerPolicy, ResolvedPolicy, describe_failure
from paidonce_models.errors import CircuitOpen
from paidonce_workers.breakers import NEUTRAL, SUCCESS, Admission, CircuitBreakers, Guard, Outcome, failure
from paidonce_workers.resilience.clocks_and_chance import Timing
from paidonce_workers.resilience.step_circuits import Gate, Refused, StepCircuits

T = TypeVar("T")

LONGEST_REPORT_SECONDS: Final = 0.5
"""No call is delayed by Redis for longer, in seconds."""


class AttemptCircuits:
    """The circuits of one attempt. Safe to use from the threads and tasks of its body."""

    def __init__(
        self, circuits: StepCircuits, declaration: AnyStep, gate: Gate, *, inline_retry_seconds: float
    ) -> None:
        self._circuits = circuits
        self._declaration = declaration
        self._gate = gate
        self._inline_retry_seconds = inline_retry_seconds
        self._timing = circuits.timing
        self._lock = threading.Lock()
        self.refused_calls = 0
        """The number of calls of its body that an open circuit refused."""
        self.refused_by_provider: Refused | None = None
        self._failed_request: FailedRequest | None = None

    # -- inline tools ------------------------------------------------------------------

    def call(self, declaration: AnyStep, body: Callable[[], T]) -> T:
        """Call a ``def`` tool inline, under its policy."""
        policy = self._circuits.policy_of(declaration)
        tries = _Tries(policy, self._inline_retry_seconds, self._timing)
        while True:
            try:
                with self._guarded(policy, declaration):
                    return body()
            except CircuitOpen:
                self._note_refusal()
                raise
            except Exception as error:
                wait_seconds = self._put_off(policy, tries, error)
                if wait_seconds is None:
                    raise
            self._timing.sleep(wait_seconds)

    async def call_async(self, declaration: AnyStep, body: Callable[[], Awaitable[T]]) -> T:
        """Call an ``async def`` tool inline, or a ``def`` tool in a thread, under its policy."""
        policy = self._circuits.policy_of(declaration)
        tries = _Tries(policy, self._inline_retry_seconds, self._timing)
        while True:
            try:
                async with (
                    self._guarded(policy, declaration),
                    asyncio.timeout(policy.policy.timeout.attempt_seconds),
                ):
                    return await body()
            except CircuitOpen:
                self._note_refusal()
                raise
            except Exception as error:
                wait_seconds = self._put_off(policy, tries, error)
                if wait_seconds is None:
                    raise
            await self._timing.sleep_async(wait_seconds)

    def _guarded(self, policy: ResolvedPolicy, declaration: AnyStep) -> Guard | nullcontext[None]:
        breakers, breaker = self._circuits.breakers, policy.policy.breaker
        if breakers is None or breaker is None:
            return nullcontext()
        return breakers.guard(policy.circuit, breaker, target=declaration.name)

    def _put_off(self, policy: ResolvedPolicy, tries: _Tries, error: Exception) -> float | None:
        """Seconds to wait before the tool is retried in place; ``None``: no retry."""
        breakers, budget = self._circuits.breakers, policy.policy.retry_budget
        wait_seconds = tries.wait_after(error)
        if wait_seconds is None or breakers is None or budget is None:
            return wait_seconds
        return tries.within_time(wait_seconds + breakers.retry_allowed(policy.target, budget))

    def _note_refusal(self) -> None:
        with self._lock:
            self.refused_calls += 1

    # -- providers -----------------------------------------------------------------------

    @property
    def failed_request(self) -> FailedRequest | None:
        """The last request to a provider with a watched circuit, if it failed."""
        with self._lock:
            return self._failed_request

    def _note_end(self, failed: FailedRequest | None) -> None:
        with self._lock:
            self._failed_request = failed

    def request(self, provider: str) -> ProviderRequest | None:
        """A request to a provider is about to be sent; ``None`` if its circuit is not watched."""
        policy = self._circuits.policy_of_provider(provider, self._declaration)
        breakers, breaker = self._circuits.breakers, policy.policy.breaker
        return None if breakers is None or breaker is None else ProviderRequest(self, breakers, policy, breaker)


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedRequest:
    """A request to a provider that failed, by the rules of the provider's circuit."""

    policy: ResolvedPolicy
    breaker: BreakerPolicy
    was_probe: bool
    reported: Future[None]

    def wait_until_reported(self) -> None:
        """Wait until its circuit has recorded it, but no longer than any call waits for Redis."""
        wait([self.reported], LONGEST_REPORT_SECONDS)


class ProviderRequest:
    """One request to a provider under its circuit."""

    def __init__(
        self, attempt: AttemptCircuits, breakers: CircuitBreakers, policy: ResolvedPolicy, breaker: BreakerPolicy
    ) -> None:
        self._attempt = attempt
        self._breakers = breakers
        self._policy = policy
        self._breaker = breaker
        self._admission: Admission | None = None

    def begin(self) -> None:
        """Raises ``CircuitOpen`` if it may not be sent. Blocks this thread on Redis."""
        held = self._attempt._gate.take(self._policy.circuit)
        if held is None:
            held = self._breakers.admit(self._policy.circuit, self._breaker, token=uuid.uuid4().hex, owner=self)
        self._admitted(held)

    async def begin_async(self) -> None:
        """The same from an event loop, which is not blocked."""
        held = self._attempt._gate.take(self._policy.circuit)
        if held is None:
            token = uuid.uuid4().hex
            held = await self._breakers.admit_async(self._policy.circuit, self._breaker, token=token, owner=self)
        self._admitted(held)

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The response's head has arrived."""
        if status < 400:
            self._attempt._note_end(None)
            self._report(SUCCESS)
        else:
            self.failed(ErrorStatus(status, headers))

    def failed(self, error: BaseException) -> None:
        """There was no response."""
        if not isinstance(error, Exception):
            self._report(NEUTRAL)
            return
        found = describe_failure(error)
        admission = self._admission
        reported = self._report(failure(found.kinds, found.retry_after_seconds, found.summary, found.kinds_of_some))
        if admission is None or reported is None or self._breaker.ignores(found):
            self._attempt._note_end(None)
            return
        self._attempt._note_end(
            FailedRequest(policy=self._policy, breaker=self._breaker, was_probe=admission.is_probe, reported=reported)
        )

    def _admitted(self, admission: Admission) -> None:
        if admission.is_admitted:
            self._admission = admission
            return
        refused = Refused(admission=admission, policy=self._policy)
        self._attempt._note_refusal()
        self._attempt.refused_by_provider = refused
        raise refused.error

    def _report(self, outcome: Outcome) -> Future[None] | None:
        """Report in a thread of the breakers, so that the user's response is not delayed."""
        admission, self._admission = self._admission, None
        return None if admission is None else self._breakers.report_soon(admission, outcome)


class ErrorStatus(Exception):
    """A response with an error status, as an exception for classification."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status_code = status
        self.headers = headers


class _Tries:
    """The tries of one inline call."""

    def __init__(self, policy: ResolvedPolicy, longest_seconds: float, timing: Timing) -> None:
        self._policy = policy.policy
        self._timing = timing
        self._failures = 0
        self._until = timing.monotonic() + longest_seconds

    def wait_after(self, error: Exception) -> float | None:
        self._failures += 1
        found = describe_failure(error)
        retry = self._policy.retry
        if self._failures >= retry.max_attempts or not retry.covers(found):
            return None
        return self.within_time(retry.delay_seconds(self._failures, self._timing.uniform, found.retry_after_seconds))

    def within_time(self, wait_seconds: float) -> float | None:
        return wait_seconds if self._timing.monotonic() + wait_seconds <= self._until else None

"""The circuits of an attempt under way: tools that its body calls inline, and its requests to providers.

Found through a context variable, which follows ``async`` code, ``asyncio.to_thread`` and the threads that a step
starts. An inline call raises ``CircuitOpen`` where its circuit is open; it is tried again in place, for a few seconds
at most, as its policy says.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from paidonce.policies import BreakerPolicy, ResolvedPolicy, describe_failure
from paidonce.registry import AnyStep
from paidonce_models.errors import CircuitOpen
from paidonce_workers.breakers import NEUTRAL, SUCCESS, Admission, Outcome, failure
from paidonce_workers.resilience.step_circuits import Gate, Refused, StepCircuits

T = TypeVar("T")

LONGEST_REPORT_SECONDS: Final = 0.5
"""No call is delayed by Redis for longer."""


class AttemptCircuits:
    """Stands for one attempt. Safe to use from the threads and tasks of its body."""

    def __init__(
        self, circuits: StepCircuits, declaration: AnyStep, gate: Gate, *, inline_retry_seconds: float
    ) -> None:
        self._circuits = circuits
        self._declaration = declaration
        self._gate = gate
        self._inline_retry_seconds = inline_retry_seconds
        self._lock = threading.Lock()
        self.refused_calls = 0
        """Calls that its body wanted to make and that an open circuit refused."""
        self.refused_by_provider: Refused | None = None
        self._failed_request: FailedRequest | None = None

    # -- inline tools ------------------------------------------------------------------

    def call(self, declaration: AnyStep, body: Callable[[], T]) -> T:
        """A ``def`` tool inline, under its policy."""
        policy = self._circuits.policy_of(declaration)
        tries = _Tries(policy, self._inline_retry_seconds)
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
            time.sleep(wait_seconds)

    async def call_async(self, declaration: AnyStep, body: Callable[[], Awaitable[T]]) -> T:
        """An ``async def`` tool inline, or a ``def`` tool in a thread, under its policy."""
        policy = self._circuits.policy_of(declaration)
        tries = _Tries(policy, self._inline_retry_seconds)
        while True:
            try:
                async with (
                    self._guarded_async(policy, declaration),
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
            await asyncio.sleep(wait_seconds)

    def _guarded(self, policy: ResolvedPolicy, declaration: AnyStep) -> AbstractContextManager[Any]:
        breakers, breaker = self._circuits.breakers, policy.policy.breaker
        if breakers is None or breaker is None:
            return nullcontext()
        return breakers.guard(policy.circuit, breaker, target=declaration.name)

    def _guarded_async(self, policy: ResolvedPolicy, declaration: AnyStep) -> AbstractAsyncContextManager[Any]:
        breakers, breaker = self._circuits.breakers, policy.policy.breaker
        if breakers is None or breaker is None:
            return nullcontext()
        return breakers.guard(policy.circuit, breaker, target=declaration.name)

    def _put_off(self, policy: ResolvedPolicy, tries: _Tries, error: Exception) -> float | None:
        """How long to wait before the tool is tried again in place; ``None``: not."""
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
        """The last request to a provider whose circuit is watched, if it failed."""
        with self._lock:
            return self._failed_request

    def _note_end(self, failed: FailedRequest | None) -> None:
        with self._lock:
            self._failed_request = failed

    def request(self, provider: str) -> ProviderRequest | None:
        """A request to a provider is about to be sent; ``None`` where nobody watches its circuit."""
        policy = self._circuits.policy_of_provider(provider, self._declaration)
        if self._circuits.breakers is None or policy.policy.breaker is None:
            return None
        return ProviderRequest(self, policy, policy.policy.breaker)


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedRequest:
    """A request to a provider that failed, as the provider's circuit counts failures."""

    policy: ResolvedPolicy
    breaker: BreakerPolicy
    was_probe: bool
    reported: Future[None]

    def wait_until_reported(self) -> None:
        """Until its circuit has heard of it, but no longer than anybody waits for Redis."""
        is_reported = threading.Event()  # the breakers' futures are not made to be waited for
        self.reported.add_done_callback(lambda _: is_reported.set())
        is_reported.wait(LONGEST_REPORT_SECONDS)


class ProviderRequest:
    """One request to a provider under its circuit."""

    def __init__(self, attempt: AttemptCircuits, policy: ResolvedPolicy, breaker: BreakerPolicy) -> None:
        self._attempt = attempt
        self._policy = policy
        self._breaker = breaker
        self._admission: Admission | None = None

    def begin(self) -> None:
        """Raises ``CircuitOpen`` if it may not be sent. Waits for Redis in this thread."""
        self._admitted(self._admit())

    async def begin_async(self) -> None:
        """The same from an event loop, which does not wait."""
        asking: Future[Admission] = self._shared.threads.submit(self._admit)
        try:
            admission = await asyncio.wrap_future(asking)
        except BaseException:
            asking.add_done_callback(self._give_up)
            raise
        self._admitted(admission)

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer's head is here."""
        if status < 400:
            self._attempt._note_end(None)
            self._report(SUCCESS)
        else:
            self.failed(ErrorStatus(status, headers))

    def failed(self, error: BaseException) -> None:
        """There was no answer."""
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

    @property
    def _shared(self) -> Any:
        breakers = self._attempt._circuits.breakers
        if breakers is None:
            raise RuntimeError("breakers are switched off")
        return breakers.breaker(self._policy.circuit, self._breaker)

    def _admit(self) -> Admission:
        held = self._attempt._gate.take(self._policy.circuit)
        if held is not None:
            return held
        admission: Admission = self._attempt._circuits.breakers.admit(  # type: ignore[union-attr]  # looked at in request
            self._policy.circuit, self._breaker, token=uuid.uuid4().hex
        )
        return admission

    def _admitted(self, admission: Admission) -> None:
        if admission.is_admitted:
            self._admission = admission
            return
        refused = Refused(admission=admission, policy=self._policy)
        self._attempt._note_refusal()
        self._attempt.refused_by_provider = refused
        raise refused.error

    def _give_up(self, asking: Future[Admission]) -> None:
        if not asking.cancelled() and asking.exception() is None and asking.result().is_admitted:
            self._shared.threads.submit(self._shared.report, asking.result(), NEUTRAL)

    def _report(self, outcome: Outcome) -> Future[None] | None:
        """In a thread of the breakers': the answer is the user's, and does not wait."""
        admission, self._admission = self._admission, None
        if admission is None:
            return None
        reported: Future[None] = self._shared.threads.submit(self._shared.report, admission, outcome)
        return reported


class ErrorStatus(Exception):
    """An answer whose status says that something went wrong, as failures are described."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status_code = status
        self.headers = headers


class _Tries:
    """The tries of one inline call."""

    def __init__(self, policy: ResolvedPolicy, longest_seconds: float) -> None:
        self._policy = policy.policy
        self._failures = 0
        self._until = time.monotonic() + longest_seconds

    def wait_after(self, error: Exception) -> float | None:
        self._failures += 1
        found = describe_failure(error)
        retry = self._policy.retry
        if self._failures >= retry.max_attempts or not retry.covers(found):
            return None
        return self.within_time(retry.delay_seconds(self._failures, random.uniform, found.retry_after_seconds))

    def within_time(self, wait_seconds: float) -> float | None:
        return wait_seconds if time.monotonic() + wait_seconds <= self._until else None

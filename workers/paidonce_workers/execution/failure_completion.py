"""Turns a failed attempt into the ``Completion`` that records it, and reports the failure to the attempt's circuits.

Whether the step is retried, parked or ended is decided by ``resilience.failure_decision``; this module collects what
that pure function needs, and writes its answer into the completion.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from paidonce.policies import Failure, ResolvedPolicy, describe_failure, leaves_of
from paidonce.user_errors import error_of, traceback_of
from paidonce_models.errors import CircuitOpen
from paidonce_models.instants import moment_of
from paidonce_models.states import AttemptOutcome
from paidonce_models.store.circuits.parked_steps import Parking
from paidonce_models.store.steps.completion import Completion
from paidonce_workers.execution.attempt import Attempt
from paidonce_workers.isolation.child import ChildError
from paidonce_workers.resilience import (
    FailedRequest,
    Follows,
    ProviderFailure,
    StepCircuits,
    decide,
    outcome_for,
    parking_for,
)

BY_HAND = datetime.min.replace(tzinfo=UTC)
"""Used in place of a circuit's next try if only a person closes it: the wait is unknown."""


class FailureCompletions:
    """Makes the completions of failed attempts, for one process."""

    def __init__(self, circuits: StepCircuits, worker: str) -> None:
        self._circuits = circuits
        self._worker = worker
        self._timing = circuits.timing

    def completion_of(
        self, attempt: Attempt, error: BaseException, outcome: AttemptOutcome, as_seen_by_policy: BaseException
    ) -> Completion:
        """The completion for the failure; also reports to the circuits that permitted the attempt.

        A circuit found open inside the step makes the attempt short-circuited, however a client wrapped the error.
        """
        policy = attempt.policy
        failed = as_seen_by_policy.failure if isinstance(as_seen_by_policy, ChildError) else None
        failed = describe_failure(as_seen_by_policy) if failed is None else failed
        attempt.gate.report(policy.circuit, outcome_for(as_seen_by_policy, failed))
        found_open, waits_for = open_circuits_in(error)
        refused = attempt.circuits.refused_by_provider if found_open is not None else None
        if waits_for is not None and refused is None:
            failed = until_it_may_be_closed(failed, waits_for, now=moment_of(self._timing.now_us()))
        parking: Parking | None = None
        retry_after_us: int | None = None
        counts = True
        if refused is not None and refused.when_open == "park":
            parking, counts = refused.parking, False
        else:
            request = attempt.circuits.failed_request
            decision = decide(
                policy.policy,
                failed,
                failures=attempt.claim.failed + 1,
                elapsed_seconds=attempt.elapsed_seconds(self._timing.monotonic()),
                idempotent=attempt.declaration.idempotent,
                was_probe=attempt.gate.was_probe(policy.circuit),
                is_open=self._circuits.is_open(policy),
                provider=self._provider_failure(request),
                uniform=self._timing.uniform,
            )
            if decision.follows is Follows.PARK and policy.policy.breaker is not None:
                parking, counts = parking_for(policy, policy.policy.breaker.open_base_seconds), False
            elif decision.follows is Follows.PARK_FOR_PROVIDER and request is not None:
                parking, counts = parking_for(request.policy, request.breaker.open_base_seconds), False
            elif decision.follows is Follows.RETRY:
                retry_after_us = int((decision.wait_seconds + self._put_off_seconds(policy)) * 1e6)
        return Completion(
            claim=attempt.claim,
            worker=self._worker,
            outcome=outcome if found_open is None else AttemptOutcome.SHORT_CIRCUITED,
            error=getattr(error, "paidonce_error", None) or error_of(error if found_open is None else found_open),
            traceback=getattr(error, "paidonce_traceback", None) or traceback_of(error),
            retry_after_us=retry_after_us,
            parking=parking,
            counts_as_failure=counts,
            calls=attempt.take_calls(self._circuits),
            refused_calls=attempt.circuits.refused_calls,
        )

    def _provider_failure(self, request: FailedRequest | None) -> ProviderFailure | None:
        """The last provider request as the policy sees it, if it failed and its circuit parks."""
        if request is None or request.breaker.when_open != "park":
            return None
        request.wait_until_reported()
        return ProviderFailure(was_probe=request.was_probe, is_open=self._circuits.is_open(request.policy))

    def _put_off_seconds(self, policy: ResolvedPolicy) -> float:
        """Extra delay of a retry because the fleet has used up its retry budget for this target."""
        breakers, budget = self._circuits.breakers, policy.policy.retry_budget
        return 0.0 if breakers is None or budget is None else breakers.retry_allowed(policy.target, budget)


def until_it_may_be_closed(failed: Failure, found_open: CircuitOpen, *, now: datetime) -> Failure:
    """The failure of a body that an inline tool's open circuit ended, with the wait for the next try. A try before that
    would be refused again, after paying again for everything before that call."""
    if found_open.retry_at is None:
        return failed
    wait_seconds = (found_open.retry_at - now).total_seconds()
    return replace(failed, retry_after_seconds=max(wait_seconds, failed.retry_after_seconds or 0.0))


def open_circuits_in(error: BaseException) -> tuple[CircuitOpen | None, CircuitOpen | None]:
    """The open circuit that alone ended the attempt, if any; and the one that the next try waits for.

    In a group, the first requires that all errors are open circuits, the second that one is.
    """
    found = [_circuit_open_in(leaf) for leaf in leaves_of(error)]
    opened = [each for each in found if each is not None]
    latest = max(opened, key=lambda each: each.retry_at or BY_HAND, default=None)
    return (latest if len(opened) == len(found) else None), latest


def _circuit_open_in(error: BaseException) -> CircuitOpen | None:
    """An open circuit inside the call, also if a client's own error wraps it."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        if isinstance(following, CircuitOpen):
            return following
        seen.add(id(following))
        following = following.__cause__
    return None

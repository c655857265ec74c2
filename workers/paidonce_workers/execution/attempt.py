"""An attempt in progress: its claim, its policy, the circuits that permitted it, and the calls it makes.

Created by the executor for one claim. Its cost and the assessment of its end are read from here. ``Execution`` is the
attempt once its body has ended, before that end is assessed and written.
"""

from __future__ import annotations

from dataclasses import dataclass

from paidonce.declarations.registry import AnyStep
from paidonce.policies import ResolvedPolicy
from paidonce.usage.call_recorder import CallRecorder
from paidonce_models.store.steps.claims import Claim
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_models.usage import CallRecord
from paidonce_workers.execution.held_leases import HeldLease
from paidonce_workers.resilience import AttemptCircuits, Gate, StepCircuits

SHORTEST_ATTEMPT_SECONDS = 0.001
"""The time limit of an attempt that starts after the total timeout is over."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt. ``began`` is the monotonic time of its claim."""

    claim: Claim
    declaration: AnyStep
    policy: ResolvedPolicy
    recorder: CallRecorder
    gate: Gate
    circuits: AttemptCircuits
    began: float

    def elapsed_seconds(self, monotonic: float) -> float:
        """Since the step's first claim, without parked time."""
        return self.claim.elapsed_us / 1e6 + monotonic - self.began

    def limit_seconds(self, default_seconds: float) -> float:
        """The body's time limit."""
        timeout = self.policy.policy.timeout
        limit = default_seconds if timeout.attempt_seconds is None else timeout.attempt_seconds
        if timeout.total_seconds is None:
            return limit
        return max(min(limit, timeout.total_seconds - self.claim.elapsed_us / 1e6), SHORTEST_ATTEMPT_SECONDS)

    def take_calls(self, circuits: StepCircuits) -> list[CallRecord]:
        """The calls that the store does not have yet; also learns the step's provider from them."""
        calls = self.recorder.drain()
        circuits.providers.note(self.claim.agent, self.claim.name, calls)
        return calls


@dataclass(kw_only=True)
class Execution:
    """A claimed step whose body has ended, and its lease, which is held until the store has recorded that end.

    ``attempt`` is ``None`` where this process does not hold the step's code.
    """

    claim: Claim
    gate: Gate
    lease: HeldLease
    began: float
    attempt: Attempt | None = None
    returned: bytes | None = None
    """What the body returned, encoded."""
    error: BaseException | None = None
    """The error it raised, or the one that stopped it."""

    def take_result(self) -> bytes:
        """The body's result; raises the body's error. May be called once."""
        error, self.error = self.error, None
        if error is None:
            return self.returned or b""
        try:
            raise error
        finally:
            del error  # breaks the cycle frame -> error -> traceback -> frame


def key_of(claim: Claim) -> LeaseKey:
    """The lease of a claim."""
    return LeaseKey(claim.run_id, claim.position, claim.attempt)

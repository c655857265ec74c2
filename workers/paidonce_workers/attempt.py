"""An attempt under way: its claim, its policy, the circuits it was let through, and the calls it makes.

Made by the executor for one claim; what a body costs and how its end is judged is read from here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from paidonce.policies import ResolvedPolicy
from paidonce.registry import AnyStep
from paidonce.usage import CallRecorder
from paidonce_models.store.claims import Claim
from paidonce_models.store.leases import LeaseKey
from paidonce_models.usage import CallRecord
from paidonce_workers.resilience import AttemptCircuits, Gate, StepCircuits

SHORTEST_ATTEMPT_SECONDS = 0.001
"""What is left of a total time-out for an attempt that begins when it is over."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt. ``began`` is the monotonic clock at its claim."""

    claim: Claim
    declaration: AnyStep
    policy: ResolvedPolicy
    recorder: CallRecorder
    gate: Gate
    circuits: AttemptCircuits
    began: float

    @property
    def elapsed_seconds(self) -> float:
        """Since the step's first claim, without the time that it was parked."""
        return self.claim.elapsed_us / 1e6 + time.monotonic() - self.began

    def limit_seconds(self, default_seconds: float) -> float:
        """How long the body may take."""
        timeout = self.policy.policy.timeout
        limit = default_seconds if timeout.attempt_seconds is None else timeout.attempt_seconds
        if timeout.total_seconds is None:
            return limit
        return max(min(limit, timeout.total_seconds - self.claim.elapsed_us / 1e6), SHORTEST_ATTEMPT_SECONDS)

    def take_calls(self, circuits: StepCircuits) -> list[CallRecord]:
        """The calls that the store does not have yet; whose they are is remembered."""
        calls = self.recorder.drain()
        circuits.providers.note(self.claim.agent, self.claim.name, calls)
        return calls


def key_of(claim: Claim) -> LeaseKey:
    """The lease of a claim."""
    return LeaseKey(claim.run_id, claim.position, claim.attempt)

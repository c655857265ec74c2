"""How policies affect a step: the circuits it needs permission from, and what follows a failed attempt.

    delivery -> step_circuits (Gate) -> claim -> attempt_circuits (inline tools, provider requests) -> failure_decision

``breakers`` has the rules of a circuit, ``paidonce.policies`` the declarations, the store the parked steps.
"""

from paidonce_workers.resilience.attempt_circuits import AttemptCircuits, FailedRequest
from paidonce_workers.resilience.circuit_refusals import act_on_refusal
from paidonce_workers.resilience.clocks_and_chance import Timing
from paidonce_workers.resilience.failure_decision import Decision, Follows, ProviderFailure, decide
from paidonce_workers.resilience.learned_providers import LearnedProviders
from paidonce_workers.resilience.step_circuits import Gate, Refused, StepCircuits, outcome_for, parking_for

__all__ = [
    "AttemptCircuits",
    "Decision",
    "FailedRequest",
    "Follows",
    "Gate",
    "LearnedProviders",
    "ProviderFailure",
    "Refused",
    "StepCircuits",
    "Timing",
    "act_on_refusal",
    "decide",
    "outcome_for",
    "parking_for",
]

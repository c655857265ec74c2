"""What policies do to a step: which circuits it asks before its claim, and what follows when its attempt fails.

    delivery -> step_circuits (Gate) -> claim -> attempt_circuits (inline tools, provider requests) -> after_failure

The rules of a circuit are in ``breakers``, what is declared in ``paidonce.policies``, what is parked in the store.
"""

from paidonce_workers.resilience.after_failure import Decision, Follows, ProviderFailure, decide
from paidonce_workers.resilience.attempt_circuits import AttemptCircuits, FailedRequest
from paidonce_workers.resilience.learned_providers import LearnedProviders
from paidonce_workers.resilience.refusals import act_on_refusal
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
    "act_on_refusal",
    "decide",
    "outcome_for",
    "parking_for",
]

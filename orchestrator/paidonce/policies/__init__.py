"""Resilience, declared once: the timeouts, retries and breakers of ``paidonce.yaml`` and the decorators.

``policy`` holds the values and their defaults, ``failures`` and ``matchers`` define what a failure is, ``schema`` which
keys may be written, ``file`` parses ``paidonce.yaml``, ``declared`` reads a decorator's keys, and ``policy_book``
resolves the policy of a tool, a step or a provider (``targets``, ``precedence``, ``keys``). Nothing here acts on a
policy: no clock, no store, no broker. Import the values from here; the book and the file, which take longer to import,
from their own modules.
"""

from paidonce.policies.durations import duration_text, parse_duration
from paidonce.policies.failures import Failure, describe_failure, leaves_of
from paidonce.policies.policy import (
    BreakerPolicy,
    ParkPolicy,
    Policy,
    ResolvedPolicy,
    RetryBudgetPolicy,
    RetryPolicy,
    TimeoutPolicy,
)

__all__ = [
    "BreakerPolicy",
    "Failure",
    "ParkPolicy",
    "Policy",
    "ResolvedPolicy",
    "RetryBudgetPolicy",
    "RetryPolicy",
    "TimeoutPolicy",
    "describe_failure",
    "duration_text",
    "leaves_of",
    "parse_duration",
]

"""Resilience, declared once: what ``paidonce.yaml`` and the decorators say about time-outs, retries and breakers.

``policy`` holds the values and their defaults, ``failures`` and ``matchers`` say what a failure is, ``loading`` reads
the file (``yaml_text``, ``schema``, ``problems``), ``declared`` reads a decorator's keys, and ``book`` answers what
holds for a tool, a step or a provider (``targets``, ``layers``, ``keys``). Nothing here acts on a policy: no clock,
no store, no broker.
"""

from paidonce.policies.book import DecoratorKeys, PolicyBook
from paidonce.policies.durations import duration_text, parse_duration
from paidonce.policies.failures import Failure, describe_failure, leaves_of
from paidonce.policies.loading import load_policies, policies_from_settings
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
    "DecoratorKeys",
    "Failure",
    "ParkPolicy",
    "Policy",
    "PolicyBook",
    "ResolvedPolicy",
    "RetryBudgetPolicy",
    "RetryPolicy",
    "TimeoutPolicy",
    "describe_failure",
    "duration_text",
    "leaves_of",
    "load_policies",
    "parse_duration",
    "policies_from_settings",
]

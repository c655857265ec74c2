"""The keys of a policy by path, such as ``retry.base``: what each may hold, what it does, and its value in a policy.

Owns the list of keys, derived from ``schema``, and the mapping of a key to its field in ``policy``, so that merging,
errors, the command line and the documentation use the same keys.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from paidonce.policies.durations import duration_text
from paidonce.policies.policy import BreakerPolicy, ParkPolicy, Policy, RetryBudgetPolicy, RetryPolicy, TimeoutPolicy
from paidonce.policies.schema import Allowed, Section, TargetSection

POLICY: Final = "policy"
CIRCUIT: Final = "circuit"
RETRY_BUDGET: Final = "retry_budget"
BREAKER: Final = "breaker"
MAX_ATTEMPTS: Final = "retry.max_attempts"

PARTS: Final[Mapping[str, type]] = {
    "timeout": TimeoutPolicy,
    "retry": RetryPolicy,
    RETRY_BUDGET: RetryBudgetPolicy,
    BREAKER: BreakerPolicy,
    "park": ParkPolicy,
}
"""The parts of a policy, by the key of their section."""

FIELDS: Final[Mapping[str, str]] = {
    "timeout.attempt": "attempt_seconds",
    "timeout.total": "total_seconds",
    MAX_ATTEMPTS: "max_attempts",
    "retry.backoff": "backoff",
    "retry.base": "base_seconds",
    "retry.cap": "cap_seconds",
    "retry.jitter": "jitter",
    "retry.retry_on": "retry_on",
    "retry.honor_retry_after": "honor_retry_after",
    "retry_budget.ratio": "ratio",
    "retry_budget.floor_per_second": "floor_per_second",
    "breaker.consecutive_failures": "consecutive_failures",
    "breaker.window": "window_seconds",
    "breaker.min_calls": "min_calls",
    "breaker.failure_rate": "failure_rate",
    "breaker.open_for.base": "open_base_seconds",
    "breaker.open_for.cap": "open_cap_seconds",
    "breaker.open_for.jitter": "open_jitter",
    "breaker.probes": "probes",
    "breaker.ignore": "ignore",
    "breaker.when_open": "when_open",
    "breaker.when_store_down": "when_store_down",
    "park.max": "max_seconds",
}
"""The field that each key sets in its part."""

NOT_LESS: Final = (
    ("retry.cap", "retry.base"),
    ("timeout.total", "timeout.attempt"),
    ("breaker.open_for.cap", "breaker.open_for.base"),
)
"""Pairs whose first is never less than the second. If the first is not written, it is raised to the second."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a policy or a target."""

    path: str
    allowed: str
    meaning: str
    is_section: bool


def part_of(path: str) -> str:
    """The part of a policy to which a key belongs."""
    return path.partition(".")[0]


def default_value(path: str) -> object:
    """The default of a key, in its part's own type."""
    value: object = getattr(PARTS[part_of(path)], FIELDS[path])
    return value


def value_in(policy: Policy, path: str) -> object:
    """A key's value in a policy. Its part must exist: a breaker that is off has no keys."""
    value: object = getattr(getattr(policy, part_of(path)), FIELDS[path])
    return value


def value_text(path: str, value: object) -> str:
    """A key's value in the file's notation."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(str(entry) for entry in value)}]"
    if isinstance(value, float) and FIELDS.get(path, "").endswith("_seconds"):
        return duration_text(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _keys_of(section: type[Section], prefix: str) -> Iterator[Key]:
    for name, info in section.model_fields.items():
        path = f"{prefix}{name}"
        inner = _section_in(info.annotation)
        allowed = next(mark.text for mark in info.metadata if isinstance(mark, Allowed))
        yield Key(
            path=path,
            allowed=allowed,
            meaning=" ".join((info.description or "").split()),
            is_section=inner is not None,
        )
        if inner is not None:
            yield from _keys_of(inner, f"{path}.")


def _section_in(annotation: object) -> type[Section] | None:
    """The section that a key holds, alone or as an alternative to a switch."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in typing.get_args(annotation):
        found = _section_in(argument)
        if found is not None:
            return found
    return None


KEYS: Final[Mapping[str, Key]] = {key.path: key for key in _keys_of(TargetSection, "")}
"""Every key that a target may hold; all but ``policy`` and ``circuit`` are also allowed in a policy."""

"""The outcome of a guarded call for its circuit: success, failure, or neutral.

Neutral is everything that says nothing about the health of the dependency: an
interrupt, a cancellation, Celery's control exceptions, another open circuit inside
the call, and the kinds that the policy ignores. A neutral outcome does not trip a
circuit, does not reset the count of failures in a row, and does not enter the
window. A probe that ends so leaves its place to the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from paidonce.policies import BreakerPolicy, Failure, leaves_of
from paidonce_models.errors import CircuitOpen, InvalidInput

LONGEST_RETRY_AFTER_SECONDS: Final = 86_400.0
"""A server that asks for a longer wait is believed to be mistaken; one probe a day does no harm."""
LONGEST_DETAIL: Final = 100

CONTROL: Final = (Retry, Ignore, Reject, SoftTimeLimitExceeded, CircuitOpen, InvalidInput)
"""Exceptions that are no failures of the dependency, besides every ``BaseException`` that is no ``Exception``."""
SAY_NOTHING: Final = frozenset({"BaseException", "Exception", "OSError", "http:4xx", "http:5xx"})


class Effect(StrEnum):
    """How an outcome affects a circuit."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


Classify = Callable[[BaseException], Failure]


@dataclass(frozen=True, kw_only=True)
class Outcome(Failure):
    """How one call ended, with the failure if it was one. Created by ``SUCCESS``, ``NEUTRAL`` and ``failure``."""

    effect: Effect

    def unless_ignored(self, policy: BreakerPolicy) -> Outcome:
        """This outcome, or ``NEUTRAL`` if it is a failure of a kind that the policy ignores."""
        return NEUTRAL if self.effect is Effect.FAILURE and policy.ignores(self) else self

    @property
    def detail(self) -> str:
        """The failure as text for a reason: its summary, or else the names of its classes."""
        if self.summary:
            return self.summary[:LONGEST_DETAIL]
        told = {kind.rpartition(".")[2] for kind in self.kinds} - SAY_NOTHING
        return ", ".join(sorted(told, key=lambda kind: (":" not in kind, kind)))[:LONGEST_DETAIL]

    @property
    def retry_after_us(self) -> int | None:
        """The requested wait, clamped, in microseconds; ``None`` if there is none."""
        seconds = self.retry_after_seconds
        return None if seconds is None else int(min(seconds, LONGEST_RETRY_AFTER_SECONDS) * 1e6)


SUCCESS: Final = Outcome(effect=Effect.SUCCESS, kinds=frozenset())
NEUTRAL: Final = Outcome(effect=Effect.NEUTRAL, kinds=frozenset())


def failure(
    kinds: Collection[str],
    retry_after_seconds: float | None = None,
    summary: str = "",
    kinds_of_some: Collection[str] = (),
) -> Outcome:
    """A failure. A ``Retry-After`` that is negative or not a number is ignored."""
    if retry_after_seconds is not None and (math.isnan(retry_after_seconds) or retry_after_seconds < 0):
        retry_after_seconds = None
    return Outcome(
        effect=Effect.FAILURE,
        kinds=frozenset(kinds),
        kinds_of_some=frozenset(kinds_of_some),
        retry_after_seconds=retry_after_seconds,
        summary=summary,
    )


def outcome_of(error: BaseException, classify: Classify) -> Outcome:
    """The outcome of a call that raised ``error``; ``Outcome.unless_ignored`` then applies the policy's ``ignore``."""
    leaves = leaves_of(error)
    if not all(isinstance(leaf, Exception) for leaf in leaves) or all(isinstance(leaf, CONTROL) for leaf in leaves):
        return NEUTRAL
    found = classify(error)
    return failure(found.kinds, found.retry_after_seconds, found.summary, found.kinds_of_some)

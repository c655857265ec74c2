"""How a guarded call ended, as far as its circuit cares: success, failure, or neither.

Neither is whatever says nothing about the health of what was called: an
interrupt, a cancellation, Celery's control exceptions, a circuit that was found
open further in, and the kinds that the policy ignores. Such an outcome neither
trips a circuit nor ends a row of failures nor enters the window; a probe that
ends so gives its place to the next one.
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
"""A server that asks for more is believed to be mistaken; one probe a day does no harm."""
LONGEST_DETAIL: Final = 100

CONTROL: Final = (Retry, Ignore, Reject, SoftTimeLimitExceeded, CircuitOpen, InvalidInput)
"""Exceptions that are no failures of what is called, besides every ``BaseException`` that is no ``Exception``."""
SAY_NOTHING: Final = frozenset({"BaseException", "Exception", "OSError", "http:4xx", "http:5xx"})


class Effect(StrEnum):
    """What an outcome does to a circuit."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


Classify = Callable[[BaseException], Failure]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one call ended. Made by ``SUCCESS``, ``NEUTRAL`` and ``failure``."""

    effect: Effect
    kinds: frozenset[str] = frozenset()
    kinds_of_some: frozenset[str] = frozenset()
    """Of a group of errors: kinds that some of them have."""
    retry_after_seconds: float | None = None
    summary: str = ""
    """The failure in a few words, for people."""

    def unless_ignored(self, policy: BreakerPolicy) -> Outcome:
        """This outcome, or ``NEUTRAL`` if it is a failure of a kind that the policy ignores."""
        if self.effect is Effect.FAILURE and policy.ignores(
            Failure(kinds=self.kinds, kinds_of_some=self.kinds_of_some)
        ):
            return NEUTRAL
        return self

    @property
    def detail(self) -> str:
        """The failure as text for a reason: its summary, else each class of its kinds by its bare name."""
        if self.summary:
            return self.summary[:LONGEST_DETAIL]
        told = {kind.rpartition(".")[2] for kind in self.kinds} - SAY_NOTHING
        return ", ".join(sorted(told, key=lambda kind: (":" not in kind, kind)))[:LONGEST_DETAIL]

    @property
    def retry_after_us(self) -> int | None:
        """Within bounds, in microseconds."""
        seconds = self.retry_after_seconds
        return None if seconds is None else int(min(seconds, LONGEST_RETRY_AFTER_SECONDS) * 1e6)


SUCCESS: Final = Outcome(effect=Effect.SUCCESS)
NEUTRAL: Final = Outcome(effect=Effect.NEUTRAL)


def failure(
    kinds: Collection[str],
    retry_after_seconds: float | None = None,
    summary: str = "",
    kinds_of_some: Collection[str] = (),
) -> Outcome:
    """A failure. A ``Retry-After`` that is negative or no number counts as none."""
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
    """The outcome of a call that raised ``error``; what the policy ignores is for ``Outcome.unless_ignored``."""
    leaves = leaves_of(error)
    if not all(isinstance(leaf, Exception) for leaf in leaves) or all(isinstance(leaf, CONTROL) for leaf in leaves):
        return NEUTRAL
    found = classify(error)
    return failure(found.kinds, found.retry_after_seconds, found.summary, found.kinds_of_some)

"""A policy as a value: timeouts, retries, the breaker, and parking.

Owns the values, their defaults with the reason of each below it, and what follows from them without a clock, a store
or randomness. ``schema`` says how they are written in ``paidonce.yaml`` and what each does, which the documentation
shows beside these reasons. Other modules act on them: execution applies timeouts and retries, the workers' breakers
the circuits, the store holds parked steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from paidonce.policies.failures import Failure, class_name
from paidonce.policies.matchers import EXCEPT, any_matches
from paidonce_models.errors import InvalidInput

Backoff = Literal["exponential", "constant"]
Jitter = Literal["full", "none"]
WhenOpen = Literal["park", "raise", "fail"]
WhenStoreDown = Literal["allow", "refuse"]

DecoratorKeys = tuple[tuple[str, object], ...]
"""The single policy keys of a decorator, by key path. A tuple, so that a declaration stays hashable."""

_LARGEST_EXPONENT: Final = 60
_ANY_FAILURE: Final = ("Exception", f"{EXCEPT}{class_name(InvalidInput)}")
"""What ``retry_on`` excludes if it includes nothing, as in ``Retry``: arguments that do not fit and a result that
cannot be stored fail the same way each time."""


@dataclass(frozen=True, kw_only=True)
class TimeoutPolicy:
    """How long a step may take."""

    attempt_seconds: float | None = None
    """``None`` takes the setting ``PAIDONCE_STEP_TIMEOUT_SECONDS``: steps differ too much for a better guess."""
    total_seconds: float | None = None
    """``None`` is no limit: attempts are counted, and each has its own limit."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how long after a failure a step is tried again."""

    max_attempts: int = 1
    """The first one counts, so one is no retry: retrying a paid step costs money, so you must ask for it."""
    backoff: Backoff = "exponential"
    """An overloaded dependency gets more time with each failure; constant waits would keep it overloaded."""
    base_seconds: float = 0.5
    """Long enough for a dropped connection, short enough that nobody notices."""
    cap_seconds: float = 30.0
    """Beyond it, the breaker does better."""
    jitter: Jitter = "full"
    """It spreads callers that failed together best (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
    2015)."""
    retry_on: tuple[str, ...] = ()
    """A request for retries means any failure that may end differently: without an entry that includes something, every
    ``Exception`` but ``InvalidInput``."""
    honor_retry_after: bool = True
    """The other side knows best when it can serve the call; an earlier attempt would be refused again."""

    def covers(self, failure: Failure) -> bool:
        """Whether a failure is worth a retry; the caller counts the attempts."""
        includes_some = any(not matcher.startswith(EXCEPT) for matcher in self.retry_on)
        return any_matches(
            self.retry_on if includes_some else (*_ANY_FAILURE, *self.retry_on), failure.kinds, failure.kinds_of_some
        )

    def delay_seconds(
        self, failures: int, uniform: Callable[[float, float], float], retry_after_seconds: float | None = None
    ) -> float:
        """The wait in seconds after that many failures (1 or more).

        A requested wait is added in front: the retry is never earlier than that, and still spread.
        """
        grown = self.base_seconds
        if self.backoff == "exponential":
            grown = min(self.cap_seconds, self.base_seconds * 2.0 ** min(failures - 1, _LARGEST_EXPONENT))
        wait = grown if self.jitter == "none" else uniform(0.0, grown)
        asked = retry_after_seconds if self.honor_retry_after and retry_after_seconds is not None else 0.0
        return asked + wait


@dataclass(frozen=True, kw_only=True)
class RetryBudgetPolicy:
    """The share of a target's calls, over all workers, that may be retries; more are delayed, not dropped."""

    ratio: float = 0.1
    """In a full outage the dependency then sees a tenth more load instead of a multiple (Google, "Site Reliability
    Engineering", 2016, chapter 21, "Handling Overload")."""
    floor_per_second: float = 1.0
    """A target with few calls could otherwise not retry at all."""


@dataclass(frozen=True, kw_only=True)
class BreakerPolicy:
    """When a circuit opens, how it is probed, and what its being open does."""

    consecutive_failures: int = 5
    """Five in a row are an outage, one or two are bad luck; it also trips where calls are rare."""
    window_seconds: float = 30.0
    """Long enough to hold some calls, short enough to forget what is fixed."""
    min_calls: int = 10
    """The rate of fewer calls says little."""
    failure_rate: float = 0.5
    """A tool that fails half its calls costs more in repeated reasoning than it gives."""
    open_base_seconds: float = 15.0
    """A restart or a failover takes about that long."""
    open_cap_seconds: float = 300.0
    """A recovery is noticed within minutes."""
    open_jitter: float = 0.2
    """Circuits that opened together do not probe in step."""
    probes: int = 1
    """One call is enough to know, and a weak dependency bears no more."""
    ignore: tuple[str, ...] = ("http:4xx", "!http:408", "!http:425", "!http:429")
    """A 4xx response shows that the dependency works and the request was wrong; 408, 425 and 429 show a problem
    of the dependency and count."""
    when_open: WhenOpen = "park"
    """A parked step costs nothing, and nobody has to act."""
    when_store_down: WhenStoreDown = "allow"
    """Losing Redis must not stop the fleet; each process then keeps its own breaker."""

    def ignores(self, failure: Failure) -> bool:
        """Whether a failure says nothing about the dependency."""
        return any_matches(self.ignore, failure.kinds, failure.kinds_of_some)


@dataclass(frozen=True, kw_only=True)
class ParkPolicy:
    """How long a step stays parked at most while its circuit is open."""

    max_seconds: float = 7 * 86_400.0
    """Longer than any outage that is still being worked on, at the cost of a row in the store."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The complete policy of one target."""

    name: str = "default"
    """The name of its policy, ``default`` without one."""
    timeout: TimeoutPolicy = field(default_factory=TimeoutPolicy)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    retry_budget: RetryBudgetPolicy | None = None
    """``None`` is no budget: switched off, or there are no retries to limit."""
    breaker: BreakerPolicy | None = None
    """``None`` is no breaker."""
    park: ParkPolicy = field(default_factory=ParkPolicy)


@dataclass(frozen=True, kw_only=True)
class ResolvedPolicy:
    """The policy of a step, a tool or a provider, with the source of each value."""

    target: str
    """The full name of the step or tool, or ``provider:NAME``."""
    circuit: str
    """The name of its circuit. Targets of one circuit open together."""
    policy: Policy
    sources: Mapping[str, str]
    """Where each key's value comes from, by key path as in ``paidonce.yaml``: ``retry.base``."""

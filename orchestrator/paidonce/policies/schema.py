"""The keys that may be written in ``paidonce.yaml`` and as single keys of a decorator.

Owns the names of the keys, what each may hold and what each does. A section only records which keys were *written*
(``model_fields_set``): the defaults are in ``policy``, because keys of several places are merged before defaults apply.
``keys`` lists what is defined here, ``problems`` converts errors to messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from paidonce.policies.durations import DURATION_EXAMPLES, parse_duration
from paidonce.policies.matchers import MATCHER_EXAMPLES, parse_matcher
from paidonce.policies.policy import Backoff, Jitter, WhenOpen, WhenStoreDown

NOT_WRITTEN: Final[Any] = None
"""The placeholder of a key that a section does not hold; never read."""

PLANNED: Final[Mapping[str, str]] = {
    "bulkhead": "limits on calls at once",
    "cache": "answers from a cache",
    "fallback": "fallbacks",
    "hedge": "hedged calls",
    "rate_limit": "rate limits",
    "slow_call_duration": "slow calls that count as failures",
    "slow_call_duration_threshold": "slow calls that count as failures",
    "slow_call_rate": "slow calls that count as failures",
    "slow_call_rate_threshold": "slow calls that count as failures",
    "slow_calls": "slow calls that count as failures",
}
"""Keys planned for later, and their meaning: refused by name until then, so that no one relies on them.

The two that end in ``_threshold`` are resilience4j's, whose words ours are.
"""


@dataclass(frozen=True)
class Allowed:
    """What a key may hold, as errors and the documentation put it."""

    text: str


Time: TypeAlias = Annotated[
    float, BeforeValidator(parse_duration), Field(gt=0), Allowed(f"a duration above 0, {DURATION_EXAMPLES}")
]
Wait: TypeAlias = Annotated[float, BeforeValidator(parse_duration), Allowed(f"a duration, {DURATION_EXAMPLES}")]
Count: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000), Allowed("a whole number, 1 or more and at most 1,000,000")]
Share: TypeAlias = Annotated[float, Field(gt=0, le=1), Allowed("a number above 0 and at most 1")]
Matchers: TypeAlias = Annotated[
    tuple[Annotated[str, BeforeValidator(parse_matcher)], ...],
    Field(strict=False),
    Allowed(f"a list of {MATCHER_EXAMPLES}"),
]
Switch: TypeAlias = Annotated[bool, Allowed("true or false")]


class Section(BaseModel):
    """A mapping of known keys; numbers are numbers and never text."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class TimeoutSection(Section):
    """How long a step may take."""

    attempt: Time = NOT_WRITTEN
    """How long one attempt may take."""
    total: Time = NOT_WRITTEN
    """How long all attempts and the waits between them may take, without parked time."""


class RetrySection(Section):
    """How often and how long after a failure a step is tried again."""

    max_attempts: Count = NOT_WRITTEN
    """The most attempts, including the first."""
    backoff: Annotated[Backoff, Allowed("exponential or constant")] = NOT_WRITTEN
    """How waits grow: doubling with each failure, or not at all."""
    base: Wait = NOT_WRITTEN
    """The wait after the first failure, before jitter."""
    cap: Wait = NOT_WRITTEN
    """The longest wait, before jitter; at least `base`."""
    jitter: Annotated[Jitter, Allowed("full or none")] = NOT_WRITTEN
    """`full` waits anywhere between 0 and that."""
    retry_on: Matchers = NOT_WRITTEN
    """Which failures are worth another attempt; an empty list means all but `InvalidInput`."""
    honor_retry_after: Switch = NOT_WRITTEN
    """Wait at least as long as `Retry-After` asks."""


class RetryBudgetSection(Section):
    """What share of a target's calls may be retries."""

    ratio: Annotated[float, Field(ge=0, le=1), Allowed("a number from 0 to 1")] = NOT_WRITTEN
    """What share of the target's calls may be retries; more are put off."""
    floor_per_second: Annotated[
        float, Field(ge=0, le=1_000_000), Allowed("a number, 0 or more and at most 1,000,000")
    ] = NOT_WRITTEN
    """Retries a second that are allowed whatever the share."""


class OpenForSection(Section):
    """How long a circuit stays open."""

    base: Time = NOT_WRITTEN
    """How long the circuit stays open before the first probe."""
    cap: Time = NOT_WRITTEN
    """How long it stays open at most: the time doubles with each failed probe; at least `base`."""
    jitter: Annotated[float, Field(ge=0, lt=1), Allowed("a number, 0 or more and below 1")] = NOT_WRITTEN
    """The share by which each of these times is made longer or shorter."""


class BreakerSection(Section):
    """When a circuit opens, how it is probed, and what its being open does."""

    consecutive_failures: Count = NOT_WRITTEN
    """Failures in a row that open the circuit."""
    window: Time = NOT_WRITTEN
    """The time over which the failure rate is counted."""
    min_calls: Count = NOT_WRITTEN
    """Calls in the window before its rate can open the circuit."""
    failure_rate: Share = NOT_WRITTEN
    """The share of failures in the window that opens the circuit."""
    open_for: Annotated[OpenForSection, Allowed("a mapping")] = NOT_WRITTEN
    """How long the circuit stays open."""
    probes: Count = NOT_WRITTEN
    """Calls at a time, in the whole fleet, that try whether the dependency is back."""
    ignore: Matchers = NOT_WRITTEN
    """Errors that are not the dependency's fault."""
    when_open: Annotated[WhenOpen, Allowed("park, raise or fail")] = NOT_WRITTEN
    """`park`: the step sleeps in the store until a probe succeeds; `raise`: the agent gets `CircuitOpen`; `fail`: the
    run ends. A tool called inside a step cannot park: it raises."""
    when_store_down: Annotated[WhenStoreDown, Allowed("allow or refuse")] = NOT_WRITTEN
    """What calls do while Redis is unreachable: continue under the process's own breaker, or count as refused."""


class ParkSection(Section):
    """How long a step sleeps at most."""

    max: Time = NOT_WRITTEN
    """How long a step stays parked before the agent gets `CircuitOpen`."""


MAPPING_TAG: Final = "<mapping>"
SWITCH_TAG: Final = "<switch>"


def _mapping_or_switch(value: object) -> str:
    return SWITCH_TAG if isinstance(value, bool) else MAPPING_TAG


def _short_timeout(value: object) -> object:
    return value if isinstance(value, Mapping | Section) or value is None else {"attempt": value}


def _short_retry(value: object) -> object:
    if value is False:
        return {"max_attempts": 1}
    return {"max_attempts": value} if isinstance(value, int) and value is not True else value


class PolicySection(Section):
    """A policy of the file; a decorator's single keys are checked against it too."""

    timeout: Annotated[
        TimeoutSection, BeforeValidator(_short_timeout), Allowed("a mapping, or the duration of an attempt")
    ] = NOT_WRITTEN
    """How long a step may take; a duration alone means `attempt`."""
    retry: Annotated[
        RetrySection, BeforeValidator(_short_retry), Allowed("a mapping, a number of attempts, or false")
    ] = NOT_WRITTEN
    """How often a failed step is retried; a number alone means `max_attempts`."""
    retry_budget: Annotated[
        Annotated[RetryBudgetSection, Tag(MAPPING_TAG)] | Annotated[bool, Tag(SWITCH_TAG)],
        Discriminator(_mapping_or_switch),
        Allowed("a mapping, true for the defaults, or false for none"),
    ] = NOT_WRITTEN
    """What share of all calls may be retries, over all workers; only where there are retries."""
    breaker: Annotated[
        Annotated[BreakerSection, Tag(MAPPING_TAG)] | Annotated[bool, Tag(SWITCH_TAG)],
        Discriminator(_mapping_or_switch),
        Allowed("a mapping, true for the defaults, or false for none"),
    ] = NOT_WRITTEN
    """When the circuit of the target opens; `true` and any key inside switch it on, `false` switches it off."""
    park: Annotated[ParkSection, Allowed("a mapping")] = NOT_WRITTEN
    """How long a step sleeps at most while a circuit is open."""


def _short_target(value: object) -> object:
    return {"policy": value} if isinstance(value, str) else value


class TargetSection(PolicySection):
    """What holds for the tools or the provider that a target names; a name alone means ``policy``."""

    policy: Annotated[str, Allowed("the name of one of the policies")] = NOT_WRITTEN
    """The policy of the target; the target's own keys take precedence."""
    circuit: Annotated[str, Field(min_length=1, max_length=200), Allowed("a name of 200 characters at most")] = (
        NOT_WRITTEN
    )
    """The circuit that all matched tools share; without it each has its own."""


def _nothing_is_empty(value: object) -> object:
    return {} if value is None else value


class PolicyFile(Section):
    """The whole file."""

    policies: Annotated[dict[str, PolicySection], BeforeValidator(_nothing_is_empty)] = Field(default_factory=dict)
    """Policies by name."""
    targets: Annotated[
        dict[str, Annotated[TargetSection, BeforeValidator(_short_target)]], BeforeValidator(_nothing_is_empty)
    ] = Field(default_factory=dict)
    """What holds for whom."""

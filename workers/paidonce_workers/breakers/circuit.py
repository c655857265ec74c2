"""What is known of one circuit, and what the rules answer. Values only.

The life of a circuit: closed, until it trips; open, until its time is over;
half-open, while probes are let through, ``policy.probes`` at a time in the whole
fleet; closed again after enough of them, or open for longer. Each move begins
an epoch, and outcomes of calls that were admitted in a former one are ignored.
``model`` holds the rules, ``circuit.lua`` the same rules for Redis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class CircuitState(StrEnum):
    """pybreaker's three states under pybreaker's names."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


MOVES: Final[Mapping[CircuitState, frozenset[CircuitState]]] = {
    # Open to open: by hand, for a time of one's own.
    CircuitState.CLOSED: frozenset({CircuitState.OPEN}),
    CircuitState.OPEN: frozenset({CircuitState.HALF_OPEN, CircuitState.CLOSED, CircuitState.OPEN}),
    CircuitState.HALF_OPEN: frozenset({CircuitState.OPEN, CircuitState.CLOSED}),
}


class Verdict(StrEnum):
    """What the rules say to one request."""

    ADMITTED = "admitted"
    PROBE = "probe"
    """Admitted, to find out whether a half-open circuit may close."""
    REFUSED = "refused"
    COUNTED = "counted"
    """The outcome was taken into account."""
    LATE = "late"
    """The outcome belongs to a former epoch, or to a probe whose place was lost; it was ignored."""
    DONE = "done"
    """A move by hand, or nothing that has a verdict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """Outcomes of a tenth of a window. ``index`` counts tenths since the epoch of the clock."""

    index: int
    successes: int = 0
    failures: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Circuit:
    """One circuit at one moment. Instants are microseconds of the clock that decides for it."""

    epoch: int
    state: CircuitState = CircuitState.CLOSED
    since_us: int = 0
    """When it left the closed state; 0 while closed."""
    until_us: int | None = 0
    """Until when it is open; ``None``: until somebody closes it."""
    reason: str = ""
    """Why it opened, or closed, the last time."""
    consecutive: int = 0
    """Failures in a row while closed."""
    windows: Mapping[int, tuple[Tally, ...]] = field(default_factory=dict)
    """Tallies by the length of a tenth in microseconds: policies that share a circuit may have other windows."""
    failed_probes: int = 0
    """Since it left the closed state: each doubles the open time."""
    probes: Mapping[str, int] = field(default_factory=dict)
    """Tokens of probes under way, and when each expires unless it is renewed."""
    succeeded_probes: int = 0
    """Since it became half-open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """A move of a circuit, as whoever made it saw it."""

    source: CircuitState
    target: CircuitState
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the rules said to one request. A closed circuit that did not move has nothing but state and epoch."""

    verdict: Verdict
    state: CircuitState
    epoch: int
    now_us: int
    since_us: int = 0
    """When the circuit left the closed state; 0 if it is closed."""
    until_us: int | None = 0
    """When a refused call may try again; ``None``: when somebody has closed the circuit."""
    reason: str = ""
    """Why it is open, why it closed, or why the call was refused."""
    transition: Transition | None = None
    """The move that this request made; nobody else is told of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a circuit stands, for people."""

    state: CircuitState
    epoch: int
    now_us: int
    since_us: int
    until_us: int | None
    reason: str
    consecutive: int
    failed_probes: int
    probes_under_way: int

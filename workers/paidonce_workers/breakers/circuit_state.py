"""The values of circuits: state, verdict, permission, change. No behaviour.

The life of a circuit: closed, until it trips; open, until its time is over;
half-open, while it permits probes, ``policy.probes`` at a time in the whole fleet;
closed again after enough successes, or open again for longer. Each move starts a
new epoch, and outcomes of calls permitted in an earlier epoch are ignored.
``circuit.lua`` has the rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from paidonce.policies import BreakerPolicy
from paidonce_models.instants import moment_of


class CircuitState(StrEnum):
    """pybreaker's three states under pybreaker's names."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Verdict(StrEnum):
    """The rules' response to one request."""

    ADMITTED = "admitted"
    PROBE = "probe"
    """Permitted, to find out whether a half-open circuit may close."""
    REFUSED = "refused"
    COUNTED = "counted"
    """The outcome was counted."""
    LATE = "late"
    """Ignored: the outcome belongs to an earlier epoch, or to a probe that had lost its place."""
    DONE = "done"
    """A manual move, or a request that needs no verdict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """A move of a circuit, as seen by the request that made it."""

    source: CircuitState
    target: CircuitState
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The rules' response to one request. Times are in microseconds, by the clock that decided.

    For a closed circuit that did not move, only state and epoch are set.
    """

    verdict: Verdict
    state: CircuitState
    epoch: int
    now_us: int
    since_us: int = 0
    """When the circuit left the closed state; 0 if it is closed."""
    until_us: int | None = 0
    """When a refused call may try again; ``None``: once someone has closed the circuit."""
    reason: str = ""
    """Why it is open, why it closed, or why the call was refused."""
    transition: Transition | None = None
    """The move that this request made. Only this response reports it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """Whether one call may be made. A permitted call must be reported, however it ends."""

    circuit: str
    policy: BreakerPolicy
    token: str
    answer: Answer
    is_shared: bool
    """Decided by the fleet's shared state; ``False``: by this process alone, because Redis is away."""
    spent_seconds: float
    """How long Redis took to respond; the report's time limit is shorter by this."""

    @property
    def verdict(self) -> Verdict:
        """``ADMITTED``, ``PROBE`` or ``REFUSED``."""
        return self.answer.verdict

    @property
    def is_admitted(self) -> bool:
        """Whether the call may be made, as a probe or otherwise."""
        return self.verdict is not Verdict.REFUSED

    @property
    def is_probe(self) -> bool:
        """Whether the call is a probe. Its token must be renewed while the call lasts."""
        return self.verdict is Verdict.PROBE

    @property
    def since(self) -> datetime | None:
        """When the circuit left the closed state; ``None`` if it is closed."""
        return _moment(self.answer.since_us)

    @property
    def retry_at(self) -> datetime | None:
        """When a refused call may try again, by the clock that decided; ``None``: once someone closes the circuit."""
        return None if self.is_admitted else _moment(self.answer.until_us)

    @property
    def wait_seconds(self) -> float | None:
        """The wait from the decision to that time, in seconds, independent of clock skew."""
        until_us = self.answer.until_us
        return None if self.is_admitted or until_us is None else max(0, until_us - self.answer.now_us) / 1e6

    @property
    def reason(self) -> str:
        """Why the call was refused, or why the circuit is not closed."""
        return self.answer.reason


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitChange:
    """A move of a circuit. Reported in one process only, the one whose request made it."""

    circuit: str
    source: CircuitState
    target: CircuitState
    reason: str
    at: datetime
    """By the clock that decided."""
    until: datetime | None
    """When an open circuit's time is over; ``None`` if it did not open, or opened until someone closes it."""
    epoch: int
    """The epoch that the move started; unique per move of a circuit."""
    is_shared: bool
    """Whether the fleet's shared circuit moved; ``False``: only this process's, because Redis is away."""

    @classmethod
    def of(cls, circuit: str, answer: Answer, move: Transition, *, is_shared: bool) -> CircuitChange:
        """Build the value that listeners receive."""
        return cls(
            circuit=circuit,
            source=move.source,
            target=move.target,
            reason=move.reason,
            at=moment_of(answer.now_us),
            until=_moment(answer.until_us) if move.target is CircuitState.OPEN else None,
            epoch=answer.epoch,
            is_shared=is_shared,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitStatus:
    """The state of a circuit, for people. Microseconds by the clock of Redis."""

    circuit: str
    state: CircuitState
    epoch: int
    now_us: int
    since_us: int
    until_us: int | None
    reason: str
    """Why it last opened or closed."""
    consecutive_failures: int
    failed_probes: int
    probes_under_way: int

    @property
    def at(self) -> datetime:
        """When the state was read."""
        return moment_of(self.now_us)

    @property
    def since(self) -> datetime | None:
        """When it left the closed state; ``None`` if it is closed."""
        return _moment(self.since_us)

    @property
    def retry_at(self) -> datetime | None:
        """Until when it is open; ``None`` if it is closed, half-open, or open until someone closes it."""
        return _moment(self.until_us) if self.state is CircuitState.OPEN else None


def _moment(at_us: int | None) -> datetime | None:
    return moment_of(at_us) if at_us else None

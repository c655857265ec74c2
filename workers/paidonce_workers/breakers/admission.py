"""What callers of the breakers hold in their hands: an ``Admission``, a ``CircuitChange``, a ``CircuitStatus``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from paidonce.policies import BreakerPolicy
from paidonce_models.instants import moment_of
from paidonce_workers.breakers.circuit import Answer, CircuitState, Standing, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """Whether one call may be made. One that is admitted has to be reported, whatever becomes of it."""

    circuit: str
    policy: BreakerPolicy
    token: str
    verdict: Verdict
    """``ADMITTED``, ``PROBE`` or ``REFUSED``."""
    epoch: int
    is_shared: bool
    """Decided by the whole fleet's state; ``False``: by this process alone, because Redis is away."""
    since: datetime | None
    """When the circuit left the closed state; ``None`` if it is closed."""
    retry_at: datetime | None
    """When a refused call may try again, by the clock that decided; ``None``: when somebody closes the circuit."""
    wait_seconds: float | None
    """How long that is from now: free of clocks that differ."""
    reason: str
    """Why it was refused, or why the circuit is not closed."""
    spent_seconds: float
    """How long Redis took to answer; the report takes that less time."""

    @property
    def is_admitted(self) -> bool:
        """Whether the call may be made, as a probe or not."""
        return self.verdict is not Verdict.REFUSED

    @property
    def is_probe(self) -> bool:
        """Whether the call finds out if the circuit may close. Its token has to be renewed while it lasts."""
        return self.verdict is Verdict.PROBE


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitChange:
    """A move of a circuit. Each is told in one process only, the one whose request made it."""

    circuit: str
    source: CircuitState
    target: CircuitState
    reason: str
    at: datetime
    """By the clock that decided."""
    until: datetime | None
    """Until when it is open, if it opened and not for good."""
    epoch: int
    """The epoch that the move began: a number of its own for each move of a circuit."""
    is_shared: bool
    """Whether the whole fleet's circuit moved; ``False``: only this process's, because Redis is away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitStatus:
    """How a circuit stands, for people."""

    circuit: str
    state: CircuitState
    since: datetime | None
    """When it left the closed state."""
    retry_at: datetime | None
    """Until when it is open; ``None`` while closed or half-open, and if it stays open until it is closed by hand."""
    reason: str
    """Why it opened, or closed, the last time."""
    consecutive_failures: int
    failed_probes: int
    probes_under_way: int
    at: datetime
    """When it was looked at, by the clock of Redis."""


def admission_of(
    answer: Answer, circuit: str, policy: BreakerPolicy, token: str, *, is_shared: bool, spent_seconds: float
) -> Admission:
    """What the rules said, with instants that people read."""
    refused = answer.verdict is Verdict.REFUSED
    ends = answer.until_us if refused else None
    return Admission(
        circuit=circuit,
        policy=policy,
        token=token,
        verdict=answer.verdict,
        epoch=answer.epoch,
        is_shared=is_shared,
        since=moment_of(answer.since_us) if answer.since_us else None,
        retry_at=None if ends is None else moment_of(ends),
        wait_seconds=None if ends is None else max(0, ends - answer.now_us) / 1e6,
        reason=answer.reason,
        spent_seconds=spent_seconds,
    )


def change_of(answer: Answer, circuit: str, *, is_shared: bool) -> CircuitChange | None:
    """The move that a request made, if it made one."""
    move = answer.transition
    if move is None:
        return None
    opened_until = answer.until_us if move.target is CircuitState.OPEN else None
    return CircuitChange(
        circuit=circuit,
        source=move.source,
        target=move.target,
        reason=move.reason,
        at=moment_of(answer.now_us),
        until=None if opened_until is None else moment_of(opened_until),
        epoch=answer.epoch,
        is_shared=is_shared,
    )


def status_of(standing: Standing, circuit: str) -> CircuitStatus:
    """For the command line."""
    is_open = standing.state is CircuitState.OPEN
    return CircuitStatus(
        circuit=circuit,
        state=standing.state,
        since=moment_of(standing.since_us) if standing.since_us else None,
        retry_at=moment_of(standing.until_us) if is_open and standing.until_us is not None else None,
        reason=standing.reason,
        consecutive_failures=standing.consecutive,
        failed_probes=standing.failed_probes,
        probes_under_way=standing.probes_under_way,
        at=moment_of(standing.now_us),
    )

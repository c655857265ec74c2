"""The seat of a circuit's state for pybreaker: what was last heard of it, and the way to whoever decides.

pybreaker reads a storage's state and counters and writes them one by one, from
every process, with nothing atomic between. Here the moves are made where the
state is, by one script call for each request; this object keeps the last answer,
so that asking for the state costs nothing, and looks the counters up when asked.
"""

from __future__ import annotations

from datetime import datetime

import pybreaker

from paidonce_models.instants import moment_of
from paidonce_workers.breakers.circuit import Answer, CircuitState
from paidonce_workers.breakers.deciding import Decider


class SharedCircuitStorage(pybreaker.CircuitBreakerStorage):
    """One circuit, as one process sees it. Counters are not written through it: outcomes are reported instead."""

    def __init__(self, circuit: str, decider: Decider) -> None:
        super().__init__(circuit)
        self.decider = decider
        self.last: Answer | None = None
        """What was last heard of the circuit; ``None`` before the first call."""

    @property
    def state(self) -> str:
        """The state as it was at the last call. Never asks Redis."""
        return CircuitState.CLOSED.value if self.last is None else self.last.state.value

    @state.setter
    def state(self, state: str) -> None:
        raise AttributeError(f"the circuit {self.name} is shared: a breaker moves it by open(), close(), half_open()")

    @property
    def counter(self) -> int:
        """Failures in a row, asked for now."""
        standing = self.decider.standing(self.name)
        return 0 if standing is None else standing.consecutive

    @property
    def success_counter(self) -> int:
        """How many calls since the circuit became half-open have succeeded is nobody's business: always 0."""
        return 0

    @property
    def opened_at(self) -> datetime | None:
        """When the circuit left the closed state, as of the last call."""
        return moment_of(self.last.since_us) if self.last is not None and self.last.since_us else None

    @opened_at.setter
    def opened_at(self, datetime: datetime) -> None:
        raise AttributeError(f"the circuit {self.name} is shared: a breaker moves it by open(), close(), half_open()")

"""The decisions of a scenario, read from bytes: 0, and whatever comes after the last, is the undisturbed way."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from hypothesis import strategies as st


class Turn(Enum):
    """What happens next in the fleet."""

    GO_ON = auto()
    """Deliver a message or end a body."""
    DROP = auto()
    """The broker loses a message."""
    DUPLICATE = auto()
    """The broker delivers a message twice."""
    SWEEP = auto()
    """Some seconds pass, leases are renewed, the sweeper makes a round."""
    FREEZE = auto()
    """A body's worker is stopped and misses its heartbeats."""
    THAW = auto()
    """A stopped worker goes on."""
    KILL = auto()
    """A worker dies between two transactions."""
    HAND_BACK = auto()
    """A worker stops gracefully and gives a step back."""
    EVICT = auto()
    """A worker drops its coroutines."""


class Fault(Enum):
    """What happens around a transaction."""

    NONE = auto()
    INTERLEAVE = auto()
    """Something else of the fleet happens first."""
    CRASH = auto()
    """The worker dies here."""
    UNREACHABLE = auto()
    """The store is away, or its acknowledgement is lost."""


_TURNS = [
    (130, Turn.GO_ON),
    (145, Turn.DROP),
    (160, Turn.DUPLICATE),
    (180, Turn.SWEEP),
    (200, Turn.FREEZE),
    (208, Turn.THAW),
    (216, Turn.KILL),
    (224, Turn.HAND_BACK),
    (232, Turn.EVICT),
    (256, Turn.GO_ON),
]
_FAULTS = [(190, Fault.NONE), (230, Fault.INTERLEAVE), (244, Fault.CRASH), (256, Fault.UNREACHABLE)]


@dataclass
class Schedule:
    """Reads decisions one after the other."""

    decisions: bytes
    _position: int = field(default=0, init=False)

    def _next(self) -> int:
        position = self._position
        self._position = position + 1
        return self.decisions[position] if position < len(self.decisions) else 0

    def below(self, count: int) -> int:
        """A number below ``count``."""
        return self._next() % count if count > 1 else 0

    def turn(self) -> Turn:
        """What happens next."""
        decision = self._next()
        return next(turn for bound, turn in _TURNS if decision < bound)

    def fault(self) -> Fault:
        """What goes wrong here."""
        decision = self._next()
        return next(fault for bound, fault in _FAULTS if decision < bound)


schedules = (
    st.sampled_from([0, 16, 48, 48, 120, 120, 300])
    .flatmap(lambda length: st.binary(min_size=length, max_size=length))
    .map(Schedule)
)

"""The reference model behind the same interface as the rules on Redis, with a clock that tests move.

And ``Ledger``, which knows nothing of the model: it keeps every outcome that a
closed circuit counted and says from the list alone whether it has to trip.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers.circuit_state import Answer, CircuitStatus
from paidonce_workers.breakers.outcome import Effect, Outcome
from tests.workers.breakers import model
from tests.workers.breakers.model import Circuit

START_US = 1_795_000_000_123_457


@dataclass
class Clock:
    """Microseconds."""

    us: int = START_US

    def now_us(self) -> int:
        return self.us

    def forward(self, seconds: float) -> None:
        self.us += int(seconds * 1e6)


class Oracle:
    """One circuit under the reference model."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock = clock
        self.name = name
        self.circuit: Circuit | None = None

    def admit(self, policy: BreakerPolicy, *, token: str, token_us: int) -> Answer:
        self.circuit, answer = model.admit(self.circuit, policy, token=token, token_us=token_us, now_us=self.clock.us)
        return answer

    def report(self, policy: BreakerPolicy, *, epoch: int, token: str, outcome: Outcome, chance: float) -> Answer:
        self.circuit, answer = model.report(
            self.circuit,
            policy,
            epoch=epoch,
            token=token,
            outcome=outcome,
            chance=chance,
            now_us=self.clock.us,
        )
        return answer

    def renew(self, tokens: Iterable[str], *, token_us: int) -> bool:
        self.circuit, found = model.renew(self.circuit, tokens, token_us=token_us, now_us=self.clock.us)
        return found

    def open_by_hand(self, *, for_us: int | None, reason: str) -> Answer:
        self.circuit, answer = model.open_by_hand(self.circuit, for_us=for_us, reason=reason, now_us=self.clock.us)
        return answer

    def close_by_hand(self, *, reason: str) -> Answer:
        self.circuit, answer = model.close_by_hand(self.circuit, reason=reason, now_us=self.clock.us)
        return answer

    def reset(self, *, reason: str) -> Answer:
        self.circuit, answer = model.reset(self.circuit, reason=reason, now_us=self.clock.us)
        return answer

    def forget(self) -> None:
        self.circuit = None

    def status(self) -> CircuitStatus | None:
        return None if self.circuit is None else model.status(self.circuit, self.name, now_us=self.clock.us)


@dataclass
class Counted:
    """One outcome that a closed circuit counted."""

    at_us: int
    effect: Effect
    window_seconds: float
    is_in_window: bool = True


@dataclass
class Ledger:
    """What a closed circuit has counted in its present epoch."""

    epoch: int = -1
    counted: list[Counted] = field(default_factory=list)

    def must_trip(self, policy: BreakerPolicy, epoch: int, now_us: int, effect: Effect) -> bool:
        """Write one more outcome down; whether the rules as they are documented open the circuit with it."""
        if epoch != self.epoch:
            self.epoch, self.counted = epoch, []
        if effect is Effect.NEUTRAL:
            return False
        self.counted.append(Counted(now_us, effect, policy.window_seconds))
        tenth_us = int(policy.window_seconds * 1e6) // 10
        mine = [each for each in self.counted if each.window_seconds == policy.window_seconds]
        for each in mine:  # what has left the window does not come back when a clock is set back
            each.is_in_window &= 0 <= now_us // tenth_us - each.at_us // tenth_us < 10
        if effect is Effect.SUCCESS:
            return False
        effects = [each.effect for each in self.counted]
        row = effects[::-1].index(Effect.SUCCESS) if Effect.SUCCESS in effects else len(effects)
        if row >= policy.consecutive_failures:
            return True
        seen = [each.effect for each in mine if each.is_in_window]
        return len(seen) >= policy.min_calls and seen.count(Effect.FAILURE) / len(seen) >= policy.failure_rate

"""The clock of a simulation: it stands still until it is moved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class FakeClock:
    """Microseconds since the epoch, moved by hand and never backwards."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now_us = self._start_us = (start - EPOCH) // timedelta(microseconds=1)

    def now_us(self) -> int:
        """The time in microseconds since the epoch."""
        return self._now_us

    def now(self) -> datetime:
        """The time as an aware datetime."""
        return EPOCH + timedelta(microseconds=self._now_us)

    @property
    def elapsed_seconds(self) -> float:
        """Seconds on the clock since it was created."""
        return (self._now_us - self._start_us) / 1e6

    def advance(self, by: timedelta) -> None:
        """Let time pass."""
        self.advance_to_us(self._now_us + by // timedelta(microseconds=1))

    def advance_to_us(self, at_us: int) -> None:
        """Let time pass until ``at_us``; a past instant changes nothing."""
        self._now_us = max(self._now_us, at_us)

"""Instants as integer microseconds since the epoch, as the store has them, and as aware datetimes; exact both ways."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


def microseconds_of(moment: datetime) -> int:
    """Microseconds since the epoch; ``moment`` needs a time zone."""
    return (moment - EPOCH) // MICROSECOND


def moment_of(microseconds: int) -> datetime:
    """The instant in UTC."""
    return EPOCH + microseconds * MICROSECOND

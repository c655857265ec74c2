"""Lengths of time as people write them: ``500ms``, ``10s``, ``1h30m``, ``7d``, or a plain number of seconds.

Owns reading and writing of such texts; what comes out is always seconds.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from decimal import Decimal
from typing import Final

DURATION_EXAMPLES: Final = "such as 500ms, 10s, 2m, 1h30m, 7d, or a number of seconds"
LONGEST_SECONDS: Final = 3650 * 86_400.0
"""Ten years. Anything longer must be a wrong unit, and would not fit the store's microseconds for ever."""

_UNIT_SECONDS: Final = {
    "d": Decimal(86_400),
    "h": Decimal(3_600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}
_PART: Final = r"\d+(?:\.\d+)?"
# The units from large to small, each at most once.
_DURATION: Final = re.compile("".join(rf"(?:({_PART}){unit})?" for unit in _UNIT_SECONDS), re.ASCII)
_PLAIN: Final = re.compile(_PART, re.ASCII)


def parse_duration(value: object) -> float:
    """Seconds, 0 or more. Takes text, a number of seconds or a ``timedelta``; raises ``ValueError`` for the rest."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= LONGEST_SECONDS else math.inf
    elif isinstance(value, str):
        seconds = _seconds_of(value.strip())
    else:
        raise ValueError(f"a duration {DURATION_EXAMPLES}")
    if not 0 <= seconds <= LONGEST_SECONDS:
        raise ValueError("a duration of 0 or more and at most ten years")
    return seconds


def duration_text(seconds: float) -> str:
    """The text that ``parse_duration`` reads as exactly this number of seconds."""
    exact = Decimal(repr(float(seconds)))
    if exact == 0 or (exact * 1000) % 1:
        return f"{exact.normalize():f}s"
    parts = []
    for unit, unit_seconds in _UNIT_SECONDS.items():
        count, exact = divmod(exact, unit_seconds)
        if count:
            parts.append(f"{count:f}{unit}")
    return "".join(parts)


def _seconds_of(text: str) -> float:
    if _PLAIN.fullmatch(text):
        return float(text)
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        raise ValueError(f"a duration {DURATION_EXAMPLES}")
    counts = zip(found.groups(), _UNIT_SECONDS.values(), strict=True)
    return float(sum(Decimal(count) * unit_seconds for count, unit_seconds in counts if count is not None))

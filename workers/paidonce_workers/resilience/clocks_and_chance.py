"""``Timing``: the clocks, waits and randomness of step execution, passed in where a worker is wired.

A worker process uses the system's. The test kit passes a clock that it moves itself, waits that take no time, and
reproducible random numbers.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from paidonce.usage.call_recorder import wall_clock_us


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """``now_us`` dates calls and errors, in microseconds; ``monotonic`` measures what an attempt takes, in seconds."""

    now_us: Callable[[], int] = wall_clock_us
    monotonic: Callable[[], float] = time.monotonic
    uniform: Callable[[float, float], float] = random.uniform
    sleep: Callable[[float], object] = time.sleep
    """Waits between two tries of a ``def`` tool that is called inside a step."""
    sleep_async: Callable[[float], Awaitable[object]] = asyncio.sleep

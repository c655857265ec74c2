"""``now``, ``uuid`` and ``random``: the same on every replay inside an agent, the real thing elsewhere."""

from __future__ import annotations

import random as _random
import uuid as _uuid
from asyncio.events import _get_running_loop
from datetime import UTC, datetime
from typing import Any


def _machine() -> Any:
    return getattr(_get_running_loop(), "machine", None)


def now() -> datetime:
    """The time as an aware datetime in UTC; in an agent, the time of the event that is being delivered."""
    machine = _machine()
    if machine is None:
        return datetime.now(UTC)
    return datetime.fromtimestamp(machine.loop.time(), UTC)


def uuid() -> _uuid.UUID:
    """A random UUID (version 4); in an agent, drawn from the run's own sequence."""
    machine = _machine()
    if machine is None:
        return _uuid.uuid4()
    return _uuid.UUID(int=machine.random.getrandbits(128), version=4)


def random() -> float:
    """A float in [0, 1); in an agent, drawn from the run's own sequence."""
    machine = _machine()
    if machine is None:
        return _random.random()
    value: float = machine.random.random()
    return value

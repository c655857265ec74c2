"""Waiting for something to become true, in place of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

POLL_SECONDS = 0.02
PATIENCE = 3
"""How many times as long everything may take on a machine that is busy with other work."""


def wait_until(predicate: Callable[[], Value], description: str, timeout: float = 10) -> Value:
    """Call ``predicate`` until it returns something true, and return that.

    ``timeout`` is in seconds on an idle machine. What the predicate raises is raised at once: catch what may go wrong
    for a while inside of it. Raises ``AssertionError`` with the description and the last value when the time is over.
    """
    limit = PATIENCE * timeout
    deadline = time.monotonic() + limit
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit:g} s in vain for this: {description} (last seen: {value!r})")
        time.sleep(POLL_SECONDS)
    return value

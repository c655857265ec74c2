"""The probes in flight in a process, whose places the heartbeat renews.

A step's probe is renewed as long as the heartbeat passes its token, an inline call's as long as its owner is alive: an
interrupt between two lines of ``with`` leaves a guard that is never exited, but nothing references it. There is a limit
even so: otherwise a thread that is stuck in C would keep the whole fleet from finding out that a dependency is back.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterable

LONGEST_SECONDS = 900.0
"""A step's default timeout."""


class ProbesUnderWay:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._probes: dict[str, tuple[str, weakref.ref[object] | None, float]] = {}
        """By token: the circuit, the owner of an inline call, and when the probe began."""

    def begin(self, token: str, circuit: str, *, owner: object | None) -> None:
        """Register a probe: an inline one lives as long as its ``owner``, a step's (``None``) while it is renewed."""
        with self._lock:
            self._probes[token] = (circuit, None if owner is None else weakref.ref(owner), time.monotonic())

    def end(self, token: str) -> None:
        """Remove it. Does nothing for a call that was no probe."""
        with self._lock:
            self._probes.pop(token, None)

    def to_renew(self, tokens: Iterable[str]) -> dict[str, list[str]]:
        """Tokens by circuit: those of all inline calls, and those of steps that are in ``tokens``."""
        named = set(tokens)
        found: dict[str, list[str]] = {}
        with self._lock:
            for token, (circuit, owner, begun_seconds) in list(self._probes.items()):
                is_over = owner is not None and owner() is None
                if is_over or begun_seconds < time.monotonic() - LONGEST_SECONDS:
                    del self._probes[token]
                elif owner is not None or token in named:
                    found.setdefault(circuit, []).append(token)
        return found

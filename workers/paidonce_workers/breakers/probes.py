"""The probes that a process has under way, whose places the heartbeat renews.

A step's probe is renewed as long as the heartbeat names its token, an inline
call's as long as its guard is entered and alive: an interrupt that strikes
between two lines of ``with`` leaves a guard that nobody will ever leave, but
nothing that holds it. Not for ever either: a thread that is stuck in C would
keep the whole fleet from finding out that a dependency is back.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

LONGEST_SECONDS = 900.0
"""A step's default time limit."""


@dataclass(frozen=True, slots=True)
class _Probe:
    circuit: str
    owner: weakref.ref[object] | None
    """What an inline call lives in; ``None`` for a step."""
    begun_seconds: float


class ProbesUnderWay:
    """Safe to use from many threads."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._probes: dict[str, _Probe] = {}
        self._monotonic = monotonic

    def begin(self, token: str, circuit: str, *, owner: object | None) -> None:
        """A probe is under way; an inline one as long as its ``owner`` lives, a step's (``None``) while it is named."""
        probe = _Probe(circuit, None if owner is None else weakref.ref(owner), self._monotonic())
        with self._lock:
            self._probes[token] = probe

    def end(self, token: str) -> None:
        """It is no longer. Does nothing for a call that was no probe."""
        if token not in self._probes:
            return
        with self._lock:
            self._probes.pop(token, None)

    def to_renew(self, tokens: Iterable[str]) -> dict[str, list[str]]:
        """Tokens by circuit: all of inline calls, and those of steps that are named."""
        named = set(tokens)
        oldest = self._monotonic() - LONGEST_SECONDS
        found: dict[str, list[str]] = {}
        with self._lock:
            self._probes = {
                token: probe
                for token, probe in self._probes.items()
                if probe.begun_seconds > oldest and (probe.owner is None or probe.owner() is not None)
            }
            for token, probe in self._probes.items():
                if probe.owner is not None or token in named:
                    found.setdefault(probe.circuit, []).append(token)
        return found

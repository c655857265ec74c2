"""The leases that this process holds: added by a claim, removed when the body ends in any way.

Calls that end after their attempt (in a thread it left behind, or a stream closed
late) are kept here too, until the next heartbeat writes them to that attempt.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial

from paidonce.usage.call_recorder import CallRecorder
from paidonce_models.store.steps.leases import LeaseKey


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldLease:
    """A step that runs here; the heartbeat writes its finished calls."""

    key: LeaseKey
    step_name: str
    recorder: CallRecorder
    probe_tokens: tuple[str, ...] = ()
    """Probe places of this attempt; the heartbeat renews them."""


class HeldLeases:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[LeaseKey, HeldLease] = {}
        self._late: dict[LeaseKey, HeldLease] = {}

    def add(self, lease: HeldLease) -> None:
        """A claim was won."""
        with self._lock:
            self._held[lease.key] = lease

    def remove(self, key: LeaseKey) -> None:
        """The body has ended; does nothing where it was removed before."""
        with self._lock:
            lease = self._held.pop(key, None)
        if lease is not None:
            lease.recorder.end(partial(self._note_late, lease))

    def take_late(self) -> list[HeldLease]:
        """The ended attempts with calls that no completion has written; each is returned once."""
        with self._lock:
            late, self._late = list(self._late.values()), {}
        return late

    def all(self) -> list[HeldLease]:
        """All leases held now."""
        with self._lock:
            return list(self._held.values())

    def holds(self, key: LeaseKey) -> bool:
        """Whether this attempt is still running here."""
        with self._lock:
            return key in self._held

    def _note_late(self, lease: HeldLease) -> None:
        with self._lock:
            self._late[lease.key] = lease

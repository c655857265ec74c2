"""The leases this process holds: put in by a claim, taken out when the body ends in any way.

Calls that end after their attempt (a thread it left behind, a stream closed
late) are kept here too, until the next heartbeat writes them to that attempt.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial

from paidonce.usage import CallRecorder
from paidonce_models.store.leases import LeaseKey


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldLease:
    """A step that runs here; its finished calls travel with the heartbeat."""

    key: LeaseKey
    step_name: str
    recorder: CallRecorder
    probe_tokens: tuple[str, ...] = ()
    """Places of probes that this attempt holds; the heartbeat renews them."""


class HeldLeases:
    """Safe to use from many threads."""

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
        """The ended attempts with calls that no completion took along, each handed out once."""
        with self._lock:
            late, self._late = list(self._late.values()), {}
        return late

    def all(self) -> list[HeldLease]:
        """What is held now."""
        with self._lock:
            return list(self._held.values())

    def holds(self, key: LeaseKey) -> bool:
        """Whether this attempt still runs here."""
        with self._lock:
            return key in self._held

    def _note_late(self, lease: HeldLease) -> None:
        with self._lock:
            self._late[lease.key] = lease

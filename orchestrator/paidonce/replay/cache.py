"""The coroutines that a process keeps in memory; the least recently used are evicted without running their code."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from paidonce.replay.run_replay import Machine
from paidonce.replay.slice_threads import SliceThread
from paidonce_models.store.runs.runs_head import RunHead


@dataclass(slots=True)
class CacheEntry:
    """A run in this process. ``machine`` may be used only by the holder of ``lock``."""

    run_id: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    machine: Machine | None = None
    thread: SliceThread | None = None
    """The thread of all slices of this machine; ``None``: any thread that feeds it."""
    head: RunHead | None = None
    requests: int = 0
    evicted: bool = False
    """This entry is no longer in the cache: a thread that waited for its lock must look the run up again."""

    def drop(self) -> None:
        """Drop the coroutine; the next advance replays it from the event history."""
        machine, self.machine, self.head, self.thread = self.machine, None, None, None
        if machine is not None:
            machine.discard()


class MachineCache:
    """At most ``size`` runs with a coroutine each."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._guard = threading.Lock()
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()

    def entry(self, run_id: str) -> CacheEntry:
        """The run's entry, created if needed; the least recently used idle entries are evicted to make room."""
        evicted: list[CacheEntry] = []
        with self._guard:
            entry = self._entries.get(run_id)
            if entry is None:
                entry = self._entries[run_id] = CacheEntry(run_id)
            self._entries.move_to_end(run_id)
            if len(self._entries) > self._size:
                evicted = self._make_room(keep=run_id)
        for old in evicted:
            old.drop()
            old.lock.release()
        return entry

    def _make_room(self, *, keep: str) -> list[CacheEntry]:
        evicted = []
        for run_id in list(self._entries):
            if len(self._entries) <= self._size:
                break
            old = self._entries[run_id]
            if run_id != keep and old.lock.acquire(blocking=False):
                del self._entries[run_id]
                old.evicted = True
                evicted.append(old)
        return evicted

    def forget(self, run_id: str) -> None:
        """Drop the entry of a run that has ended; the caller holds the entry's lock."""
        with self._guard:
            entry = self._entries.pop(run_id, None)
            if entry is not None:
                entry.evicted = True

    def clear(self) -> None:
        """Drop everything."""
        with self._guard:
            entries, self._entries = list(self._entries.values()), OrderedDict()
        for entry in entries:
            with entry.lock:
                entry.drop()

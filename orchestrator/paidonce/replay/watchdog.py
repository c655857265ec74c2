"""The time limit of a slice.

Owns one thread per process that interrupts an agent which computes and never blocks, in
``while True: pass`` or in an endless ``await sleep(0)``. Must never hit the thread after
the slice has ended, nor cost a slice more than a microsecond: a slice leaves an entry in
a dictionary, and this thread checks the entries a few times per second.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time

from paidonce.replay.forbidden_calls import where_running

LONGEST_LOOK_SECONDS = 0.25
SHORTEST_LOOK_SECONDS = 0.005


class SliceInterrupt(BaseException):
    """Raised in a slice that ran out of time; never leaves ``run_until_blocked``.

    A ``BaseException`` so that the agent's ``except Exception`` does not swallow it.
    """


# NULL. A plain None becomes NULL only as long as no one in the process has declared the function's argument types.


class Watch:
    """One running slice in one thread."""

    __slots__ = ("done", "expired", "limit_seconds", "observed_seconds", "thread_id", "where")

    def __init__(self, thread_id: int, limit_seconds: float) -> None:
        self.thread_id = thread_id
        self.limit_seconds = limit_seconds
        self.observed_seconds: float | None = None
        self.done = False
        self.expired = False
        self.where: tuple[str, int] | None = None


class Watchdog:
    """Interrupts slices that exceed their limit; one per process."""

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._watches: dict[Watch, None] = {}
        self._lock = threading.Lock()
        self._look_again = threading.Event()
        self._look_seconds = LONGEST_LOOK_SECONDS
        self._thread: threading.Thread | None = None

    def begin(self, thread_id: int, limit_seconds: float) -> Watch:
        """Register a slice that starts now."""
        watch = Watch(thread_id, limit_seconds)
        self._watches[watch] = None
        if self._thread is None or limit_seconds < self._look_seconds * 4:
            self._start(limit_seconds)
        return watch

    def end(self, watch: Watch) -> None:
        """The slice is over; when this returns, it can no longer cause an interrupt of the thread.

        The caller has already set ``watch.done``. This is safe without the lock, because the
        two flags are written and read crosswise: the slice sets ``done`` and then reads
        ``expired``, the watchdog sets ``expired`` and then reads ``done``. So either the slice
        sees that it expired and waits for the lock, or the watchdog sees that it is done and
        leaves it alone.
        """
        self._watches.pop(watch, None)
        while watch.expired:
            try:
                with self._lock:
                    _absorb_interrupt(watch.thread_id)
                return
            except SliceInterrupt:
                continue

    def _start(self, limit_seconds: float) -> None:
        with self._lock:
            self._look_seconds = min(self._look_seconds, max(limit_seconds / 4, SHORTEST_LOOK_SECONDS))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="paidonce-slice-watchdog", daemon=True)
                self._thread.start()
        self._look_again.set()

    def _run(self) -> None:
        last_look = time.monotonic()
        while True:
            self._look_again.wait(self._look_seconds)
            self._look_again.clear()
            now = time.monotonic()
            # A process that was suspended, or a machine that slept, wakes up long past every deadline; that time
            # was not the agent's, so a check counts for at most twice its planned duration.
            passed = min(now - last_look, 2 * self._look_seconds)
            last_look = now
            for watch in tuple(self._watches):
                if watch.observed_seconds is None:
                    watch.observed_seconds = 0.0
                    continue
                watch.observed_seconds += passed
                if watch.observed_seconds >= watch.limit_seconds:
                    self._interrupt(watch)

    def _interrupt(self, watch: Watch) -> None:
        with self._lock:
            if not watch.expired:
                watch.where = where_running(sys._current_frames().get(watch.thread_id))
            watch.expired = True
            if not watch.done:
                # Sent again at each check while the agent swallows it.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(watch.thread_id), ctypes.py_object(SliceInterrupt)
                )


def _absorb_interrupt(thread_id: int) -> None:
    """Called by the thread itself: let an interrupt that was sent and has not struck yet strike here.

    Another one replaces it and is waited for. Clearing it with NULL would also work, but
    leaves CPython's eval breaker set for good: every check is slow from then on, and on
    3.11 a profile function makes the thread spin.
    """
    try:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(SliceInterrupt))
        while True:
            pass
    except SliceInterrupt:
        return


watchdog = Watchdog()

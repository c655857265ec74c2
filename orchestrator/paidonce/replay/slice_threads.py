"""The threads that run agents: all slices of a run on the same thread, while this process holds its coroutine.

A library may keep state per thread (``threading.local``, ``threading.get_ident()``, a lock that its owner must release,
a C object that belongs to a thread): in asyncio all tasks share one thread, and such code relies on it. Here any thread
of a worker may receive a run's next event; it passes the slice to the run's own thread and waits for it. A slice may
block its thread for seconds, in C for as long as it likes. A thread that waits behind it gives up after
``PATIENCE_SECONDS`` and replays its run on another thread; a stuck thread gets no new runs and is replaced.

Must never run anything but slices: no statement of the store, no body of a step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")

THREADS = 8
"""Runs compute one at a time anyway; with more threads, fewer runs wait behind one that blocks."""
PATIENCE_SECONDS = 1.0


class ThreadBusy(Exception):
    """The run's thread is occupied by another run's slice, and has not started this one."""


class _Call(Generic[T]):
    """A slice on its way to its thread: whoever acquires ``begun`` runs it, or cancels it."""

    __slots__ = ("act", "begun", "done", "error", "result")

    def __init__(self, act: Callable[[], T]) -> None:
        self.act: Callable[[], T] | None = act
        self.begun = threading.Lock()
        self.done = threading.Lock()
        self.done.acquire()
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Runs in the thread."""
        act, self.act = self.act, None
        if act is None or not self.begun.acquire(blocking=False):
            return
        try:
            self.result = act()
        except BaseException as error:  # noqa: BLE001 - raised where the slice was asked for
            self.error = error
        finally:
            self.done.release()


class SliceThread:
    """One thread, started at its first slice; it ends with the process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[_Call[Any]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._start = threading.Lock()
        self.waiting = 0
        """How many callers wait for it; a hint for choosing a thread."""

    def call(self, act: Callable[[], T], patience_seconds: float = PATIENCE_SECONDS) -> T:
        """Let the thread run it; re-raises its exception. Raises ``ThreadBusy`` if it was not started in time."""
        if self._thread is threading.current_thread():
            return act()
        if self._thread is None:
            self._begin()
        call = _Call(act)
        self.waiting += 1
        try:
            self._calls.put(call)
            if not call.done.acquire(timeout=patience_seconds):
                if call.begun.acquire(blocking=False):
                    raise ThreadBusy
                call.done.acquire()  # it has started: the watchdog makes sure that it ends
        finally:
            self.waiting -= 1
        if call.error is not None:
            try:
                raise call.error
            finally:
                call.error = None  # else the error would keep this frame, and so itself
        return call.result  # type: ignore[return-value]  # set, as there is no error

    def _begin(self) -> None:
        with self._start:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                # Outside the caller's context: what runs in it later belongs to no step.
                Context().run(thread.start)
                self._thread = thread

    def _run(self) -> None:
        get = self._calls.get
        while True:
            get().run()


class SliceThreads:
    """The threads of one process that runs agents from many threads."""

    def __init__(self, count: int = THREADS, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._made = 0
        self._next = 0
        self._threads = [self._make() for _ in range(count)]

    def choose(self) -> SliceThread:
        """The thread for a run that starts or is replayed: an idle one, else the one with fewest waiters."""
        with self._lock:
            self._next = (self._next + 1) % len(self._threads)
            threads = [*self._threads[self._next :], *self._threads[: self._next]]
        return min(threads, key=lambda thread: thread.waiting)

    def call(self, thread: SliceThread, act: Callable[[], T]) -> T:
        """Like ``SliceThread.call``; a thread that is busy for too long gets no new runs."""
        try:
            return thread.call(act, self._patience_seconds)
        except ThreadBusy:
            with self._lock:
                if thread in self._threads:
                    self._threads[self._threads.index(thread)] = self._make()
            raise

    def _make(self) -> SliceThread:
        self._made += 1
        return SliceThread(f"paidonce-slices_{self._made - 1}")

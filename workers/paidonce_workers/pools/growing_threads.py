"""A thread pool whose size can change while it works.

``concurrent.futures.ThreadPoolExecutor`` cannot do that: ``--autoscale``, ``pool_grow`` and ``pool_shrink`` change the
number while the worker runs. A surplus thread ends when it is idle, never in the middle of a call.
Must never lose a submitted call: if the system allows no further thread, the existing ones execute it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

logger = logging.getLogger(__name__)


class GrowingThreads:
    """A pool of threads. Thread-safe, and safe in a signal handler that has interrupted one of its methods."""

    def __init__(self, limit: int, *, name: str) -> None:
        self._limit = limit
        self._name = name
        self._made = 0
        self._idle = 0
        self._shut = False
        self._threads: set[threading.Thread] = set()
        self._waiting: deque[tuple[Future[Any], Callable[..., object], tuple[Any, ...]]] = deque()
        self._changed = threading.Condition(threading.RLock())

    @property
    def count(self) -> int:
        """How many threads there are; they are started on demand."""
        return len(self._threads)

    def submit(self, call: Callable[..., object], *arguments: Any) -> Future[Any]:
        """Let a thread call it. Raises ``RuntimeError`` after ``shutdown``, or if not even one thread can start."""
        future: Future[Any] = Future()
        with self._changed:
            if self._shut:
                raise RuntimeError("the pool accepts no more calls: the worker is stopping")
            self._waiting.append((future, call, arguments))
            try:
                self._serve()
            except RuntimeError:
                self._waiting.remove((future, call, arguments))
                raise
        return future

    def resize(self, limit: int) -> None:
        """Set the maximum number of threads."""
        with self._changed:
            self._limit = limit
            if self._waiting and not self._shut:
                self._serve()
            self._changed.notify_all()

    def shutdown(self) -> None:
        """Accept no more calls and cancel those that have not started; threads end when they are idle."""
        with self._changed:
            self._shut = True
            cancelled = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for future, _, _ in cancelled:
            future.cancel()
            future.set_running_or_notify_cancel()

    def _serve(self) -> None:
        """Wake or start threads for the queue; the caller holds the lock."""
        self._changed.notify(len(self._waiting))
        missing = min(len(self._waiting) - self._idle, self._limit - len(self._threads))
        for _ in range(missing):
            self._made += 1
            thread = threading.Thread(target=self._work, name=f"{self._name}_{self._made - 1}")
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError as error:  # a system limit: processes, a cgroup, memory
                self._threads.discard(thread)
                if not self._threads:
                    raise
                logger.warning(
                    "%s: no further thread can be started (%s); %d do the work of %d",
                    self._name,
                    error,
                    len(self._threads),
                    self._limit,
                    extra={"event": "threads_missing"},
                )
                return

    def _work(self) -> None:
        while True:
            with self._changed:
                while len(self._threads) <= self._limit and not self._waiting and not self._shut:
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                if len(self._threads) > self._limit or not self._waiting:
                    self._threads.discard(threading.current_thread())
                    return
                future, call, arguments = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call(*arguments)
            except BaseException as error:  # noqa: BLE001 - whoever holds the future is told
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, call, arguments

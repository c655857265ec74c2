"""A few threads that ask Redis on behalf of coroutines, and how a thread is begun by one that may be interrupted.

Not asyncio's default executor: user code may fill that one with work of its own
(``asyncio.to_thread``), and an admission would wait behind it. Not an executor
of ``concurrent.futures`` either: whoever submits may be struck by an interrupt
at any bytecode (``interrupt``), and a lock that is taken in Python code, as
every ``threading.Condition`` is, would then stay locked for ever. Here callers
touch only what takes and frees its lock in C: ``threading.Lock`` and
``queue.SimpleQueue``.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

HOW_MANY = 4
CLOSING_SECONDS = 2.0
"""Longer than any request to Redis may take."""


def begin_thread(act: Callable[[], object], name: str) -> None:
    """Run ``act`` in a daemon thread, begun in one step that an interrupt cannot cut in two.

    ``Thread.start`` waits for an event of the new thread's, which would hang if that wait was interrupted: so a bare
    thread does it. Raises ``RuntimeError`` if there can be no more threads.
    """

    def start() -> None:
        threading.Thread(target=act, name=name, daemon=True).start()

    _thread.start_new_thread(start, ())


class OwnThreads:
    """Begun as they are needed, ``HOW_MANY`` at most; for one process. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._serving = 0
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()

    def submit(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do it soon, in another thread. The future is for callbacks and for asyncio, not to be waited for."""
        future: Future[T] = Future()
        # Whoever adds a callback may be interrupted, too, and a thread of ours would hang at setting the result.
        future._condition = _Latch()  # as much of a condition as callbacks need

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = act(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is the future's
                future.set_exception(error)
            else:
                future.set_result(result)

        if self._serving < HOW_MANY:
            self._begin()
        self._work.put(work)
        return future

    def close(self) -> None:
        """End the threads once they have done what was submitted."""
        with self._lock:
            serving = self._serving
            for _ in range(serving):
                self._work.put(None)
        try:
            for _ in range(serving):
                self._ended.get(timeout=CLOSING_SECONDS)
        except Empty:
            return  # stuck; it is a daemon

    def _begin(self) -> None:
        begin_thread(self._serve, "paidonce-breakers")

    def _serve(self) -> None:
        with self._lock:
            if self._serving >= HOW_MANY:
                return  # several callers began one at once
            self._serving += 1
        while (work := self._work.get()) is not None:
            work()
            del work  # or the result of the last would be kept until the next
        with self._lock:
            self._serving -= 1
        self._ended.put(None)
        if not self._work.empty():
            self._begin()  # submitted while this one was counted as serving


class _Latch(type(threading.RLock())):  # type: ignore[misc]  # its class has no public name
    """A lock in C in place of a future's condition, for which nobody waits."""

    def notify_all(self) -> None:
        """There is nobody."""

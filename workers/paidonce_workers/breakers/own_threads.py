"""The threads of a process's breakers: who begins them, and a few that ask Redis on behalf of coroutines.

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
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import ParamSpec, TypeVar

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

HOW_MANY = 4
NAME = "paidonce-breakers"
CLOSING_SECONDS = 2.0
"""Longer than any request to Redis may take."""

Begin = Callable[[Callable[[], object], str], None]
"""Runs something in a daemon thread of this name, soon."""


class ThreadStarter:
    """Begins threads in a thread that is not interrupted. Safe to use from many threads.

    Until CPython 3.12 a new thread counts for a moment as the one that begins it, and takes the interrupt that was
    meant for that one: it dies, and whoever waits in ``Thread.start`` waits for ever. Only the first beginning is
    exposed to that; nobody waits for it, and the next order repeats it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_serving = False
        self._was_asked = False
        self._orders: SimpleQueue[tuple[Callable[[], object], str] | None] = SimpleQueue()

    def start(self) -> None:
        """Begin now rather than with the first order. Raises nothing."""
        if self._is_serving:
            return
        self._was_asked = True
        try:
            _thread.start_new_thread(_begin_thread, (self._serve, "paidonce-breakers-threads"))
        except RuntimeError:
            return  # no more threads: the next order tries again

    def begin(self, act: Callable[[], object], name: str) -> None:
        """Run ``act`` in a daemon thread, soon. Waits for nothing and raises nothing."""
        self.start()
        self._orders.put((act, name))

    def close(self) -> None:
        """No more orders are expected; the threads that were begun end as they like."""
        if self._was_asked:
            self._orders.put(None)

    def _serve(self) -> None:
        with self._lock:
            if self._is_serving:
                return  # several callers began it at once
            self._is_serving = True
        while (order := self._orders.get()) is not None:
            try:
                _begin_thread(*order)
            except RuntimeError as error:
                log.warning("no thread for circuits: %s", error, extra={"event": "breaker_thread_missing"})
            del order
        self._is_serving = False
        if not self._orders.empty():
            self.start()  # ordered while this one was ending


def _begin_thread(act: Callable[[], object], name: str) -> None:
    threading.Thread(target=act, name=name, daemon=True).start()


class OwnThreads:
    """Begun as they are needed, ``HOW_MANY`` at most; for one process. Safe to use from many threads."""

    def __init__(self, begin: Begin) -> None:
        self._begin_thread = begin
        self._lock = threading.Lock()
        self._serving = 0
        self._is_closed = False
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

        if self._serving < HOW_MANY and not self._is_closed:
            self._begin_thread(self._serve, NAME)
        self._work.put(work)
        if self._is_closed:  # it may lie behind the last word for the last thread
            self._begin_thread(self._do_what_is_left, NAME)
        return future

    def close(self) -> None:
        """End the threads once they have done what was submitted. What is submitted later is still done."""
        with self._lock:
            serving = 0 if self._is_closed else self._serving
            self._is_closed = True  # a thread that was ordered and begins only now must take no other's last word
            for _ in range(serving):
                self._work.put(None)
        try:
            for _ in range(serving):
                self._ended.get(timeout=CLOSING_SECONDS)
        except Empty:
            return  # stuck; it is a daemon

    def _serve(self) -> None:
        with self._lock:
            is_one_too_many = self._serving >= HOW_MANY or self._is_closed  # several callers began one at once
            self._serving += not is_one_too_many
        if is_one_too_many:
            if self._is_closed:
                self._do_what_is_left()
            return
        while (work := self._work.get()) is not None:
            work()
            del work  # or the result of the last would be kept until the next
        with self._lock:
            self._serving -= 1
            is_last = self._serving == 0
        if is_last:
            self._do_what_is_left()
        self._ended.put(None)

    def _do_what_is_left(self) -> None:
        """Once it is closed: what was submitted behind the last words, which stay for the threads that wait."""
        while True:
            try:
                work = self._work.get_nowait()
            except Empty:
                return
            if work is None:
                self._work.put(None)
                return
            work()


class _Latch(type(threading.RLock())):  # type: ignore[misc]  # its class has no public name
    """A lock in C in place of a future's condition, for which nobody waits."""

    def notify_all(self) -> None:
        """There is nobody."""

"""Runs every slice of an agent in a new thread: shows at once what depends on the thread it runs in.

A worker keeps a run's slices on one thread, as asyncio does; but another process that continues the run has other
threads, which have this run's thread-local state and not that of others. For tests only.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

from paidonce.replay.slice_threads import SliceThread, SliceThreads

T = TypeVar("T")


class MovingSlices(SliceThreads):
    """Replaces the threads of a worker: no two slices share one."""

    def __init__(self) -> None:
        super().__init__(count=1)

    def call(self, thread: SliceThread, act: Callable[[], T]) -> T:
        """Run it in a new thread, in the caller's context."""
        del thread
        return in_new_thread(act)


def in_new_thread(act: Callable[[], T]) -> T:
    """Run it in a new thread; returns or raises what it does."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(act())
        except BaseException as error:  # noqa: BLE001 - raised in the caller
            errors.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="paidonce-testing")
    thread.start()
    thread.join()
    if errors:
        raise errors.pop()
    return results[0]

"""Every slice of an agent in a thread of its own: what depends on the thread that it runs in shows at once.

A worker keeps a run's slices on one thread, as asyncio does; but another process that goes on with the run has other
threads, which know what this run has put there and not what others did. For tests only.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

from paidonce.replay.slice_threads import SliceThread, SliceThreads

T = TypeVar("T")


class MovingSlices(SliceThreads):
    """Stands for the threads of a worker: no two slices meet in one."""

    def __init__(self) -> None:
        super().__init__(count=1)

    def call(self, thread: SliceThread, act: Callable[[], T]) -> T:
        """Run it in a new thread, in the caller's context."""
        del thread
        return in_new_thread(act)


def in_new_thread(act: Callable[[], T]) -> T:
    """What it returns or raises, once a thread of its own has done it."""
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

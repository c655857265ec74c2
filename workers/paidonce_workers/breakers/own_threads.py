"""A few threads that ask Redis on behalf of coroutines.

Not asyncio's default executor: user code may fill that one with work of its own
(``asyncio.to_thread``), and an admission would wait behind it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

HOW_MANY = 4


class OwnThreads:
    """Made at first use; one for each process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def submit(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do it soon, in another thread."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(HOW_MANY, thread_name_prefix="paidonce-breakers")
            return self._executor.submit(act, *args, **kwargs)

    def close(self) -> None:
        """End the threads once they have done what was submitted."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()

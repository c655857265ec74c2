"""File locks between processes, and waiting for a condition with a limit.

Owns the use of ``flock``. The lock belongs to the open file: a child that inherits the descriptor keeps it after the
parent has closed its own, which is how the embedded server shows that it is alive. Never used by replay.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

_POLL_SECONDS = 0.02


class FileLock:
    """An exclusive lock on a file, between processes and between threads of one process."""

    def __init__(self, path: Path) -> None:
        self.descriptor: int = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self, *, timeout_seconds: float) -> bool:
        """Take the lock; ``False`` if it is still held by another when the time is over (0 tries once)."""
        return poll(self._try, timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release it, unless a child process has inherited the lock."""
        os.close(self.descriptor)

    def _try(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def poll(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    """Poll until the condition holds; returns its last value when the time is over."""
    end = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() >= end:
            return condition()
        time.sleep(_POLL_SECONDS)
    return True

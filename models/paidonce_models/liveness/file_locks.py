"""A lock on a file beside an SQLite store, held while its process is alive.

A POSIX record lock, because it belongs to the process: the kernel drops it when the process ends, and a forked child
neither inherits it nor keeps it alive. Closing *any* descriptor of the file drops it, so only this module opens these
files, and never opens a file of its own process twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Final

from paidonce_models.privacy.private_files import make_private_folder

_FOLDER_SUFFIX: Final = ".witnesses"
_held_here: dict[Path, int] = {}
"""The locks of this process: asked about one of them, the kernel would report no conflict."""


def _forget_after_fork() -> None:
    # The descriptors stay open in the child, where they hold no lock; closing them there would change nothing.
    _held_here.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def _path_of(store: Path, worker: str) -> Path:
    return Path(f"{store}{_FOLDER_SUFFIX}") / hashlib.sha256(worker.encode()).hexdigest()[:32]


class FileLock:
    """The lock of one worker process on one store."""

    def __init__(self, store: Path, worker: str) -> None:
        self._path = _path_of(store, worker)

    @property
    def is_held(self) -> bool:
        """Whether this process holds it."""
        return self._path in _held_here

    def acquire(self) -> None:
        """Take it. Raises ``OSError`` if the file system has no locks or no space."""
        make_private_folder(self._path.parent)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        _held_here[self._path] = descriptor

    def release(self) -> None:
        """Release it and remove the file."""
        descriptor = _held_here.pop(self._path, None)
        if descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(descriptor)


def file_lock_is_held(store: Path, worker: str) -> bool | None:
    """Whether the worker's process holds its lock; ``None`` if there is no file to check."""
    path = _path_of(store, worker)
    if path in _held_here:
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared, so that two simultaneous checks do not take each other for the owner.
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove_lock_file(store: Path, worker: str) -> None:
    """Remove the file of a worker whose process has ended."""
    _path_of(store, worker).unlink(missing_ok=True)

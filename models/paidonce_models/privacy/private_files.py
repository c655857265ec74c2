"""Files and folders that only their owner can read, whatever the umask.

Owns the modes of everything that Paidonce writes to disk: the SQLite store and the files beside it, the home, logs,
locks, the embedded broker's files. A file gets its mode when it is created, never afterwards, so that others can never
open it. An existing file that is open to others is tightened once, with a line in the log; one that belongs to another
user is left alone, with another line. A folder that Paidonce did not create, other than its home, is never changed: it
may be ``/tmp``.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from pathlib import Path
from typing import Final

from paidonce_models.privacy.visible_text import visible

PRIVATE_FILE: Final = 0o600
PRIVATE_FOLDER: Final = 0o700
_OTHERS: Final = 0o077

log = logging.getLogger(__name__)


def make_private_folder(folder: Path, *, is_ours: bool = False) -> None:
    """Create a folder and its missing parents for this user alone.

    ``is_ours``: the folder itself belongs to Paidonce, so an existing one is tightened. Raises ``OSError``.
    """
    missing = []
    each = folder.absolute()
    while not each.exists():
        missing.append(each)
        each = each.parent
    for each in reversed(missing):
        try:
            each.mkdir(mode=PRIVATE_FOLDER)  # a umask can only remove permissions
        except FileExistsError:
            continue  # another process was faster, and gave it the same mode
    if not folder.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(folder))
    if is_ours:
        tighten(folder)


def create_private_file(path: Path | str) -> None:
    """Create the file, empty and private, if it does not exist. Raises ``OSError``.

    An existing file is not even opened: closing it would drop this process's SQLite locks on it.
    """
    with _creating:  # no thread takes a lock on the new file before it is closed here
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE))
        except FileExistsError:
            return


def private_opener(path: str, flags: int) -> int:
    """An ``opener`` for ``open``: a file that it creates is private from the start."""
    return os.open(path, flags, PRIVATE_FILE)


def tighten(path: Path | str, *beside: Path | str) -> None:
    """Remove the permissions of all other users from a file or folder and from those ``beside`` it; logs it once."""
    changed, refused = [], ""
    for each in (path, *beside):
        try:
            mode = os.lstat(each).st_mode
            if not mode & _OTHERS or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _is_shared(Path(each), mode):
                continue
            os.chmod(each, stat.S_IMODE(mode) & ~_OTHERS)
            changed.append(str(each))
        except FileNotFoundError:
            continue
        except OSError as error:
            refused = error.strerror or type(error).__name__
    if changed:
        log.warning(
            "%s could be read by other users; its permissions were tightened",
            visible(", ".join(changed)),
            extra={"event": "files_tightened"},
        )
    if refused and str(path) not in _told:
        _told.add(str(path))
        log.warning(
            "%s can be read by other users, and its permissions cannot be changed (%s); let its owner run `chmod go=`",
            visible(str(path)),
            refused,
            extra={"event": "files_open_to_others"},
        )


def _is_shared(path: Path, mode: int) -> bool:
    """A folder that holds more than Paidonce's files, even if it is configured as the home: ``/tmp``, a user's own."""
    if not stat.S_ISDIR(mode):
        return False
    return bool(mode & stat.S_ISVTX) or path.absolute() in (Path("/"), Path.cwd(), _home_of_user())


def _home_of_user() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and a user without an entry in the password database
        return None


_creating = threading.Lock()
os.register_at_fork(after_in_child=_creating._at_fork_reinit)  # type: ignore[attr-defined]  # as the stdlib does
_told: set[str] = set()
"""What could not be tightened and was already logged by this process."""

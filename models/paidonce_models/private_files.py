"""Files and folders that only their owner can read, whatever the umask.

Owns the modes of everything that Paidonce puts on a disk: the SQLite store and what SQLite makes beside it, the home,
logs, locks, the embedded broker's files. A file gets its mode as it is created, never afterwards, so there is no
moment in which others could open it. What exists already and is open to others is tightened once, with a line in the
log; what belongs to somebody else is left as it is, with another. A folder that Paidonce did not make, other than
its home, is never touched: it may be ``/tmp``.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from pathlib import Path
from typing import Final

from paidonce_models.visible_text import visible

PRIVATE_FILE: Final = 0o600
PRIVATE_FOLDER: Final = 0o700
_OTHERS: Final = 0o077

log = logging.getLogger(__name__)


def make_private_folder(folder: Path, *, is_ours: bool = False) -> None:
    """Create a folder, and those above it that are missing, for this user alone.

    ``is_ours`` says that the folder itself belongs to Paidonce: one that exists is tightened. Raises ``OSError``.
    """
    missing = []
    each = folder.absolute()
    while not each.exists():
        missing.append(each)
        each = each.parent
    for each in reversed(missing):
        try:
            each.mkdir(mode=PRIVATE_FOLDER)  # a umask can only take rights away
        except FileExistsError:
            continue  # another process was faster, and gave it the same mode
    if not folder.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(folder))
    if is_ours:
        tighten(folder)


def create_private_file(path: Path | str) -> None:
    """Create the file, empty and private, where there is none. Raises ``OSError``.

    An existing file is not even opened: closing it would drop the locks that SQLite holds on it in this process.
    """
    with _creating:  # nobody takes a lock on the new file before it is closed here
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE))
        except FileExistsError:
            return


def private_opener(path: str, flags: int) -> int:
    """An ``opener`` for ``open``: a file that it creates is private from the first moment on."""
    return os.open(path, flags, PRIVATE_FILE)


def tighten(path: Path | str, *beside: Path | str) -> None:
    """Take the rights of everybody else from a file or folder, and from those ``beside`` it; tells of it once."""
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
            "%s could be read by other users, and cannot any more",
            visible(", ".join(changed)),
            extra={"event": "files_tightened"},
        )
    if refused and str(path) not in _told:
        _told.add(str(path))
        log.warning(
            "%s can be read by other users, which cannot be changed (%s); let its owner take their rights with "
            "`chmod go=`",
            visible(str(path)),
            refused,
            extra={"event": "files_open_to_others"},
        )


def _is_shared(path: Path, mode: int) -> bool:
    """A folder that holds more than Paidonce's files, even if it was named as the home: ``/tmp``, a user's own."""
    if not stat.S_ISDIR(mode):
        return False
    return bool(mode & stat.S_ISVTX) or path.absolute() in (Path("/"), Path.cwd(), _home_of_user())


def _home_of_user() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and a user whom nobody has listed
        return None


_creating = threading.Lock()
os.register_at_fork(after_in_child=_creating._at_fork_reinit)  # type: ignore[attr-defined]  # as the stdlib does
_told: set[str] = set()
"""What could not be tightened and of which this process has spoken."""

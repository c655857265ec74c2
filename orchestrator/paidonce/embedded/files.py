"""The files of one home's embedded Valkey: its data, log, locks and socket.

Owns the choice of the socket's path. A unix socket's path may hold about 100 bytes (104 on macOS, 108 on Linux) and
kombu reads it out of a URL, so a deep home or one with unusual characters gets a socket in a folder per user under
the temporary folder. The choice is recorded in the home, because another process of the same home may have
another temporary folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from paidonce_models.errors import BrokerUnreachable
from paidonce_models.privacy.private_files import make_private_folder, private_opener

MAX_SOCKET_PATH_BYTES = 100
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+@-]+")
_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True)
class EmbeddedFiles:
    """Paths below ``home``; reading one never creates anything."""

    home: Path

    @property
    def folder(self) -> Path:
        """Where the server runs and keeps its append-only files."""
        return self.home.absolute() / "valkey"

    @property
    def start_lock(self) -> Path:
        """Held while one process starts or stops the server."""
        return self.folder / "start.lock"

    @property
    def alive_lock(self) -> Path:
        """Held by the server itself as long as it lives."""
        return self.folder / "alive.lock"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.folder / "valkey.log"

    def create(self) -> None:
        """Create the folder, readable by this user only: anyone who reaches the socket may do anything."""
        try:
            make_private_folder(self.folder, is_ours=True)
        except OSError as error:
            raise BrokerUnreachable(
                f"the embedded Valkey needs the folder {self.folder}: {error.strerror}; set PAIDONCE_HOME to a folder "
                "that can be written, or PAIDONCE_BROKER_URL to a server"
            ) from None

    def recorded_socket(self) -> Path | None:
        """The socket that the last start chose, or ``None`` before the first."""
        text = _read(self.folder / "socket")
        return Path(text) if text else None

    def recorded_pid(self) -> int | None:
        """The process id the server wrote; meaningful only while ``alive_lock`` is held."""
        text = _read(self.folder / "valkey.pid")
        return int(text) if text.isdigit() else None

    def choose_socket(self) -> Path:
        """Choose the socket's path, record it and remove what a dead server left there. Under the start lock."""
        path = self.folder / "valkey.sock"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES or not _PLAIN_PATH.fullmatch(str(path)):
            path = _runtime_folder() / f"{hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:20]}.sock"
        path.unlink(missing_ok=True)
        record = self.folder / "socket"
        fresh = record.with_suffix(".new")
        with open(fresh, "w", encoding="utf-8", opener=private_opener) as text:
            text.write(f"{path}\n")
        fresh.replace(record)
        return path

    def end_of_log(self) -> str:
        """The last lines of the log on one line, for an error message."""
        return " | ".join(_read(self.log)[-_LOG_TAIL_BYTES:].splitlines()[-4:]) or "nothing"


def _runtime_folder() -> Path:
    """A short folder that belongs to this user. Refused if another user created it, who could listen in our place."""
    for parent in (Path(tempfile.gettempdir()), Path("/tmp")):
        folder = parent / f"paidonce-{os.getuid()}"
        if len(os.fsencode(folder)) + 26 > MAX_SOCKET_PATH_BYTES or not _PLAIN_PATH.fullmatch(str(folder)):
            continue
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise BrokerUnreachable(f"{folder} must be a folder that only user {os.getuid()} can enter; remove it")
        return folder
    raise BrokerUnreachable("no temporary folder has a path short enough for a socket; set TMPDIR to a short one")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

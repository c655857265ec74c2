"""Ends embedded servers whose home was removed while they ran.

Such a server serves a socket without a name and files that no longer exist; nothing can reach it, and starting again in
the same home would leave it running for good. On Linux, ``/proc`` shows its removed working folder, which also proves
that it is ours. Elsewhere it stays until the machine restarts or a person ends it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_PROCESSES = Path("/proc")
_SERVER_NAME = "valkey-server"


def end_orphans(folder: Path) -> int:
    """Kill every server of this user that ran in ``folder`` before it was removed; returns how many."""
    removed = f"{folder.resolve()} (deleted)"
    found = [int(entry.name) for entry in _PROCESSES.glob("[0-9]*") if _runs_in(entry, removed)]
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)  # nothing to save: its files are gone
        except ProcessLookupError:
            pass  # it ended by itself
    return len(found)


def _runs_in(process: Path, folder: str) -> bool:
    try:
        return os.readlink(process / "cwd") == folder and (process / "exe").readlink().name == _SERVER_NAME
    except OSError:
        return False  # gone, or another user's

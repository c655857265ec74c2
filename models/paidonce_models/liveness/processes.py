"""Whether a process of this host is alive, according to the operating system."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_PROC = Path("/proc")
_DEAD_STATES = frozenset("ZXx")


def this_place() -> str:
    """The host, its boot and its PID namespace: processes that share all three see each other under their PIDs.

    On systems other than Linux, the host's name alone.
    """
    if not _proc_is_ours():
        return socket.gethostname()
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()[:100]} {boot} {namespace}"


def start_of(pid: int) -> str:
    """When the process started, in the kernel's own unit, to distinguish it from a later one with the same PID.

    Empty if the operating system does not report it.
    """
    fields = _stat(pid)
    return "" if fields is None else fields[19]


def process_is_alive(pid: int, started: str) -> bool | None:
    """Whether the process that started then still runs; ``None`` if that cannot be known.

    A zombie counts as dead: it holds nothing and does nothing any more.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    fields = _stat(pid)
    if fields is None:
        return None if started else True
    if fields[0] in _DEAD_STATES:
        return False
    return not started or fields[19] == started


def _proc_is_ours() -> bool:
    """Whether ``/proc`` shows processes under our PIDs; inside a namespace it may belong to another one."""
    try:
        return os.readlink(_PROC / "self") == str(os.getpid())
    except OSError:
        return False


def _stat(pid: int) -> list[str] | None:
    """State, parent and so on: the fields behind the name of the program, which may hold spaces and brackets."""
    if not _proc_is_ours():
        return None
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()

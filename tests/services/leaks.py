"""Fails a test that leaves a process or a non-daemon thread behind, and ends what it left.

A process is this test's if it is a descendant of pytest, if it was started with this session's mark in its
environment (which finds detached ones), or if it works in a folder of this session (which finds servers that
overwrite their environment, as Valkey does). Servers that live as long as the session are known by their pid.
"""

import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.services import fork_server
from tests.services.waiting import wait_until

SESSION_MARK = "TEST_SESSION_MARK"
GRACE_SECONDS = 10.0


@pytest.fixture(scope="session", autouse=True)
def session_mark() -> str:
    """Inherited by every process that a test starts."""
    mark = uuid.uuid4().hex
    os.environ[SESSION_MARK] = mark
    return mark


@pytest.fixture(scope="session")
def session_servers() -> set[int]:
    """Pids of servers that outlive a test; whoever starts one adds it."""
    return set()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(
    session_mark: str, session_servers: set[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Set up before and checked after all other fixtures of the test."""
    pids_before = set(psutil.pids())
    threads_before = set(threading.enumerate())
    folder = tmp_path_factory.getbasetemp()

    def leaked_processes() -> list[psutil.Process]:
        new_pids = set(psutil.pids()) - pids_before - session_servers
        return [process for pid in new_pids if (process := _ours(pid, session_mark, session_servers, folder))]

    def leaked_threads() -> list[threading.Thread]:
        return [t for t in set(threading.enumerate()) - threads_before if t.is_alive() and not t.daemon]

    yield

    try:
        wait_until(lambda: not leaked_processes() and not leaked_threads(), "everything has ended", GRACE_SECONDS)
    except AssertionError:
        processes = leaked_processes()
        left = [_describe_and_kill(process) for process in processes]
        left += [f"thread {thread.name}" for thread in leaked_threads()]
        if left:
            pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


def _ours(pid: int, mark: str, session_servers: set[int], folder: Path) -> psutil.Process | None:
    """The running process if it belongs to this session's tests, not to one of the session's servers."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or _lives_as_long_as_pytest(process):
            return None
        ancestors = {parent.pid for parent in process.parents()}
        if ancestors & session_servers:
            return None
        if os.getpid() in ancestors or _works_in(process, folder):
            return process
        return process if process.environ().get(SESSION_MARK) == mark else None
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return None  # gone meanwhile, or another user's: not ours


def _works_in(process: psutil.Process, folder: Path) -> bool:
    """False as well if we may not know."""
    try:
        return Path(process.cwd()).is_relative_to(folder)
    except psutil.AccessDenied:
        return False


def _lives_as_long_as_pytest(process: psutil.Process) -> bool:
    """multiprocessing's own keeper, and the server that forks the tests' processes; what that has forked does not."""
    if any("multiprocessing.resource_tracker" in part for part in process.cmdline()):
        return True
    return process.ppid() == os.getpid() and fork_server.__name__ in process.cmdline()


def _describe_and_kill(process: psutil.Process) -> str:
    try:
        line = f"process {process.pid}: {' '.join(process.cmdline()) or process.name()}"
        process.kill()
        return line
    except psutil.NoSuchProcess:
        return f"process {process.pid}, which ended late"

"""Python processes that begin with everything imported: a server that has imported it forks for each.

A process that only starts and imports costs a second of CPU; most tests of commands and workers are over before that.
What such a process does from then on is what ``python -m MODULE`` does, in a process of its own: its own environment,
folder, standard streams, signals and end. It is a child of the server, so its end is told over a pipe.

What a fork cannot change is left to real processes: the interpreter's flags, and the order of imports. What happens
while an interpreter is taken apart does not happen here either.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import faulthandler
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LARGEST_REQUEST_BYTES = 1_000_000


# -- the side of the tests -------------------------------------------------------------------------------------


class ForkedProcess:
    """A process that the server has forked; the part of ``subprocess.Popen`` that tests use."""

    def __init__(self, pid: int, ended: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = ended

    def poll(self) -> int | None:
        """How it ended; ``None`` while it runs."""
        return self._read(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises ``subprocess.TimeoutExpired``."""
        code = self._read(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to it, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _read(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            readable, _, _ = select.select([self._ended], [], [], timeout)
            if not readable:
                return None
            told = os.read(self._ended, 32)
            os.close(self._ended)
            self.returncode = int(told or b"-9")  # the server died: it was killed with its children
        return self.returncode


def start(
    module: str,
    arguments: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    stdin: int | None = None,
    stdout: int,
    stderr: int,
    new_session: bool = False,
) -> ForkedProcess:
    """Begin ``python -m module arguments…`` in a folder, with this environment and these descriptors."""
    return _server().start(module, arguments, folder, environment, stdin, stdout, stderr, new_session)


@functools.cache
def _server() -> _Server:
    return _Server()


class _Server:
    """The server of this process; it ends with it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PAIDONCE_")}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.services.fork_server", str(theirs.fileno())],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        self._socket = ours
        self._owner = os.getpid()
        atexit.register(self._stop)

    def _stop(self) -> None:
        if os.getpid() == self._owner:
            self._socket.close()
            self._process.wait()

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        stdin: int | None,
        stdout: int,
        stderr: int,
        new_session: bool,
    ) -> ForkedProcess:
        assert os.getpid() == self._owner, "a fork of the tests must not talk to their server"
        ended, ends = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        request = json.dumps([module, list(arguments), str(folder), dict(environment), new_session]).encode()
        assert len(request) < LARGEST_REQUEST_BYTES
        descriptors = array.array("i", [nothing if stdin is None else stdin, stdout, stderr, ends])
        try:
            self._socket.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        finally:
            os.close(nothing)
            os.close(ends)
        return ForkedProcess(int(self._socket.recv(32)), ended)


# -- the side of the server ------------------------------------------------------------------------------------


@dataclass
class _Request:
    module: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]
    new_session: bool
    streams: list[int]
    ends: int


def _serve(connection: socket.socket) -> _Request | None:
    """Fork for each request; returns in each child with what it is to do, and ``None`` when nobody asks any more."""
    children: dict[int, int] = {}
    woken, wakes = os.pipe()
    for descriptor in (woken, wakes):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        readable, _, _ = select.select([connection, woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
            _tell_ends(children)
        if connection not in readable:
            continue
        request = _receive(connection)
        if request is None:
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for descriptor in (woken, wakes, request.ends, *children.values()):
                os.close(descriptor)
            connection.close()
            return request
        children[pid] = request.ends
        for descriptor in request.streams:
            os.close(descriptor)
        connection.send(str(pid).encode())


def _receive(connection: socket.socket) -> _Request | None:
    descriptors = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(LARGEST_REQUEST_BYTES, socket.CMSG_SPACE(4 * descriptors.itemsize))
    if not data:
        return None
    for _, _, given in ancillary:
        descriptors.frombytes(given[: len(given) - len(given) % descriptors.itemsize])
    module, arguments, folder, environment, new_session = json.loads(data)
    *streams, ends = descriptors
    return _Request(module, arguments, folder, environment, new_session, streams, ends)


def _tell_ends(children: dict[int, int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        ends = children.pop(pid)
        os.write(ends, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(ends)


def _become(request: _Request) -> None:
    """Everything that a new interpreter would have from outside."""
    if request.new_session:
        os.setsid()
    for target, descriptor in enumerate(request.streams):
        os.dup2(descriptor, target)
    for descriptor in request.streams:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request.environment)
    time.tzset()
    os.chdir(request.folder)
    sys.path[0] = request.folder
    sys.path[1:1] = [entry for entry in request.environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.dont_write_bytecode = bool(request.environment.get("PYTHONDONTWRITEBYTECODE"))
    if request.environment.get("PYTHONWARNINGS") != "ignore":
        warnings.resetwarnings()
    if request.environment.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()
    sys.argv = [request.module, *request.arguments]


def _import_everything() -> None:
    """What commands and workers import; nothing of it starts a thread or opens a connection."""
    import psycopg  # noqa: F401

    import paidonce_workers.startup.worker_app  # noqa: F401
    from paidonce.cli.program import COMMANDS, command_of

    for name in COMMANDS:
        if name != "drill":  # its agents would be everybody's
            command_of(name)


def _main() -> None:
    _import_everything()
    gc.collect()
    gc.freeze()
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        _become(request)
        _end_with(_run(request.module))


def _run(module: str) -> object:
    """What its ``SystemExit`` or its end says; ``-SIGINT`` if it let that through."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code
    except BaseException as error:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end_with(code: object) -> None:
    """As an interpreter ends, but for taking all modules apart: in a fork that copies each page of them first."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        code = 120
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    _main()

"""A host process, seen from its worker: start it, send it orders, drain it, and notice its death.

It stays in the worker's process group, so that killing the group kills it, and survives a worker that dies alone.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from enum import StrEnum
from typing import Final

from paidonce_workers.isolation.child import describe_end
from paidonce_workers.isolation_hosts.orders import Beginning, Order, drain_line, order_line

log = logging.getLogger(__name__)

LENGTH_BYTES: Final = 8
READY: Final = b"r"


class HostState(StrEnum):
    """The host's state, as its worker sees it."""

    STARTS = "starts"
    SERVES = "serves"
    ENDED = "ended"
    BROKEN = "broken"
    """It ended before it was ready."""


class HostProcess:
    """One process. Safe to use from many threads."""

    def __init__(self, program: str, beginning: Beginning) -> None:
        """Start it: the module ``program``. Raises ``OSError`` if no process can be created."""
        ready, ready_of_host = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", program, str(os.getpid()), str(ready_of_host)],
                stdin=subprocess.PIPE,
                bufsize=0,
                pass_fds=(ready_of_host,),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            )
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(ready_of_host)
        self._sending = threading.Lock()
        self._ends_at: float | None = None
        self._ended = threading.Event()
        self.state = HostState.STARTS
        threading.Thread(target=self._watch, args=(ready,), name="paidonce-host-watch", daemon=True).start()
        given = pickle.dumps(beginning)
        self._send(len(given).to_bytes(LENGTH_BYTES, "big") + given)
        if self._process.stdin is not None:
            # From here on no thread of the worker blocks on a host that does not read: an order is lost instead.
            os.set_blocking(self._process.stdin.fileno(), False)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, order: Order) -> None:
        """Send it an order, which is lost if the host dies."""
        self._send(order_line(order))

    def drain(self, seconds: float, *, at_most_seconds: float) -> None:
        """Request it to end; ``at_most_seconds``, from now, is the limit of ``wait``."""
        self._ends_at = time.monotonic() + at_most_seconds
        self._send(drain_line(seconds))

    def wait(self) -> None:
        """Wait for its end after ``drain``; kills it when its time is over."""
        if self._ends_at is None:
            return
        if not self._ended.wait(max(0.0, self._ends_at - time.monotonic())):
            log.error(
                "the isolation host %d did not end in time and is killed; its steps are reclaimed",
                self.pid,
                extra={"event": "isolation_host_killed"},
            )
            self._process.kill()
            self._ended.wait()

    # -- inside --------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        stdin = self._process.stdin
        if stdin is None:
            return
        with self._sending:
            try:
                # A line is short enough for the pipe to take all of it or nothing.
                rest = memoryview(data)
                while rest and (written := stdin.write(rest)) is not None:
                    rest = rest[written:]
            except (BrokenPipeError, ValueError):  # it has ended, which `_watch` notices
                return

    def _watch(self, ready: int) -> None:
        """Runs in its own thread until the host has ended."""
        try:
            if os.read(ready, 1) == READY:
                self.state = HostState.SERVES
        finally:
            os.close(ready)
        status = self._process.wait()
        with self._sending:
            if self._process.stdin is not None:
                self._process.stdin.close()
        self.state = HostState.ENDED if self.state is HostState.SERVES else HostState.BROKEN
        self._ended.set()
        if status != 0:
            log.error(
                "the isolation host %d has died (%s); its steps are reclaimed",
                self.pid,
                describe_end(status),
                extra={"event": "isolation_host_died"},
            )

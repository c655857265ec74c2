"""A host process, seen from its worker: started, given orders, asked to end, and missed when it dies.

It stays in the worker's process group, so that whoever kills the group kills it, and outlives a worker that dies alone.
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
from paidonce_workers.isolation.orders import Beginning, Order, drain_line, order_line

log = logging.getLogger(__name__)

PROGRAM: Final = "paidonce_workers.isolation.host_program"
LENGTH_BYTES: Final = 8
READY: Final = b"r"


class HostState(StrEnum):
    """What can be expected of it."""

    STARTS = "starts"
    SERVES = "serves"
    ENDED = "ended"
    BROKEN = "broken"
    """It ended before it was ready."""


class HostProcess:
    """One process. Safe to use from many threads."""

    def __init__(self, beginning: Beginning) -> None:
        """Start it. Raises ``OSError`` where no process can be made."""
        ready, ready_of_host = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM, str(os.getpid()), str(ready_of_host)],
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
            # From here on no thread of the worker waits for a host that does not read: an order is lost instead.
            os.set_blocking(self._process.stdin.fileno(), False)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def send(self, order: Order) -> None:
        """Give it an order, which is lost if it dies."""
        self._send(order_line(order))

    def drain(self, seconds: float, *, at_most_seconds: float) -> None:
        """Ask it to end; ``at_most_seconds`` is what ``wait`` allows it, from now on."""
        self._ends_at = time.monotonic() + at_most_seconds
        self._send(drain_line(seconds))

    def wait(self) -> None:
        """Wait for its end after ``drain``; it is killed when its time is over."""
        if self._ends_at is None:
            return
        if not self._ended.wait(max(0.0, self._ends_at - time.monotonic())):
            log.error(
                "the isolation host %d did not end in time and is killed; its steps are taken over",
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
        """In a thread of its own, until the host has ended."""
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
                "the isolation host %d has died (%s); what it ran is taken over",
                self.pid,
                describe_end(status),
                extra={"event": "isolation_host_died"},
            )

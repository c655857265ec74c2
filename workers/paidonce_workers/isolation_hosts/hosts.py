"""Sends a worker's suspects to a host process that survives the worker, and the worst to an exclusive host.

        suspect                                 -> shared host: a few at once, the rest waits there unclaimed
        lost again and again, always in company -> exclusive host: one at a time, so that its next loss is evidence

A host starts when it is first needed, ends when it was idle for a while, and is started again after it died.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import Final

from paidonce_models.store.messages import StepMessage
from paidonce_models.store.steps.suspicion import Suspect
from paidonce_workers.isolation_hosts.host_process import HostProcess, HostState
from paidonce_workers.isolation_hosts.orders import Beginning, Order

log = logging.getLogger(__name__)

TRY_AGAIN_SECONDS: Final = 30.0
"""Seconds that suspects run in children of the worker after a host could not be started."""
SPARE_SECONDS: Final = 1.0
"""Seconds that a host may take to end, beyond its drain times."""


@dataclass(frozen=True, kw_only=True)
class DrainTimes:
    """How long a worker may take to stop after ``drain_seconds``."""

    interrupt_seconds: float
    hand_back_seconds: float


class IsolationHosts:
    """The hosts of one worker process. Thread-safe."""

    def __init__(self, *, program: str, beginning: Beginning, times: DrainTimes) -> None:
        """``program`` is the module that a host runs, ``beginning`` the first message to the shared host."""
        self._times = times
        self._shared = _Host(program, beginning)
        self._exclusive = _Host(program, replace(beginning, at_once=1))
        self._stopping = threading.Event()

    def send(self, message: StepMessage, suspect: Suspect) -> bool:
        """Let a host claim and execute the step; False if there is none."""
        if self._stopping.is_set():
            return True  # left unclaimed for another worker
        order = Order(run_id=message.run_id, position=message.position, name=message.name, agent=message.agent)
        return (self._exclusive if suspect.must_be_excluded else self._shared).send(order)

    def drain(self, seconds: float) -> None:
        """Request the hosts to end as this worker does; with 0, at once, whatever was requested before."""
        self._stopping.set()
        after = self._times.interrupt_seconds + self._times.hand_back_seconds + SPARE_SECONDS
        for host in (self._shared, self._exclusive):
            host.drain(seconds, at_most_seconds=seconds + after)

    def wait(self) -> None:
        """Wait until the draining hosts have ended or their time is over."""
        for host in (self._shared, self._exclusive):
            host.wait()


class _Host:
    """A host process and its successors."""

    def __init__(self, program: str, beginning: Beginning) -> None:
        self._program = program
        self._beginning = beginning
        self._lock = threading.Lock()
        self._process: HostProcess | None = None
        self._not_before = 0.0

    def send(self, order: Order) -> bool:
        process = self._serving()
        if process is None:
            return False
        process.send(order)
        return True

    def drain(self, seconds: float, *, at_most_seconds: float) -> None:
        with self._lock:
            process = self._process
        if process is not None:
            process.drain(seconds, at_most_seconds=at_most_seconds)

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()

    def _serving(self) -> HostProcess | None:
        with self._lock:
            process = self._process
            if process is not None and process.state in (HostState.STARTS, HostState.SERVES):
                return process
            self._process = None
            if process is not None and process.state is HostState.BROKEN:
                self._give_up("it ended before it was ready; see its errors above")
            if time.monotonic() < self._not_before:
                return None
            try:
                self._process = HostProcess(self._program, self._beginning)
            except OSError as error:
                self._give_up(str(error))
                return None
            log.info("isolation host %d is started", self._process.pid, extra={"event": "isolation_host_started"})
            return self._process

    def _give_up(self, why: str) -> None:
        first = self._not_before == 0.0
        self._not_before = time.monotonic() + TRY_AGAIN_SECONDS
        log.log(
            logging.WARNING if first else logging.DEBUG,
            "there is no isolation host (%s); steps that may kill their process run in children of this worker, and "
            "die with it",
            why,
            extra={"event": "isolation_host_missing"},
        )

"""Where a worker's suspects go: to a host process that survives the worker, and the worst to a host of their own.

    suspect                               -> shared host: a few at once, the rest waits there unclaimed
    lost again and again, always in company -> exclusive host: one at a time, so that its next loss is evidence

A host is started at first need, ends when it has had nothing to do for a while, and is started anew after it died.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import Final

from paidonce_models.store.messages import StepMessage
from paidonce_models.store.suspicion import Suspect
from paidonce_workers.isolation.host_process import HostProcess, HostState
from paidonce_workers.isolation.orders import Beginning, Order

log = logging.getLogger(__name__)

TRY_AGAIN_SECONDS: Final = 30.0
"""How long suspects run in children of the worker after a host could not be started."""
SPARE_SECONDS: Final = 1.0
"""What a host may take to end, beyond the times of its drain."""


@dataclass(frozen=True, kw_only=True)
class DrainTimes:
    """What a worker's stopping may take after ``drain_seconds``."""

    interrupt_seconds: float
    hand_back_seconds: float


class IsolationHosts:
    """The hosts of one worker process. Safe to use from many threads."""

    def __init__(self, *, beginning: Beginning, times: DrainTimes) -> None:
        """``beginning`` is that of the shared host."""
        self._times = times
        self._shared = _Host(beginning)
        self._exclusive = _Host(replace(beginning, at_once=1))
        self._stopping = threading.Event()

    def send(self, message: StepMessage, suspect: Suspect) -> bool:
        """Let a host claim and execute the step; False: there is no host that could."""
        if self._stopping.is_set():
            return True  # left where it is: it waits for another worker
        order = Order(run_id=message.run_id, position=message.position, name=message.name, agent=message.agent)
        return (self._exclusive if suspect.must_be_excluded else self._shared).send(order)

    def drain(self, seconds: float) -> None:
        """Ask the hosts to end as this worker does; with 0, to end at once, whatever was asked before."""
        self._stopping.set()
        after = self._times.interrupt_seconds + self._times.hand_back_seconds + SPARE_SECONDS
        for host in (self._shared, self._exclusive):
            host.drain(seconds, at_most_seconds=seconds + after)

    def wait(self) -> None:
        """Wait until the hosts that were asked to end have ended, or their time is over."""
        for host in (self._shared, self._exclusive):
            host.wait()


class _Host:
    """A host process and those that follow it."""

    def __init__(self, beginning: Beginning) -> None:
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
                self._give_up("it ended before it was ready; its errors stand above")
            if time.monotonic() < self._not_before:
                return None
            try:
                self._process = HostProcess(self._beginning)
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

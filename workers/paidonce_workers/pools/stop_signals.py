"""SIGTERM, SIGINT, SIGQUIT and SIGHUP of a worker: one drains, a second ends the drain, a third ends the process.

Owns the handlers, the same for each pool. Celery's own ignore a second SIGTERM. At a
second Ctrl-C they kill the children of a prefork pool together with their steps, from
inside the handler, which may have interrupted the code that owns the locks it needs.
Here a handler only sets flags; a drain (``draining``, ``prefork_draining``) reads them.

        first SIGTERM, SIGINT   drain for ``drain_seconds``, then release
        second, or SIGQUIT      release now
        third                   end at once; held steps are reclaimed through their leases
        SIGHUP                  as SIGTERM, then restart with the same arguments (``worker_program``)

A second signal too close to the first to be deliberate counts as the same one: ``timeout``
and some supervisors signal both the process and its group.

Celery's own SIGHUP restarts without a limit to the drain, and under ``python -m celery`` with Celery's inner modules
first on the path. On a terminal, SIGHUP means that the terminal is gone: the worker drains and ends.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from celery import signals
from celery.apps.worker import REMAP_SIGTERM
from celery.platforms import EX_FAILURE, EX_OK
from celery.worker import state

from paidonce_workers.pools.draining import end_process_at_the_latest
from paidonce_workers.process.worker_parts import WorkerParts

logger = logging.getLogger(__name__)

SAME_SIGNAL_SECONDS = 0.3
HURRIED_END_SECONDS = 6.0
"""After the second signal the process ends within this time, whatever its connections and its store do."""

Exit = Callable[[int], object]


class StopSignals:
    """The handlers of one worker's main process."""

    def __init__(
        self, worker: Any, parts: WorkerParts, *, end: Exit = os._exit, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._worker = worker
        self._parts = parts
        self._end = end
        self._clock = clock
        self._pid = os.getpid()
        self._count = 0
        self._last = 0.0
        self._on_terminal = bool(getattr(worker, "_isatty", False))
        self.restarts = False
        """Whether to restart the program once it has ended."""

    def install(self) -> None:
        """Call it in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """This thread may own any lock at this moment: set flags, start threads, nothing else."""
        del frame
        if os.getpid() != self._pid:  # a forked child before it has handlers of its own
            return
        now = self._clock()
        is_same = self._count > 0 and now - self._last < SAME_SIGNAL_SECONDS
        self._last = now
        if is_same:
            return
        self._count += 1
        # The last signal counts. macOS cannot replace a program that has threads.
        self.restarts = number == signal.SIGHUP and not self._on_terminal and sys.platform != "darwin"
        at_once = number == signal.SIGQUIT or (number == signal.SIGTERM and REMAP_SIGTERM == "SIGQUIT")
        exit_code = EX_FAILURE if at_once or number == signal.SIGINT else EX_OK
        if self._count == 1:
            self._begin(number, exit_code, at_once)
        elif self._count == 2:
            self._hurry(exit_code)
        else:
            self._end(128 + number)

    def _begin(self, number: int, exit_code: int, at_once: bool) -> None:
        name = signal.Signals(number).name
        _say(f"worker: {'Cold' if at_once else 'Warm'} shutdown (MainProcess); a second signal releases steps at once")
        if at_once:
            self._hurry(exit_code)
        try:
            signals.worker_shutting_down.send(
                sender=self._worker.hostname, sig=name, how="Cold" if at_once else "Warm", exitcode=exit_code
            )
        finally:
            # The consumer's loop reads it, ends and stops the pool.
            state.should_stop = exit_code

    def _hurry(self, exit_code: int) -> None:
        _say("worker: releases its steps and ends; a third signal ends it at once")
        # In a thread: the event's lock may be held by the code that was interrupted.
        threading.Thread(target=self._parts.hurry.set, name="paidonce-hurry", daemon=True).start()
        end_process_at_the_latest(HURRIED_END_SECONDS, exit_code)


def _say(text: str) -> None:
    """Bypass ``logging`` and the buffers of ``print``, whose locks the interrupted code may hold."""
    try:
        os.write(2, f"{text}\n".encode())
    except OSError:  # no reader
        pass

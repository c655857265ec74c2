"""SIGTERM, SIGINT, SIGQUIT and SIGHUP of a worker: once to drain, twice to end the drain, three times to be gone.

Owns the handlers, the same for each pool. Celery's own ignore a second SIGTERM, and
at a second Ctrl-C kill the children of a prefork pool together with what they hold,
from inside the handler, which may have interrupted whoever owns the locks it needs.
Here a handler only sets flags; a drain (``draining``, ``prefork_draining``) looks at them.

    first SIGTERM, SIGINT   drain for ``drain_seconds``, then hand back
    second, or SIGQUIT      hand back now
    third                   end at once; leases bring back what was held
    SIGHUP                  as SIGTERM, and then start anew with the same arguments (``worker_program``)

A second one so close to the first that nobody can have meant it is the same: ``timeout``
and some supervisors signal the process and its group.

Celery's own SIGHUP begins anew without a limit to the drain, and under ``python -m celery`` with Celery's inner modules
first on the path. On a terminal it means that the terminal is gone: the worker drains and ends.
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

from paidonce_workers.draining import end_process_at_the_latest
from paidonce_workers.machinery import Machinery

logger = logging.getLogger(__name__)

SAME_SIGNAL_SECONDS = 0.3
HURRIED_END_SECONDS = 6.0
"""After the second signal the process is ended whatever its connections and its store do."""

Exit = Callable[[int], object]


class StopSignals:
    """The handlers of one worker's main process."""

    def __init__(
        self, worker: Any, machinery: Machinery, *, end: Exit = os._exit, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._worker = worker
        self._machinery = machinery
        self._end = end
        self._clock = clock
        self._pid = os.getpid()
        self._count = 0
        self._last = 0.0
        self._on_terminal = bool(getattr(worker, "_isatty", False))
        self.restarts = False
        """Whether the program is to begin anew once it has ended."""

    def install(self) -> None:
        """In the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Whatever thread owns whatever lock at this moment is this one: set flags, start threads, nothing else."""
        del frame
        if os.getpid() != self._pid:  # a forked child before it has handlers of its own
            return
        now = self._clock()
        is_same = self._count > 0 and now - self._last < SAME_SIGNAL_SECONDS
        self._last = now
        if is_same:
            return
        self._count += 1
        # The last word counts. macOS starts no program in the place of one that has threads.
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
        _say(f"worker: {'Cold' if at_once else 'Warm'} shutdown (MainProcess); a second signal hands back at once")
        if at_once:
            self._hurry(exit_code)
        try:
            signals.worker_shutting_down.send(
                sender=self._worker.hostname, sig=name, how="Cold" if at_once else "Warm", exitcode=exit_code
            )
        finally:
            # Read by the consumer's loop, which leaves and stops the pool.
            state.should_stop = exit_code

    def _hurry(self, exit_code: int) -> None:
        _say("worker: hands back what it holds and ends; a third signal ends it at once")
        # In a thread: the event's lock may be held by the code that was interrupted.
        threading.Thread(target=self._machinery.hurry.set, name="paidonce-hurry", daemon=True).start()
        end_process_at_the_latest(HURRIED_END_SECONDS, exit_code)


def _say(text: str) -> None:
    """Past ``logging`` and the buffers of ``print``, whose locks the interrupted code may hold."""
    try:
        os.write(2, f"{text}\n".encode())
    except OSError:  # nobody reads
        pass

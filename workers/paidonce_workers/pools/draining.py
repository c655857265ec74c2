"""How a stopping worker releases its tasks, in bounded time.

    wait ``drain_seconds`` for tasks to end
      -> interrupt what still runs (reason ``handed_back``), wait ``interrupt_seconds``
            -> ``on_drain_expired(keys)`` for bodies that do not even end then
      -> what is left is blocked in C: ``left_behind``; the process must be ended by ``os._exit``

A second signal (``WorkerParts.hurry``) ends each of these waits: running steps are released
within a second or two.

Bodies are interrupted *before* anything is released in the store, so that no other
worker starts a step whose body still runs here. The executor releases each step
whose body ended with ``BodyCancelled(HANDED_BACK)``; the hook releases the rest.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, wait
from typing import Protocol

from paidonce_models.privacy.log_texts import failure_of
from paidonce_workers.bodies.interrupt import Reason
from paidonce_workers.process.worker_parts import DrainIsolatedHook, WorkerParts

logger = logging.getLogger(__name__)

HURRIED_SECONDS = 1.0
"""Seconds for interrupted bodies and the store after a second signal."""
HURRY_IS_SEEN_SECONDS = 0.05
SECONDS_TO_CLOSE_CONNECTIONS = 15.0
"""Seconds for Celery to close its connections after a drain, before the process is ended regardless."""


class Drainable(Protocol):
    """A task in the pool."""

    name: str
    future: Future[None]

    def hand_back(self) -> None:
        """Interrupt it because the worker is stopping."""


class Drain:
    """One drain. Runs once, in the thread that stops the pool."""

    def __init__(self, *, parts: WorkerParts) -> None:
        self._parts = parts
        self.left_behind: list[str] = []
        """Names of tasks that block their thread for good; known after ``run``."""

    def run(self, running: Callable[[], Sequence[Drainable]], seconds: float) -> None:
        """Release everything that ``running`` returns, within the worker's time limits."""
        isolated = self._parts.drain_isolated
        wait_for_isolated = None if isolated is None else isolated(seconds)
        if isolated is not None:
            threading.Thread(
                target=self._hurry_isolated, args=(isolated,), name="paidonce-hurry-isolated", daemon=True
            ).start()
        self._let_go(running, seconds)
        if wait_for_isolated is not None:
            wait_for_isolated()

    def _hurry_isolated(self, drain_isolated: DrainIsolatedHook) -> None:
        """In a thread: at a second signal, let isolation hosts release at once too."""
        self._parts.hurry.wait()
        drain_isolated(0.0)

    def _let_go(self, running: Callable[[], Sequence[Drainable]], seconds: float) -> None:
        if self._all_end(running(), seconds, hurried_seconds=0.0):
            return
        for task in running():
            task.hand_back()
        # Bodies that run outside a pool task's scope, if any.
        self._parts.bodies.interrupt_all(Reason.HANDED_BACK)
        ended = self._all_end(running(), self._parts.interrupt_seconds, hurried_seconds=HURRIED_SECONDS)
        keys = self._parts.bodies.running()
        if keys:
            self._hand_back(keys)
        if not ended:
            self.left_behind = [task.name for task in running()]
            if self.left_behind:
                logger.error(
                    "the worker stops while %d task(s) are blocked in calls that Python cannot interrupt: %s",
                    len(self.left_behind),
                    ", ".join(self.left_behind),
                    extra={"event": "tasks_left_behind"},
                )

    def _hand_back(self, keys: list[Hashable]) -> None:
        """Call the hook in a separate thread: a store that is down must not keep the process alive."""
        hook = self._parts.on_drain_expired
        if hook is None:
            return

        def call_hook() -> None:
            try:
                hook(keys)
            except Exception as error:  # noqa: BLE001 - told by type and place
                logger.error("%d step(s) could not be released; their leases expire: %s", len(keys), failure_of(error))

        thread = threading.Thread(target=call_hook, name="paidonce-hand-back", daemon=True)
        thread.start()
        in_hurry = self._parts.hurry.is_set()
        thread.join(HURRIED_SECONDS if in_hurry else self._parts.hand_back_seconds)
        if thread.is_alive():
            logger.error(
                "releasing %d step(s) took longer than %.0f s; their leases expire",
                len(keys),
                HURRIED_SECONDS if in_hurry else self._parts.hand_back_seconds,
            )

    def _all_end(self, tasks: Sequence[Drainable], seconds: float, *, hurried_seconds: float) -> bool:
        """Whether all of them end within ``seconds``, or after a second signal within ``hurried_seconds``."""
        futures = [task.future for task in tasks]
        hurry = self._parts.hurry
        until, hurried = time.monotonic() + seconds, False
        while True:
            if hurry.is_set() and not hurried:
                until, hurried = min(until, time.monotonic() + hurried_seconds), True
            left = until - time.monotonic()
            # Futures that never end must not delay a second signal, hence the short waits.
            if not wait(futures, max(0.0, left if hurried else min(left, HURRY_IS_SEEN_SECONDS))).not_done:
                return True
            if left <= 0:
                return False


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed, or without a reader
            pass


def end_process(exit_code: int) -> None:
    """End the process now, flushing logs and output, whatever its threads do."""
    _flush()
    os._exit(exit_code)


def restart_program() -> None:
    """Restart this program in this process, with the arguments it was started with (SIGHUP)."""
    _flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def end_process_at_the_latest(seconds: float, exit_code: int, end: Callable[[int], object] = end_process) -> None:
    """Start a timer: if the process still exists after ``seconds``, log that and end it."""

    def wait_and_end() -> None:
        time.sleep(seconds)
        logger.critical(
            "the worker did not stop within %.0f s and is ended; unfinished steps are reclaimed when their leases "
            "expire",
            seconds,
            extra={"event": "worker_ended_by_force"},
        )
        end(exit_code)

    threading.Thread(target=wait_and_end, name="paidonce-last-resort", daemon=True).start()

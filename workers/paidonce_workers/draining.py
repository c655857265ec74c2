"""How a stopping worker lets go of what it runs, in bounded time.

    wait ``drain_seconds`` for tasks to end
      -> interrupt what still runs (reason ``handed_back``), wait ``interrupt_seconds``
      -> ``on_drain_expired(keys)`` for bodies that do not even end then
      -> what is left is blocked in C: ``left_behind``; the process must be ended by ``os._exit``

A second signal (``Machinery.hurry``) ends each of these waits: what runs is handed back
within a second or two.

Bodies are interrupted *before* anything is handed back in the store, so that no
other worker begins a step whose body still runs here. The executor hands back
each step whose body ended with ``BodyCancelled(HANDED_BACK)``; the hook does it
for the rest.
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

from paidonce_models.log_texts import failure_of
from paidonce_workers.interrupt import Reason
from paidonce_workers.machinery import DrainIsolatedHook, Machinery

logger = logging.getLogger(__name__)

HURRIED_SECONDS = 1.0
"""What interrupted bodies and the store may take in a hurry."""
HURRY_IS_SEEN_SECONDS = 0.05
SECONDS_TO_CLOSE_CONNECTIONS = 15.0
"""What Celery may take to close its connections after a drain before the process is ended regardless."""


class Drainable(Protocol):
    """A task in the pool."""

    name: str
    future: Future[None]

    def hand_back(self) -> None:
        """Interrupt it because the worker stops."""


class Drain:
    """One drain; runs once, in the thread that stops the pool."""

    def __init__(self, *, machinery: Machinery) -> None:
        self._machinery = machinery
        self.left_behind: list[str] = []
        """Names of tasks that hold their thread for good; known after ``run``."""

    def run(self, running: Callable[[], Sequence[Drainable]], seconds: float) -> None:
        """Let go of everything that ``running`` names; takes at most the times of the machinery."""
        isolated = self._machinery.drain_isolated
        wait_for_isolated = None if isolated is None else isolated(seconds)
        if isolated is not None:
            threading.Thread(
                target=self._hurry_isolated, args=(isolated,), name="paidonce-hurry-isolated", daemon=True
            ).start()
        self._let_go(running, seconds)
        if wait_for_isolated is not None:
            wait_for_isolated()

    def _hurry_isolated(self, drain_isolated: DrainIsolatedHook) -> None:
        """In a thread: at a second signal, isolation hosts hand back at once, too."""
        self._machinery.hurry.wait()
        drain_isolated(0.0)

    def _let_go(self, running: Callable[[], Sequence[Drainable]], seconds: float) -> None:
        if self._all_end(running(), seconds, hurried_seconds=0.0):
            return
        for task in running():
            task.hand_back()
        # Bodies that run outside of a pool task's scope, if any.
        self._machinery.bodies.interrupt_all(Reason.HANDED_BACK)
        ended = self._all_end(running(), self._machinery.interrupt_seconds, hurried_seconds=HURRIED_SECONDS)
        keys = self._machinery.bodies.running()
        if keys:
            self._hand_back(keys)
        if not ended:
            self.left_behind = [task.name for task in running()]
            if self.left_behind:
                logger.error(
                    "the worker stops although %d task(s) are blocked in calls that Python cannot interrupt: %s",
                    len(self.left_behind),
                    ", ".join(self.left_behind),
                    extra={"event": "tasks_left_behind"},
                )

    def _hand_back(self, keys: list[Hashable]) -> None:
        """Call the hook in a thread of its own: a store that is down must not keep the process."""
        hook = self._machinery.on_drain_expired
        if hook is None:
            return

        def call_hook() -> None:
            try:
                hook(keys)
            except Exception as error:  # noqa: BLE001 - told by type and place
                logger.error("handing back %d step(s) failed; their leases run out: %s", len(keys), failure_of(error))

        thread = threading.Thread(target=call_hook, name="paidonce-hand-back", daemon=True)
        thread.start()
        in_hurry = self._machinery.hurry.is_set()
        thread.join(HURRIED_SECONDS if in_hurry else self._machinery.hand_back_seconds)
        if thread.is_alive():
            logger.error(
                "handing back %d step(s) took longer than %.0f s; their leases run out",
                len(keys),
                HURRIED_SECONDS if in_hurry else self._machinery.hand_back_seconds,
            )

    def _all_end(self, tasks: Sequence[Drainable], seconds: float, *, hurried_seconds: float) -> bool:
        """Whether all of them end within ``seconds``, or, once there is hurry, within so many from then on."""
        futures = [task.future for task in tasks]
        hurry = self._machinery.hurry
        until, hurried = time.monotonic() + seconds, False
        while True:
            if hurry.is_set() and not hurried:
                until, hurried = min(until, time.monotonic() + hurried_seconds), True
            left = until - time.monotonic()
            # Futures that never end must not keep a second signal waiting, hence in small portions.
            if not wait(futures, max(0.0, left if hurried else min(left, HURRY_IS_SEEN_SECONDS))).not_done:
                return True
            if left <= 0:
                return False


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed, or nobody reads
            pass


def end_process(exit_code: int) -> None:
    """End the process now, with what was logged and printed, whatever its threads do."""
    _flush()
    os._exit(exit_code)


def restart_program() -> None:
    """Begin this program anew in this process, with the arguments it was started with (SIGHUP)."""
    _flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def end_process_at_the_latest(seconds: float, exit_code: int, end: Callable[[int], object] = end_process) -> None:
    """Start the last resort: if the process is still there after ``seconds``, end it and say so."""

    def wait_and_end() -> None:
        time.sleep(seconds)
        logger.critical(
            "the worker did not stop within %.0f s and is ended; unfinished steps are taken over when their leases "
            "run out",
            seconds,
            extra={"event": "worker_ended_by_force"},
        )
        end(exit_code)

    threading.Thread(target=wait_and_end, name="paidonce-last-resort", daemon=True).start()

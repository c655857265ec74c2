"""What an isolation host does: executes a few steps at a time in children of its own, and ends when told to.

    order -> queue -> claim (SQL) -> body in a child -> complete (SQL)

A step that waits here is not claimed: others may take it, and nothing is lost with this process. No user code runs in
the host itself, so that it outlives what it is there to watch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from paidonce_workers.body_runner import BodyRunner
from paidonce_workers.interrupt import Reason
from paidonce_workers.isolation.orders import Order
from paidonce_workers.patience import WorkerStopping

log = logging.getLogger(__name__)

INTERRUPT_AGAIN_SECONDS: Final = 0.2
MOST_WAITING: Final = 10_000
"""An order beyond is dropped: its step's message comes again."""


class Hosting:
    """The steps of one host. Safe to use from many threads."""

    def __init__(self, *, execute: Callable[[Order], object], bodies: BodyRunner, at_once: int) -> None:
        self._execute = execute
        self._bodies = bodies
        self._turns = ThreadPoolExecutor(at_once, thread_name_prefix="paidonce-isolates")
        self._lock = threading.Lock()
        self._under_way: dict[tuple[str, int], Future[None]] = {}
        self._is_draining = False
        self._is_hurried = threading.Event()
        self._idle_since = time.monotonic()

    def take(self, order: Order) -> None:
        """Execute the step when its turn comes. A second order for one that waits or runs here does nothing."""
        key = (order.run_id, order.position)
        with self._lock:
            if self._is_draining or key in self._under_way or len(self._under_way) >= MOST_WAITING:
                return
            self._under_way[key] = self._turns.submit(self._turn, order)

    @property
    def idle_seconds(self) -> float:
        """For how long there has been nothing to do; 0 while there is."""
        with self._lock:
            return 0.0 if self._under_way else time.monotonic() - self._idle_since

    def drain(self, seconds: float, *, interrupt_seconds: float) -> None:
        """Take nothing new, forget what waits, let bodies end for so long, then interrupt the rest.

        What is interrupted is handed back by its executor. A second call with 0 seconds, while the first one waits,
        makes it wait no longer.
        """
        with self._lock:
            if self._is_draining:
                if seconds == 0:
                    self._is_hurried.set()
                return
            self._is_draining = True
        self._turns.shutdown(wait=False, cancel_futures=True)
        ends_at = time.monotonic() + seconds
        while self._running() and time.monotonic() < ends_at and not self._is_hurried.is_set():
            wait(self._running(), INTERRUPT_AGAIN_SECONDS)
        ends_at = time.monotonic() + interrupt_seconds
        while self._running() and time.monotonic() < ends_at:
            # Again and again: a turn that has just begun may not have come to its body.
            self._bodies.interrupt_all(Reason.HANDED_BACK)
            wait(self._running(), INTERRUPT_AGAIN_SECONDS)

    # -- inside --------------------------------------------------------------------

    def _running(self) -> list[Future[None]]:
        with self._lock:
            return [future for future in self._under_way.values() if not future.done()]

    def _turn(self, order: Order) -> None:
        try:
            self._execute(order)
        except WorkerStopping as error:
            log.warning("%s", error.message, extra={"event": "store_away"})
        except Exception:
            log.exception(
                "step %d of run %s could not be executed; its message comes again, or its lease runs out",
                order.position,
                order.run_id,
                extra={"event": "isolated_step_failed", "run_id": order.run_id, "step": order.position},
            )
        finally:
            with self._lock:
                self._under_way.pop((order.run_id, order.position), None)
                self._idle_since = time.monotonic()

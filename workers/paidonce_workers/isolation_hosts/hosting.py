"""The work of an isolation host: executes a few steps at a time in its own children, and ends on request.

    order -> queue -> claim (SQL) -> body in a child -> complete (SQL)

A step that waits here is not claimed: others may claim it, and nothing is lost with this process. The host itself runs
no user code, so that it survives what it watches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from paidonce_workers.bodies.body_runner import BodyRunner
from paidonce_workers.bodies.interrupt import Reason
from paidonce_workers.execution.store_waits import WorkerStopping
from paidonce_workers.isolation_hosts.orders import Order

log = logging.getLogger(__name__)

INTERRUPT_AGAIN_SECONDS: Final = 0.2
MOST_WAITING: Final = 10_000
"""Further orders are dropped: their steps' messages are sent again."""


class Hosting:
    """The steps of one host. Thread-safe."""

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
        """Queue the step for execution. A second order for a step that waits or runs here does nothing."""
        key = (order.run_id, order.position)
        with self._lock:
            if self._is_draining or key in self._under_way or len(self._under_way) >= MOST_WAITING:
                return
            self._under_way[key] = self._turns.submit(self._turn, order)

    @property
    def idle_seconds(self) -> float:
        """Seconds since there was last something to do; 0 while there is."""
        with self._lock:
            return 0.0 if self._under_way else time.monotonic() - self._idle_since

    def drain(self, seconds: float, *, interrupt_seconds: float) -> None:
        """Accept nothing new, drop what waits, give bodies ``seconds`` to end, then interrupt the rest.

        The executor releases what is interrupted. A second call with 0 seconds, while the first one waits, ends that
        wait.
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
            # Repeatedly: a thread that has just claimed a step may not have started its body.
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
                "step %d of run %s could not be executed; its message is sent again, or its lease expires",
                order.position,
                order.run_id,
                extra={"event": "isolated_step_failed", "run_id": order.run_id, "step": order.position},
            )
        finally:
            with self._lock:
                self._under_way.pop((order.run_id, order.position), None)
                self._idle_since = time.monotonic()

"""How a stopping worker with the prefork pool releases what its children run, in bounded time.

At SIGTERM stock Celery waits for every child, however long it takes; whatever
stops the worker then kills it, and every attempt is lost. Here the parent waits
``drain_seconds``, then signals its children; each interrupts its bodies with
reason ``handed_back``, so that the executor in the child releases them. Children
that are blocked in C are killed at the end, and so is the parent.

The parent must never release for a child: only the child knows what it runs.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from celery import signals

from paidonce_workers.bodies.interrupt import Reason
from paidonce_workers.pools.draining import HURRIED_SECONDS, SECONDS_TO_CLOSE_CONNECTIONS
from paidonce_workers.process.worker_parts import worker_parts_of

logger = logging.getLogger(__name__)

HURRIED_CHILDREN_SECONDS = 2 * HURRIED_SECONDS
"""Seconds for the bodies to end, and for the store."""
HAND_BACK_SIGNAL = signal.SIGUSR2
"""Celery uses SIGUSR1 (soft time limit), SIGTERM and SIGQUIT in its children; this one is unused there."""


def listen_in_children(app: Any) -> None:
    """Let every pool child of ``app`` release its bodies at its parent's signal; idempotent."""

    def install_handler(**_: object) -> None:
        def hand_back(*_: object) -> None:
            # In a thread: the handler may have interrupted code that holds the runner's lock.
            threading.Thread(
                target=worker_parts_of(app).bodies.interrupt_all,
                args=(Reason.HANDED_BACK,),
                name="paidonce-hand-back",
                daemon=True,
            ).start()

        signal.signal(HAND_BACK_SIGNAL, hand_back)

    signals.worker_process_init.connect(install_handler, weak=False, dispatch_uid=f"paidonce-hand-back-{id(app)}")


def drain_children(app: Any, child_pids: Callable[[], Iterable[int]], end: Callable[[], object]) -> None:
    """Start the drain's clock in the parent; it ends with the process. ``end`` ends the process."""
    parts = worker_parts_of(app)

    def signal_children(number: signal.Signals) -> list[int]:
        signalled = []
        for pid in child_pids():
            try:
                os.kill(pid, number)
                signalled.append(pid)
            except ProcessLookupError:  # it has ended
                continue
        return signalled

    def pause(seconds: float, hurried_seconds: float) -> None:
        """Wait; a second signal shortens it."""
        began = time.monotonic()
        if parts.hurry.wait(seconds):
            time.sleep(max(0.0, min(hurried_seconds, seconds - (time.monotonic() - began))))

    def run() -> None:
        pause(parts.drain_seconds, 0.0)
        signal_children(HAND_BACK_SIGNAL)
        pause(parts.interrupt_seconds + parts.hand_back_seconds, HURRIED_CHILDREN_SECONDS)
        # Only busy children are left: idle ones have ended by now.
        killed = signal_children(signal.SIGKILL)
        logger.error(
            "the worker stops although child processes %s did not end; their steps are reclaimed when their leases "
            "expire",
            killed,
            extra={"event": "children_left_behind"},
        )
        pause(SECONDS_TO_CLOSE_CONNECTIONS, HURRIED_SECONDS)
        end()

    threading.Thread(target=run, name="paidonce-drain", daemon=True).start()

"""How a stopping worker with the prefork pool lets go of what its children run, in bounded time.

Stock Celery waits at SIGTERM for every child, however long it takes; whoever
stops the worker kills it then, and every attempt is lost. Here the parent waits
``drain_seconds``, then signals its children; each interrupts its bodies with
reason ``handed_back``, so that the executor in the child hands them back. Children
that are blocked in C are killed at the end, and so is the parent.

The parent must never hand back for a child: only the child knows what it runs.
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

from paidonce_workers.draining import HURRIED_SECONDS, SECONDS_TO_CLOSE_CONNECTIONS
from paidonce_workers.interrupt import Reason
from paidonce_workers.machinery import machinery_of

logger = logging.getLogger(__name__)

HURRIED_CHILDREN_SECONDS = 2 * HURRIED_SECONDS
"""For the bodies to end, and for the store."""
HAND_BACK_SIGNAL = signal.SIGUSR2
"""Celery uses SIGUSR1 (soft time limit), SIGTERM and SIGQUIT in its children; this one is free there."""


def listen_in_children(app: Any) -> None:
    """Let every pool child of ``app`` hand back its bodies when its parent asks; idempotent."""

    def install_handler(**_: object) -> None:
        def hand_back(*_: object) -> None:
            # In a thread: the handler may have interrupted code that holds the runner's lock.
            threading.Thread(
                target=machinery_of(app).bodies.interrupt_all,
                args=(Reason.HANDED_BACK,),
                name="paidonce-hand-back",
                daemon=True,
            ).start()

        signal.signal(HAND_BACK_SIGNAL, hand_back)

    signals.worker_process_init.connect(install_handler, weak=False, dispatch_uid=f"paidonce-hand-back-{id(app)}")


def drain_children(app: Any, child_pids: Callable[[], Iterable[int]], end: Callable[[], object]) -> None:
    """Start the drain's clock in the parent; a process that ends earlier takes the clock with it. ``end`` ends it."""
    machinery = machinery_of(app)

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
        """A second signal shortens it."""
        began = time.monotonic()
        if machinery.hurry.wait(seconds):
            time.sleep(max(0.0, min(hurried_seconds, seconds - (time.monotonic() - began))))

    def run() -> None:
        pause(machinery.drain_seconds, 0.0)
        signal_children(HAND_BACK_SIGNAL)
        pause(machinery.interrupt_seconds + machinery.hand_back_seconds, HURRIED_CHILDREN_SECONDS)
        # Busy children only: idle ones have ended by now.
        killed = signal_children(signal.SIGKILL)
        logger.error(
            "the worker stops although child processes %s did not end; their steps are taken over when their leases "
            "run out",
            killed,
            extra={"event": "children_left_behind"},
        )
        pause(SECONDS_TO_CLOSE_CONNECTIONS, HURRIED_SECONDS)
        end()

    threading.Thread(target=run, name="paidonce-drain", daemon=True).start()

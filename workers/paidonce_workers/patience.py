"""Waiting for a store that is away: what a worker has to write is tried until it is written."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from paidonce_models.errors import PaidonceError, StoreUnreachable

T = TypeVar("T")

log = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 2.0


class WorkerStopping(PaidonceError):
    """The worker stops while the store is away; leases and the sweeper bring back what it held."""

    code = "worker_stopping"


class Patience:
    """Tries again for as long as the process is not stopping."""

    def __init__(self) -> None:
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Give up waiting from now on."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """Whether the process is stopping."""
        return self._stopping.is_set()

    def until_done(self, act: Callable[[], T], what: str) -> T:
        """Call ``act`` until the store answers. Raises ``WorkerStopping`` when the process stops first."""
        pause = 0.1
        told = False
        while True:
            try:
                return act()
            except StoreUnreachable as error:
                if not told:
                    log.warning("%s waits: %s", what, error.message, extra={"event": "store_away"})
                    told = True
                if self._stopping.wait(pause):
                    raise WorkerStopping(f"{what} was given up because the worker stops: {error.message}") from error
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

"""Waits for a store that is away: a worker retries each write until it succeeds."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from paidonce_models.errors import PaidonceError, StatementRefused, StoreUnavailable, StoreUnreachable

T = TypeVar("T")

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0


class WorkerStopping(PaidonceError):
    """The worker stops while the store is away; its steps are reclaimed through their leases and the sweeper."""

    code = "worker_stopping"


class StoreWaits:
    """Retries for as long as the process is not stopping.

    Logs once that the store is away, however many threads wait for it, and once that it is back.
    """

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._waiting = 0
        self._told: set[str] = set()

    def stop(self) -> None:
        """Stop waiting from now on."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """Whether the process is stopping."""
        return self._stopping.is_set()

    def until_done(self, act: Callable[[], T], what: str, *, unless: type[StoreUnreachable] | None = None) -> T:
        """Call ``act`` until the store responds. Raises ``WorkerStopping`` if the process stops first.

        ``unless`` is an error that is raised instead of waited for.
        """
        pause = FIRST_PAUSE_SECONDS
        waits = False
        try:
            while True:
                try:
                    return act()
                except StoreUnreachable as error:
                    if unless is not None and isinstance(error, unless):
                        raise
                    self._tell(what, error, is_new=not waits)
                    waits = True
                    # Random, because hundreds of threads may be waiting for the same moment.
                    if self._stopping.wait(pause * random.uniform(0.5, 1.0)):
                        raise WorkerStopping(
                            f"{what} was given up because the worker stops: {error.message}"
                        ) from error
                    pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        finally:
            if waits:
                self._end_waiting()

    def until_stored(self, act: Callable[[], T], what: str) -> T:
        """``until_done`` for what exists nowhere else: also waits while a statement does not fit the schema."""
        return self.until_done(partial(insist, act), what)

    def pause(self, seconds: float, what: str) -> None:
        """Wait for something other than the store. Raises ``WorkerStopping`` if the process stops first."""
        if self._stopping.wait(seconds):
            raise WorkerStopping(f"{what} was given up because the worker stops")

    def _tell(self, what: str, error: StoreUnreachable, *, is_new: bool) -> None:
        with self._lock:
            self._waiting += is_new
            is_told = error.code in self._told
            self._told.add(error.code)
        if not is_told:
            log.warning("%s waits: %s", what, error.message, extra={"event": "store_away"})
        elif is_new:
            log.debug("%s waits too: %s", what, error.message)

    def _end_waiting(self) -> None:
        with self._lock:
            self._waiting -= 1
            is_over = self._waiting == 0
            if is_over:
                self._told.clear()
        if is_over and not self.stopping:
            log.warning("the store is back: nothing waits for it any more", extra={"event": "store_back"})


def insist(act: Callable[[], T]) -> T:
    """Call ``act``, whose statements worked until now: if they are refused, the schema is being changed.

    Raises ``StoreUnavailable`` for that; refused data stays ``StatementRefused``.
    """
    try:
        return act()
    except StatementRefused as error:
        if error.is_about_data:
            raise
        raise StoreUnavailable(f"{error.message}; is the schema being changed?") from error

"""Marks runs in the store before their agents' code runs, at times when that code may be killing processes.

Code between two awaits holds no lease. If it ends its process, the run waits in the store as if nothing had happened,
goes to the next process and ends that one too. So for a while after a process has died, and after one has started (its
predecessor may just have died of it), a mark that names the process precedes each advance, and the death watch counts
deaths against the run. At all other times nothing is written.

Marked slices run one at a time per process, so that a death is evidence against one run alone.
"""

from __future__ import annotations

import logging
import mmap
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreError
from paidonce_models.store.recovery.slice_marks import BlamedRun, blame_slices, delete_mark, marked_by, set_mark
from paidonce_workers.recovery.signs_of_life import Sign, SignsOfLife

log = logging.getLogger(__name__)

CAREFUL_SECONDS: Final = 10.0
"""Seconds after a death. Messages of the dead process are redelivered at once, or sent again within seconds."""
PATIENCE_SECONDS: Final = 1.0
"""Seconds to wait for the marked slice of another run in this process."""
CAREFUL_SECONDS_AT_START: Final = 5.0
"""Seconds after a start: what ended the predecessor is redelivered as soon as another process consumes its queues."""
_ENDED: Final = (Sign.DEAD, Sign.MISSING)


class CarefulPeriod:
    """Until when a worker and its forked children mark. Created before the forks and shared by all of them."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, struct.calcsize("d"))
        self._set(CAREFUL_SECONDS_AT_START)

    def extend(self) -> None:
        """A process has died: start the period again."""
        self._set(CAREFUL_SECONDS)

    def _set(self, seconds: float) -> None:
        # CLOCK_MONOTONIC is machine-wide, the same in each process.
        struct.pack_into("d", self._shared, 0, time.monotonic() + seconds)

    @property
    def lasts(self) -> bool:
        """Whether the period is not over yet."""
        return bool(time.monotonic() < struct.unpack_from("d", self._shared)[0])


class SliceMarks:
    """The marks of one process. Thread-safe."""

    def __init__(
        self,
        *,
        database: Database,
        namespace: str,
        worker: str,
        period: CarefulPeriod,
        signs: SignsOfLife,
    ) -> None:
        self._database = database
        self._namespace = namespace
        self._worker = worker
        self._period = period
        self._signs = signs
        self._one_at_a_time = threading.RLock()

    @property
    def are_needed(self) -> bool:
        """Whether an advance must be marked now."""
        return self._period.lasts

    @contextmanager
    def around(self, run_id: str, signature: str) -> Iterator[None]:
        """Mark the run for the duration of the block. Raises ``StoreUnreachable`` before it if the store is away."""
        # A slice that blocks for long must not delay all others: a death is then evidence against two runs.
        is_alone = self._one_at_a_time.acquire(timeout=PATIENCE_SECONDS)
        try:
            with self._database.read() as connection:
                before = marked_by(connection, self._namespace, run_id)
            if before and before != self._worker and self._has_ended(before):
                self.blame(before, counts=True)  # no death watch has counted it yet
            self._database.transact(
                lambda connection: set_mark(
                    connection, namespace=self._namespace, run_id=run_id, worker=self._worker, signature=signature
                )
            )
            try:
                yield
            finally:
                self._delete(run_id)
        finally:
            if is_alone:
                self._one_at_a_time.release()

    def blame(self, worker: str, *, counts: bool) -> None:
        """A process is dead: the run that it had marked was executing. ``counts`` unless it was killed from outside."""
        self._period.extend()
        blamed = self._database.transact(lambda connection: blame_slices(connection, worker, counts=counts))
        for run in blamed:
            _tell(run)

    def _delete(self, run_id: str) -> None:
        try:
            self._database.transact(lambda connection: delete_mark(connection, run_id=run_id, worker=self._worker))
        except StoreError as error:  # harmless: this process lives
            log.debug("the mark of run %s stays: %s", run_id, error.message)

    def _has_ended(self, worker: str) -> bool:
        return all(sign in _ENDED for row, sign in self._signs.read(everywhere=True) if row.worker == worker)


def _tell(run: BlamedRun) -> None:
    if run.is_blocked:
        log.error(
            "run %s is blocked: %d processes in a row have ended in its agent's code between two awaits; "
            "`paidonce show %s` says what to do",
            run.run_id,
            run.deaths,
            run.run_id,
            extra={"event": "run_blocked", "run_id": run.run_id, "reason": "slice_ends_process"},
        )
    else:
        log.warning(
            "run %s: its process has ended in its agent's code between two awaits (%d in a row)",
            run.run_id,
            run.deaths,
            extra={"event": "slice_ended_process", "run_id": run.run_id},
        )

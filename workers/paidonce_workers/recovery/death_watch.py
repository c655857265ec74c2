"""Detects within a second that a process has died, and reclaims what it held.

A thread in every worker. It watches the processes of its own host, whose death the operating system knows for certain.
The leader of the sweeping also watches those of other hosts, and every worker watches the leader. Reclaiming is guarded
by attempt and owner, so that several workers may do it at once.

Must never take a living process for a dead one: what cannot be known is left to the leases (``sweeper``).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from functools import partial

from sqlalchemy import Connection

from paidonce.broker.publisher_protocol import MessagePublisher
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StatementRefused, StoreError
from paidonce_models.liveness import remove_lock_file
from paidonce_models.privacy.log_texts import failure_of
from paidonce_models.store.messages import Message
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.recovery.sweeping import resign
from paidonce_models.store.recovery.witnesses import forget_witness, hasten_messages, leases_of, mark_dead
from paidonce_workers.recovery.marked_slices import SliceMarks
from paidonce_workers.recovery.signs_of_life import Sign, SignsOfLife
from paidonce_workers.recovery.sweeper import Sweeper

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
MISSING_SECONDS = 2.0
"""How long the lock of a process on another host must be missing, in seconds: a living process takes it again in a
moment, but a server that drops a connection looks the same as a process that ends."""

HASTEN_SECONDS = 1.0
"""Seconds after a death until unclaimed messages published around it are sent again. Not at once: whoever got the
first message may be dead too, or have dead children, and that may not be detected yet."""


class DeathWatch:
    """The death watch of one worker."""

    def __init__(
        self,
        *,
        database: Database,
        publisher: MessagePublisher,
        namespace: str,
        worker: str,
        signs: SignsOfLife,
        sweeper: Sweeper,
        marks: SliceMarks,
    ) -> None:
        self._marks = marks
        self._database = database
        self._publisher = publisher
        self._namespace = namespace
        self._worker = worker
        self._signs = signs
        self._sweeper = sweeper
        self._missing_since: dict[str, float] = {}
        self._last_look = 0.0
        self._hasten_at = math.inf
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="paidonce-death-watch", daemon=True)

    def start(self) -> None:
        """Check once, so that a worker knows what it has inherited before it starts, and then keep watching."""
        self._look_safely()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def _serve(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            self._look_safely()

    def _look_safely(self) -> None:
        try:
            self.look()
        except StoreError as error:
            log.debug("processes are not watched: %s", error.message)
        except Exception as error:  # noqa: BLE001 - told by type and place
            log.error("the death watch failed: %s", failure_of(error), extra={"event": "death_watch_failed"})

    def look(self) -> None:
        """Check all processes once and reclaim what the dead ones held."""
        seen = self._signs.read(everywhere=self._sweeper.leads())
        dead = [row for row, sign in seen if row.worker != self._worker and self._is_dead(row.worker, sign)]
        self._last_look = time.monotonic()
        gone = {row.worker for row in dead}
        for row in dead:
            # A child that dies with its worker was killed from outside, whatever it was running.
            self._reclaim(row.worker, may_blame=row.member_of == row.worker or row.member_of not in gone)
        if any(row.held is None for row in dead):
            self._hasten_at = time.monotonic() + HASTEN_SECONDS
        if time.monotonic() >= self._hasten_at:
            self._hasten_at = math.inf
            self._database.transact(lambda connection: hasten_messages(connection, self._namespace))
            self._sweeper.sweep_now()

    def _is_dead(self, worker: str, sign: Sign) -> bool:
        if sign is not Sign.MISSING:
            self._missing_since.pop(worker, None)
            return sign is Sign.DEAD
        now = time.monotonic()
        if self._sweeper.is_careful() or now - self._last_look > MISSING_SECONDS:
            # This process was cut off or suspended: a missing process may only have lost the same server.
            self._missing_since.pop(worker, None)
        return now - self._missing_since.setdefault(worker, now) >= MISSING_SECONDS

    def _reclaim(self, worker: str, *, may_blame: bool) -> None:
        held = self._database.transact(lambda connection: mark_dead(connection, worker))
        if held is None:  # it is back
            return
        self._marks.blame(worker, counts=may_blame)
        with self._database.read() as connection:
            keys = leases_of(connection, worker)
        messages: list[Message] = []
        for key in keys:
            reclaim = partial(
                reclaim_step,
                key=key,
                why=f"its process {worker} ended",
                alone=may_blame and held == 1,
                anyway=True,
                owner=worker,
            )
            try:
                message = self._database.transact(reclaim)
            except StatementRefused as error:  # one row must not keep the others from being reclaimed
                log.error("step %d of run %s: %s", key.position, key.run_id, error.message)
                continue
            log.warning(
                "step %d of run %s: attempt %d is lost, its process has ended",
                key.position,
                key.run_id,
                key.attempt,
                extra={"event": "attempt_lost", "run_id": key.run_id, "step": key.position},
            )
            if message is not None:
                messages.append(message)
        self._publisher.publish(messages)
        if self._database.transact(lambda connection: self._bury(connection, worker)) and self._database.file:
            remove_lock_file(self._database.file, worker)

    def _bury(self, connection: Connection, worker: str) -> bool:
        """Release its leadership, and delete its row if nothing of it is left."""
        resign(connection, namespace=self._namespace, leader=worker)
        return forget_witness(connection, worker)

"""Renews leases: one thread per process, one separate connection, all leases in one statement.

It also writes the usage of calls that have finished, so that a crash loses at most one
heartbeat of known cost, and of calls that outlived their attempt; calls whose usage is
still to come are kept in the store. Attempts whose lease the store refuses to renew are
interrupted here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from sqlalchemy import Connection

from paidonce_models.database.transactions import Database
from paidonce_models.errors import StatementRefused, StoreError, StoreUnavailable
from paidonce_models.privacy.log_texts import failure_of
from paidonce_models.store.ledger.call_rows import NewCalls, insert_calls_of
from paidonce_models.store.recovery.workers import worker_seen
from paidonce_models.store.steps.leases import LeaseKey, renew_leases
from paidonce_models.usage import CallRecord
from paidonce_workers.bodies.body_runner import BodyRunner
from paidonce_workers.bodies.interrupt import Reason
from paidonce_workers.breakers import CircuitBreakers
from paidonce_workers.execution.held_leases import HeldLease, HeldLeases
from paidonce_workers.recovery.kept_calls import AwaitedCalls, AwaitedChanges

log = logging.getLogger(__name__)

Calls = dict[LeaseKey, list[CallRecord]]
"""What a heartbeat writes for each attempt."""


class Heartbeat:
    """The heartbeat of one process."""

    def __init__(
        self,
        *,
        database: Database,
        held: HeldLeases,
        bodies: BodyRunner,
        worker: str,
        registered_as: str | None,
        lease_seconds: float,
        every_seconds: float,
        breakers: CircuitBreakers | None = None,
    ) -> None:
        """``registered_as`` is the worker that this heartbeat reports as alive."""
        self._database = database
        self._held = held
        self._bodies = bodies
        self._worker = worker
        self._registered_as = registered_as
        self._lease_us = int(lease_seconds * 1e6)
        self._every_seconds = every_seconds
        self._breakers = breakers
        self._fails = False
        self._keeps_calls = False
        self._awaited = AwaitedCalls()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="paidonce-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, wait for a heartbeat in progress and write what is left of ended attempts."""
        self._stopping.set()
        self._thread.join(timeout=5)
        late = self._held.take_late()
        if late:
            try:
                with _flushing(late) as calls:
                    self._database.transact(lambda connection: _insert(connection, late, calls))
            except StoreError as error:
                log.warning(
                    "calls of %d ended attempts were not written: %s",
                    len(late),
                    error.message,
                    extra={"event": "late_calls_lost"},
                )

    def _serve(self) -> None:
        while not self._stopping.wait(self._every_seconds):
            try:
                self.beat()
                self.renew_probes()
                self._fails = False
            except StoreError as error:
                # Logged once: a store that is full for an hour would fail eighteen hundred heartbeats.
                level, self._fails = (logging.DEBUG if self._fails else logging.WARNING), True
                log.log(level, "leases could not be renewed: %s", error.message, extra={"event": "heartbeat_failed"})
            except Exception as error:  # noqa: BLE001 - told by type and place
                log.error("the heartbeat failed: %s", failure_of(error), extra={"event": "heartbeat_failed"})

    def renew_probes(self) -> None:
        """Keep the places of probes. Runs after the leases, which come first."""
        if self._breakers is not None:
            self._breakers.renew(token for lease in self._held.all() for token in lease.probe_tokens)

    def beat(self) -> None:
        """Renew all leases, write finished calls, stop attempts whose lease was not renewed."""
        held = self._held.all()
        late = self._held.take_late()
        if not held and not late and not self._awaited and self._registered_as is None:
            return
        spending = list({lease.key: lease for lease in (*held, *late)}.values())  # an attempt may have ended in between
        try:
            awaited = self._awaited.changes(held)
            with _flushing(spending) as calls:
                states = self._database.transact(
                    lambda connection: self._write(connection, held, spending, calls, awaited), urgent=True
                )
            self._awaited.written(awaited)
            self._keeps_calls = False
        except (StoreUnavailable, StatementRefused) as error:
            states = self._renew_alone(held, error)
            self._stop_what_is_lost(held, states)
            if (worker := self._registered_as) is not None:
                with suppress(StoreError):  # said above, once; the leases are renewed
                    self._database.transact(lambda connection: worker_seen(connection, worker), urgent=True)
            return
        self._stop_what_is_lost(held, states)

    def _stop_what_is_lost(self, held: list[HeldLease], states: dict[LeaseKey, str]) -> None:
        for lease in held:
            state = states.get(lease.key)
            if state in ("running", "unknown") or not self._held.holds(lease.key):
                continue
            reason = Reason.CANCELLED if state == "cancelled" else Reason.FENCED
            if self._bodies.interrupt(lease.key, reason):
                log.info(
                    "step %d of run %s is stopped: %s",
                    lease.key.position,
                    lease.key.run_id,
                    reason,
                    extra={"event": "step_interrupted", "run_id": lease.key.run_id, "step": lease.key.position},
                )

    def _renew_alone(self, held: list[HeldLease], error: StoreError) -> dict[LeaseKey, str]:
        """A store that takes no new rows (it is full) may still update some: no lease may expire for what else is due.

        The calls were put back and are written by a later heartbeat, or with the end of their attempts. A full disk
        refuses the worker's own row as well, while leases, whose rows are smaller, still have room.
        """
        states = self._database.transact(lambda connection: self._renew(connection, held), urgent=True)
        level, self._keeps_calls = (logging.DEBUG if self._keeps_calls else logging.WARNING), True
        log.log(
            level,
            "leases are renewed, the rest of the heartbeat is refused and kept for later: %s",
            error.message,
            extra={"event": "calls_kept"},
        )
        return states

    def _write(
        self,
        connection: Connection,
        held: list[HeldLease],
        spending: list[HeldLease],
        calls: Calls,
        awaited: AwaitedChanges | None,
    ) -> dict[LeaseKey, str]:
        states = self._renew(connection, held)
        _insert(connection, spending, calls)
        if awaited is not None:
            awaited.write(connection)
        if self._registered_as is not None:
            worker_seen(connection, self._registered_as)
        return states

    def _renew(self, connection: Connection, held: list[HeldLease]) -> dict[LeaseKey, str]:
        return renew_leases(
            connection, worker=self._worker, held=[lease.key for lease in held], lease_us=self._lease_us
        )


@contextmanager
def _flushing(leases: Sequence[HeldLease]) -> Iterator[Calls]:
    """The finished calls of these attempts, while the block writes them; an error in the block puts them back.

    None of these attempts ends meanwhile: its completion waits for this write, or includes the calls.
    """
    calls: Calls = {}
    written = False
    try:
        for lease in leases:
            calls[lease.key] = lease.recorder.begin_flush()
        yield calls
        written = True
    finally:
        for lease in leases:
            if lease.key in calls:
                lease.recorder.end_flush(calls[lease.key], written=written)


def _insert(connection: Connection, leases: Sequence[HeldLease], calls: Calls) -> None:
    insert_calls_of(
        connection,
        [
            NewCalls(
                run_id=lease.key.run_id,
                position=lease.key.position,
                attempt=lease.key.attempt,
                step=lease.step_name,
                records=calls[lease.key],
            )
            for lease in leases
        ],
    )

"""The attempts that this process executes, each in one thread, from the claim's response to its completion's.

A claim whose response was lost is found again in the store, where it looks like any other claim of this process: one
that waits for its thread, one whose body runs, one whose completion is not written yet. Only this table distinguishes
them. Without it, the body of the last would run a second time under the same attempt, and be paid for a second time
with no trace.

Must never forget an attempt before its completion was confirmed. Leases are a separate matter: they end with the body.
"""

from __future__ import annotations

import threading

from paidonce_models.database.transactions import Database
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.states import StepState
from paidonce_models.store.steps.claims import Claim, find_claims
from paidonce_models.store.steps.leases import LeaseKey, renew_leases
from paidonce_workers.execution.attempt import key_of


class OwnClaims:
    """The claims of one process. Thread-safe."""

    def __init__(self, database: Database, worker: str, *, lease_us: int, memory: PayloadMemory | None = None) -> None:
        self._database = database
        self._lease_us = lease_us
        self._worker = worker
        self._memory = memory
        self._lock = threading.Lock()
        self._taken: set[LeaseKey] = set()

    def take(self, claim: Claim | None) -> Claim | None:
        """Assign the claim to the calling thread; ``None`` if another thread has found it in doubt and taken it."""
        if claim is None:
            return None
        key = key_of(claim)
        with self._lock:
            if key in self._taken:
                return None
            self._taken.add(key)
        return claim

    def release(self, claim: Claim) -> None:
        """The claim is finished or was released; does nothing if that was recorded before."""
        with self._lock:
            self._taken.discard(key_of(claim))

    def take_in_doubt(self, run_id: str, position: int | None = None) -> Claim | None:
        """A claim of this worker that no thread has, assigned to the calling thread.

        For a claim whose response was lost with the connection: it may be committed. Raises ``StoreUnreachable``.
        """
        for claim in self._of_run(run_id):
            if position in (None, claim.position) and self.take(claim) is not None:
                # Its thread may have finished it between the query and this line; from here on nobody else can take it.
                is_open = False
                try:
                    is_open = self._renew(key_of(claim))
                finally:
                    if not is_open:
                        self.release(claim)
                if is_open:
                    return claim
        return None

    def _renew(self, key: LeaseKey) -> bool:
        """Whether it is still this process's to execute: nobody has renewed its lease while it was in doubt."""
        states = self._database.transact(
            lambda connection: renew_leases(connection, worker=self._worker, held=[key], lease_us=self._lease_us)
        )
        return states.get(key) == StepState.RUNNING

    def _of_run(self, run_id: str) -> list[Claim]:
        with self._database.read() as connection:
            return find_claims(connection, run_id=run_id, worker=self._worker, memory=self._memory)

"""The attempts that this process has taken on, each by one thread, from the claim's answer to its completion's.

A claim whose answer was lost is found again in the store, where it looks like any other of this process: one that
waits for its thread, one whose body runs, one whose completion could not be written yet. Only what is noted here tells
them apart; without it the body of the last would run a second time under the same attempt, and be paid a second time
with no trace.

Must never forget an attempt before its completion has been answered. Leases are another matter: they end with the body.
"""

from __future__ import annotations

import threading

from paidonce_models.database import Database
from paidonce_models.payload_memory import PayloadMemory
from paidonce_models.store.claims import Claim, find_claims
from paidonce_models.store.leases import LeaseKey
from paidonce_workers.attempt import key_of


class OwnClaims:
    """The claims of one process. Safe to use from many threads."""

    def __init__(self, database: Database, worker: str, memory: PayloadMemory | None = None) -> None:
        self._database = database
        self._worker = worker
        self._memory = memory
        self._lock = threading.Lock()
        self._taken: set[LeaseKey] = set()

    def take(self, claim: Claim | None) -> Claim | None:
        """The claim, the calling thread's from now on; ``None`` where another thread has found it in doubt."""
        if claim is None:
            return None
        key = key_of(claim)
        with self._lock:
            if key in self._taken:
                return None
            self._taken.add(key)
        return claim

    def release(self, claim: Claim) -> None:
        """The claim is done with, or was given away; does nothing where it was released before."""
        with self._lock:
            self._taken.discard(key_of(claim))

    def take_in_doubt(self, run_id: str, position: int | None = None) -> Claim | None:
        """A claim of this worker that no thread of it has, the calling thread's from now on.

        For one whose answer was lost with the connection: the commit may have been made. Raises ``StoreUnreachable``.
        """
        for claim in self._of_run(run_id):
            if position in (None, claim.position) and self.take(claim) is not None:
                # Whoever had it may have done with it between the look and the taking; nobody else can from here on.
                is_open = False
                try:
                    is_open = key_of(claim) in map(key_of, self._of_run(run_id))
                finally:
                    if not is_open:
                        self.release(claim)
                if is_open:
                    return claim
        return None

    def _of_run(self, run_id: str) -> list[Claim]:
        with self._database.read() as connection:
            return find_claims(connection, run_id=run_id, worker=self._worker, memory=self._memory)

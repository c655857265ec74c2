"""This process's witness: locks and records that the operating system and the store's server drop when it ends.

One thread per process notices when the server has ended the session of its lock, and takes a new lock at once. Where
such a lock is not available (behind a pooler), others on the same host still see the process itself; on other hosts its
leases expire as if there were no witness.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time

from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreError
from paidonce_models.liveness import FileLock, PooledConnection, ServerLock, start_of, this_place
from paidonce_models.privacy.log_texts import failure_of
from paidonce_models.store.recovery.witnesses import NewWitness, record_witness

log = logging.getLogger(__name__)

TOUCH_SECONDS = 3600.0
"""How often the row is refreshed, in seconds: rows of processes that are silent for days are deleted."""
FIRST_RETRY_SECONDS = 0.1
LONGEST_RETRY_SECONDS = 2.0


class Witness:
    """The witness of one process. The process creates its parts itself: a forked child creates its own."""

    def __init__(self, *, database: Database, namespace: str, worker: str) -> None:
        self._database = database
        self._namespace = namespace
        self._worker = worker
        self._server_lock = None if database.is_sqlite else ServerLock(database)
        self._file_lock = None if database.file is None else FileLock(database.file, worker)
        self._stopping = threading.Event()
        self._wake, self._waker = socket.socketpair()
        self._member_of = worker
        self._thread: threading.Thread | None = None

    def start(self, member_of: str) -> None:
        """Appear to the others, at once if the store permits, and stay visible. Does not block.

        ``member_of`` is the worker that this process belongs to: the parent of a prefork child, else itself.
        """
        self._member_of = member_of
        appeared = self._try_to_appear()
        self._thread = threading.Thread(target=self._serve, args=(appeared,), name="paidonce-witness", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop maintaining it. The lock on the file is held until the process ends."""
        self._stopping.set()
        self._waker.send(b".")
        if self._thread is not None:
            self._thread.join(timeout=5)
        if self._server_lock is not None:
            self._server_lock.close()
        self._wake.close()
        self._waker.close()

    def _serve(self, appeared: bool) -> None:
        pause = FIRST_RETRY_SECONDS
        while not self._stopping.is_set():
            if appeared:
                self._wait_until_due()
            elif self._stopping.wait(pause):
                return
            if not self._stopping.is_set():
                appeared = self._try_to_appear()
                pause = FIRST_RETRY_SECONDS if appeared else min(pause * 2, LONGEST_RETRY_SECONDS)

    def _wait_until_due(self) -> None:
        """Returns when the server has ended the session, or when the row must be refreshed."""
        until = time.monotonic() + TOUCH_SECONDS
        if self._server_lock is None:
            self._stopping.wait(TOUCH_SECONDS)
            return
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            if self._server_lock.wait_until_lost(self._wake.fileno(), left):
                return

    def _try_to_appear(self) -> bool:
        """Take the missing locks and write the row; False if the store is away."""
        try:
            self._take_locks()
            lock = self._server_lock
            witness = NewWitness(
                worker=self._worker,
                namespace=self._namespace,
                member_of=self._member_of,
                place=this_place(),
                pid=os.getpid(),
                started=start_of(os.getpid()),
                lock_key=None if lock is None else lock.key,
                server=None if lock is None else lock.server,
            )
            self._database.transact(lambda connection: record_witness(connection, witness), urgent=True)
        except StoreError as error:
            log.debug("the witness of this process waits: %s", error.message)
            return False
        except Exception as error:  # noqa: BLE001 - told by type and place
            log.error(
                "the witness of this process could not appear: %s", failure_of(error), extra={"event": "witness_failed"}
            )
            return False
        return True

    def _take_locks(self) -> None:
        if self._file_lock is not None and not self._file_lock.is_held:
            try:
                self._file_lock.acquire()
            except OSError as error:
                self._file_lock = None
                self._report(f"no lock can be taken on a file beside the store ({error.strerror})")
        if self._server_lock is not None and not self._server_lock.is_held:
            try:
                self._server_lock.acquire()
            except PooledConnection:
                self._server_lock = None
                self._report("a connection pooler stands before the store, behind which a session proves nothing")

    def _report(self, why: str) -> None:
        log.warning(
            "%s: if this host vanishes, the steps of this process continue only after their leases have expired",
            why,
            extra={"event": "no_witness"},
        )

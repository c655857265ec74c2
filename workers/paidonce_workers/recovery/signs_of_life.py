"""Whether the processes that execute steps are alive, independent of their heartbeats.

The operating system knows every process on this host; the kernel and the database server know the locks that a process
holds. Where neither can tell, nothing is known, and leases decide.
"""

from __future__ import annotations

from enum import Enum, auto

from paidonce_models.database.transactions import Database
from paidonce_models.liveness import file_lock_is_held, process_is_alive, this_place
from paidonce_models.store.recovery.witnesses import WitnessRow, read_witnesses


class Sign(Enum):
    """What is known of a process."""

    ALIVE = auto()
    DEAD = auto()
    """For certain."""
    MISSING = auto()
    """Its lock on the server is gone: it has ended, or its connection has."""
    UNKNOWN = auto()


class SignsOfLife:
    """The processes of one namespace as this process sees them. Thread-safe."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace
        self._place = this_place()

    def read(self, *, everywhere: bool) -> list[tuple[WitnessRow, Sign]]:
        """Those on this host and the leader of the sweeping; with ``everywhere``, those on all hosts."""
        with self._database.read() as connection:
            rows = read_witnesses(connection, namespace=self._namespace, place=self._place, everywhere=everywhere)
        return [(row, self._sign_of(row)) for row in rows]

    def living(self) -> list[str]:
        """The processes that are known to be alive."""
        return [row.worker for row, sign in self.read(everywhere=True) if sign is Sign.ALIVE]

    def _sign_of(self, row: WitnessRow) -> Sign:
        if row.place == self._place:
            alive = process_is_alive(row.pid, row.started)
            if alive is not None:
                return Sign.ALIVE if alive else Sign.DEAD
        if self._database.file is not None:
            held = file_lock_is_held(self._database.file, row.worker)
            return Sign.UNKNOWN if held is None else Sign.ALIVE if held else Sign.DEAD
        if row.lock_is_held is None:
            return Sign.UNKNOWN
        return Sign.ALIVE if row.lock_is_held else Sign.MISSING

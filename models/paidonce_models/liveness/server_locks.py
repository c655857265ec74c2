"""A session-level advisory lock on PostgreSQL, which the server drops when its process ends.

The connection is used for nothing else. The server sends keepalives on it, so that it also notices a host that lost
power. A forked child inherits the socket, which would keep the session alive after its parent's death: there the socket
is replaced at once.
"""

from __future__ import annotations

import secrets
import select
from typing import Any

import psycopg

from paidonce_models.database.engines import let_go_of_socket
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreError
from paidonce_models.forks import in_child, leave_to_parent

_LARGEST_KEY = 2**63 - 1
_KEEPALIVES = (
    "SELECT set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '2', false), "
    "set_config('tcp_keepalives_count', '3', false)"
)
SERVER_IDENTITY = "CAST(CAST(extract(epoch FROM pg_postmaster_start_time()) * 1000000 AS BIGINT) AS VARCHAR)"
"""Changes with a restart and with a failover: earlier locks then prove nothing."""
_WHO_ANSWERS = f"SELECT pg_backend_pid(), {SERVER_IDENTITY}"


class PooledConnection(StoreError):
    """There is a pooler before the server: its sessions may serve others, so a lock on one proves nothing."""

    code = "pooled_connection"


class ServerLock:
    """One process's lock; call ``acquire`` again after it was lost."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Any = None  # psycopg's, which SQLAlchemy hands out untyped
        self.key = secrets.randbelow(_LARGEST_KEY) + 1
        self.server = ""
        in_child(self, ServerLock._detach)

    @property
    def is_held(self) -> bool:
        """Whether there is a session whose end was not noticed."""
        return self._connection is not None

    def acquire(self) -> None:
        """Connect and take the lock. Raises ``StoreUnreachable``, or ``PooledConnection`` if a lock proves nothing."""
        self.close()
        # A new key each time: the lost session may hold the old one until the server notices.
        self.key = secrets.randbelow(_LARGEST_KEY) + 1
        connection = self._database.detached_connection()
        try:
            with self._database.translating():
                connection.autocommit = True
                backend_pid, server = connection.execute(_WHO_ANSWERS).fetchone()
                if connection.info.backend_pid != backend_pid:
                    raise PooledConnection()
                connection.execute(_KEEPALIVES)
                connection.execute("SELECT pg_advisory_lock(%s)", (self.key,))
        except BaseException:
            connection.close()
            raise
        self._connection, self.server = connection, str(server)

    def wait_until_lost(self, wake: int, seconds: float) -> bool:
        """True once the server has ended the session; False after ``seconds``, or when ``wake`` can be read from."""
        if self._connection is None:
            return True
        ready, _, _ = select.select([self._connection.fileno(), wake], [], [], seconds)
        if not ready or wake in ready:
            return False
        return not self._is_usable()

    def _is_usable(self) -> bool:
        """The server may only have sent a notice, which does not end the session."""
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            self.close()
            return False
        return True

    def close(self) -> None:
        """End the session."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _detach(self) -> None:
        """In a forked child: drop the session without sending anything to the server."""
        if self._connection is not None:
            leave_to_parent(self._connection)
            let_go_of_socket(self._connection)

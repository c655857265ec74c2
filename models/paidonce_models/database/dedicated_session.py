"""One session of a process with PostgreSQL beside the pool, for single statements that commit by themselves.

Plain psycopg, because SQLAlchemy would cost more than the statement. Has the same settings as the pool's sessions, with
or without a pooler, and two more: it joins only by nested loops, and waits for a lock only briefly, because a whole
process waits behind it. Opened at first use and again after an error.

An error is either ``RolledBack``: nothing was written, and the same may be tried elsewhere; or ``StoreUnreachable``:
the response was lost, and nobody knows whether it is committed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from paidonce_models.database.driver_errors import cut_values
from paidonce_models.database.sessions import RECYCLE_SECONDS, Sessions
from paidonce_models.database.store_faults import Fault, error_for, fault_of, is_fault, is_of_this_session
from paidonce_models.errors import StoreUnreachable
from paidonce_models.forks import leave_to_parent

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable

    from sqlalchemy import Engine

SETTINGS: Final = {"lock_timeout": "500", "enable_hashjoin": "off", "enable_mergejoin": "off"}
_LOOK_AGAIN_SECONDS: Final = 2.0
"""After it could not be opened; the pool may have what the server refuses here."""

_CLOSING_SECONDS: Final = 1.0


class RolledBack(Exception):
    """The statement has written nothing."""


class DedicatedSession:
    """Runs one statement at a time. Thread-safe."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        sessions: Sessions,
        opened: Callable[[], weakref.WeakSet[Any]],
        *,
        shown_url: str,
        clock_offset_us: Callable[[], int] | None,
    ) -> None:
        """``engine`` says where to; sockets that a child must close go to ``opened``.

        ``clock_offset_us``: added to the store's clock in each transaction (tests only).
        """
        self._engine = engine
        self._sessions = sessions.with_settings(SETTINGS)
        self._opened = opened
        self._shown_url = shown_url
        self._clock_offset_us = clock_offset_us
        self._begin_empty()

    def _begin_empty(self) -> None:
        self._lock = threading.Lock()
        self._connection: Any = None
        self._cursor: Any = None
        self._begins: str | None = None
        self._opened_at = self._not_before = 0.0

    def leave_to_parent(self) -> None:
        """In a forked child: use no connection, close none, and wait for no lock that a thread held."""
        if self._connection is not None:
            leave_to_parent(self._connection, self._cursor)
        self._begin_empty()

    def close(self) -> None:
        """Close the session, unless its statement waits for a server that does not respond. May be opened again."""
        if self._lock.acquire(timeout=_CLOSING_SECONDS):
            try:
                self._drop()
            finally:
                self._lock.release()

    def execute(self, statement: str, parameters: Sequence[str]) -> list[tuple[Any, ...]]:
        """Run a statement with numbered parameters as its own transaction.

        Raises ``RolledBack`` with the driver's error as its cause, or ``StoreUnreachable``.
        """
        with self._lock:
            try:
                if self._cursor is not None and time.monotonic() - self._opened_at > RECYCLE_SECONDS:
                    self._drop()
                if self._cursor is None:
                    self._open()
                return self._execute(statement, parameters)
            except BaseException as error:
                # An interrupt may have struck in the middle of a response.
                if not isinstance(error, RolledBack) or is_of_this_session(_cause_of(error)) or self._is_closed():
                    self._drop()
                raise

    def _execute(self, statement: str, parameters: Sequence[str]) -> list[tuple[Any, ...]]:
        cursor = self._cursor
        try:
            if self._begins is None:
                rows: list[tuple[Any, ...]] = cursor.execute(statement, parameters).fetchall()
                return rows
            self._begin()
            rows = cursor.execute(statement, parameters).fetchall()
            self._commit()
            return rows
        except Exception as error:
            if not is_fault(error):
                raise
            cut_values(error)
            if self._is_lost(error):
                raise error_for(error, self._shown_url) from error
            if self._begins is not None:
                self._roll_back()
            raise RolledBack from error

    def _commit(self) -> None:
        """Behind a pooler an error may be the pooler's own, which does not know whether the server has committed."""
        try:
            self._cursor.execute("COMMIT")
        except Exception as error:
            if not is_fault(error):
                raise
            cut_values(error)
            raise StoreUnreachable(
                f"the store at {self._shown_url} has not confirmed a commit, which may have taken place; "
                "it is tried again"
            ) from error

    def _is_lost(self, error: Exception) -> bool:
        """Whether it is unknown what the server has done; what it has told an error of it has undone.

        ``XX`` on a session that is closed then may be the word of a proxy that has lost the server.
        """
        state = getattr(error, "sqlstate", None)
        if state is not None and state.startswith("XX") and self._is_closed():
            return True
        fault = fault_of(error)
        return fault is Fault.UNREACHABLE or (fault is Fault.UNAVAILABLE and state is None)

    def _is_closed(self) -> bool:
        return self._connection is not None and bool(self._connection.closed)

    def _begin(self) -> None:
        begins = str(self._begins)
        if self._clock_offset_us is not None:
            begins += f"; SELECT set_config('paidonce.clock_offset_us', '{self._clock_offset_us()}', true)"
        self._cursor.execute(begins)

    def _roll_back(self) -> None:
        try:
            self._cursor.execute("ROLLBACK")
        except Exception as error:
            if not is_fault(error):
                raise
            self._drop()

    def _open(self) -> None:
        if time.monotonic() < self._not_before:
            raise RolledBack
        import psycopg  # noqa: PLC0415 - a driver that users of SQLite need not have

        try:
            connection, is_pooled = self._sessions.open(self._engine())
        except Exception as error:
            self._not_before = time.monotonic() + _LOOK_AGAIN_SECONDS
            raise RolledBack from error
        self._connection, self._opened_at = connection, time.monotonic()
        self._opened().add(connection)
        connection.autocommit = True
        self._cursor = psycopg.RawCursor(connection)
        self._begins = None
        if is_pooled:
            self._begins = self._sessions.begin_statement(None)
        elif self._clock_offset_us is not None:
            self._begins = "BEGIN"

    def _drop(self) -> None:
        connection, self._connection, self._cursor = self._connection, None, None
        if connection is not None:
            connection.close()


def _cause_of(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else error.__cause__

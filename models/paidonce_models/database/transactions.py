"""The connection to the store: engines, write transactions, retries and the store's clock.

Owns how statements reach SQLite or PostgreSQL, never their content. No user code may
run between the start and the end of a transaction.

SQLite: every write begins with ``BEGIN IMMEDIATE`` (a deferred transaction that
reads and then writes fails with SQLITE_BUSY_SNAPSHOT whatever the timeout) and waits
in one queue per process, in which heartbeats go first. PostgreSQL sessions have
timeouts, so that a frozen process cannot hold a lock for long (``sessions``).

``paidonce_now()`` is the store's clock in microseconds on both engines: a SQL
function on PostgreSQL, registered per connection on SQLite.
"""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import make_url

from paidonce_models.database.dedicated_session import DedicatedSession
from paidonce_models.database.engines import (
    has_connections,
    let_go_of_socket,
    postgresql_engine,
    sqlite_engine,
    system_clock_us,
)
from paidonce_models.database.plain_statements import Rows, execute_alone
from paidonce_models.database.session_choices import SCHEMA_RULE, Pooler, is_schema_name
from paidonce_models.database.sessions import Sessions
from paidonce_models.database.sqlite_forks import close_for_fork
from paidonce_models.database.store_faults import error_for, is_fault, is_lost, is_of_this_session, is_passing
from paidonce_models.database.write_queue import WriteQueue
from paidonce_models.errors import ConfigurationError, StatementRefused, StoreUnreachable
from paidonce_models.forks import before_fork, in_child, leave_to_parent, notice_fork
from paidonce_models.privacy.log_texts import loggable
from paidonce_models.privacy.masking import mask

T = TypeVar("T")

_MAX_TRIES = 8
_MAX_TRYING_SECONDS = 30.0
"""Seconds: the driver itself waits for a busy file or a lock; a longer wait is logged."""
_PLAN_FOR_MANY_ROWS = text(
    "SELECT set_config('enable_seqscan', 'on', true), set_config('plan_cache_mode', 'force_custom_plan', true), "
    "set_config('work_mem', '64MB', true), set_config('random_page_cost', '1.1', true), "
    "set_config('parallel_setup_cost', '100', true), set_config('parallel_tuple_cost', '0.005', true), "
    "set_config('enable_parallel_hash', 'off', true), "
    "set_config('transaction_read_only', 'on', true)"
)


class Database:
    """A store to read and write. Thread-safe; a forked child opens its own connections."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 8,
        schema: str | None = None,
        pooler: str = Pooler.AUTO,
        clock_us: Callable[[], int] | None = None,
    ) -> None:
        """``schema`` is the schema of the tables on PostgreSQL; ``None`` leaves it to the address and the server.

        ``pooler`` says what is before the server, unless it is to be detected. ``clock_us`` replaces the store's clock
        (tests only); ``None`` is the store's own.
        """
        try:
            parsed = make_url(url)
        except sqlalchemy.exc.ArgumentError as error:
            raise ConfigurationError(
                f"PAIDONCE_DATABASE_URL is not a database address: {loggable(str(error))}; "
                "expected sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE"
            ) from error
        if parsed.drivername in {"postgres", "postgresql"}:
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.dialect = parsed.get_backend_name()
        if self.dialect not in {"sqlite", "postgresql"}:
            raise ConfigurationError(f"PAIDONCE_DATABASE_URL names {self.dialect!r}; expected sqlite or postgresql")
        self.url = parsed
        self.is_sqlite = self.dialect == "sqlite"
        if self.is_sqlite and schema is not None:
            raise ConfigurationError(
                f"PAIDONCE_SCHEMA is {schema}, but the store is SQLite, which has no schemas; unset it, or give each "
                "installation a file of its own"
            )
        if schema is not None and not is_schema_name(schema):
            raise ConfigurationError(f"PAIDONCE_SCHEMA: {schema!r} is not valid; expected a {SCHEMA_RULE}")
        self.schema = schema
        self._sessions = None if self.is_sqlite else Sessions(parsed, schema=schema, pooler=Pooler(pooler))
        self._clock_us = clock_us
        self._pool_size = pool_size
        self._fork_is_clean = True
        self._begin_empty()
        self._dedicated = None if self._sessions is None else self._dedicated_session(self._sessions)
        self.engine  # noqa: B018 - refuses an address on which no engine can be made
        if self.file is not None:
            before_fork(self, Database._close_for_fork, Database._open_after_fork)
        if self.file is not None or not self.is_sqlite:  # each process has its own store in memory
            in_child(self, Database._leave_to_parent)

    def _begin_empty(self) -> None:
        self._making = threading.Lock()
        self._write_queue = WriteQueue()
        self._made: tuple[Engine, Engine | None] | None = None
        self._opened: weakref.WeakSet[Any] = weakref.WeakSet()
        """The driver's connections whose sockets a forked child must close."""

    def _dedicated_session(self, sessions: Sessions) -> DedicatedSession:
        return DedicatedSession(
            lambda: self.engine,
            sessions,
            lambda: self._opened,
            shown_url=self.shown_url,
            clock_offset_us=None if self._clock_us is None else self._clock_offset_us,
        )

    @property
    def engine(self) -> Engine:
        """This process's engine. Raises ``StoreUnreachable`` in a child that must not open the store."""
        return self._engines()[0]

    @property
    def _autocommit(self) -> Engine | None:
        """The same with each statement as its own transaction; ``None`` where that is not available."""
        return self._engines()[1]

    def _engines(self) -> tuple[Engine, Engine | None]:
        notice_fork()
        made = self._made
        if made is None:
            with self._making:
                made = self._made
                if made is None:
                    made = self._made = self._make_engines()
        return made

    def _make_engines(self) -> tuple[Engine, Engine | None]:
        if not self._fork_is_clean:
            raise StoreUnreachable(
                f"this process was forked while its parent had the SQLite store {self.shown_url} open, and would "
                "share its locks; fork before the store is used (uWSGI: `lazy-apps = true`), or use PostgreSQL"
            )
        if self.is_sqlite:
            return sqlite_engine(self.url, pool_size=self._pool_size, clock_us=self._clock_us), None
        engine = postgresql_engine(self.url, pool_size=self._pool_size, sessions=self._sessions, opened=self._opened)
        if self._clock_us is not None:
            return engine, None
        return engine, engine.execution_options(isolation_level="AUTOCOMMIT")

    # -- forks -----------------------------------------------------------------

    def _close_for_fork(self) -> None:
        self._fork_is_clean = close_for_fork(None if self._made is None else self._made[0])

    def _open_after_fork(self) -> None:
        self._fork_is_clean = True

    def _leave_to_parent(self) -> None:
        """In a forked child: use no connection, close none, and wait for no lock that a thread held."""
        if self._made is not None:
            leave_to_parent(*self._made)
        if self.is_sqlite:
            # A fork that bypasses Python has closed nothing.
            is_open = self._made is not None and has_connections(self._made[0])
            self._fork_is_clean = self._fork_is_clean and not is_open
        for connection in list(self._opened):
            let_go_of_socket(connection)
        if self._dedicated is not None:
            self._dedicated.leave_to_parent()
        self._begin_empty()

    @property
    def file(self) -> Path | None:
        """The path of an SQLite store; ``None`` for PostgreSQL and for a store in memory."""
        path = self.url.database
        return Path(path) if self.is_sqlite and path not in (None, "", ":memory:") else None

    def __repr__(self) -> str:
        return f"Database({self.shown_url})"

    @property
    def shown_url(self) -> str:
        """The address for people, with all credentials masked."""
        return mask(self.url.render_as_string(hide_password=True))

    # -- transactions ----------------------------------------------------------

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Errors of the driver in the block become ``StoreUnreachable`` (wait for it) or ``StatementRefused``."""
        try:
            yield
        except Exception as error:
            if not is_fault(error):
                raise
            self._raise_translated(error)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading; on PostgreSQL each statement sees what is committed when it starts."""
        with self.translating():
            if self._autocommit is not None:
                with self._autocommit.connect() as connection, connection.begin():
                    yield connection
                return
            with self.engine.connect() as connection, connection.begin():
                self._inject_clock(connection)
                yield connection

    @contextmanager
    def read_at_once(self) -> Iterator[Connection]:
        """A snapshot for queries over many rows: all statements see the store as it was at the first one.

        On PostgreSQL each statement is planned with its values: what makes the short statements of a run's life fast
        (a generic plan, no sequential scan) is wrong for sums over a ledger. Parallel scans start earlier than by
        PostgreSQL's default, which underestimates the cost of reading a tag from a hundred thousand rows; parallel hash
        tables do not, because they need more shared memory than a container may have. Writes nothing.
        """
        if self.is_sqlite:
            with self.read() as connection:
                yield connection
            return
        with (
            self.translating(),
            self.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
            connection.begin(),
        ):
            connection.execute(_PLAN_FOR_MANY_ROWS)
            self._inject_clock(connection)
            yield connection

    @contextmanager
    def write(self, *, urgent: bool = False) -> Iterator[Connection]:
        """A transaction for writing, committed at the end of the block, rolled back on any exception.

        ``urgent`` writes (heartbeats) overtake others that wait in this process. Raises the driver's own errors.
        """
        if self.is_sqlite:
            with self._write_queue.turn(urgent=urgent), self.engine.connect() as connection:
                connection = connection.execution_options(paidonce_write=True)
                with connection.begin():
                    yield connection
            return
        with self.engine.connect() as connection, connection.begin():
            self._inject_clock(connection)
            yield connection

    @contextmanager
    def _single(self) -> Iterator[Connection]:
        """A connection for one self-committing statement: one round trip instead of three."""
        if self._autocommit is None:
            with self.write() as connection:
                yield connection
            return
        # Behind a pooler this is a transaction; otherwise the driver has nothing to commit and sends nothing.
        with self._autocommit.connect() as connection, connection.begin():
            yield connection

    def transact(
        self,
        work: Callable[[Connection], T],
        *,
        urgent: bool = False,
        single: bool = False,
        repeatable: bool = False,
    ) -> T:
        """Run ``work`` in a write transaction; deadlocks, lock timeouts and busy files are retried.

        ``work`` may run several times and must not have effects outside the transaction.
        ``single`` declares that it is one statement on PostgreSQL, which is then its own
        transaction. ``repeatable`` declares that it does no harm to run ``work`` again when it may have been
        committed already: if the connection was lost in the middle, a new one is tried at once.
        Raises ``StoreUnreachable`` while the store is away or cannot accept it,
        ``StatementRefused`` if ``work`` itself is at fault.
        """

        def attempt() -> T:
            with self._single() if single else self.write(urgent=urgent) as connection:
                return work(connection)

        return self._tried(attempt, repeatable)

    def transact_plain(self, statement: str, parameters: Mapping[str, object]) -> Rows | None:
        """Execute one repeatable statement of PostgreSQL as its own transaction, without SQLAlchemy's part.

        The statement is in psycopg's own form. ``None`` where that is not possible, and nothing was executed: on
        SQLite, behind a pooler, with an injected clock. Raises as ``transact``.
        """
        if self._autocommit is None:
            return None
        return self._tried(lambda: execute_alone(self.engine, statement, parameters), repeatable=True)

    def _tried(self, attempt: Callable[[], T], repeatable: bool) -> T:
        tries, began = 0, time.monotonic()
        while True:
            tries += 1
            try:
                return attempt()
            except Exception as error:
                if not is_fault(error):
                    raise
                may_try = tries < _MAX_TRIES and time.monotonic() - began < _MAX_TRYING_SECONDS
                if may_try and is_passing(error):
                    time.sleep(random.uniform(0, 0.01 * 2**tries))
                    continue
                if repeatable and is_lost(error):
                    repeatable = False
                    continue
                self._raise_translated(error)

    def execute_dedicated(self, statement: str, parameters: Sequence[str]) -> list[tuple[Any, ...]]:
        """Run one statement of PostgreSQL as its own transaction on the session beside the pool: ``dedicated_session``.

        Its parameters are texts, ``$1`` to ``$n``. It is not retried. Raises ``RolledBack`` or ``StoreUnreachable``.
        """
        if self._dedicated is None:
            raise ValueError("a SQLite store has no dedicated session; its writes wait in one queue")
        notice_fork()
        return self._dedicated.execute(statement, parameters)

    def _clock_offset_us(self) -> int:
        return 0 if self._clock_us is None else self._clock_us() - system_clock_us()

    def _inject_clock(self, connection: Connection) -> None:
        if self._clock_us is None or self.is_sqlite:
            return
        connection.execute(
            text("SELECT set_config('paidonce.clock_offset_us', :offset, true)"),
            {"offset": str(self._clock_offset_us())},
        )

    def _raise_translated(self, error: Exception) -> NoReturn:
        if not self.is_sqlite and is_of_this_session(error):
            self.engine.dispose()  # connections in use are closed when they are returned
        told = error_for(error, self.shown_url)
        # PostgreSQL quotes the row that it refuses; a traceback of that would put it into logs.
        raise told from None if isinstance(told, StatementRefused) else error

    def detached_connection(self) -> Any:
        """A connection of the driver's that the pool does not know; the caller closes it."""
        with self.translating():
            pooled = self.engine.raw_connection()
            connection = pooled.dbapi_connection
            pooled.detach()
            return connection

    def now_us(self) -> int:
        """The time by the store's clock."""
        with self.read() as connection:
            return int(connection.execute(text("SELECT paidonce_now()")).scalar_one())

    def close(self) -> None:
        """Close all pooled connections, and the dedicated one."""
        self.engine.dispose()
        if self._dedicated is not None:
            self._dedicated.close()

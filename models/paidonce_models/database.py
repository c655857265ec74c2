"""The connection to the store: engines, write transactions, retries and the store's clock.

Owns how a statement reaches SQLite or PostgreSQL; never what it says. No user
code may run between the opening and the end of a transaction.

SQLite: every write begins with ``BEGIN IMMEDIATE`` (a deferred transaction that
reads and then writes fails with SQLITE_BUSY_SNAPSHOT whatever the time-out) and
waits in one queue per process in which heartbeats go first. PostgreSQL sessions
carry time-outs, so that a frozen process cannot hold a lock for long (``sessions``).

``paidonce_now()`` is the store's clock in microseconds on both engines: a SQL
function on PostgreSQL, registered per connection on SQLite.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import make_url

from paidonce_models.driver_errors import keep_values_out
from paidonce_models.errors import ConfigurationError, StatementRefused, StoreUnreachable
from paidonce_models.forks import before_fork, in_child, leave_to_parent
from paidonce_models.log_texts import loggable
from paidonce_models.masking import mask
from paidonce_models.private_files import create_private_file, tighten
from paidonce_models.sessions import SCHEMA_RULE, Pooler, Sessions, is_schema_name
from paidonce_models.sqlite_forks import GatedPool, close_for_fork, watch_connections
from paidonce_models.store_faults import error_for, is_fault, is_of_this_session, is_passing
from paidonce_models.write_queue import WriteQueue

T = TypeVar("T")

_NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "glusterfs"})
_MAX_TRIES = 8
_MAX_TRYING_SECONDS = 30.0
"""A busy file or a lock is waited for by the driver itself; whoever has more patience than this says so in a log."""
UPGRADE_LOCK = ".upgrade-lock"
FILES_BESIDE = ("-wal", "-shm", "-journal", UPGRADE_LOCK)
"""How the names of the files end that lie beside a SQLite store."""
_PLAN_FOR_MANY_ROWS = text(
    "SELECT set_config('enable_seqscan', 'on', true), set_config('plan_cache_mode', 'force_custom_plan', true), "
    "set_config('work_mem', '64MB', true), set_config('random_page_cost', '1.1', true), "
    "set_config('parallel_setup_cost', '100', true), set_config('parallel_tuple_cost', '0.005', true), "
    "set_config('enable_parallel_hash', 'off', true), "
    "set_config('transaction_read_only', 'on', true)"
)


def system_clock_us() -> int:
    """Microseconds since the epoch by the system's clock."""
    return time.time_ns() // 1000


class Database:
    """A store to read and write. Safe to share between threads; a forked child has connections of its own."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 8,
        schema: str | None = None,
        pooler: str = Pooler.AUTO,
        clock_us: Callable[[], int] | None = None,
    ) -> None:
        """``schema`` is where the tables lie on PostgreSQL; ``None`` leaves that to the address and the server.

        ``pooler`` says what stands before the server, unless it is to be found out. ``clock_us`` replaces the store's
        clock (tests only); ``None`` is the store's own.
        """
        try:
            parsed = make_url(url)
        except sqlalchemy.exc.ArgumentError as error:
            raise ConfigurationError(
                f"PAIDONCE_DATABASE_URL is no database address: {loggable(str(error))}; "
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
            raise ConfigurationError(f"PAIDONCE_SCHEMA: {schema!r} is no {SCHEMA_RULE}; give it another name")
        self.schema = schema
        self._sessions = None if self.is_sqlite else Sessions(parsed, schema=schema, pooler=Pooler(pooler))
        self._clock_us = clock_us
        self._pool_size = pool_size
        self._fork_is_clean = True
        self._begin_empty()
        self.engine  # noqa: B018 - refuses an address on which no engine can be made
        if self.file is not None:
            before_fork(self, Database._close_for_fork, Database._open_after_fork)
        if self.file is not None or not self.is_sqlite:  # a store in memory is each process's own
            in_child(self, Database._leave_to_parent)

    def _begin_empty(self) -> None:
        self._making = threading.Lock()
        self._write_queue = WriteQueue()
        self._made: tuple[Engine, Engine | None] | None = None
        self._opened: weakref.WeakSet[Any] = weakref.WeakSet()
        """The driver's connections, as far as a forked child has to let go of their sockets."""

    @property
    def engine(self) -> Engine:
        """This process's engine. Raises ``StoreUnreachable`` in a child that must not open the store."""
        return self._engines()[0]

    @property
    def _autocommit(self) -> Engine | None:
        """The same, where each statement is a transaction; ``None`` where that is not to be had."""
        return self._engines()[1]

    def _engines(self) -> tuple[Engine, Engine | None]:
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
            return self._sqlite_engine(self._pool_size), None
        engine = self._postgresql_engine(self._pool_size)
        if self._clock_us is not None:
            return engine, None
        return engine, engine.execution_options(isolation_level="AUTOCOMMIT")

    # -- forks -----------------------------------------------------------------

    def _close_for_fork(self) -> None:
        self._fork_is_clean = close_for_fork(None if self._made is None else self._made[0])

    def _open_after_fork(self) -> None:
        self._fork_is_clean = True

    def _leave_to_parent(self) -> None:
        """In a forked child: no connection is used, none closed, and no lock is waited for that a thread held."""
        if self._made is not None:
            leave_to_parent(*self._made)
        if self.is_sqlite:
            # Whoever forks past Python has closed nothing.
            is_open = self._made is not None and _has_connections(self._made[0])
            self._fork_is_clean = self._fork_is_clean and not is_open
        for connection in list(self._opened):
            let_go_of_socket(connection)
        self._begin_empty()

    @property
    def file(self) -> Path | None:
        """Where an SQLite store lies; ``None`` for PostgreSQL and for a store in memory."""
        path = self.url.database
        return Path(path) if self.is_sqlite and path not in (None, "", ":memory:") else None

    def __repr__(self) -> str:
        return f"Database({self.shown_url})"

    @property
    def shown_url(self) -> str:
        """The address for people: no credential, wherever in it one stands."""
        return mask(self.url.render_as_string(hide_password=True))

    # -- engines ---------------------------------------------------------------

    def _sqlite_engine(self, pool_size: int) -> Engine:
        memory = self.url.database in (None, "", ":memory:")
        if not memory:
            _refuse_network_file_system(Path(str(self.url.database)))
        options: dict[str, object] = {
            "connect_args": {"check_same_thread": False, "isolation_level": None, "timeout": 30}
        }
        if memory:
            options["poolclass"] = sqlalchemy.pool.StaticPool
        else:
            options.update(poolclass=GatedPool, pool_size=pool_size, max_overflow=pool_size, pool_timeout=60)
        engine = sqlalchemy.create_engine(self.url, hide_parameters=True, **options)
        keep_values_out(engine)
        if not memory:
            watch_connections(engine)
        clock = self._clock_us or system_clock_us

        if not memory:
            path = str(self.url.database)

            @event.listens_for(engine, "do_connect")
            def _keep_private(*_: object) -> None:
                # Before SQLite does: it would give a new file what the umask leaves, and -wal and -shm the same.
                try:
                    create_private_file(path)
                except OSError:
                    pass  # SQLite says better what is wrong with the path
                tighten(path, *(f"{path}{ending}" for ending in FILES_BESIDE))

        @event.listens_for(engine, "connect")
        def _prepare(connection, _record) -> None:  # type: ignore[no-untyped-def]  # driver's object
            connection.create_function("paidonce_now", 0, clock)
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA busy_timeout=30000")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            write = connection.get_execution_options().get("paidonce_write", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine

    def _postgresql_engine(self, pool_size: int) -> Engine:
        engine = sqlalchemy.create_engine(
            self.url,
            hide_parameters=True,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=60,
            pool_recycle=1800,
            connect_args=Sessions.connect_arguments(self.url),
        )
        keep_values_out(engine)
        if self._sessions is not None:
            self._sessions.look_after(engine)
        opened = self._opened

        @event.listens_for(engine, "connect")
        def _note(connection: Any, _record: object) -> None:
            opened.add(connection)

        return engine

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
        """A connection for reading; on PostgreSQL each statement sees what is committed when it begins."""
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
        (a generic plan, no sequential scan) is wrong for sums over a ledger. Scans are shared between processes sooner
        than PostgreSQL would, which takes reading a tag out of a hundred thousand rows for cheap; hash tables are not,
        as those need more shared memory than a container may have. Writes nothing.
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

        ``urgent`` writes (heartbeats) overtake the others that wait in this process. Errors are the driver's own.
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

    @property
    def has_single_statements(self) -> bool:
        """Whether acts that are one statement on PostgreSQL may be that here."""
        return not self.is_sqlite

    @contextmanager
    def _single(self) -> Iterator[Connection]:
        """A connection for one statement that commits by itself: one round trip instead of three."""
        if self._autocommit is None:
            with self.write() as connection:
                yield connection
            return
        # Behind a pooler this is a transaction, else the driver has nothing to commit and says nothing.
        with self._autocommit.connect() as connection, connection.begin():
            yield connection

    def transact(self, work: Callable[[Connection], T], *, urgent: bool = False, single: bool = False) -> T:
        """Run ``work`` in a write transaction; deadlocks, lock time-outs and busy files are tried again.

        ``work`` may run several times and must not have effects outside the
        transaction. ``single`` says that it is one statement on PostgreSQL, which
        is then its own transaction. Raises ``StoreUnreachable`` while the store is away or cannot take it,
        ``StatementRefused`` where that is the fault of what ``work`` writes.
        """
        tries, began = 0, time.monotonic()
        while True:
            tries += 1
            try:
                with self._single() if single else self.write(urgent=urgent) as connection:
                    return work(connection)
            except Exception as error:
                if not is_fault(error):
                    raise
                may_try = tries < _MAX_TRIES and time.monotonic() - began < _MAX_TRYING_SECONDS
                if may_try and is_passing(error):
                    time.sleep(random.uniform(0, 0.01 * 2**tries))
                    continue
                self._raise_translated(error)

    def _inject_clock(self, connection: Connection) -> None:
        if self._clock_us is None or self.is_sqlite:
            return
        offset = self._clock_us() - system_clock_us()
        connection.execute(
            text("SELECT set_config('paidonce.clock_offset_us', :offset, true)"), {"offset": str(offset)}
        )

    def _raise_translated(self, error: Exception) -> NoReturn:
        if not self.is_sqlite and is_of_this_session(error):
            self.engine.dispose()  # connections that are in use are closed when they come back
        told = error_for(error, self.shown_url)
        # PostgreSQL tells what was in a row that it refuses; a traceback of that would put it into logs.
        raise told from None if isinstance(told, StatementRefused) else error

    def detached_connection(self) -> Any:
        """A connection of the driver's own that the pool knows nothing of; whoever takes it closes it."""
        with self.translating():
            pooled = self.engine.raw_connection()
            connection = pooled.dbapi_connection
            pooled.detach()
            return connection

    def now_us(self) -> int:
        """The store's clock."""
        with self.read() as connection:
            return int(connection.execute(text("SELECT paidonce_now()")).scalar_one())

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def let_go_of_socket(connection: Any) -> None:
    """In a forked child: hold a session of PostgreSQL no longer, without a word to the server.

    With the child's copy of the socket open, the server would not see the end of the parent.
    """
    try:
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), connection.fileno(), inheritable=False)
    except Exception as error:  # a child that cannot let go only delays what others see
        if not isinstance(error, OSError) and not is_fault(error):
            raise


def _has_connections(engine: Engine) -> bool:
    pool = engine.pool
    return isinstance(pool, GatedPool) and pool.checkedin() + pool.checkedout() > 0


def _refuse_network_file_system(path: Path) -> None:
    folder = path.absolute().parent
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    best, kind = "", ""
    for line in mounts:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1]
        if (str(folder) + os.sep).startswith(point.rstrip(os.sep) + os.sep) and len(point) >= len(best):
            best, kind = point, fields[2]
    if kind in _NETWORK_FILE_SYSTEMS:
        raise ConfigurationError(
            f"the SQLite store {path} lies on a network file system ({kind} at {best}), where its locks do not hold; "
            "put PAIDONCE_HOME on a local disk or use PostgreSQL"
        )

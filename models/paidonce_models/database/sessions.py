"""How sessions of a PostgreSQL server get their settings: timeouts, planner, schema; with or without a pooler.

A session of our own gets them once, when it is opened. Behind a pooler (PgBouncer, Supabase, Neon, RDS Proxy) a session
may serve another client between two transactions: startup options are refused or ignored there, a ``SET`` affects
others and is lost for us, and a prepared statement belongs to the next client. So there each transaction gets the
settings, in the statement that begins it, and nothing is prepared. The server's PID shows which it is: behind a pooler
it is not the one that was announced when the connection was opened.

Opens no connection of its own accord: SQLAlchemy's pool or a dedicated session requests one. The pool reports when a
transaction begins.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL

from paidonce_models.database.session_choices import Pooler
from paidonce_models.errors import ConfigurationError, StoreDenied
from paidonce_models.privacy.log_texts import loggable

_OURS: Final = {
    "idle_in_transaction_session_timeout": "8000",
    "lock_timeout": "6000",
    "statement_timeout": "60000",
    # A statement prepared while a table is nearly empty keeps its sequential scan until the next ANALYZE: in a new
    # store that read 290 rows per step instead of 19. A forced scan looks dear, hence no JIT.
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
_CONNECTING: Final = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""For libpq, where the address does not set them."""
PREPARE_THRESHOLD: Final = 3
RECYCLE_SECONDS: Final = 1800
"""How old a connection becomes: what is between us and the server may forget one that it has not seen for long."""
_POOLED: Final = "paidonce_pooled"
_SETTING_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?")
_REFUSAL: Final = "unsupported startup parameter"


def is_pooled(info: Mapping[str, Any]) -> bool:
    """Whether the session of a pool's connection is behind a pooler, by the connection's ``info``."""
    return bool(info.get(_POOLED))


class Sessions:
    """The settings of one store's sessions, and when each session gets them."""

    def __init__(self, url: URL, *, schema: str | None, pooler: Pooler) -> None:
        """Raises ``ConfigurationError`` if the address's own options contradict ``schema``."""
        self._pooler = pooler
        given = url.query.get("options")
        self._options = " ".join(given) if isinstance(given, tuple) else given
        named, self._options_are_settings = _settings_in(
            self._options if self._options is not None else os.environ.get("PGOPTIONS", "")
        )
        self._settings = {**_OURS, **named}
        self._required = {"search_path"}
        """Set whatever came with the connection."""
        if schema is not None:
            path = named.get("search_path")
            if path is not None and path.strip().strip('"') != schema:
                raise ConfigurationError(
                    f"PAIDONCE_SCHEMA is {schema}, and the options of PAIDONCE_DATABASE_URL (or PGOPTIONS) set another "
                    "search_path; leave one of them out"
                )
            self._settings["search_path"] = schema

    def with_settings(self, more: Mapping[str, str]) -> Sessions:
        """The same for sessions that need ``more`` settings, whatever the address says."""
        other = copy.copy(self)
        other._settings = {**self._settings, **more}
        other._required = {*self._required, *more}
        return other

    @staticmethod
    def connect_arguments(url: URL) -> dict[str, object]:
        """The driver's arguments besides the address, which takes precedence."""
        options: dict[str, object] = {name: value for name, value in _CONNECTING.items() if name not in url.query}
        return {**options, "prepare_threshold": PREPARE_THRESHOLD}

    def look_after(self, engine: Engine) -> None:
        """Open this engine's connections and begin its transactions."""

        @event.listens_for(engine, "do_connect")
        def _connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
            connection, record.info[_POOLED] = self._opened(dialect, arguments, options)
            return connection

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            if not is_pooled(connection.info):
                return
            session = connection.connection.dbapi_connection
            if session is None:
                return
            level = session.isolation_level
            # The driver would begin with a separate statement, one more round trip.
            session.autocommit = True
            connection.exec_driver_sql(self.begin_statement(level), execution_options={"no_parameters": True})

    def open(self, engine: Engine) -> tuple[Any, bool]:
        """The driver's connection outside the engine's pool; True: pooled by others, its transactions must set all."""
        arguments, options = engine.dialect.create_connect_args(engine.url)
        return self._opened(engine.dialect, arguments, {**options, **self.connect_arguments(engine.url)})

    def _opened(self, dialect: Any, arguments: Any, options: Any) -> tuple[Any, bool]:
        connection = self._connect(dialect, arguments, options)
        try:
            return connection, self._prepare(connection)
        except BaseException:
            connection.close()
            raise

    def _connect(self, dialect: Any, arguments: Any, options: dict[str, Any]) -> Any:
        try:
            return dialect.connect(*arguments, **options)
        except dialect.loaded_dbapi.ProgrammingError as error:  # libpq's, before it has connected
            raise ConfigurationError(
                f"PAIDONCE_DATABASE_URL: {loggable(str(error).strip(), 200)}; correct it"
            ) from None
        except dialect.loaded_dbapi.OperationalError as error:
            if _REFUSAL not in str(error):
                raise
            if not self._options_are_settings:
                raise StoreDenied(
                    "the connection pooler in front of the store refuses the options of PAIDONCE_DATABASE_URL (or of "
                    "PGOPTIONS), which hold more than -c NAME=VALUE; leave them out, or connect to the server itself"
                ) from None
        # An empty text keeps libpq from reading the environment variable.
        return dialect.connect(*arguments, **{**options, "options": ""})

    def _prepare(self, session: Any) -> bool:
        """Set a new session's settings; True if the session is pooled, so that its transactions must set them."""
        session.autocommit = True
        try:
            if self._is_pooled(session):
                session.prepare_threshold = None
                return True
            wanted = ", ".join(f"({_literal(name)}, {_literal(value)})" for name, value in self._settings.items())
            # What came with the connection (a service file's options) was meant for this session.
            session.execute(
                f"SELECT set_config(w.name, w.value, false) FROM (VALUES {wanted}) AS w (name, value) "
                "LEFT JOIN pg_settings s ON s.name = w.name WHERE s.source IS DISTINCT FROM 'client' "
                f"OR w.name IN ({', '.join(map(_literal, sorted(self._required)))})"
            )
            return False
        finally:
            if not session.closed:
                session.autocommit = False

    def _is_pooled(self, session: Any) -> bool:
        if self._pooler is not Pooler.AUTO:
            return self._pooler is Pooler.TRANSACTION
        (pid,) = session.execute("SELECT pg_backend_pid()").fetchone()
        return bool(pid != session.info.backend_pid)

    def begin_statement(self, level: Any) -> str:
        """What begins a transaction of a pooled session.

        Text without parameters goes to the server as it is: several statements in one round trip.
        """
        mode = "READ COMMITTED" if level is None else level.name.replace("_", " ")
        pairs = [f"{_literal(name)}, {_literal(value)}" for name, value in self._settings.items()]
        told = ", ".join(f"set_config({pair}, true)" for pair in pairs)
        # Another client may have left a path on the session.
        path = "" if "search_path" in self._settings else "; SET LOCAL search_path TO DEFAULT"
        return f"BEGIN ISOLATION LEVEL {mode}; SELECT {told}{path}"


def _settings_in(options: str) -> tuple[dict[str, str], bool]:
    """Parse options as PostgreSQL does (``-c name=value``); also whether they contain nothing else."""
    found: dict[str, str] = {}
    try:
        words = shlex.shlex(options, posix=True)
        words.whitespace_split, words.quotes, words.commenters, words.escape = True, "", "", "\\"
        parts = list(words)
    except ValueError:
        return found, False
    complete = True
    while parts:
        part = parts.pop(0)
        if part == "-c" and parts:
            part = parts.pop(0)
        elif part.startswith(("-c", "--")):
            part = part[2:]
        else:
            complete = False
            continue
        name, separator, value = part.partition("=")
        name = name.replace("-", "_")
        if separator and _SETTING_NAME.fullmatch(name):
            found[name.lower()] = value
        else:
            complete = False
    return found, complete


def _literal(text: str) -> str:
    quoted = text.replace("'", "''")
    return "E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in quoted else f"'{quoted}'"

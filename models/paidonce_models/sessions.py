"""How the sessions of a PostgreSQL server get their settings: time-outs, planner, schema; with or without a pooler.

A session of our own is told once, when it is opened. Behind a pooler (PgBouncer, Supabase, Neon, RDS Proxy) a session
may serve somebody else between two transactions: startup options are refused or swallowed there, a ``SET`` reaches
others and is lost for us, a prepared statement belongs to whoever comes next. So there each transaction is told, in
the statement that begins it, and nothing is prepared. The server's process tells which it is: its PID is not the one
that was announced when the connection was made.

Never opens a connection by itself: SQLAlchemy's pool asks for one, and says when a transaction begins.
"""

from __future__ import annotations

import os
import re
import shlex
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL

from paidonce_models.errors import ConfigurationError, StoreDenied
from paidonce_models.log_texts import loggable

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
"""For libpq, where the address does not say otherwise."""
PREPARE_THRESHOLD: Final = 3
_POOLED: Final = "paidonce_pooled"
_SCHEMA_NAME: Final = re.compile(r"(?!pg_|information_schema$)[a-z_][a-z0-9_]{0,62}")
SCHEMA_RULE: Final = "name of small letters, digits and _, at most 63, not beginning with a digit or pg_"
_SETTING_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?")
_REFUSAL: Final = "unsupported startup parameter"


class Pooler(StrEnum):
    """What stands between us and the server."""

    AUTO = "auto"
    SESSION = "session"
    TRANSACTION = "transaction"


def is_schema_name(name: str) -> bool:
    """Whether the store may lie in a schema of that name, which never needs quotes."""
    return _SCHEMA_NAME.fullmatch(name) is not None


class Sessions:
    """The settings of one store's sessions, and who is told them when."""

    def __init__(self, url: URL, *, schema: str | None, pooler: Pooler) -> None:
        """Raises ``ConfigurationError`` where the address's own options contradict ``schema``."""
        self._pooler = pooler
        given = url.query.get("options")
        self._options = " ".join(given) if isinstance(given, tuple) else given
        named, self._options_are_settings = _settings_in(
            self._options if self._options is not None else os.environ.get("PGOPTIONS", "")
        )
        self._settings = {**_OURS, **named}
        if schema is not None:
            path = named.get("search_path")
            if path is not None and path.strip().strip('"') != schema:
                raise ConfigurationError(
                    f"PAIDONCE_SCHEMA is {schema}, and the options of PAIDONCE_DATABASE_URL (or PGOPTIONS) set another "
                    "search_path; leave one of them out"
                )
            self._settings["search_path"] = schema

    @staticmethod
    def connect_arguments(url: URL) -> dict[str, object]:
        """What the driver is told besides the address, which wins."""
        options: dict[str, object] = {name: value for name, value in _CONNECTING.items() if name not in url.query}
        return {**options, "prepare_threshold": PREPARE_THRESHOLD}

    def look_after(self, engine: Engine) -> None:
        """Have this engine's connections made, and its transactions begun, by us."""

        @event.listens_for(engine, "do_connect")
        def _connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
            connection = self._connect(dialect, arguments, options)
            try:
                record.info[_POOLED] = self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            return connection

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            if not connection.info.get(_POOLED):
                return
            session = connection.connection.dbapi_connection
            if session is None:
                return
            level = session.isolation_level
            # The driver would begin by a statement of its own, one more round trip.
            session.autocommit = True
            connection.exec_driver_sql(self._begin_statement(level), execution_options={"no_parameters": True})

    def _connect(self, dialect: Any, arguments: Any, options: dict[str, Any]) -> Any:
        try:
            return dialect.connect(*arguments, **options)
        except dialect.loaded_dbapi.ProgrammingError as error:  # libpq's, before it has asked anybody
            raise ConfigurationError(f"PAIDONCE_DATABASE_URL: {loggable(str(error), 200)}; correct it") from None
        except dialect.loaded_dbapi.OperationalError as error:
            if _REFUSAL not in str(error):
                raise
            if not self._options_are_settings:
                raise StoreDenied(
                    "the connection pooler in front of the store refuses the options of PAIDONCE_DATABASE_URL (or of "
                    "PGOPTIONS), which hold more than -c NAME=VALUE; leave them out, or connect to the server itself"
                ) from None
        # An empty text is not looked up in the environment.
        return dialect.connect(*arguments, **{**options, "options": ""})

    def _prepare(self, session: Any) -> bool:
        """Tell a new session its settings; true where it is not ours alone, and must not be told."""
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
                "OR w.name = 'search_path'"
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

    def _begin_statement(self, level: Any) -> str:
        """Text without parameters goes to the server as it is, several statements in one round trip."""
        mode = "READ COMMITTED" if level is None else level.name.replace("_", " ")
        pairs = [f"{_literal(name)}, {_literal(value)}" for name, value in self._settings.items()]
        told = ", ".join(f"set_config({pair}, true)" for pair in pairs)
        # Somebody else may have left a path on the session that we are given.
        path = "" if "search_path" in self._settings else "; SET LOCAL search_path TO DEFAULT"
        return f"BEGIN ISOLATION LEVEL {mode}; SELECT {told}{path}"


def _settings_in(options: str) -> tuple[dict[str, str], bool]:
    """The settings in options as PostgreSQL reads them (``-c name=value``), and whether there is nothing else."""
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

"""Statements of PostgreSQL that are executed so often that SQLAlchemy's own work around them counts.

They go to psycopg directly, on sessions of SQLAlchemy's pool: settings, limits and forks are as for any other
statement. A producer spent more time in SQLAlchemy's part of a submission than in psycopg's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine

from paidonce_models.database.driver_errors import cut_values
from paidonce_models.database.sessions import is_pooled
from paidonce_models.database.store_faults import is_fault

Rows = list[tuple[Any, ...]]


def execute_plain(connection: Connection, statement: str, parameters: Mapping[str, object]) -> Rows:
    """The rows of a statement in psycopg's own form (``%(name)s``), in the transaction of a connection.

    Raises the driver's errors, without values.
    """
    with _session_of(connection) as session:
        rows: Rows = session.execute(statement, parameters).fetchall()
        return rows


def execute_numbered(connection: Connection, statement: str, parameters: Sequence[str]) -> Rows:
    """The same for a statement with ``$1`` to ``$n``, which are texts."""
    from psycopg import RawCursor  # noqa: PLC0415 - a driver that users of SQLite need not have

    with _session_of(connection) as session:
        rows: Rows = RawCursor(session).execute(statement, parameters).fetchall()
        return rows


@contextmanager
def _session_of(connection: Connection) -> Iterator[Any]:
    session: Any = connection.connection.dbapi_connection
    try:
        yield session
    except Exception as error:
        if is_fault(error):
            cut_values(error)
            if session.closed:
                connection.invalidate()
                connection.engine.dispose()
        raise


def execute_alone(engine: Engine, statement: str, parameters: Mapping[str, object]) -> Rows | None:
    """The same as a transaction of its own, without a connection of SQLAlchemy's.

    ``None`` behind a pooler, where nothing was executed: there each transaction must set its own settings.
    """
    pooled = engine.raw_connection()
    session: Any = pooled.dbapi_connection
    try:
        if is_pooled(pooled.info):
            return None
        session.autocommit = True
        rows: Rows = session.execute(statement, parameters).fetchall()
        session.autocommit = False
        return rows
    except BaseException as error:
        if isinstance(error, Exception) and is_fault(error):
            cut_values(error)
        was_lost = session.closed
        pooled.invalidate()
        if was_lost:
            # As SQLAlchemy does where it sees this itself: the pool's other connections are most probably lost too.
            engine.dispose()
        raise
    finally:
        pooled.close()

"""Whose fault an error of the store is: a table of what PostgreSQL, SQLite and their drivers answer."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from psycopg import errors as of_postgresql
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from paidonce_models.database.schema import ensure_schema
from paidonce_models.database.store_faults import Fault, error_for, fault_of, is_fault, is_passing
from paidonce_models.database.transactions import Database
from paidonce_models.errors import (
    ResultTimeout,
    StatementRefused,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    StoreUnreachable,
)

SECRET = "sk-planted-0815"

SQLSTATES = {
    Fault.REFUSED: (
        *("21000", "22001", "22003", "22012", "22021", "22P02", "22P05", "23502", "23503", "23505", "23514", "23P01"),
        *("42601", "42703", "42P01", "42883", "42804", "44000", "54000", "54001", "54023"),
    ),
    Fault.UNAVAILABLE: (
        *("53000", "53100", "53200", "53300", "53400", "25006", "25001", "25P02", "42501", "57014", "57000", "57P04"),
        *("58000", "58030", "58P01", "F0000", "XX000", "XX001", "XX002", "55000", "55006", "55P03", "40001", "40P01"),
        *("40003", "0A000", "26000", "P0001", "38000", "39000", "72000", "ZZ999", "99999"),
    ),
    Fault.UNREACHABLE: ("08000", "08001", "08003", "08006", "08P01", "57P01", "57P02", "57P03", "57P05", "25P03"),
    Fault.DENIED: ("28000", "28P01", "3D000"),
}

SQLITE_ERRORS = {
    Fault.REFUSED: ("ERROR", "TOOBIG", "CONSTRAINT", "CONSTRAINT_UNIQUE", "CONSTRAINT_CHECK", "MISMATCH", "RANGE"),
    Fault.UNAVAILABLE: (
        *("FULL", "IOERR", "IOERR_WRITE", "IOERR_FSYNC", "READONLY", "READONLY_DBMOVED", "CORRUPT", "NOMEM", "PERM"),
        *("BUSY", "BUSY_SNAPSHOT", "LOCKED", "PROTOCOL", "SCHEMA", "INTERRUPT", "ABORT", "NOLFS", "AUTH"),
    ),
    Fault.UNREACHABLE: ("CANTOPEN", "CANTOPEN_ISDIR"),
    Fault.DENIED: ("NOTADB",),
}


class Answer(psycopg.Error):
    """What a server of some later version may say."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(f"whatever {sqlstate} means\nDETAIL: {SECRET}")
        self.sqlstate = sqlstate


def wrapped(cause: Exception) -> DBAPIError:
    """As SQLAlchemy hands it on: with the statement and its parameters."""
    return DBAPIError("INSERT INTO runs", {"input": SECRET}, cause)


def of_sqlite(name: str) -> sqlite3.Error:
    error = sqlite3.OperationalError("whatever it says")
    error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{name}")
    error.sqlite_errorname = f"SQLITE_{name}"
    return error


@pytest.mark.parametrize(("side", "state"), [(side, state) for side, states in SQLSTATES.items() for state in states])
def test_each_sqlstate_falls_on_its_side(side: Fault, state: str) -> None:
    error = wrapped(Answer(state))
    assert is_fault(error) and fault_of(error) is side
    told = error_for(error, "postgresql://u:***@h/d")
    assert state in told.message and SECRET not in told.message and "\n" not in told.message


def test_every_sqlstate_that_the_driver_knows_falls_on_a_side_and_waits_unless_it_is_listed() -> None:
    known = {
        each.sqlstate
        for each in vars(of_postgresql).values()
        if isinstance(each, type) and issubclass(each, psycopg.Error) and each.sqlstate is not None
    }
    refused = {state for state in known if fault_of(wrapped(Answer(state))) is Fault.REFUSED}
    assert len(known) > 200
    assert {state[:2] for state in refused} == {"21", "22", "23", "42", "44", "54"}
    assert "42501" not in refused


@pytest.mark.parametrize(("side", "name"), [(side, name) for side, names in SQLITE_ERRORS.items() for name in names])
def test_each_error_of_sqlite_falls_on_its_side(side: Fault, name: str) -> None:
    error = wrapped(of_sqlite(name))
    assert is_fault(error) and fault_of(error) is side
    assert SECRET not in error_for(error, "sqlite:///x").message


@pytest.mark.parametrize(
    ("side", "error"),
    [
        (Fault.UNAVAILABLE, OSError(28, "No space left on device")),
        (Fault.UNAVAILABLE, ConnectionResetError(104, "reset")),
        (Fault.UNAVAILABLE, MemoryError()),
        (Fault.UNAVAILABLE, sqlalchemy.exc.TimeoutError("QueuePool limit reached")),
        (Fault.UNAVAILABLE, wrapped(sqlite3.OperationalError("of a driver that gives no code"))),
        (Fault.UNREACHABLE, wrapped(psycopg.OperationalError("consuming input failed"))),
        (Fault.UNREACHABLE, wrapped(psycopg.OperationalError("FATAL:  the database system is starting up"))),
        (Fault.UNREACHABLE, wrapped(psycopg.OperationalError("FATAL:  sorry, too many clients already"))),
        (Fault.UNREACHABLE, wrapped(psycopg.InterfaceError("the connection is closed"))),
        (Fault.UNREACHABLE, psycopg.OperationalError("raw")),
        (Fault.DENIED, wrapped(psycopg.OperationalError('FATAL:  password authentication failed for user "u"'))),
        (Fault.DENIED, wrapped(psycopg.OperationalError('FATAL:  database "d" does not exist'))),
        (Fault.REFUSED, wrapped(psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"))),
        (Fault.REFUSED, wrapped(psycopg.ProgrammingError("cannot adapt type 'object'"))),
        (Fault.REFUSED, wrapped(sqlite3.ProgrammingError("Error binding parameter 1"))),
        (Fault.REFUSED, wrapped(sqlite3.IntegrityError("of a driver that gives no code"))),
        (Fault.REFUSED, UnicodeEncodeError("utf-8", f"{SECRET}\ud800", 0, 1, "surrogates not allowed")),
        (Fault.REFUSED, OverflowError("Python int too large to convert to SQLite INTEGER")),
        (Fault.REFUSED, sqlalchemy.exc.StatementError("a value is required", "SELECT :x", {"x": SECRET}, None)),
        (
            Fault.REFUSED,
            sqlalchemy.exc.StatementError(SECRET, "SELECT :x", {}, sqlalchemy.exc.InvalidRequestError(SECRET)),
        ),
    ],
)
def test_errors_without_a_code_fall_on_a_side_too(side: Fault, error: Exception) -> None:
    assert is_fault(error) and fault_of(error) is side
    told = error_for(error, "a store")
    assert SECRET not in told.message and isinstance(told, StoreError)


@pytest.mark.parametrize("error", [KeyError("a bug"), TypeError("a bug"), ResultTimeout("ours"), StoreError("damaged")])
def test_bugs_and_our_own_errors_are_no_fault_of_the_store(error: Exception) -> None:
    assert not is_fault(error)


def test_values_that_postgresql_quotes_are_not_told() -> None:
    cause = of_postgresql.InvalidTextRepresentation(f'invalid input syntax for type integer: "{SECRET}"')
    assert SECRET not in error_for(wrapped(cause), "a store").message


def test_deadlocks_and_busy_files_are_tried_again_at_once() -> None:
    assert all(is_passing(wrapped(Answer(state))) for state in ("40001", "40P01", "55P03"))
    assert is_passing(wrapped(of_sqlite("BUSY"))) and is_passing(wrapped(of_sqlite("BUSY_SNAPSHOT")))
    assert not any(is_passing(wrapped(Answer(state))) for state in ("53100", "25006", "23505"))


# -- by the real engines --------------------------------------------------------------


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url, pool_size=1)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "statement", ["SELECT * FROM nowhere", "SELECT nothing", "SELEKT 1", "INSERT INTO t VALUES (1)"], ids=str
)
def test_what_is_wrong_with_a_statement_is_refused(database: Database, statement: str) -> None:
    database.transact(lambda connection: connection.execute(text("CREATE TABLE t (a INTEGER PRIMARY KEY)")))
    database.transact(lambda connection: connection.execute(text("INSERT INTO t VALUES (1)")))
    with pytest.raises(StatementRefused):
        database.transact(lambda connection: connection.execute(text(statement)))
    with pytest.raises(StatementRefused), database.read() as connection:
        connection.execute(text(statement))


def test_a_text_that_no_column_takes_is_refused(database: Database) -> None:
    def insert(value: object) -> None:
        with database.read() as connection:
            connection.execute(text("SELECT CAST(:value AS TEXT)"), {"value": value})

    with pytest.raises(StatementRefused):
        insert(f"{SECRET} \ud800")
    if not database.is_sqlite:
        with pytest.raises(StatementRefused):
            insert(f"{SECRET} \x00")


def test_a_row_that_is_refused_shows_in_no_traceback(database: Database) -> None:
    database.transact(lambda connection: connection.execute(text("CREATE TABLE t (a TEXT, b TEXT CHECK (b <> 'no'))")))
    insert = text("INSERT INTO t VALUES (:a, 'no')")
    with pytest.raises(StatementRefused) as refused:
        database.transact(lambda connection: connection.execute(insert, {"a": SECRET}))
    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_a_cancelled_or_slow_statement_and_a_read_only_server_are_waited_for(postgres_database: str) -> None:
    database = Database(postgres_database, pool_size=1)
    for before, act in (
        ("SET LOCAL statement_timeout = 10", "SELECT pg_sleep(5)"),
        ("SET LOCAL transaction_read_only = on", "CREATE TABLE t (a int)"),
    ):

        def work(connection: sqlalchemy.Connection, before: str = before, act: str = act) -> None:
            connection.execute(text(before))
            connection.execute(text(act))

        with pytest.raises(StoreUnavailable):
            database.transact(work)
    database.close()


def test_a_lock_that_is_never_free_is_waited_for(postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paidonce_models.database.transactions._MAX_TRIES", 2)
    one, other = Database(postgres_database, pool_size=1), Database(postgres_database, pool_size=1)
    one.transact(lambda connection: connection.execute(text("CREATE TABLE t (a int)")))

    def work(connection: sqlalchemy.Connection) -> None:
        connection.execute(text("SET LOCAL lock_timeout = 20"))
        connection.execute(text("INSERT INTO t VALUES (1)"))

    with one.write() as connection:
        connection.execute(text("LOCK TABLE t"))
        with pytest.raises(StoreUnavailable, match="55P03"):
            other.transact(work)
    one.close()
    other.close()


def test_an_unknown_database_and_an_unknown_role_are_said_so(postgres_database: str) -> None:
    for url in (f"{postgres_database}_nowhere", postgres_database.replace("postgres@", "nobody_at_all@")):
        if url == postgres_database:
            continue
        database = Database(url, pool_size=1)
        with pytest.raises(StoreDenied, match="does not exist"):
            database.now_us()
        database.close()


def test_files_that_are_no_store_are_said_so(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    other.write_bytes(b"this is another program's file" * 100)
    for url, error in ((f"sqlite:///{other}", StoreDenied), (f"sqlite:///{tmp_path}/no/x.db", StoreUnreachable)):
        database = Database(url)
        with pytest.raises(error):
            database.now_us()
        database.close()


def test_a_damaged_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    database = Database(f"sqlite:///{path}")
    ensure_schema(database)
    database.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\x5a" * (len(data) - 4096)
    path.write_bytes(bytes(data))
    with pytest.raises(StoreUnavailable, match="restore it from a backup"), database.read() as connection:
        connection.execute(text("SELECT count(*), max(input_id) FROM runs")).all()
    database.close()


def test_a_store_of_sqlite_that_cannot_be_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    ensure_schema(Database(f"sqlite:///{path}"))
    database = Database(f"sqlite:///file:{path}?mode=ro&uri=true", pool_size=1)
    with pytest.raises(StoreUnreachable):
        database.transact(lambda connection: connection.execute(text("DELETE FROM runs")))
    database.close()


def test_using_sqlite_does_not_load_the_driver_of_postgresql(tmp_path: Path) -> None:
    code = (
        "import sys; from paidonce_models.database.transactions import Database; "
        f"Database('sqlite:///{tmp_path}/x.db').now_us(); print('psycopg' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

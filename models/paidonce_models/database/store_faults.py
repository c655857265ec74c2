"""Classifies errors of the store: the fault of one statement, or the store's, which is waited for.

Owns the one place where drivers' errors become ours. The default is deliberate: what can only be the fault of a
statement or its data is a short list, defined by classes of the SQL standard; every other error, known or not, means
that the store cannot accept something *now*. Such a write keeps its place and is retried, because giving it up would
mean to pay for the step a second time.

Messages quote the store's response, never what was sent to it: no parameters, no quoted values, no password.
"""

from __future__ import annotations

import sqlite3
from enum import StrEnum
from typing import Any

from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from paidonce_models.errors import (
    PaidonceError,
    StatementRefused,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    StoreUnreachable,
)


class Fault(StrEnum):
    """What an error means."""

    REFUSED = "refused"
    """The fault of this statement or its data; a retry would be refused too."""
    UNREACHABLE = "unreachable"
    """There is no connection."""
    UNAVAILABLE = "unavailable"
    """There is a store, but it cannot accept this now."""
    DENIED = "denied"
    """The store refuses the login, or is not one: a mistake in a setting, if it is the first response ever."""


_DATA_CLASSES = ("22", "23", "44", "54")
"""Data, integrity, check option, program limits (an index row too large)."""
_OWN_CLASSES = (*_DATA_CLASSES, "21", "42")
"""Cardinality, syntax and names."""
_MISSING_RIGHTS = "42501"
_DENIED_CLASSES = ("28", "3D")
_GONE_CLASSES = ("08",)
_GONE = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})
_PASSING = frozenset({"40001", "40P01", "55P03"})
_OF_THIS_SESSION = frozenset({"25006", "0A000", "26000"})
"""A standby that was the primary, a plan from before a migration: a new connection may work."""

_DATA_SQLITE = frozenset({sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH})
_OWN_SQLITE = _DATA_SQLITE | {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE}
"""``SQLITE_ERROR`` is a syntax error, no such table, no such column."""
_LOCKED_SQLITE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_OF_VALUES = (UnicodeEncodeError, OverflowError)
"""What drivers raise, unwrapped, for a text or a number that no column accepts."""
_OWN_TYPES = ("DataError", "IntegrityError", "ProgrammingError", "NotSupportedError")
"""Parts of errors that a driver raises before it has asked the server."""
_DENIALS = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "is not permitted to log in",
    "permission denied for database",
    "does not exist",  # after FATAL: the database, or the role
)
"""libpq sets no SQLSTATE for a failed connection; a server with messages in another language is waited for."""

_WHAT_TO_DO = {
    "53100": "free space on its disk",
    "53200": "give it more memory",
    "53300": "raise its max_connections, or start fewer processes with a smaller PAIDONCE_DATABASE_POOL_SIZE",
    "25006": "it is read-only: make it the primary again, or let PAIDONCE_DATABASE_URL name the primary",
    _MISSING_RIGHTS: "grant the role of PAIDONCE_DATABASE_URL its rights again",
    "57014": "find out why the statement takes so long, or who has cancelled it",
    "55P03": "find out what holds the lock (pg_stat_activity)",
}
_WHAT_TO_DO_SQLITE = {
    sqlite3.SQLITE_FULL: "free space on its disk",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "check that its folder exists and may be written",
    sqlite3.SQLITE_PERM: "make the file and its folder writable",
    sqlite3.SQLITE_IOERR: "check its disk",
    sqlite3.SQLITE_CORRUPT: "stop what uses it and restore it from a backup",
    sqlite3.SQLITE_NOTADB: "let PAIDONCE_DATABASE_URL name a store of Paidonce",
    sqlite3.SQLITE_BUSY: "find out which process holds its lock",
    sqlite3.SQLITE_LOCKED: "find out which process holds its lock",
}
_LOOK_AT_IT = "check its log and its disk"
_CHECK_ADDRESS = "check PAIDONCE_DATABASE_URL and that the server runs"
LONGEST_ANSWER = 300


def is_fault(error: BaseException) -> bool:
    """Whether the error came from the driver or the connection rather than from our own code."""
    if isinstance(error, PaidonceError):  # some of ours are a TimeoutError too, which is an OSError
        return False
    kinds = (StatementError, PoolTimeout, PendingRollbackError, sqlite3.Error, OSError, MemoryError, *_OF_VALUES)
    return isinstance(error, kinds) or _is_of_psycopg(error)


def fault_of(error: BaseException) -> Fault:
    """Classify an error for which ``is_fault`` is true."""
    cause = _cause_of(error)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return Fault.UNREACHABLE
    if isinstance(cause, PoolTimeout | OSError | MemoryError):
        return Fault.UNAVAILABLE
    state = _sqlstate(cause)
    if state is not None:
        return _fault_of_sqlstate(state)
    code = _sqlite_code(cause)
    if code is not None:
        return _fault_of_sqlite(code)
    if isinstance(cause, _OF_VALUES) or type(cause).__name__ in _OWN_TYPES:
        return Fault.REFUSED
    if _is_of_psycopg(cause):
        text = str(cause)
        return Fault.DENIED if "FATAL" in text and any(each in text for each in _DENIALS) else Fault.UNREACHABLE
    if isinstance(cause, sqlite3.InterfaceError) or _is_misfit(error):
        return Fault.REFUSED  # the statement and its parameters do not match
    return Fault.UNAVAILABLE


def is_passing(error: BaseException) -> bool:
    """Whether the same transaction will most probably succeed at once: a deadlock, a lock, a busy file."""
    cause = _cause_of(error)
    return _sqlstate(cause) in _PASSING or _sqlite_code(cause) in _LOCKED_SQLITE


def is_lost(error: BaseException) -> bool:
    """Whether a connection was lost in the middle of a plain statement, of which nobody knows what became.

    A connection that could not be made is none: SQLAlchemy, which makes them, wraps that error.
    """
    return _is_of_psycopg(error) and fault_of(error) is Fault.UNREACHABLE


def is_of_this_session(error: BaseException) -> bool:
    """Whether a new connection may succeed where this one failed."""
    return _sqlstate(_cause_of(error)) in _OF_THIS_SESSION


def error_for(error: BaseException, store: str) -> StoreError:
    """Our error for one that ``is_fault`` accepts; ``store`` is the address without its password."""
    answer = _answer_of(error)
    match fault_of(error):
        case Fault.REFUSED:
            return StatementRefused(
                f"the store at {store} refuses this very statement or its data: {answer}; tried again it would be "
                "refused again, the store itself is well",
                about_data=_is_about_data(error),
            )
        case Fault.UNREACHABLE:
            return StoreUnreachable(
                f"the store at {store} cannot be reached: {answer}; {_CHECK_ADDRESS}; nothing was lost"
            )
        case Fault.DENIED:
            return StoreDenied(f"the store at {store} cannot be used: {answer}; {_CHECK_ADDRESS}; nothing was changed")
        case _:
            return StoreUnavailable(
                f"the store at {store} cannot take this now: {answer}; {_what_to_do(error)}; nothing was lost"
            )


def _fault_of_sqlstate(state: str) -> Fault:
    if state in _GONE or state.startswith(_GONE_CLASSES):
        return Fault.UNREACHABLE
    if state.startswith(_DENIED_CLASSES):
        return Fault.DENIED
    if state.startswith(_OWN_CLASSES) and state != _MISSING_RIGHTS:
        return Fault.REFUSED
    return Fault.UNAVAILABLE


def _fault_of_sqlite(code: int) -> Fault:
    if code in _OWN_SQLITE:
        return Fault.REFUSED
    if code == sqlite3.SQLITE_CANTOPEN:
        return Fault.UNREACHABLE
    return Fault.DENIED if code == sqlite3.SQLITE_NOTADB else Fault.UNAVAILABLE


def _is_misfit(error: BaseException) -> bool:
    """Whether SQLAlchemy itself could not build a statement from text and parameters."""
    return isinstance(error, StatementError) and not isinstance(error, DBAPIError)


def _is_of_psycopg(error: BaseException) -> bool:
    """By name, so that users of SQLite need not import that package."""
    return type(error).__module__.partition(".")[0] == "psycopg"


def _is_about_data(error: BaseException) -> bool:
    cause = _cause_of(error)
    state, code = _sqlstate(cause), _sqlite_code(cause)
    if state is not None:
        return state.startswith(_DATA_CLASSES)
    if code is not None:
        return code in _DATA_SQLITE
    return isinstance(cause, _OF_VALUES) or type(cause).__name__ in ("DataError", "IntegrityError")


def _cause_of(error: BaseException) -> BaseException:
    """The driver's own error."""
    cause = getattr(error, "orig", None)
    return cause if isinstance(cause, BaseException) else error


def _sqlstate(cause: Any) -> str | None:
    state = getattr(cause, "sqlstate", None)
    return state if isinstance(state, str) else None


def _sqlite_code(cause: Any) -> int | None:
    code = getattr(cause, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None  # without the extended code


def _answer_of(error: BaseException) -> str:
    """The first line of the driver's message, without the values that PostgreSQL quotes after a colon."""
    cause = _cause_of(error)
    if isinstance(cause, _OF_VALUES):
        return f"{type(cause).__name__}: {getattr(cause, 'reason', 'a number is too large')}"
    if isinstance(cause, SQLAlchemyError) and not isinstance(cause, PoolTimeout):
        return type(cause).__name__  # its text holds statement and parameters
    lines = str(cause).strip().splitlines()
    first = lines[0] if lines else type(cause).__name__
    if fault_of(error) is Fault.REFUSED:
        first = first.partition(': "')[0]
    state = _sqlstate(cause)
    name = state if state is not None else getattr(cause, "sqlite_errorname", None)
    return first[:LONGEST_ANSWER] if name is None else f"{first[:LONGEST_ANSWER]} ({name})"


def _what_to_do(error: BaseException) -> str:
    cause = _cause_of(error)
    if isinstance(cause, PoolTimeout):
        return "raise PAIDONCE_DATABASE_POOL_SIZE if this continues"
    code = _sqlite_code(cause)
    if code is not None:
        return _WHAT_TO_DO_SQLITE.get(code, _LOOK_AT_IT)
    return _WHAT_TO_DO.get(_sqlstate(cause) or "", _LOOK_AT_IT)

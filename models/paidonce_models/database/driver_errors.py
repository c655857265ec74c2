"""Removes values from a database's errors: the statement and the reason stay.

Owns cutting the data out of a driver's exception before anyone sees it. ``hide_parameters`` keeps SQLAlchemy from
quoting the parameters, but PostgreSQL itself quotes values: ``DETAIL: Key (key)=(…) already exists``, ``Failing row
contains (…)``, ``CONTEXT: unnamed portal parameter $3 = '…'``, ``invalid input syntax for type integer: "…"``.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, StatementError

from paidonce_models.privacy.masking import mask

_DATA: Final = "22"
"""The class of SQLSTATEs whose first line quotes a value too."""


def keep_values_out(engine: Engine) -> None:
    """From now on the errors of this engine, and the driver's errors inside them, contain no values."""

    @event.listens_for(engine, "handle_error")
    def _cut(context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception
        if not isinstance(error, StatementError):
            return  # not the database's: an interrupt, for example
        if isinstance(error, DBAPIError):
            cut_values(context.original_exception)
            said = str(context.original_exception)
        else:
            said = "a value cannot be written"  # the errors of the driver's adapters quote it
        kind = type(context.original_exception)
        error.args = (f"({kind.__module__}.{kind.__qualname__}) {said}",)
        error.params = None


def cut_values(error: BaseException) -> None:
    """Strip a driver's exception of values, in place, because others may already hold it."""
    error.args = (without_values(str(error), str(getattr(error, "sqlstate", None) or "")),)


def without_values(said: str, sqlstate: str) -> str:
    """The first line without quoted values; without an SQLSTATE the error is the driver's own and holds no rows."""
    if not sqlstate:
        return mask(said)
    first = said.partition("\n")[0].strip()
    if sqlstate.startswith(_DATA):
        first = first.partition(': "')[0].partition(" at or near ")[0]
    return mask(first)

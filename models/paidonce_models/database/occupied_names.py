"""Detects tables of others that have the names of ours.

A database may be shared, and others use names such as ``runs``, ``steps`` and ``workers`` too. Creating ours beside
theirs would fail half-way, so all names are checked before the first table is created.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from paidonce_models.database.version_table import VERSION_TABLE
from paidonce_models.errors import SchemaMismatch
from paidonce_models.tables import METADATA

VIEWS: Final = (
    *("ledger_calls", "cost_facts", "run_cost_facts", "costs_by_day", "costs_by_model", "costs_by_agent"),
    *(
        "costs_by_cause",
        "costs_by_tool",
        "costs_by_step",
        "costs_by_run",
        "costs_by_tag",
        "retry_costs_by_tool",
        "data_quality",
    ),
    *("costs_per_successful_run", "avoided_by_run", "avoided_costs", "possibly_billed", "unusual_runs"),
    *("budgets_now", "refused_calls"),
)
"""The views that a report reads; a test compares them with a store."""
OUR_TABLES: Final = frozenset({*METADATA.tables, VERSION_TABLE})
_INDEXES: Final = frozenset(str(index.name) for table in METADATA.tables.values() for index in table.indexes)
_TAKEN_STATES: Final = frozenset({"42P07", "42710", "42723"})
"""A relation, a type or a function of that name exists."""


def refuse_occupied_names(connection: Connection, store: str) -> None:
    """Raise ``SchemaMismatch`` if something in our schema has a name that we need. Changes nothing."""
    if connection.dialect.name == "sqlite":
        names = set(connection.execute(text("SELECT name FROM sqlite_master")).scalars())
    else:
        names = set(
            connection.execute(
                text(
                    "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(current_schema()))"
                    " UNION SELECT typname FROM pg_type"
                    " WHERE typnamespace = to_regnamespace(quote_ident(current_schema())) AND typname NOT LIKE '\\_%'"
                )
            ).scalars()
        )
    occupied = sorted(names & {*METADATA.tables, *VIEWS, *_INDEXES})
    if occupied:
        raise taken_names(store, f"it holds {', '.join(occupied)} already, which Paidonce did not create")


def taken_names(store: str, found: str) -> SchemaMismatch:
    """The error for names that are already in use."""
    return SchemaMismatch(
        f"Paidonce cannot create its tables in the store {store}: {found}; give them a schema of their own by "
        "PAIDONCE_SCHEMA=paidonce (PostgreSQL), or a database of their own by PAIDONCE_DATABASE_URL; nothing was "
        "changed"
    )


def is_taken(error: DBAPIError) -> bool:
    """Whether a statement failed because a name is in use, as in a later migration."""
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        return "already exists" in str(cause) or "already another table or index" in str(cause)
    return getattr(cause, "sqlstate", None) in _TAKEN_STATES

"""Where the store's schema version is kept: ``paidonce_version``, our own Alembic version table.

Up to revision 0010 it was kept in ``alembic_version``, Alembic's default, which a team's own Alembic in the same
database mistakes for its own. ``take_over`` moves our row and changes none of theirs.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from paidonce_models.errors import SchemaMismatch

MIGRATIONS: Final = Path(__file__).parents[1] / "migrations"
VERSION_TABLE = "paidonce_version"
_SHARED_TABLE = "alembic_version"
_LAST_IN_SHARED_TABLE = "0010"
_MARKS = {
    "run_events": "0001",
    "daily_costs": "0002",
    "price_rows": "0003",
    "budgets": "0004",
    "parked_steps": "0005",
    "run_totals": "0008",
    "witnesses": "0009",
}
"""Tables, and the revision that created each. Ids such as 0004 are common: the tables show whose a row is."""


@functools.cache
def known_revisions() -> frozenset[str]:
    """All revisions of this code, by the file names of its migrations; a test compares them with Alembic's list."""
    return frozenset(file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def find_revision(connection: Connection, known: Collection[str]) -> str | None:
    """The store's revision, in whichever table; ``None`` if there is no store yet."""
    if inspect(connection).has_table(VERSION_TABLE):
        rows = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all()
        return str(rows[0]) if rows else None
    return _our_row(connection, known)


def take_over(connection: Connection, known: Collection[str]) -> None:
    """Move our version out of Alembic's default table, in the caller's transaction; does nothing if that is done.

    The table stays, because it may be the team's: without a row, Alembic takes its database for a new one.
    """
    if inspect(connection).has_table(VERSION_TABLE):
        return
    ours = _our_row(connection, known)
    if ours is None:
        return
    connection.execute(
        text(
            f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL, "
            f"CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
        )
    )
    connection.execute(text(f"INSERT INTO {VERSION_TABLE} (version_num) VALUES (:ours)"), {"ours": ours})
    connection.execute(text(f"DELETE FROM {_SHARED_TABLE} WHERE version_num = :ours"), {"ours": ours})


def _our_row(connection: Connection, known: Collection[str]) -> str | None:
    """Our revision in the shared table. Raises ``SchemaMismatch`` if our tables exist and no row fits them."""
    found = inspect(connection)
    if not found.has_table(_SHARED_TABLE):
        return None
    tables = {table for table in _MARKS if found.has_table(table)}
    columns = {each["name"] for each in found.get_columns("runs")} if found.has_table("runs") else set()
    if "run_events" not in tables or not {"consumed_seq", "last_seq"} <= columns:
        return None  # not ours, whatever its row holds
    rows = [str(row) for row in connection.execute(text(f"SELECT version_num FROM {_SHARED_TABLE}")).scalars()]
    ours = [row for row in rows if row in known and row <= _LAST_IN_SHARED_TABLE and _fits(row, tables)]
    if len(ours) == 1:
        return ours[0]
    raise SchemaMismatch(
        f"the store holds tables of Paidonce, and {_SHARED_TABLE} says {', '.join(rows) or 'nothing'}, of which "
        f"{'none fits' if not ours else 'several fit'} them; create {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL "
        "PRIMARY KEY) and insert the revision they are at (0010 unless the store is older); nothing was changed"
    )


def _fits(row: str, tables: set[str]) -> bool:
    return all((table in tables) == (made <= row) for table, made in _MARKS.items())

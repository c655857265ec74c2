"""The store's schema version: finds it and refuses any other; ``migrating`` changes it.

The database may be shared: a team's own Alembic keeps its version in ``alembic_version``, ours is in
``paidonce_version`` (``version_table``), and their tables may have the names of ours (``occupied_names``).
"""

from __future__ import annotations

from paidonce_models.database.transactions import Database
from paidonce_models.database.version_table import find_revision, known_revisions
from paidonce_models.errors import SchemaMismatch


def head_revision() -> str:
    """The schema version of this code."""
    return max(known_revisions())


def current_revision(database: Database) -> str | None:
    """The schema version of the store; ``None`` if it holds no Paidonce tables."""
    with database.read() as connection:
        return find_revision(connection, known_revisions())


def upgrade(database: Database) -> str:
    """Upgrade the store to this code's schema; safe when many processes do it at once. Returns the revision.

    All or nothing. Raises ``StoreError`` if the store cannot be written; raises ``SchemaMismatch``, with nothing
    changed, if objects of others have our names, or if a later version of Paidonce has upgraded the store.
    """
    from paidonce_models.database.migrating import migrate  # noqa: PLC0415 - Alembic, for whoever migrates only

    migrate(database)
    return head_revision()


def ensure_schema(database: Database) -> None:
    """Create the schema of an empty SQLite store; refuse a store with another schema version.

    PostgreSQL is never changed here: there ``paidonce db upgrade`` is a separate step.
    Raises ``SchemaMismatch``, or ``StoreUnreachable`` while the store is away.
    """
    current, head = current_revision(database), head_revision()
    if current == head:
        return
    if current is None and database.is_sqlite:
        upgrade(database)
        return
    raise SchemaMismatch(
        f"the store {database.shown_url} is at schema "
        f"{current or '(empty)'}, this version of Paidonce works with {head}; "
        "run `paidonce db upgrade` (or install the version of Paidonce that matches); nothing was changed",
        expected=head,
        found=current,
    )

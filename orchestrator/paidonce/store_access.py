"""Opens the store from settings: the one place where its address, its schema and its pooler come together.

The folder ``PAIDONCE_HOME`` is created only where something in it is needed. With PostgreSQL and your own broker
nothing is: such a process writes to no disk, and can run with a read-only root file system and without a home.
"""

from __future__ import annotations

from pathlib import Path

from paidonce.settings import Settings
from paidonce_models.database.schema import ensure_schema
from paidonce_models.database.transactions import Database
from paidonce_models.errors import ConfigurationError
from paidonce_models.privacy.private_files import make_private_folder

_SQLITE = "sqlite:///"


def make_home(settings: Settings) -> None:
    """Create it for the SQLite store or the embedded broker. Raises ``ConfigurationError`` naming what to set."""
    wanted = []
    if settings.database_url.startswith(_SQLITE):
        file = Path(settings.database_url.removeprefix(_SQLITE))
        if file.is_relative_to(settings.home):
            wanted.append("the SQLite store (set PAIDONCE_DATABASE_URL for PostgreSQL)")
    if settings.broker_url is None:
        wanted.append("the embedded broker (set PAIDONCE_BROKER_URL for one of your own)")
    if wanted:
        make_folder(settings.home, settings, " and ".join(wanted))


def make_folder(folder: Path, settings: Settings, wanted_for: str) -> None:
    """Create the home, or a folder in it. Raises as above."""
    try:
        make_private_folder(folder, is_ours=True)
    except OSError as error:
        raise ConfigurationError(
            f"PAIDONCE_HOME is {settings.home}, which cannot be created or written: {error.strerror}; it is needed for "
            f"{wanted_for}. Set it to a folder that can be written"
        ) from None


def open_store(settings: Settings, *, pool_size: int = 1) -> Database:
    """The store that the settings name; does not connect yet. Raises ``ConfigurationError``."""
    return Database(settings.database_url, pool_size=pool_size, schema=settings.schema, pooler=settings.pooler)


def open_checked_store(settings: Settings, *, pool_size: int) -> Database:
    """The store with our schema, which is created for an SQLite file that does not exist yet.

    Raises ``StoreUnreachable``, ``SchemaMismatch`` or ``ConfigurationError``.
    """
    make_home(settings)
    database = open_store(settings, pool_size=pool_size)
    try:
        ensure_schema(database)
    except BaseException:
        database.close()
        raise
    return database

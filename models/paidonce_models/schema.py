"""The store's schema: bringing it up to date and refusing to work on another one."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from paidonce_models.database import UPGRADE_LOCK, Database
from paidonce_models.errors import SchemaMismatch
from paidonce_models.private_files import make_private_folder, private_opener

_ADVISORY_LOCK = 0x9A1D0CE
_MIGRATIONS = Path(__file__).parent / "migrations"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def head_revision() -> str:
    """The schema this code works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    return str(head)


def current_revision(database: Database) -> str | None:
    """The schema the store is at; ``None`` when it holds no Paidonce tables."""
    with database.read() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(database: Database) -> str:
    """Bring the store to this code's schema; safe when many processes do it at once. Returns the revision.

    Raises ``StoreError`` where the store cannot be written.
    """
    with database.translating(), _one_at_a_time(database):
        config = _config()
        with database.engine.connect() as connection:
            connection = connection.execution_options(paidonce_write=True)
            with connection.begin():
                if not database.is_sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
    return head_revision()


def ensure_schema(database: Database) -> None:
    """Create the schema of an empty SQLite store; refuse a store that is at another one.

    PostgreSQL is never changed here: there ``paidonce db upgrade`` is a step of
    its own. Raises ``SchemaMismatch``, or ``StoreUnreachable`` while the store is away.
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


@contextmanager
def _one_at_a_time(database: Database) -> Iterator[None]:
    path = database.url.database
    if not database.is_sqlite or path in (None, "", ":memory:"):
        yield
        return
    make_private_folder(Path(str(path)).parent)
    with open(f"{path}{UPGRADE_LOCK}", "w", encoding="ascii", opener=private_opener) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""Creates and upgrades the store's schema with Alembic; safe when many processes do it at once.

``schema`` imports it only when a store is upgraded: importing Alembic and the tables takes longer than a read-only
command takes to run.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from paidonce_models.database.engines import UPGRADE_LOCK
from paidonce_models.database.occupied_names import is_taken, refuse_occupied_names, taken_names
from paidonce_models.database.transactions import Database
from paidonce_models.database.version_table import MIGRATIONS, find_revision, known_revisions, take_over
from paidonce_models.errors import SchemaMismatch
from paidonce_models.forks import in_child
from paidonce_models.privacy.log_texts import loggable
from paidonce_models.privacy.private_files import make_private_folder, private_opener

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(coalesce(:schema, current_schema(), ''), 161599694))")
"""One lock per schema: installations beside each other in one database do not wait for each other."""


class _Turn:
    """Alembic keeps its state in globals: of two stores at once in one process, one would get the other's migrations.

    A forked child has a new lock, because a thread that does not exist there may hold the parent's.
    """

    def __init__(self) -> None:
        self.renew()
        in_child(self, _Turn.renew)

    def renew(self) -> None:
        self.lock = threading.Lock()


_IN_THIS_PROCESS = _Turn()


def migration_config() -> Config:
    """Alembic's configuration for our migrations."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def migrate(database: Database) -> None:
    """See ``schema.upgrade``."""
    with database.translating(), _IN_THIS_PROCESS.lock, _one_at_a_time(database):
        config = migration_config()
        with database.engine.connect() as connection:
            connection = connection.execution_options(paidonce_write=True)
            with connection.begin():
                if not database.is_sqlite:
                    connection.execute(_LOCK, {"schema": database.schema})
                    _make_schema(connection, database)
                take_over(connection, known_revisions())
                before = find_revision(connection, known_revisions())
                if before is None:
                    refuse_occupied_names(connection, database.shown_url)
                config.attributes["connection"] = connection
                try:
                    command.upgrade(config, "head")
                except CommandError as error:
                    raise SchemaMismatch(
                        f"the store {database.shown_url} is at schema {before}, which this version of Paidonce does "
                        f"not know ({error}); install the version that made it; nothing was changed"
                    ) from error
                except DBAPIError as error:
                    if not is_taken(error):
                        raise
                    raise taken_names(database.shown_url, loggable(str(error.orig))) from None


def _make_schema(connection: Connection, database: Database) -> None:
    """Create the schema of ``PAIDONCE_SCHEMA`` if it is missing and permitted; one named in the address must exist."""
    if connection.execute(text("SELECT current_schema()")).scalar_one() is not None:
        return
    if database.schema is None:
        raise SchemaMismatch(
            f"the store {database.shown_url} has no schema to make tables in: none of its search_path exists, or may "
            "be used; set PAIDONCE_SCHEMA and run `paidonce db upgrade`, which makes it; nothing was changed"
        )
    may = text("SELECT has_database_privilege(current_database(), 'CREATE'), current_user")
    exists = text("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :name)")
    allowed, role = connection.execute(may).one()
    remedy = f"GRANT USAGE, CREATE ON SCHEMA {database.schema} TO {role}"
    if connection.execute(exists, {"name": database.schema}).scalar_one():
        raise SchemaMismatch(
            f"the role {role} may not use the schema {database.schema} of {database.shown_url}; let its owner run "
            f"{remedy}; nothing was changed"
        )
    if not allowed:
        raise SchemaMismatch(
            f"the role {role} may not create the schema {database.schema} in {database.shown_url}; let an "
            f"administrator run CREATE SCHEMA {database.schema} AUTHORIZATION {role}; nothing was changed"
        )
    connection.execute(text(f"CREATE SCHEMA {database.schema}"))  # a name that needs no quotes


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

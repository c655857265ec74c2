"""The store's schema: bringing it up to date and refusing to work on another one.

The database may be shared: Alembic of the team's own keeps its version in ``alembic_version``, ours stands in
``paidonce_version`` (``version_table``), and tables of theirs may have the names of ours (``occupied_names``).
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from paidonce_models.database import UPGRADE_LOCK, Database
from paidonce_models.errors import SchemaMismatch
from paidonce_models.forks import in_child
from paidonce_models.log_texts import loggable
from paidonce_models.occupied_names import is_taken, refuse_occupied_names, taken_names
from paidonce_models.private_files import make_private_folder, private_opener
from paidonce_models.version_table import find_revision, take_over

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(coalesce(:schema, current_schema(), ''), 161599694))")
"""One for each schema: installations beside each other in one database do not wait for each other."""


class _Turn:
    """Alembic keeps what it works on in globals: two stores at once in one process would get each other's migrations.

    A forked child has a lock of its own, as the parent's may be held by a thread that it does not have.
    """

    def __init__(self) -> None:
        self.renew()
        in_child(self, _Turn.renew)

    def renew(self) -> None:
        self.lock = threading.Lock()


_IN_THIS_PROCESS = _Turn()

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
        return find_revision(connection, _revisions())


def upgrade(database: Database) -> str:
    """Bring the store to this code's schema; safe when many processes do it at once. Returns the revision.

    All or nothing. Raises ``StoreError`` where the store cannot be written, and ``SchemaMismatch``, with nothing
    changed, where what somebody else has made stands in the way.
    """
    with database.translating(), _IN_THIS_PROCESS.lock, _one_at_a_time(database):
        config = _config()
        with database.engine.connect() as connection:
            connection = connection.execution_options(paidonce_write=True)
            with connection.begin():
                if not database.is_sqlite:
                    connection.execute(_LOCK, {"schema": database.schema})
                    _make_schema(connection, database)
                take_over(connection, _revisions())
                if find_revision(connection, _revisions()) is None:
                    refuse_occupied_names(connection, database.shown_url)
                config.attributes["connection"] = connection
                try:
                    command.upgrade(config, "head")
                except DBAPIError as error:
                    if not is_taken(error):
                        raise
                    raise taken_names(database.shown_url, loggable(str(error.orig))) from None
    return head_revision()


def _revisions() -> frozenset[str]:
    """All that this code knows of."""
    return frozenset(each.revision for each in ScriptDirectory.from_config(_config()).walk_revisions())


def _make_schema(connection: Connection, database: Database) -> None:
    """The schema of ``PAIDONCE_SCHEMA`` is made where it is missing and we may; one of the address must be there."""
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

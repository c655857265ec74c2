"""The migrations and the tables in the code agree, and can be undone."""

from __future__ import annotations

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlmodel import SQLModel

import paidonce_models.tables  # noqa: F401  the tables register themselves
from paidonce_models.database import Database
from paidonce_models.schema import _config, upgrade


def test_the_migrations_make_the_tables_that_the_code_declares(database_url: str) -> None:
    database = Database(database_url)
    upgrade(database)
    with database.read() as connection:
        found = compare_metadata(MigrationContext.configure(connection), SQLModel.metadata)
    database.close()
    assert found == []


def test_each_migration_can_be_undone(database_url: str) -> None:
    database = Database(database_url)
    upgrade(database)
    with database.engine.connect().execution_options(paidonce_write=True) as connection, connection.begin():
        config = _config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    upgrade(database)
    database.close()

"""The migrations and the tables in the code agree, and can be undone."""

from __future__ import annotations

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from paidonce_models.database.migrating import migration_config
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.database.version_table import VERSION_TABLE
from paidonce_models.tables import METADATA


def test_the_migrations_make_the_tables_that_the_code_declares(database_url: str) -> None:
    database = Database(database_url)
    upgrade(database)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        found = compare_metadata(context, METADATA)
    database.close()
    assert found == []


def test_each_migration_can_be_undone(database_url: str) -> None:
    database = Database(database_url)
    upgrade(database)
    with database.engine.connect().execution_options(paidonce_write=True) as connection, connection.begin():
        config = migration_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    upgrade(database)
    database.close()


def test_totals_of_runs_begin_with_what_was_kept_before(database_url: str) -> None:
    database = Database(database_url)
    upgrade(database)
    kept = "INSERT INTO run_costs (namespace, run_id, day, cause, root_run_id, agent, tags, calls, unpriced_calls, {}) "
    kept += "VALUES ('default', 'r', '2026-11-01', '{}', 'r', 'a', '{{}}', {})"
    with database.engine.connect().execution_options(paidonce_write=True) as connection, connection.begin():
        config = migration_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0007")
        connection.execute(text(kept.format("input_tokens, cost_nanousd", "useful", "19, 1, 500, 70")))
        connection.execute(text(kept.format("cost_nanousd", "failed", "1, 0, 5")))
        command.upgrade(config, "0008")
        columns = "run_id, agent, tags, calls, unpriced_calls, input_tokens, output_tokens, cost_nanousd"
        found = connection.execute(text(f"SELECT {columns} FROM run_totals")).all()
    database.close()
    assert [tuple(row) for row in found] == [("r", "a", "{}", 20, 1, 500, None, 75)]

"""A database, or a process, that holds a team's own tables as well as ours."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import psycopg
import pytest
from alembic import command
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import make_url

from paidonce_models.database.migrating import migration_config
from paidonce_models.database.occupied_names import OUR_TABLES, VIEWS
from paidonce_models.database.schema import current_revision, ensure_schema, head_revision, upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.database.version_table import VERSION_TABLE
from paidonce_models.errors import ConfigurationError, SchemaMismatch
from paidonce_models.store.runs.submission import submit_run
from tests.models.stored_runs import new_run

OWN_MODELS = """
from sqlmodel import Field, SQLModel

class workers(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = ""

class Run(SQLModel, table=True):
    __tablename__ = "runs"
    id: int | None = Field(default=None, primary_key=True)
"""
OURS = "import paidonce, paidonce_models.tables\n"
CHECK = """
from sqlalchemy import create_engine, inspect
from paidonce_models.tables import METADATA
engine = create_engine("sqlite://")
SQLModel.metadata.create_all(engine)
print(sorted(inspect(engine).get_table_names()), "id" in workers.model_fields)
assert METADATA.tables["runs"] is not SQLModel.metadata.tables["runs"]
assert str(METADATA.tables["runs"].c.id.type) == "VARCHAR(36)"
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [OURS + OWN_MODELS + CHECK, OWN_MODELS + OURS + CHECK], ids=["after", "before"])
def test_a_team_may_have_tables_of_its_own_with_our_names_in_the_same_process(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['runs', 'workers'] True"


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(query))]
    engine.dispose()
    return found


def relations(url: str, schema: str | None = None) -> set[str]:
    engine = create_engine(url)
    found = inspect(engine)
    names = {*found.get_table_names(schema=schema), *found.get_view_names(schema=schema)}
    engine.dispose()
    return names


def upgraded(url: str, **options: str) -> str:
    database = Database(url, pool_size=1, **options)
    try:
        return upgrade(database)
    finally:
        database.close()


def as_of_0010(url: str) -> None:
    """A store as the version before kept it: its revision in Alembic's own table."""
    database = Database(url, pool_size=1)
    upgrade(database)
    with database.engine.connect().execution_options(paidonce_write=True) as connection, connection.begin():
        config = migration_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0010")
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
        connection.execute(text("CREATE TABLE IF NOT EXISTS alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('0010')"))
    database.close()


def test_the_names_that_are_looked_up_are_those_that_are_made(database_url: str) -> None:
    upgraded(database_url)
    assert relations(database_url) == {*OUR_TABLES, *VIEWS}


def test_our_version_moves_out_of_the_shared_table_and_a_teams_stays(database_url: str) -> None:
    as_of_0010(database_url)
    execute(database_url, "INSERT INTO alembic_version VALUES ('ae1027a6acf')")
    database = Database(database_url, pool_size=1)
    assert current_revision(database) == "0010"
    upgrade(database)
    assert current_revision(database) == head_revision()
    database.close()
    assert rows(database_url, "SELECT version_num FROM alembic_version") == [("ae1027a6acf",)]
    assert rows(database_url, f"SELECT version_num FROM {VERSION_TABLE}") == [(head_revision(),)]


def test_a_teams_revision_that_looks_like_one_of_ours_is_left_alone(database_url: str) -> None:
    execute(
        database_url,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('0004')",
        "CREATE TABLE invoices (id INTEGER)",
    )
    database = Database(database_url, pool_size=1)
    assert current_revision(database) is None
    upgrade(database)
    database.close()
    assert rows(database_url, "SELECT version_num FROM alembic_version") == [("0004",)]
    assert {"alembic_version", "invoices", VERSION_TABLE} < relations(database_url)


def test_tables_of_ours_without_a_revision_that_fits_are_not_touched(database_url: str) -> None:
    as_of_0010(database_url)
    execute(database_url, "UPDATE alembic_version SET version_num = '0004'")  # a team's, after `stamp --purge`
    with pytest.raises(SchemaMismatch, match=r"alembic_version says 0004, of which none fits.*nothing was changed"):
        upgraded(database_url)
    assert rows(database_url, "SELECT version_num FROM alembic_version") == [("0004",)]
    assert VERSION_TABLE not in relations(database_url)


def test_an_upgrade_that_is_cut_off_has_changed_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_of_0010(database_url)
    before = relations(database_url)

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(command, "upgrade", cut_off)
        with pytest.raises(KeyboardInterrupt):
            upgraded(database_url)
    assert relations(database_url) == before
    assert rows(database_url, "SELECT version_num FROM alembic_version") == [("0010",)]
    assert upgraded(database_url) == head_revision()


def test_processes_that_take_over_at_once_do_it_once(database_url: str) -> None:
    as_of_0010(database_url)
    found: list[object] = []

    def take_over() -> None:
        try:
            found.append(upgraded(database_url))
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            found.append(error)

    threads = [threading.Thread(target=take_over) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [head_revision()] * 4
    assert rows(database_url, f"SELECT version_num FROM {VERSION_TABLE}") == [(head_revision(),)]
    assert rows(database_url, "SELECT version_num FROM alembic_version") == []


def test_names_that_somebody_else_has_taken_are_told_before_anything_is_made(database_url: str) -> None:
    execute(database_url, "CREATE TABLE workers (id INTEGER)", "CREATE VIEW budgets_now AS SELECT 1 AS one")
    with pytest.raises(SchemaMismatch, match=r"it holds budgets_now, workers already, which.*PAIDONCE_SCHEMA=paidonce"):
        upgraded(database_url)
    if database_url.startswith("sqlite"):
        database = Database(database_url, pool_size=1)
        with pytest.raises(SchemaMismatch, match="budgets_now, workers already, which"):
            ensure_schema(database)
        database.close()
    assert relations(database_url) == {"workers", "budgets_now"}


def test_a_name_that_a_later_migration_needs_is_told_and_nothing_is_changed(database_url: str) -> None:
    as_of_0010(database_url)
    execute(database_url, "CREATE TABLE slice_marks (id INTEGER)")
    before = relations(database_url)
    with pytest.raises(SchemaMismatch, match=r"slice_marks.*already exists.*nothing was changed"):
        upgraded(database_url)
    assert relations(database_url) == before
    assert rows(database_url, "SELECT version_num FROM alembic_version") == [("0010",)]


def test_two_stores_may_be_made_at_once_in_one_process(tmp_path_factory: pytest.TempPathFactory) -> None:
    urls = [f"sqlite:///{tmp_path_factory.mktemp('store')}/store.db" for _ in range(4)]
    threads = [threading.Thread(target=upgraded, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [relations(url) for url in urls] == [{*OUR_TABLES, *VIEWS}] * 4


def test_installations_stand_beside_each_other_in_schemas(postgres_database: str) -> None:
    execute(postgres_database, "CREATE TABLE runs (id INTEGER)", "CREATE TABLE workers (id INTEGER)")
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda name=name: found.append(upgraded(postgres_database, schema=name)))  # type: ignore[misc]
        for name in ("one", "two", "three")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [head_revision()] * 3
    assert relations(postgres_database) == {"runs", "workers"}
    assert relations(postgres_database, "one") == {*OUR_TABLES, *VIEWS} == relations(postgres_database, "two")
    database = Database(postgres_database, pool_size=1, schema="two")
    database.transact(lambda connection: submit_run(connection, new_run()))
    database.close()
    counted = "SELECT (SELECT count(*) FROM one.runs), (SELECT count(*) FROM two.runs)"
    assert rows(postgres_database, counted) == [(0, 1)]
    functions = (
        "SELECT DISTINCT pronamespace::regnamespace::text FROM pg_proc WHERE proname = 'paidonce_now' ORDER BY 1"
    )
    assert rows(postgres_database, functions) == [("one",), ("three",), ("two",)]


@pytest.fixture
def guest(postgres_database: str) -> Iterator[str]:
    """The URL of a role that owns nothing in this database."""
    name = f"guest_{make_url(postgres_database).database}"
    execute(postgres_database, f"CREATE ROLE {name} LOGIN", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    yield make_url(postgres_database).set(username=name).render_as_string(hide_password=False)
    execute(postgres_database, f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


def test_a_schema_that_may_not_be_made_or_used_is_told_with_the_remedy(postgres_database: str, guest: str) -> None:
    with pytest.raises(SchemaMismatch, match=r"CREATE SCHEMA mine AUTHORIZATION guest_.*nothing was changed"):
        upgraded(guest, schema="mine")
    execute(postgres_database, "CREATE SCHEMA mine")
    with pytest.raises(SchemaMismatch, match=r"GRANT USAGE, CREATE ON SCHEMA mine TO guest_.*nothing was changed"):
        upgraded(guest, schema="mine")
    execute(postgres_database, f"GRANT USAGE, CREATE ON SCHEMA mine TO {make_url(guest).username}")
    assert upgraded(guest, schema="mine") == head_revision()


def test_a_schema_that_is_not_there_yet_is_an_empty_store(postgres_database: str) -> None:
    database = Database(postgres_database, pool_size=1, schema="later")
    assert current_revision(database) is None
    with pytest.raises(SchemaMismatch, match="run `paidonce db upgrade`"):
        ensure_schema(database)
    database.close()


@pytest.mark.parametrize("name", ["", "Mine", "my-team", "pg_mine", "1st", "a b", 'a"; drop', "x" * 64])
def test_a_name_that_needs_quotes_is_no_schema(name: str) -> None:
    with pytest.raises(ConfigurationError, match="PAIDONCE_SCHEMA"):
        Database("postgresql://localhost/x", schema=name)


def test_sqlite_has_no_schemas() -> None:
    with pytest.raises(ConfigurationError, match="SQLite, which has no schemas"):
        Database("sqlite://", schema="mine")


def test_options_of_the_address_are_kept_beside_ours(postgres_database: str) -> None:
    execute(postgres_database, "CREATE SCHEMA theirs")
    options = {"options": "-csearch_path=theirs -c statement_timeout=1234 --work-mem=7MB"}
    url = make_url(postgres_database).update_query_dict(options).render_as_string(hide_password=False)
    upgraded(url)
    assert {*OUR_TABLES, *VIEWS} == relations(postgres_database, "theirs")
    assert relations(postgres_database) == set()
    database = Database(url, pool_size=1)
    with database.read() as connection:
        names = ("search_path", "statement_timeout", "work_mem", "lock_timeout", "enable_seqscan", "plan_cache_mode")
        found = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]
    database.close()
    assert found == ["theirs", "1234ms", "7MB", "6s", "off", "force_generic_plan"]


def test_a_schema_and_another_search_path_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="leave one of them out"):
        Database("postgresql://localhost/x?options=-csearch_path%3Dtheirs", schema="mine")
    monkeypatch.setenv("PGOPTIONS", "-c search_path=theirs")
    with pytest.raises(ConfigurationError, match="leave one of them out"):
        Database("postgresql://localhost/x", schema="mine")
    Database("postgresql://localhost/x", schema="theirs").close()


def test_a_lock_of_one_schema_does_not_stop_another(postgres_database: str) -> None:
    upgraded(postgres_database, schema="one")
    one = Database(postgres_database, pool_size=1, schema="one")
    plain = make_url(postgres_database).set(drivername="postgresql").render_as_string(hide_password=False)
    with one.write() as connection, psycopg.connect(plain) as other:
        key = "pg_advisory_xact_lock(hashtextextended({}, 161599694))"
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))  # the upgrade may take long
        connection.execute(text(f"SELECT {key.format('current_schema()')}"))
        other.execute("SET lock_timeout = '5s'")
        upgraded(postgres_database, schema="two")
        with pytest.raises(psycopg.errors.QueryCanceled):
            other.execute("SET statement_timeout = '100ms'")
            other.execute(f"SELECT {key.format(repr('one'))}")  # type: ignore[arg-type]
    one.close()

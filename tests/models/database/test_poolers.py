"""A connection pooler between us and PostgreSQL: no session is taken for granted, nothing is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from paidonce_models.database.schema import current_revision, head_revision, upgrade
from paidonce_models.database.session_choices import Pooler
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreDenied
from paidonce_models.store.runs.submission import submit_run
from tests.models.stored_runs import new_run

pytestmark = pytest.mark.neighbour

SETTINGS = {
    "lock_timeout": "6s",
    "statement_timeout": "1min",
    "idle_in_transaction_session_timeout": "8s",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
MODES = [("transaction", ""), ("transaction", "options"), ("session", ""), ("session", "options")]

Pgbouncer = Callable[..., str]


def shown(connection: Connection, names: Any = SETTINGS) -> dict[str, str]:
    return {name: str(connection.execute(text(f"SHOW {name}")).scalar_one()) for name in names}


def plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.mark.parametrize(("mode", "ignored"), MODES)
@pytest.mark.parametrize("schema", [None, "ours"])
def test_every_transaction_and_every_single_statement_has_our_settings(
    pgbouncer: Pgbouncer, mode: str, ignored: str, schema: str | None
) -> None:
    database = Database(pgbouncer(mode, ignored=ignored), pool_size=2, schema=schema)
    assert upgrade(database) == head_revision() == current_revision(database)
    path = {"search_path": schema or '"$user", public'}
    expected = {**SETTINGS, **path}
    with database.read() as connection:
        assert shown(connection, expected) == expected
    with database.write() as connection:
        assert shown(connection, expected) == expected
    found = database.transact(lambda connection: shown(connection, expected), single=True)
    assert found == expected
    with database.read_at_once() as connection:
        assert shown(connection, {**path, "transaction_isolation": ""}) == {
            **path,
            "transaction_isolation": "repeatable read",
        }
        assert shown(connection, ["plan_cache_mode"]) == {"plan_cache_mode": "force_custom_plan"}
    run = database.transact(lambda connection: submit_run(connection, new_run()))
    with database.read() as connection:
        assert connection.execute(text("SELECT id FROM runs")).scalars().all() == [run.run_id]
    database.close()


@pytest.mark.parametrize("schema", [None, "ours"])
def test_others_behind_the_same_pooler_find_nothing_of_ours(pgbouncer: Pgbouncer, schema: str | None) -> None:
    url = pgbouncer("transaction", size=1)
    database = Database(url, pool_size=2, schema=schema)
    upgrade(database)
    for _ in range(10):
        database.transact(lambda connection: submit_run(connection, new_run()), single=True)
        database.now_us()
    with psycopg.connect(plain(url), autocommit=True, prepare_threshold=None) as other:
        assert other.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
        settings = "SELECT name FROM pg_settings WHERE source = 'session' AND name = ANY(%s)"
        assert other.execute(settings, [[*SETTINGS, "search_path"]]).fetchall() == []
        assert other.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
    database.close()


@pytest.mark.parametrize("schema", [None, "ours"])
def test_what_others_leave_on_a_session_does_not_reach_us(pgbouncer: Pgbouncer, schema: str | None) -> None:
    url = pgbouncer("transaction", size=1)
    database = Database(url, pool_size=1, schema=schema)
    upgrade(database)
    with psycopg.connect(plain(url), autocommit=True, prepare_threshold=None) as other:
        other.execute("CREATE SCHEMA theirs")
        other.execute("SET search_path = theirs")
        other.execute("SET statement_timeout = '5s'")
        other.execute("SET default_transaction_isolation = serializable")
        other.execute("PREPARE _pg3_0 AS SELECT 1")
    run = database.transact(lambda connection: submit_run(connection, new_run()))
    with database.read() as connection:
        assert connection.execute(text("SELECT id FROM runs")).scalars().all() == [run.run_id]
        assert shown(connection, ["transaction_isolation", "statement_timeout"]) == {
            "transaction_isolation": "read committed",
            "statement_timeout": "1min",
        }
    database.close()


@pytest.mark.parametrize("ignored", ["", "options"])
def test_options_of_the_address_hold_behind_a_pooler_too(
    postgres_database: str, pgbouncer: Pgbouncer, ignored: str
) -> None:
    with psycopg.connect(plain(postgres_database), autocommit=True) as owner:
        owner.execute("CREATE SCHEMA theirs")
    options = {"options": "-csearch_path=theirs -c lock_timeout=1234"}
    url = make_url(pgbouncer("transaction", ignored=ignored)).update_query_dict(options)
    database = Database(url.render_as_string(hide_password=False), pool_size=1)
    upgrade(database)
    with database.read() as connection:
        assert shown(connection, ["search_path", "lock_timeout"]) == {
            "search_path": "theirs",
            "lock_timeout": "1234ms",
        }
        assert connection.execute(text("SELECT count(*) FROM theirs.runs")).scalar_one() == 0
    database.close()


def test_options_that_a_pooler_refuses_and_we_cannot_set_are_told(pgbouncer: Pgbouncer) -> None:
    url = make_url(pgbouncer("transaction")).update_query_dict({"options": "-B 32"})
    database = Database(url.render_as_string(hide_password=False), pool_size=1)
    with pytest.raises(StoreDenied, match="refuses the options of PAIDONCE_DATABASE_URL"):
        database.now_us()
    database.close()


def test_a_server_without_a_pooler_keeps_its_session_settings_and_its_plans(postgres_database: str) -> None:
    database = Database(postgres_database, pool_size=1)
    upgrade(database)
    for _ in range(6):
        database.now_us()
    with database.read() as connection:
        assert shown(connection) == SETTINGS
        assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() > 0
    database.close()


def test_a_pooler_in_session_mode_may_be_taken_for_the_server(pgbouncer: Pgbouncer) -> None:
    database = Database(pgbouncer("session"), pool_size=1, pooler=Pooler.SESSION, schema="ours")
    upgrade(database)
    for _ in range(6):
        database.now_us()
    with database.read() as connection:
        assert shown(connection, {**SETTINGS, "search_path": ""}) == {**SETTINGS, "search_path": "ours"}
        assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() > 0
    database.close()


def test_a_server_may_be_treated_as_if_a_pooler_stood_before_it(postgres_database: str) -> None:
    database = Database(postgres_database, pool_size=1, pooler=Pooler.TRANSACTION)
    upgrade(database)
    with database.read() as connection:
        assert shown(connection) == SETTINGS
        assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() == 0
    database.close()


def test_stores_are_upgraded_through_a_pooler_by_many_at_once(pgbouncer: Pgbouncer) -> None:
    url = pgbouncer("transaction")
    found: list[object] = []

    def upgrade_it(schema: str | None) -> None:
        database = Database(url, pool_size=1, schema=schema)
        try:
            found.append(upgrade(database))
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            found.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=upgrade_it, args=(name,)) for name in (None, None, "one", "one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [head_revision()] * 5


def test_a_lost_session_behind_a_pooler_is_replaced(postgres_database: str, pgbouncer: Pgbouncer) -> None:
    database = Database(pgbouncer("transaction"), pool_size=1, schema="ours")
    upgrade(database)
    with psycopg.connect(plain(postgres_database), autocommit=True) as owner:
        owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    try:
        database.transact(lambda connection: submit_run(connection, new_run()))
    except Exception as error:  # noqa: BLE001 - PgBouncer may hand the loss on once
        assert type(error).__name__ == "StoreUnreachable"
    run = database.transact(lambda connection: submit_run(connection, new_run()))
    assert run.run_id
    database.close()

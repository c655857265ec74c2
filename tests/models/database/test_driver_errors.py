"""What a database refuses is told without what was to be written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from paidonce_models.database.transactions import Database

SECRET = "Sesame-4711-open"


@pytest.fixture
def postgres(postgres_database: str) -> Iterator[Database]:
    database = Database(postgres_database)
    with database.write() as connection:
        connection.execute(text("CREATE TABLE kept (key text PRIMARY KEY, number int NOT NULL CHECK (number < 5))"))
        connection.execute(text("INSERT INTO kept VALUES (:key, 1)"), {"key": SECRET})
    yield database
    database.close()


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("INSERT INTO kept VALUES (:key, 1)", {"key": SECRET}),
    ("INSERT INTO kept VALUES (:key, 9)", {"key": f"{SECRET}2"}),
    ("INSERT INTO kept VALUES (:key, NULL)", {"key": f"{SECRET}3"}),
    ("SELECT CAST(:key AS int)", {"key": SECRET}),
    ("SELECT CAST(:key AS json)", {"key": f"{{{SECRET}"}),
    ("SELECT CAST(:key AS timestamptz)", {"key": SECRET}),
    ("SELECT CAST(:key AS uuid)", {"key": SECRET}),
    ("INSERT INTO kept VALUES (:key, 1)", {"key": f"{SECRET}\x00"}),
    ("INSERT INTO kept VALUES (:key, 1)", {"key": [{SECRET: object()}]}),
    ("SELECT * FROM nowhere WHERE key = :key", {"key": SECRET}),
    ("SELECT regexp_match('x', :key)", {"key": f"[{SECRET}"}),
    ("DO $$ BEGIN RAISE EXCEPTION 'refused' USING DETAIL = '" + SECRET + "'; END $$", {}),
]


@pytest.mark.parametrize(("statement", "values"), REFUSED)
def test_postgresql_refuses_a_value_and_nobody_quotes_it(
    postgres: Database, statement: str, values: dict[str, Any]
) -> None:
    with pytest.raises(Exception) as refused:
        postgres.transact(lambda connection: connection.execute(text(statement), values))
    seen: list[BaseException] = []
    error: BaseException | None = refused.value
    while error is not None and error not in seen:
        seen.append(error)
        said = str(error) + repr(error)
        assert SECRET not in said.replace(statement, "")
        error = error.__cause__ or error.__context__
    assert seen


def test_sqlite_refuses_a_value_and_nobody_quotes_it() -> None:
    database = Database("sqlite://")
    with database.write() as connection:
        connection.execute(text("CREATE TABLE kept (key text PRIMARY KEY, number int NOT NULL CHECK (number < 5))"))
        connection.execute(text("INSERT INTO kept VALUES (:key, 1)"), {"key": SECRET})
    for statement, values in (
        ("INSERT INTO kept VALUES (:key, 1)", {"key": SECRET}),
        ("INSERT INTO kept VALUES (:key, 9)", {"key": f"{SECRET}2"}),
        ("INSERT INTO kept VALUES (:key, 1)", {"key": [SECRET]}),
        ("SELECT json(:key)", {"key": f"{{{SECRET}"}),
        ("SELECT * FROM nowhere WHERE key = :key", {"key": SECRET}),
    ):
        with pytest.raises(Exception) as refused, database.write() as connection:
            connection.execute(text(statement), values)
        assert SECRET not in str(refused.value) + repr(refused.value) + repr(refused.value.__cause__)
    database.close()


def test_a_store_is_shown_without_any_of_its_credentials() -> None:
    for url in (
        f"postgresql://bob:{SECRET}@db/shop",
        f"postgresql://bob@db/shop?password={SECRET}",
        f"postgresql://db/shop?user=bob&sslpassword={SECRET}",
    ):
        database = Database(url)
        assert SECRET not in repr(database) + database.shown_url
        assert "db/shop" in database.shown_url
        database.close()

"""The stores a test runs on: SQLite always, PostgreSQL where there is one."""

from pathlib import Path

import pytest


@pytest.fixture
def sqlite_database(tmp_path: Path) -> str:
    """The URL of a database file that does not exist yet, in a folder of this test's own."""
    return f"sqlite:///{tmp_path / 'paidonce.sqlite3'}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database: the test runs once on each engine."""
    name = "sqlite_database" if request.param == "sqlite" else "postgres_database"
    url: str = request.getfixturevalue(name)
    return url

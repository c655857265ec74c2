"""A store on each engine for the tests of its statements."""

from collections.abc import Iterator

import pytest

from tests.models.stored_runs import Store
from tests.services.postgres import fresh_database


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def shared_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store for a module: creating a schema takes longer than most tests."""
    if request.param == "sqlite":
        store = Store(f"sqlite:///{tmp_path_factory.mktemp('store') / 'paidonce.sqlite3'}")
        yield store
        store.database.close()
        return
    with fresh_database(request.getfixturevalue("postgres_server")) as url:
        store = Store(url)
        yield store
        store.database.close()


@pytest.fixture
def store(shared_store: Store) -> Store:
    """An empty store whose clock the test moves."""
    shared_store.clear()
    return shared_store

"""A store on each engine for the tests of its statements."""

from collections.abc import Iterator

import pytest

from tests.models.stored_runs import Store
from tests.services.postgres import fresh_database


@pytest.fixture(scope="session")
def sqlite_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store for all tests: creating a schema takes longer than most of them."""
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('store') / 'paidonce.sqlite3'}")
    yield store
    store.database.close()


@pytest.fixture(scope="session")
def postgres_store(postgres_server: str) -> Iterator[Store]:
    """One store for all tests: creating a schema takes longer than most of them."""
    with fresh_database(postgres_server) as url:
        store = Store(url)
        yield store
        store.database.close()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def shared_store(request: pytest.FixtureRequest) -> Store:
    """The store on each engine in turn, with whatever an earlier test has left in it."""
    store: Store = request.getfixturevalue("sqlite_store" if request.param == "sqlite" else "postgres_store")
    store.clear()
    return store


@pytest.fixture
def store(shared_store: Store) -> Store:
    """An empty store whose clock the test moves."""
    shared_store.clear()
    return shared_store

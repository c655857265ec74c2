"""Forks in and around workers: children of a step are no part of the worker, replaced pool children do not stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from tests.acceptance.site import Site

pytestmark = pytest.mark.slow

MODULE = "tests.workers.forking_agents"
RUN_SECONDS = 110

EXPECTED: dict[str, Any] = {
    "exits": 7,
    "raises": 1,
    "returns": 0,
    "vanishes": 9,
    "starts_a_program": 0,
    "returns_async": 0,
    "exits_async": 8,
    "awaits_in_the_child": 70,
    "runs_a_loop_in_the_child": 0,
    "forks_in_a_thread": 6,
}
WITH_MULTIPROCESSING: dict[str, Any] = {"terminates": -15, "pools": [0, 1, 4, 9, 16], "billiards": 0}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture
def site_on_postgresql(tmp_path: Path, postgres_database: str) -> Iterator[Site]:
    database = Database(postgres_database, pool_size=1)
    upgrade(database)
    database.close()
    made = Site(tmp_path, database_url=postgres_database)
    yield made
    made.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("pool", ["threads", "prefork"])
@pytest.mark.parametrize("store", ["site", pytest.param("site_on_postgresql", marks=pytest.mark.service)])
def test_what_a_step_forks_is_no_part_of_the_worker(store: str, pool: str, request: pytest.FixtureRequest) -> None:
    site: Site = request.getfixturevalue(store)
    expected = {**EXPECTED, **(WITH_MULTIPROCESSING if pool == "threads" else {})}
    worker = site.worker(MODULE, arguments=("-P", "prefork", "-c", "2") if pool == "prefork" else ("-c", "2"))
    handle = site.stranger.submit("forker", {"pool": pool})
    site.wait_state(handle, "succeeded", "failed", timeout=RUN_SECONDS)
    assert handle.result(1) == expected
    assert [(each.name.rpartition(".")[2], each.attempts) for each in handle.steps()] == [
        (name, 1) for name in expected
    ]
    assert "paid for a call to openai" in worker.log  # in the child of `returns`, and nowhere in the ledger
    again = site.stranger.submit("worker", {"number": 1})
    assert again.result(RUN_SECONDS) == 5
    assert worker.process.poll() is None


@pytest.mark.timeout(300)
def test_prefork_children_on_sqlite_are_replaced_under_load(site: Site) -> None:
    """The parent's heartbeat and sweeper are in SQLite again and again while it forks."""
    site.worker(MODULE, arguments=("-P", "prefork", "-c", "3", "--max-tasks-per-child", "2"), turn_seconds="0")
    handles = [site.stranger.submit("worker", {"number": n}) for n in range(10)]
    assert [handle.result(RUN_SECONDS) for handle in handles] == [n + 4 for n in range(10)]

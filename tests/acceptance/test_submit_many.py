"""Many runs in one call: each is a run like any other, whoever submits it and whatever is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from paidonce import Client, InvalidInput, KeyConflict, RunHandle, Submission
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from tests.acceptance.agents.flow import leaf
from tests.acceptance.site import RUN_SECONDS, Site

NOBODY = "redis://127.0.0.1:1/0"


@pytest.fixture
def on_postgresql(postgres_database: str, redis_url: str) -> Iterator[Client]:
    database = Database(postgres_database, pool_size=1)
    upgrade(database)
    database.close()
    client = Client(database_url=postgres_database, broker_url=redis_url)
    yield client
    client.database.close()


def test_many_runs_are_executed_and_come_back_in_order(shared: Site) -> None:
    given = [Submission(input={"number": number}, key=f"many-{number}") for number in range(30)]
    runs = shared.client.submit_many(leaf, [*given, {"number": 30}])
    assert [run.result(RUN_SECONDS) for run in runs] == [2 * number for number in range(31)]
    again = shared.client.submit_many("leaf", given[::-1])
    assert [run.id for run in again] == [run.id for run in runs[29::-1]]
    assert all(run.created for run in runs) and not any(run.created for run in again)
    assert shared.client.submit(leaf, {"number": 3}, key="many-3").id == runs[3].id


def test_a_web_handler_has_an_async_variant(shared: Site) -> None:
    async def handler() -> list[int]:
        runs: list[RunHandle[int]] = await shared.client.submit_many_async(leaf, [{"number": 4}, {"number": 5}])
        return [await run.result_async(RUN_SECONDS) for run in runs]

    assert asyncio.run(handler()) == [8, 10]


def test_bad_input_is_refused_where_the_agent_is_known_and_the_rest_is_told(shared: Site) -> None:
    with pytest.raises(InvalidInput, match=r"submissions\[1\]: .*nunber.*those before it are submitted") as refused:
        shared.client.submit_many(leaf, [{"number": 1}, {"nunber": 2}, {"number": 3}])
    (run_id,) = refused.value.details["run_ids"]  # type: ignore[misc]
    assert shared.client.run(run_id).result(RUN_SECONDS) == 2


def test_a_conflict_names_its_submission_and_both_inputs(on_postgresql: Client) -> None:
    on_postgresql.submit("leaf", {"number": 1}, key="b")
    with pytest.raises(KeyConflict, match=r"submissions\[1\] \(key 'b'\): .*recorded .*1.*given .*2") as refused:
        on_postgresql.submit_many("leaf", [Submission(input={"number": 2}, key=key) for key in ("a", "b", "c")])
    first, second, third = refused.value.details["run_ids"]  # type: ignore[misc]
    assert second is None and first != third
    assert on_postgresql.submit("leaf", {"number": 2}, key="c").id == third


def test_runs_are_stored_with_the_broker_down_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_broker = Client(home=tmp_path, broker_url=NOBODY)
    with caplog.at_level(logging.WARNING, "paidonce"):
        runs = without_broker.submit_many("leaf", [{"number": number} for number in range(1_200)])
    assert len(runs) == 1_200
    assert [record.__dict__["event"] for record in caplog.records] == ["broker_away"]
    assert {run.state for run in runs[::400]} == {"pending"}
    without_broker.database.close()


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_a_lost_connection_is_replaced(on_postgresql: Client, postgres_database: str, many: bool) -> None:
    def submit() -> list[RunHandle]:
        if many:
            return list(on_postgresql.submit_many("leaf", [Submission(input={"number": 1}, queue="q")] * 2))
        return [on_postgresql.submit("leaf", {"number": 1}, queue="q")]

    for _ in range(5):
        submit()
    with psycopg.connect(postgres_database.replace("+psycopg", ""), autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert all(run.created for run in submit())
    assert len(on_postgresql.runs()) == 6 * (2 if many else 1)

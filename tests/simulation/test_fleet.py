"""Random agents, random crashes, random delivery orders: the promises of the durable core.

``TEST_SCENARIOS`` sets how many scenarios the slow tests play on each engine.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import text

from tests.services.postgres import fresh_database
from tests.simulation.scenarios import (
    Scenario,
    any_scenarios,
    check_meaning,
    meaningful_scenarios,
    play,
    undisturbed_scenarios,
)
from tests.simulation.store import SimulatedDatabase

MANY = int(os.environ.get("TEST_SCENARIOS", "2000"))
PARTS = 4
QUIET = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large)


@pytest.fixture(scope="module")
def database() -> Iterator[SimulatedDatabase]:
    database = SimulatedDatabase("sqlite://")
    yield database
    database.close()


@pytest.fixture(scope="module")
def postgresql(postgres_server: str) -> Iterator[SimulatedDatabase]:
    with fresh_database(postgres_server) as url:
        database = SimulatedDatabase(url)
        with database.write() as connection:  # nobody pulls the plug: a commit need not wait for the disk
            name = connection.execute(text("SELECT current_database()")).scalar_one()
            connection.execute(text(f'ALTER DATABASE "{name}" SET synchronous_commit TO off'))
        database.engine.dispose()
        yield database
        database.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def each_database(request: pytest.FixtureRequest) -> SimulatedDatabase:
    """One engine after the other; PostgreSQL takes the single statements, SQLite the generic ones."""
    name = "database" if request.param == "sqlite" else "postgresql"
    chosen: SimulatedDatabase = request.getfixturevalue(name)
    return chosen


@settings(max_examples=15, suppress_health_check=QUIET)
@given(undisturbed_scenarios)
def test_an_undisturbed_run_comes_to_what_its_program_means(database: SimulatedDatabase, scenario: Scenario) -> None:
    check_meaning(scenario.program, play(database, scenario))


@settings(max_examples=20, suppress_health_check=QUIET)
@given(meaningful_scenarios)
def test_whatever_crashes_the_outcome_is_the_uninterrupted_runs(
    database: SimulatedDatabase, scenario: Scenario
) -> None:
    check_meaning(scenario.program, play(database, scenario))


@settings(max_examples=12, suppress_health_check=QUIET)
@given(any_scenarios)
def test_cancelled_or_racing_runs_end_and_replay_alike(database: SimulatedDatabase, scenario: Scenario) -> None:
    play(database, scenario)


@settings(max_examples=5, suppress_health_check=QUIET)
@given(meaningful_scenarios)
def test_whatever_crashes_on_postgresql_the_outcome_is_the_same(
    postgresql: SimulatedDatabase, scenario: Scenario
) -> None:
    check_meaning(scenario.program, play(postgresql, scenario))


@settings(max_examples=5, suppress_health_check=QUIET)
@given(any_scenarios)
def test_cancelled_or_racing_runs_on_postgresql_end_and_replay_alike(
    postgresql: SimulatedDatabase, scenario: Scenario
) -> None:
    play(postgresql, scenario)


in_parts = pytest.mark.parametrize("part", range(PARTS), ids="part {}".format)
"""So that several processes can play them."""


@pytest.mark.slow
@pytest.mark.timeout(0)
@in_parts
@settings(max_examples=MANY * 6 // 10 // PARTS, suppress_health_check=QUIET)
@given(meaningful_scenarios)
def test_many_crashes_change_no_outcome(each_database: SimulatedDatabase, part: int, scenario: Scenario) -> None:
    check_meaning(scenario.program, play(each_database, scenario))


@pytest.mark.slow
@pytest.mark.timeout(0)
@in_parts
@settings(max_examples=MANY * 4 // 10 // PARTS, suppress_health_check=QUIET)
@given(any_scenarios)
def test_many_cancelled_or_racing_runs_end_and_replay_alike(
    each_database: SimulatedDatabase, part: int, scenario: Scenario
) -> None:
    play(each_database, scenario)

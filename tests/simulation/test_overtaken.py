"""Advances that others overtake: the smallest cases of what the fleet found."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest

from paidonce.runs import log_feed
from paidonce_models.store.messages import AdvanceMessage
from paidonce_models.store.queries import read_state
from tests.simulation.fleet import Fleet
from tests.simulation.scenarios import submit
from tests.simulation.schedule import Schedule
from tests.simulation.store import NAMESPACE, SimulatedDatabase

TWO_STEPS = ["sequence", [["work", 1, "o"], ["work", 2, "o"]]]


@pytest.fixture
def database() -> Iterator[SimulatedDatabase]:
    database = SimulatedDatabase("sqlite://")
    yield database
    database.close()


def test_a_worker_that_was_overtaken_twice_finds_its_own_steps_in_the_history(database: SimulatedDatabase) -> None:
    with database.scenario():
        fleet = Fleet(database, Schedule(b""), workers=2)
        run_id = submit(database, fleet, TWO_STEPS)
        slow, fast = fleet.workers

        def overtake() -> None:
            database.before = lambda: None
            fleet.workers = [fast]
            fleet.go_on(turns=3)  # begin the run, then claim and complete its first step

        database.before = overtake
        slow.advancer.advance(run_id)
        fleet.go_on()
        with database.read() as connection:
            assert read_state(connection, NAMESPACE, run_id) == ("succeeded", None)
        fleet.close()
        slow.cache.clear()


def test_a_log_longer_than_one_reading_is_read_to_its_end(database: SimulatedDatabase) -> None:
    with database.scenario(), patch.object(log_feed, "EVENTS_AT_ONCE", 2):
        fleet = Fleet(database, Schedule(b""))
        run_id = submit(database, fleet, ["loop", 2, ["loop", 2, ["work", 1, "o"]]])
        fleet.go_on(turns=7)  # three steps of four
        fleet.workers[0].cache.clear()
        fleet.messages.append(AdvanceMessage(run_id=run_id, agent="", queue="", priority=5))
        fleet.go_on()
        with database.read() as connection:
            assert read_state(connection, NAMESPACE, run_id) == ("succeeded", None)
        fleet.close()

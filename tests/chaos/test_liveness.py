"""Processes that compute, stand still or lose their connections: they live, and nothing they hold is repeated."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping

import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.chaos import agents
from tests.chaos.engines import Engines
from tests.chaos.stage import LONG_FREEZE, QUICK_LEASES, Stage, seconds_since
from tests.services.proxy import CuttingProxy
from tests.services.waiting import wait_until

LEASE_SECONDS = float(QUICK_LEASES["lease_seconds"])
LONGER_THAN_LEASES = 3 * LEASE_SECONDS
RUNS = 6

MakeStage = Callable[..., Stage]


def hold_steps(stage: Stage, *, latency_ms: float, environment: Mapping[str, str] | None = None) -> int:
    """Two workers execute a step of each run; returns the first one's process. ``environment`` is for that one."""
    fleet = stage.start(1, concurrency=RUNS, environment=environment)
    fleet.add({name: stage.environment[name] for name in environment or {}})
    stage.wait_until_registered()
    stage.submit(RUNS, steps=1, latency_ms=latency_ms)
    first = fleet.processes[0].pid
    wait_until(
        lambda: len(stage.under_way()) == RUNS and first in {attempt.pid for attempt in stage.under_way()},
        "every step is under way, and the first worker holds some",
        30,
    )
    return first


def assert_undisturbed(stage: Stage, requests: int = RUNS) -> None:
    """As if nothing had happened: one attempt a step, and one request of each at the server."""
    stage.wait_until_finished()
    stage.assert_all_succeeded(1)
    evidence = stage.assert_nothing_repeated()
    assert (evidence.requests, evidence.lost, evidence.fenced) == (requests, 0, 0)


def test_a_body_that_computes_for_longer_than_a_lease_repeats_no_other_step(
    some_engines: Engines, make_stage: MakeStage
) -> None:
    """It holds the GIL, so that neither the heartbeat nor any other thread of its process does anything."""
    stage = make_stage(some_engines, **LONG_FREEZE)
    stage.start(1, concurrency=RUNS + 1)
    stage.submit(RUNS, steps=1, latency_ms=6000)
    wait_until(lambda: len(stage.under_way()) == RUNS, "every step is under way", 30)
    computing = stage.client.submit(agents.computing, {"seconds": LONGER_THAN_LEASES})
    stage.running_fleet().add()
    assert computing.result(timeout=60) == LONGER_THAN_LEASES
    assert_undisturbed(stage)
    assert {attempt.number for attempt in stage.attempts()} == {1}


def test_a_worker_that_is_stopped_for_longer_than_a_lease_keeps_its_steps(
    some_engines: Engines, make_stage: MakeStage
) -> None:
    stage = make_stage(some_engines, **LONG_FREEZE)
    first = hold_steps(stage, latency_ms=8000)
    os.kill(first, signal.SIGSTOP)
    stopped = time.monotonic()
    wait_until(lambda: seconds_since(stopped) > LONGER_THAN_LEASES, "three leases have passed", 60)
    # The other may still wait, too: where the store is SQLite, the first may hold its lock while it stands still.
    assert first in {attempt.pid for attempt in stage.under_way()}
    assert {attempt.number for attempt in stage.attempts()} == {1}, "nobody has taken over what it holds"
    os.kill(first, signal.SIGCONT)
    assert_undisturbed(stage)


def test_nobody_is_fenced_whose_sessions_the_server_ends(
    postgres_database: str, redis_url: str, make_stage: MakeStage
) -> None:
    """Again and again, as a firewall or an administrator does."""
    stage = make_stage(Engines(name="ended", database_url=postgres_database, broker_url=redis_url), **LONG_FREEZE)
    stage.start(2, concurrency=8)
    stage.submit(8, steps=1, latency_ms=8000)
    wait_until(lambda: len(stage.under_way()) == 8, "every run has a step under way", 30)
    plain = make_url(postgres_database).set(drivername="postgresql").render_as_string(hide_password=False)
    query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() "
    with psycopg.connect(plain, autocommit=True) as connection:
        began = time.monotonic()
        while seconds_since(began) < LEASE_SECONDS:
            connection.execute(query + "AND pid <> pg_backend_pid()")  # type: ignore[arg-type]
            ended = time.monotonic()
            wait_until(lambda since=ended: seconds_since(since) > 0.5, "a moment passes", 10)  # type: ignore[misc]
    assert_undisturbed(stage, requests=8)


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
def test_a_worker_that_is_cut_off_from_the_store_can_still_report_afterwards(
    silent: bool, postgres_database: str, redis_url: str, make_stage: MakeStage
) -> None:
    """One worker reaches the store through a proxy that is cut for longer than a lease, the other directly."""
    stage = make_stage(
        Engines(name="cut", database_url=postgres_database, broker_url=redis_url),
        **LONG_FREEZE,
    )
    with CuttingProxy(make_url(postgres_database).port or 5432) as proxy:
        through = make_url(postgres_database).set(port=proxy.port).render_as_string(hide_password=False)
        first = hold_steps(stage, latency_ms=8000, environment={"PAIDONCE_DATABASE_URL": through})
        proxy.cut(silent=silent)
        cut = time.monotonic()
        wait_until(lambda: seconds_since(cut) > LONGER_THAN_LEASES, "three leases have passed", 60)
        wait_until(lambda: {attempt.pid for attempt in stage.under_way()} == {first}, "the other has reported", 60)
        proxy.mend()
        assert_undisturbed(stage)

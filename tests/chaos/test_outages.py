"""The broker is flushed, its queues are deleted, the database restarts: runs go on and nobody alive is fenced."""

from __future__ import annotations

import time
from collections.abc import Callable

import amqp
import pytest

from tests.chaos.agents import fan_out
from tests.chaos.engines import Engines
from tests.chaos.stage import LONG_FREEZE, Stage, seconds_since
from tests.services.postgres import PostgresCluster
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until

RUNS = 12
STEPS = 12
GOES_ON_WITHIN_SECONDS = 45.0

MakeStage = Callable[..., Stage]


def disturb_in_mid_run(stage: Stage, disturb: Callable[[], object]) -> None:
    """Start runs, do it when a third is done, and see every run through without a lost attempt."""
    stage.start(concurrency=2)  # few, so that most messages wait in the queue when it happens
    stage.submit(RUNS, steps=STEPS, latency_ms=100)
    wait_until(lambda: stage.finished_steps() >= RUNS * STEPS // 3, "a third is done", 60)
    disturb()
    disturbed, done = time.monotonic(), stage.finished_steps()
    wait_until(lambda: stage.finished_steps() > done + RUNS, "steps are finished again", 60)
    assert seconds_since(disturbed) <= GOES_ON_WITHIN_SECONDS
    stage.wait_until_finished()
    stage.assert_no_worker_ended()
    stage.assert_all_succeeded(STEPS)
    evidence = stage.assert_nothing_repeated()
    assert (evidence.lost, evidence.fenced) == (0, 0)
    assert evidence.requests == RUNS * STEPS


def on_queues(broker_url: str, act: Callable[[amqp.Channel, str], object]) -> None:
    """Do something to each queue that steps travel through."""
    parts = broker_url.removeprefix("amqp://").split("/")
    credentials, _, host = parts[0].rpartition("@")
    user, _, password = credentials.partition(":")
    connection = amqp.Connection(host, userid=user, password=password, virtual_host=parts[1])
    connection.connect()
    channel = connection.channel()
    for queue in ("paidonce.default", "paidonce.submit"):
        act(channel, queue)
    connection.close()


def test_runs_go_on_when_redis_is_flushed(
    postgres_database: str, private_redis: RedisServer, make_stage: MakeStage
) -> None:
    engines = Engines(name="flushed", database_url=postgres_database, broker_url=private_redis.url())
    disturb_in_mid_run(make_stage(engines), private_redis.flush)


@pytest.mark.parametrize("act", [amqp.Channel.queue_purge, amqp.Channel.queue_delete], ids=["purged", "deleted"])
def test_runs_go_on_when_the_queues_of_rabbitmq_are(
    act: Callable[[amqp.Channel, str], object], postgres_database: str, rabbitmq_url: str, make_stage: MakeStage
) -> None:
    engines = Engines(name="flushed", database_url=postgres_database, broker_url=rabbitmq_url)
    disturb_in_mid_run(make_stage(engines), lambda: on_queues(rabbitmq_url, act))


@pytest.mark.parametrize("immediately", [False, True], ids=["in order", "as after a power cut"])
def test_nobody_alive_is_fenced_when_postgresql_restarts(
    immediately: bool, private_postgres: PostgresCluster, redis_url: str, make_stage: MakeStage
) -> None:
    stage = make_stage(
        Engines(name="restarted", database_url=private_postgres.url(), broker_url=redis_url), database_pool_size="4"
    )
    stage.start()
    stage.submit(8, steps=2, latency_ms=8000)
    wait_until(lambda: len(stage.under_way()) == 8, "every run has a step under way", 60)
    private_postgres.restart(immediately=immediately)
    stage.wait_until_finished()
    assert_undisturbed(stage, steps=2, requests=16)


def test_nobody_alive_is_fenced_when_postgresql_is_away_for_longer_than_a_lease(
    private_postgres: PostgresCluster, redis_url: str, make_stage: MakeStage
) -> None:
    stage = make_stage(Engines(name="away", database_url=private_postgres.url(), broker_url=redis_url), **LONG_FREEZE)
    stage.start()
    stage.submit(8, steps=1, latency_ms=8000)
    wait_until(lambda: len(stage.under_way()) == 8, "every run has a step under way", 60)
    private_postgres.stop(immediately=True)
    stopped = time.monotonic()
    wait_until(lambda: seconds_since(stopped) > 6, "two leases have passed", 10)
    private_postgres.start()
    stage.wait_until_finished()
    assert_undisturbed(stage, steps=1, requests=8)


def test_no_step_is_paid_twice_when_postgresql_restarts_again_and_again(
    private_postgres: PostgresCluster, redis_url: str, make_stage: MakeStage
) -> None:
    """Claims and completions are under way at every moment, so that answers are lost and what they say is in doubt."""
    stage = make_stage(Engines(name="again", database_url=private_postgres.url(), broker_url=redis_url))
    stage.start()
    given = {"server": stage.server.url, "rounds": 12, "width": 6, "latency_ms": 150.0}
    stage.handles += [stage.client.submit(fan_out, given) for _ in range(10)]
    for finished in range(60, 600, 60):
        wait_until(lambda least=finished: stage.finished_steps() >= least, f"{finished} steps are done", 60)  # type: ignore[misc]
        private_postgres.restart(immediately=True)
    stage.wait_until_finished()
    assert_undisturbed(stage, steps=72, requests=720)


def assert_undisturbed(stage: Stage, *, steps: int, requests: int) -> None:
    """As if nothing had happened: one attempt a step."""
    stage.assert_no_worker_ended()
    stage.assert_all_succeeded(steps)
    evidence = stage.assert_nothing_repeated()
    assert (evidence.lost, evidence.fenced) == (0, 0)
    assert evidence.requests == requests

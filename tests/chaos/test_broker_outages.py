"""The broker dies, is away, or hangs: runs go on, submissions are durable, and nobody waits long."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from paidonce.embedded import embedded_status
from tests.chaos.engines import Engines
from tests.chaos.stage import Stage, seconds_since
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until

LONGEST_SUBMISSION_SECONDS = 30.0
GOES_ON_WITHIN_SECONDS = 60.0

MakeStage = Callable[..., Stage]


@pytest.mark.parametrize(
    ("turn_seconds", "concurrency"), [("5", 2), ("0", 8)], ids=["all threads are busy", "some wait for messages"]
)
def test_runs_go_on_when_the_embedded_valkey_is_killed_under_load(
    turn_seconds: str, concurrency: int, make_stage: MakeStage
) -> None:
    stage = make_stage(Engines(name="embedded", turn_seconds=turn_seconds))
    stage.start(concurrency=concurrency)
    stage.submit(12, steps=20, latency_ms=50)
    for finished in (40, 120):
        wait_until(lambda least=finished: stage.finished_steps() >= least, f"{finished} steps are done", 60)  # type: ignore[misc]
        pid = embedded_status(stage.settings.home).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        killed, done = time.monotonic(), stage.finished_steps()
        wait_until(lambda least=done: stage.finished_steps() > least + 12, "steps are finished again", 60)  # type: ignore[misc]
        assert seconds_since(killed) <= GOES_ON_WITHIN_SECONDS
    stage.wait_until_finished()
    stage.assert_no_worker_ended()
    stage.assert_all_succeeded(20)
    evidence = stage.assert_nothing_repeated()
    assert (evidence.requests, evidence.lost, evidence.fenced) == (240, 0, 0)


def test_a_submission_while_the_broker_is_down_runs_when_it_is_back(
    postgres_database: str, private_redis: RedisServer, make_stage: MakeStage
) -> None:
    stage = make_stage(Engines(name="down", database_url=postgres_database, broker_url=private_redis.url()))
    stage.start()
    private_redis.kill()
    began = time.monotonic()
    handles = stage.submit(3, steps=3, latency_ms=10)
    assert seconds_since(began) <= LONGEST_SUBMISSION_SECONDS
    assert {handle.state for handle in handles} == {"pending"}
    private_redis.start()
    stage.wait_until_finished(60)
    stage.assert_no_worker_ended()
    stage.assert_all_succeeded(3)
    assert stage.assert_nothing_repeated().requests == 9


def test_a_broker_that_hangs_does_not_hold_a_submission(
    postgres_database: str, private_redis: RedisServer, make_stage: MakeStage
) -> None:
    stage = make_stage(Engines(name="hung", database_url=postgres_database, broker_url=private_redis.url()))
    stage.start()
    stage.submit(2, steps=2, latency_ms=10, key="before")
    stage.wait_until_finished()
    os.kill(private_redis.pid, signal.SIGSTOP)
    began = time.monotonic()
    stage.submit(2, steps=2, latency_ms=10, key="meanwhile")
    waited = seconds_since(began)
    os.kill(private_redis.pid, signal.SIGCONT)
    assert waited <= LONGEST_SUBMISSION_SECONDS
    stage.wait_until_finished(60)
    stage.assert_no_worker_ended()
    stage.assert_all_succeeded(2)
    assert stage.assert_nothing_repeated().requests == 8

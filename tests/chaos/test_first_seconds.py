"""A worker that meets a restart of its store while it starts waits as it does later; a wrong address ends it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.engines import Engines
from tests.chaos.stage import Stage
from tests.services.postgres import PostgresCluster
from tests.services.waiting import wait_until

RESTARTS = 15
MakeStage = Callable[..., Stage]


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_worker_waits_for_a_store_that_is_away_when_it_starts(
    pool: str, private_postgres: PostgresCluster, redis_url: str, make_stage: MakeStage
) -> None:
    stage = make_stage(Engines(name="away", database_url=private_postgres.url(), broker_url=redis_url))
    stage.submit(2, steps=3, latency_ms=50)
    private_postgres.stop()

    def come_back() -> None:
        wait_until(lambda: stage.log().count("the start of this worker waits") == 2, "both say that they wait", 60)
        private_postgres.start()

    stage.start(pool=pool, meanwhile=come_back)
    stage.wait_until_finished()
    assert stage.log().count("the start of this worker waits") == 2, "each says it once"
    stage.assert_no_worker_ended()
    stage.assert_all_succeeded(3)
    assert stage.assert_nothing_repeated().requests == 6


def test_a_worker_lives_through_restarts_of_its_store_in_its_first_seconds(
    private_postgres: PostgresCluster, rabbitmq_url: str, make_stage: MakeStage
) -> None:
    """Again and again from before its first look at the schema until it consumes."""
    stage = make_stage(Engines(name="restarts", database_url=private_postgres.url(), broker_url=rabbitmq_url))
    stage.submit(4, steps=3, latency_ms=50)

    def restart_again_and_again() -> None:
        for _ in range(RESTARTS):
            private_postgres.restart(immediately=True)

    stage.start(workers=3, meanwhile=restart_again_and_again)
    stage.wait_until_finished()
    stage.assert_no_worker_ended()
    stage.assert_all_succeeded(3)
    assert stage.assert_nothing_repeated().requests == 12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda url: f"{url}_nowhere", "does not exist"),
        (lambda url: url.replace("postgres@", "nobody_at_all@"), "does not exist"),
        (lambda url: url, "run `paidonce db upgrade`"),
        (lambda _: "sqlite:////no/such/folder/store.db", "unable to open database file"),
    ],
    ids=["no such database", "no such role", "no schema", "no such folder"],
)
def test_a_store_that_no_waiting_makes_right_ends_a_worker_with_one_line(
    change: Callable[[str], str], said: str, private_postgres: PostgresCluster, redis_url: str, tmp_path: Path
) -> None:
    with_schema = private_postgres.url("template1") if said.startswith("run") else private_postgres.url()
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "paidonce_workers", "worker"],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ".",
            "PYTHONWARNINGS": "ignore",
            "PAIDONCE_AGENTS": "paidonce.drill.agents",
            "PAIDONCE_HOME": str(tmp_path),
            "PAIDONCE_DATABASE_URL": change(with_schema),
            "PAIDONCE_BROKER_URL": redis_url,
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 3, done
    assert said in done.stderr and done.stderr.startswith("paidonce: ") and done.stderr.count("\n") == 1

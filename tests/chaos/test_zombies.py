"""Messages delivered twice, and workers that are frozen past their leases and come back."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from paidonce.broker.celery_app import build_celery_app
from paidonce.broker.publisher import Publisher
from paidonce.declarations.registry import default_registry
from paidonce.replay.cache import MachineCache
from paidonce.runs.advancer import Advancer
from paidonce_models.database.transactions import Database
from paidonce_models.store.steps.claims import claim_step
from tests.chaos.engines import Engines
from tests.chaos.stage import QUICK_LEASES, WITH_FAULTS, AttemptRow, Stage, seconds_since
from tests.services.waiting import wait_until

NO_BROKER = "redis://127.0.0.1:1/0"
LONGEST_LOCK_SECONDS = 40.0
"""PostgreSQL ends a session that is idle in its transaction after 8 s; the rest is what a busy machine may add."""

MakeStage = Callable[..., Stage]


class PublisherOfTwins(Publisher):
    """Sends everything twice."""

    def publish(self, messages: object) -> int:
        super().publish(messages)  # type: ignore[arg-type]
        return super().publish(messages)  # type: ignore[arg-type]


def test_every_message_is_delivered_twice_and_every_step_is_paid_once(engines: Engines, make_stage: MakeStage) -> None:
    stage = make_stage(engines)
    stage.start(modules=WITH_FAULTS, environment={"TEST_PUBLISH_TWICE": "yes"})
    stage.use_publisher(PublisherOfTwins(build_celery_app(stage.settings), stage.settings))
    stage.submit(8, steps=10, latency_ms=50)
    stage.submit(8, steps=10, latency_ms=50, key="free", free=True)
    stage.wait_until_finished()
    stage.assert_all_succeeded(10)
    evidence = stage.assert_nothing_repeated()
    assert (evidence.requests, evidence.lost, evidence.fenced) == (160, 0, 0)


def test_one_of_many_workers_that_claim_a_step_at_once_gets_it(database_url: str, make_stage: MakeStage) -> None:
    stage = make_stage(Engines(name="store", database_url=database_url, broker_url=NO_BROKER))
    [handle] = stage.submit(1, steps=1, latency_ms=0)
    Advancer(stage.client.database, default_registry, MachineCache(1), namespace="default").advance(handle.id)
    databases = [Database(stage.settings.database_url, pool_size=1) for _ in range(8)]
    together = threading.Barrier(len(databases))

    def claim(database: Database) -> bool:
        together.wait()
        found = database.transact(
            lambda connection: claim_step(
                connection, namespace="default", run_id=handle.id, position=1, worker="w:1:a", lease_us=10**7
            )
        )
        return found is not None

    with ThreadPoolExecutor(len(databases)) as threads:
        assert sum(threads.map(claim, databases)) == 1
    for database in databases:
        database.close()
    assert len(stage.attempts()) == 1


def test_a_frozen_worker_that_comes_back_is_fenced(engines: Engines, make_stage: MakeStage) -> None:
    stage = make_stage(engines, **QUICK_LEASES)
    stage.start(concurrency=2)
    freeze_and_fence(stage, free=True)


def test_a_frozen_prefork_child_that_comes_back_is_fenced(
    postgres_database: str, redis_url: str, make_stage: MakeStage
) -> None:
    stage = make_stage(Engines(name="child", database_url=postgres_database, broker_url=redis_url), **QUICK_LEASES)
    stage.start(concurrency=2, pool="prefork")
    freeze_and_fence(stage, free=False)


def freeze_and_fence(stage: Stage, *, free: bool) -> None:
    """Stop the process that holds a step until another has finished the step, then let it go on."""
    stage.submit(1, steps=2, latency_ms=1500, free=free)
    [held] = wait_until(stage.under_way, "a step is under way", 30)
    os.kill(held.pid, signal.SIGSTOP)
    wait_until(lambda: [a for a in stage.attempts() if a.number == 2], "another worker has taken it over", 30)
    stage.wait_until_finished()
    os.kill(held.pid, signal.SIGCONT)
    wait_until(lambda: first_of(stage, held).outcome == "fenced", "the one that came back is fenced", 30)
    stage.assert_all_succeeded(2)
    evidence = stage.evidence()
    assert (evidence.twice_accepted, evidence.unaccounted, evidence.fenced, evidence.lost) == (0, 0, 1, 0)


def test_a_worker_frozen_in_its_transaction_blocks_others_for_seconds_only_and_is_fenced(
    postgres_database: str, rabbitmq_url: str, make_stage: MakeStage
) -> None:
    stage = make_stage(
        Engines(name="frozen", database_url=postgres_database, broker_url=rabbitmq_url), frozen_seconds="10"
    )
    point = "before the completion's commit with its advance"
    stage.start(modules=WITH_FAULTS, environment=fault(point, stage.folder, "SIGSTOP"))
    stage.submit(8, steps=60, latency_ms=200)
    marker = stage.folder / point
    wait_until(marker.exists, "a worker froze in its transaction", 60)
    zombie = psutil.Process(int(wait_until(marker.read_text, "it wrote its name", 5)))
    wait_until(lambda: zombie.status() == psutil.STATUS_STOPPED, "it is stopped", 5)
    frozen, done = time.monotonic(), stage.finished_steps()
    wait_until(lambda: stage.finished_steps() > done, "the other worker goes on", 60)
    assert seconds_since(frozen) <= LONGEST_LOCK_SECONDS
    stage.wait_until_finished()
    held = [attempt for attempt in stage.attempts() if attempt.pid == zombie.pid and attempt.outcome == "lost"]
    assert held, "the steps of the frozen worker were taken back"
    zombie.resume()
    wait_until(lambda: stage.evidence().lost == 0, "everything that came back is fenced", 30)
    stage.assert_all_succeeded(60)
    evidence = stage.evidence()
    assert (evidence.twice_accepted, evidence.unaccounted) == (0, 0)
    assert evidence.fenced == len(held)


def fault(point: str, folder: Path, how: str) -> dict[str, str]:
    """The environment in which this happens at the first passage."""
    return {"TEST_FAULTS": json.dumps([[point, 0, how]]), "TEST_FAULTS_FOLDER": str(folder)}


def first_of(stage: Stage, held: AttemptRow) -> AttemptRow:
    """The attempt as it is now."""
    return next(
        attempt
        for attempt in stage.attempts()
        if (attempt.run_id, attempt.position, attempt.number) == (held.run_id, held.position, held.number)
    )

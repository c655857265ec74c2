"""The store answers and takes nothing: full, read-only, without rights. What was paid is kept, what was sent too."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import psycopg
import pytest
from celery import Celery

from paidonce.run_handle import RunHandle
from paidonce_models.errors import NotFound, RunBlocked
from tests.chaos.agents import large_answers
from tests.chaos.engines import Engines
from tests.chaos.stage import ALL_AGENTS, LONG_FREEZE, Stage, seconds_since
from tests.services.disks import SmallDisk
from tests.services.postgres import PostgresCluster
from tests.services.waiting import wait_until

STEPS = 2
LEASE_SECONDS = 3.0
MakeStage = Callable[..., Stage]


@dataclass
class Postgres:
    """A server whose database lies on a small disk and whose role may lose its rights."""

    cluster: PostgresCluster
    disk: SmallDisk

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://worker@127.0.0.1:{self.cluster.port}/small"

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """As the superuser, and allowed to write whatever the server is set to."""
        plain = f"postgresql://postgres@127.0.0.1:{self.cluster.port}/{database}"
        with psycopg.connect(plain, autocommit=True, options="-c default_transaction_read_only=off") as connection:
            for statement in statements:
                connection.execute(statement.encode())

    @contextmanager
    def full(self) -> Iterator[None]:
        self.disk.fill()
        try:
            yield
        finally:
            self.disk.free()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        self.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        try:
            yield
        finally:
            self.execute("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")

    @contextmanager
    def without_rights(self) -> Iterator[None]:
        on_all = "ON ALL TABLES IN SCHEMA public"
        self.execute(f"REVOKE INSERT, UPDATE, DELETE {on_all} FROM worker", database="small")
        try:
            yield
        finally:
            self.execute(f"GRANT ALL {on_all} TO worker", database="small")


@pytest.fixture
def postgres(private_postgres: PostgresCluster, small_disk: SmallDisk) -> Postgres:
    server = Postgres(private_postgres, small_disk)
    tablespace = small_disk.folder / "tablespace"
    tablespace.mkdir(mode=0o777)
    owner = private_postgres.folder.stat()
    os.chown(tablespace, owner.st_uid, owner.st_gid)
    server.execute(
        "CREATE ROLE worker LOGIN",
        f"CREATE TABLESPACE small LOCATION '{tablespace}'",
        "CREATE DATABASE small OWNER worker TABLESPACE small",
    )
    return server


def command_line(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``paidonce`` on the stage's store."""
    return subprocess.run(
        [sys.executable, "-m", "paidonce.cli", *arguments],
        env={**os.environ, **stage.environment, "PAIDONCE_AGENTS": ALL_AGENTS},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def found(stage: Stage, alias: str) -> RunHandle | None:
    try:
        return stage.client.run(alias)
    except NotFound:
        return None


def live_through(stage: Stage, fault: Callable[[], AbstractContextManager[None]], name: str) -> None:
    """A paid step ends, a run is submitted over the broker and one by the command line while the store is at fault."""
    noise = random.Random(name).randbytes(50_000).hex()  # an argument may have 128 KB
    given = {"server": stage.server.url, "steps": STEPS, "latency_ms": 700.0}
    handle = stage.client.submit(large_answers, given, key=f"during-{name}")
    stage.handles.append(handle)
    wait_until(stage.under_way, "a step is under way", 60)
    told = stage.log().count("the store at")
    with fault():
        began = time.monotonic()
        wait_until(lambda: stage.log().count("the store at") > told, "a worker says that it waits", 60)
        with Celery("shop", broker=stage.engines.broker_url, set_as_current=False) as producer:
            for task_id, submitted in ((f"right-{name}", {**given, "steps": 1}), (f"wrong-{name}", {"no": 1})):
                producer.send_task(
                    "paidonce.submit",
                    kwargs={"agent": "large_answers", "input": {**submitted, "noise": noise}},
                    queue="paidonce.submit",
                    task_id=task_id,
                )
        refused = command_line(stage, "submit", "large_answers", "--input", json.dumps({**given, "server": noise}))
        assert refused.returncode == 3, refused
        assert refused.stderr.count("\n") <= 2 and "Traceback" not in refused.stderr, refused.stderr
        wait_until(lambda: seconds_since(began) > 1.3 * LEASE_SECONDS, "a lease has passed", 30)
        assert not stage.rows(
            "SELECT 1 FROM runs WHERE key IN (:right, :wrong)", right=f"right-{name}", wrong=f"failed:wrong-{name}"
        )
    assert handle.result(timeout=90) == STEPS
    right = wait_until(lambda: found(stage, f"right-{name}"), "the submission is taken", 60)
    wrong = wait_until(lambda: found(stage, f"wrong-{name}"), "the wrong one is refused", 60)
    assert right is not None and wrong is not None
    assert (right.result(timeout=60), wrong.state) == (1, "failed")


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_nothing_is_paid_twice_or_lost_while_postgresql_takes_nothing(
    broker: str, postgres: Postgres, request: pytest.FixtureRequest, make_stage: MakeStage
) -> None:
    broker_url = request.getfixturevalue(f"{broker}_url")
    stage = make_stage(
        Engines(name="full", database_url=postgres.url, broker_url=broker_url),
        **LONG_FREEZE,
        database_pool_size="4",
    )
    stage.start(workers=2, concurrency=4, pool="prefork" if broker == "redis" else "threads")
    faults = {"full": postgres.full, "read-only": postgres.read_only, "rights": postgres.without_rights}
    for name, fault in faults.items():
        live_through(stage, fault, name)
    assert_as_if_nothing_had_happened(stage, requests=3 * (STEPS + 1))


def test_nothing_is_paid_twice_or_lost_while_the_disk_of_sqlite_is_full(
    small_disk: SmallDisk, redis_url: str, make_stage: MakeStage
) -> None:
    @contextmanager
    def full() -> Iterator[None]:
        small_disk.fill()
        yield
        small_disk.free()

    url = f"sqlite:///{small_disk.folder}/store.db"
    stage = make_stage(Engines(name="full", database_url=url, broker_url=redis_url), **LONG_FREEZE)
    stage.start(workers=2, concurrency=4)
    live_through(stage, full, "full")
    assert_as_if_nothing_had_happened(stage, requests=STEPS + 1)


REFUSING = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'too large for us' USING ERRCODE = 'check_violation'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON payloads FOR EACH ROW WHEN (NEW.size > 100000) EXECUTE FUNCTION refuse()
"""


def test_a_result_that_postgresql_refuses_is_paid_once_and_blocks_its_run(
    postgres_database: str, redis_url: str, make_stage: MakeStage
) -> None:
    stage = make_stage(Engines(name="refusing", database_url=postgres_database, broker_url=redis_url), **LONG_FREEZE)
    with psycopg.connect(postgres_database.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(REFUSING.encode())
    stage.start(workers=1)
    given = {"server": stage.server.url, "steps": STEPS, "latency_ms": 10.0}
    handle = stage.client.submit(large_answers, given)
    with pytest.raises(RunBlocked, match="too large for us"):
        handle.result(timeout=60)
    [attempt] = stage.attempts()
    assert attempt.outcome == "blocked" and "result_not_storable" in str(attempt.error)
    assert stage.evidence().requests == stage.count("SELECT count(*) FROM calls") == 1
    stage.assert_ledger_adds_up()


def assert_as_if_nothing_had_happened(stage: Stage, *, requests: int) -> None:
    stage.assert_no_worker_ended()
    evidence = stage.assert_nothing_repeated()
    assert (evidence.requests, evidence.lost, evidence.fenced) == (requests, 0, 0), stage.describe()
    stage.assert_ledger_adds_up()
    assert stage.count("SELECT count(*) FROM calls") == requests
    log = stage.log()
    assert "Traceback" not in log and log.count("store_away") < 100
    assert log.count(" waits: the store at") <= 40, "it is said once, not at every try"

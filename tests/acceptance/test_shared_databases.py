"""Whole runs with a real worker where the database is shared: in a schema, through a pooler."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from paidonce import RunCancelled
from paidonce_models.errors import StoreUnreachable
from tests.acceptance.agents.flow import gathers, naps, nested
from tests.acceptance.agents.stepping import retried, timed_out
from tests.acceptance.conftest import SHARED_MODULES
from tests.acceptance.site import RUN_SECONDS, Site
from tests.services.pgbouncer import PgBouncer
from tests.services.waiting import wait_until

pytestmark = [pytest.mark.service, pytest.mark.neighbour]


def command(site: Site, *arguments: str) -> Any:
    """What ``paidonce … --json`` prints in this site."""
    done = subprocess.run(
        [sys.executable, "-m", "paidonce.cli", *arguments, "--json"],
        cwd=site.folder,
        env=site.environment(SHARED_MODULES),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def play(site: Site, name: str) -> None:
    """Steps, children, tries, time-outs, a cancellation; then what the commands say of it."""
    client = site.client
    runs = [
        client.submit(gathers, {"count": 5}),
        client.submit(nested, {"levels": 3}),
        client.submit(retried, {"attempt": 2}),
        client.submit(timed_out),
    ]
    cancelled = client.submit("parent_of_endless", {"name": name})
    for child in (1, 2):
        site.wait_noted(f"{name} child {child} began")
    cancelled.cancel()
    results = [run.result(RUN_SECONDS) for run in runs]
    assert results[:3] == [[0, 2, 4, 6, 8], 3, 2]
    with pytest.raises(RunCancelled):
        cancelled.result(RUN_SECONDS)
    assert command(site, "db", "check")["matches"] is True
    assert {run.id for run in runs} <= {each["run_id"] for each in command(site, "runs")}
    command(site, "costs")


def tables(url: str) -> dict[str, int]:
    """How many tables each schema holds."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        found = connection.execute(
            "SELECT schemaname, count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema') "
            "GROUP BY 1"
        ).fetchall()
    return {str(name): int(count) for name, count in found}


@pytest.mark.parametrize(
    ("mode", "ignored", "schema"),
    [("transaction", "", ""), ("transaction", "options", "ours"), ("session", "options", ""), ("session", "", "ours")],
)
def test_runs_succeed_through_pgbouncer(
    make_site: Callable[..., Site],
    postgres_database: str,
    pgbouncer: Callable[..., str],
    redis_url: str,
    mode: str,
    ignored: str,
    schema: str,
) -> None:
    url = pgbouncer(mode, ignored=ignored, size=60 if mode == "session" else 5)
    site = make_site(database_url=url, broker_url=redis_url, **({"schema": schema} if schema else {}))
    site.upgrade()
    worker = site.worker(*SHARED_MODULES)
    play(site, "pooled")
    assert worker.stop() == 0
    assert "Traceback" not in worker.log
    assert set(tables(postgres_database)) == {schema or "public"}


def test_two_installations_work_side_by_side_in_one_database(
    make_site: Callable[..., Site], postgres_database: str, redis_url: str, private_redis: Any
) -> None:
    brokers = {"one": redis_url, "two": private_redis.url()}
    sites = {
        name: make_site(database_url=postgres_database, broker_url=broker, schema=name)
        for name, broker in brokers.items()
    }
    for site in sites.values():
        site.upgrade()
        site.worker(*SHARED_MODULES, wait=False)
    for site in sites.values():
        site.workers[0].wait_ready()
    runs = {
        name: [site.client.submit(gathers, {"count": 5}), site.client.submit(nested, {"levels": 3})]
        for name, site in sites.items()
    }
    for name, site in sites.items():
        assert [run.result(RUN_SECONDS) for run in runs[name]] == [[0, 2, 4, 6, 8], 3]
        with site.client.database.read() as connection:
            found = set(connection.execute(text("SELECT root_run_id FROM runs")).scalars())
        assert found == {run.id for run in runs[name]}
    assert set(tables(postgres_database)) == {"one", "two"}


def test_nothing_is_paid_again_when_the_pooler_dies_and_comes_back(
    make_site: Callable[..., Site], private_pgbouncer: PgBouncer, redis_url: str
) -> None:
    site = make_site(database_url=private_pgbouncer.url, broker_url=redis_url, schema="ours")
    site.upgrade()
    site.worker(*SHARED_MODULES)
    run = site.client.submit(naps, {"seconds": 3.0})
    nested_run = site.client.submit(nested, {"levels": 3})
    site.wait_state(run, "running", "waiting")
    private_pgbouncer.kill()
    wait_until(lambda: "cannot be reached" in site.workers[0].log, "the worker has noticed", RUN_SECONDS)
    private_pgbouncer.start()

    def ended() -> bool:
        try:
            return run.state == nested_run.state == "succeeded"
        except StoreUnreachable:  # of a connection that has died with the pooler
            return False

    wait_until(ended, "both runs succeed", 2 * RUN_SECONDS)
    assert all(step.attempts <= 1 for each in (run, nested_run) for step in each.steps())

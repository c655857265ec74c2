"""Isolation hosts as real processes: they outlive their worker, are missed when they die, and end when told to."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from paidonce.declarations.registry import Registry
from paidonce.replay.cache import MachineCache
from paidonce.runs.advance_settings import AdvanceSettings
from paidonce.runs.advancer import Advancer
from paidonce.runs.new_run import new_run
from paidonce.settings import Settings, load_settings
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.runs.submission import submit_run
from paidonce_models.store.steps.claims import claim_step
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_models.store.steps.suspicion import Suspect
from paidonce_workers.isolation_hosts.hosts import DrainTimes, IsolationHosts
from paidonce_workers.isolation_hosts.orders import Beginning
from paidonce_workers.startup import host_program
from tests.services.waiting import wait_until
from tests.workers.deadly_steps import patient, waits

MODULE = "tests.workers.deadly_steps"
LIMIT_SECONDS = 60.0
ROOT = Path(__file__).parents[3]
SUSPECT = Suspect(lost=2, blamed=0)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Site:
    """A store with one suspect, and hosts for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = self.with_agents(MODULE)
        self.database = Database(self.settings.database_url, pool_size=1)
        upgrade(self.database)
        new = new_run(self.settings, patient.name, {"folder": str(folder)}, declaration=patient)
        self.run_id = self.database.transact(lambda connection: submit_run(connection, new)).run_id
        registry = Registry()
        registry.add_agent(patient)
        registry.add_step(waits)
        Advancer(self.database, registry, MachineCache(10), AdvanceSettings(), namespace="default").advance(self.run_id)
        for _ in range(2):
            claim = self.database.transact(
                lambda connection: claim_step(
                    connection, namespace="default", run_id=self.run_id, position=1, worker="gone", lease_us=1
                )
            )
            assert claim is not None
            key = LeaseKey(self.run_id, 1, claim.attempt)
            self.database.transact(
                lambda connection, key=key: reclaim_step(connection, key, why="gone", alone=False, anyway=True)  # type: ignore[misc]
            )
        self.message = StepMessage(
            run_id=self.run_id, position=1, name=waits.name, agent=patient.name, queue="", priority=5
        )

    def with_agents(self, module: str) -> Settings:
        return load_settings(home=str(self.folder), broker_url="memory://", agents=module)

    def hosts(self, module: str = MODULE) -> IsolationHosts:
        return IsolationHosts(
            program=host_program.__name__,
            beginning=Beginning(settings=self.with_agents(module), at_once=2, log_level=logging.INFO),
            times=DrainTimes(interrupt_seconds=20, hand_back_seconds=20),
        )

    def state(self) -> str:
        with self.database.read() as connection:
            return str(connection.execute(text("SELECT state FROM steps")).scalar_one())

    def owner(self) -> int:
        """The process that executes the step."""
        with self.database.read() as connection:
            return int(str(connection.execute(text("SELECT lease_owner FROM steps")).scalar_one()).split(":")[1])

    def wait_until_it_runs(self) -> None:
        wait_until(lambda: (self.folder / "began").exists(), "the body runs", LIMIT_SECONDS)

    def let_go(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(ROOT))
    made = Site(tmp_path)
    yield made
    made.database.close()


def test_a_host_that_dies_is_followed_by_another_and_ends_when_it_is_told_to(site: Site) -> None:
    hosts = site.hosts()
    assert hosts.send(site.message, SUSPECT)
    site.wait_until_it_runs()
    first = psutil.Process(site.owner())
    bodies = first.children(recursive=True)
    first.kill()
    _, alive = psutil.wait_procs(bodies, timeout=LIMIT_SECONDS)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE], "its bodies die with it"
    key = LeaseKey(site.run_id, 1, 3)
    site.database.transact(lambda connection: reclaim_step(connection, key, why="gone", alone=False, anyway=True))
    (site.folder / "began").unlink()

    def sent() -> bool:
        return hosts.send(site.message, SUSPECT) and (site.folder / "began").exists()

    wait_until(sent, "another host runs it", LIMIT_SECONDS)
    assert site.owner() != first.pid
    hosts.drain(3600)
    assert hosts.send(site.message, SUSPECT), "it waits for another worker"
    hosts.drain(0)
    hosts.wait()
    assert site.state() == "scheduled"
    with site.database.read() as connection:
        outcomes = connection.execute(text("SELECT outcome FROM attempts ORDER BY number")).scalars().all()
        counted = connection.execute(text("SELECT lost, blamed FROM steps")).one()
    assert outcomes == ["lost", "lost", "lost", "cancelled"] and tuple(counted) == (3, 0)


def test_a_host_outlives_its_worker_and_finishes_what_it_has(site: Site) -> None:
    worker = (
        "import os, sys; from pathlib import Path; from paidonce_models.store.messages import StepMessage\n"
        "from tests.workers.isolation_hosts.test_hosts import SUSPECT, Site\n"
        "site = Site.__new__(Site); site.folder = Path(sys.argv[1])\n"
        "message = StepMessage(run_id=sys.argv[2], position=1, name='deadly.waits', agent='', queue='', priority=5)\n"
        "site.hosts().send(message, SUSPECT); site.wait_until_it_runs(); os._exit(9)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", worker, str(site.folder), site.run_id],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ended.returncode == 9
    host = psutil.Process(site.owner())
    assert site.state() == "running"
    site.let_go()
    wait_until(lambda: site.state() == "succeeded", "the host has completed the step", LIMIT_SECONDS)
    psutil.wait_procs([host], timeout=LIMIT_SECONDS)
    assert not host.is_running() or host.status() == psutil.STATUS_ZOMBIE, "and has nothing left to do"


def test_where_no_host_can_be_started_the_worker_is_told(site: Site) -> None:
    hosts = site.hosts("tests.workers.no_such_module")
    wait_until(lambda: not hosts.send(site.message, SUSPECT), "the host has failed to start", LIMIT_SECONDS)
    assert site.state() == "scheduled"

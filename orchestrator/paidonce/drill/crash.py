"""``paidonce drill crash``: agents against a counting server while workers are killed at random moments.

Owns the course of the drill: starts everything, submits, kills, waits and gathers the
evidence, which ``evidence`` judges.
"""

from __future__ import annotations

import random
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Select, bindparam, func, select

from paidonce.client import Client
from paidonce.drill import agents
from paidonce.drill.broker_traces import remove_broker_traces
from paidonce.drill.evidence import UNFINISHED_RUNS, Evidence, Kill, gather_evidence, process_of
from paidonce.drill.fleet import CountingServerProcess, Fleet
from paidonce.embedded import stop_embedded
from paidonce.settings import Settings, load_settings
from paidonce.store_access import open_store
from paidonce_models.database.schema import upgrade
from paidonce_models.errors import ConfigurationError, StoreError
from paidonce_models.privacy.private_files import make_private_folder
from paidonce_models.states import RunState, StepState
from paidonce_models.store.columns import STORE_NOW, Attempt, Run, Step, Worker, col, rows

POLL_SECONDS = 0.1
SOONEST_KILL_SECONDS = 0.3
SECONDS_TO_RECOVER = 1.0
"""Seconds between measured kills: other workers must be up, or their start would be measured."""
START_SECONDS = 60.0

_SUCCEEDED = (
    select(func.count())
    .select_from(rows(Run))
    .where(col(Run.namespace) == bindparam("namespace"), col(Run.state) == RunState.SUCCEEDED.value)
)
_FINISHED_STEPS = (
    select(func.count())
    .select_from(rows(Step))
    .where(col(Step.namespace) == bindparam("namespace"), col(Step.state) == StepState.SUCCEEDED.value)
)
_REGISTERED_PIDS = select(col(Worker.pid)).where(col(Worker.namespace) == bindparam("namespace"))
_UNDER_WAY = (
    select(col(Attempt.worker))
    .distinct()
    .where(col(Attempt.namespace) == bindparam("namespace"), col(Attempt.outcome).is_(None))
)
_LIVE_WORKERS = (
    select(func.count())
    .select_from(rows(Worker))
    .where(col(Worker.stopped_at_us).is_(None), col(Worker.seen_at_us) > STORE_NOW - 15_000_000)
)


@dataclass(frozen=True, kw_only=True)
class CrashDrill:
    """The options. ``database_url`` and ``broker_url`` ``None``: SQLite and the embedded broker in a fresh folder."""

    runs: int = 20
    steps: int = 48
    kills: int = 3
    workers: int = 2
    concurrency: int = 8
    pool: str | None = None
    latency_ms: float = 20.0
    every_seconds: float = 4.0
    seed: int | None = None
    database_url: str | None = None
    broker_url: str | None = None
    limit_seconds: float = 600.0
    ends_with_the_kills: bool = False
    """Whether the drill ends once all kills are recovered from, rather than once all runs have ended."""


@dataclass(frozen=True, kw_only=True)
class CrashReport:
    """The result."""

    evidence: Evidence
    runs: int
    succeeded: int
    seconds: float
    kills: int

    @property
    def holds(self) -> bool:
        """Whether every run finished and nothing was repeated."""
        return self.succeeded == self.runs and self.evidence.holds


def run_crash_drill(drill: CrashDrill, say: Callable[[str], None], folder: Path | None = None) -> CrashReport:
    """Run the drill; ``say`` receives progress messages. Leaves no process behind.

    ``folder`` keeps the workers' logs and the default store; ``None`` uses one that is deleted afterwards.
    Raises ``ConfigurationError`` if the store is in use: a drill kills workers, but never those of others.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paidonce-drill-")))
        given = {"home": str(folder / "home"), "namespace": f"drill-{uuid.uuid4().hex[:12]}"}
        if drill.database_url is not None:
            given["database_url"] = drill.database_url
        if drill.broker_url is not None:
            given["broker_url"] = drill.broker_url
        settings = load_settings(**given)
        _prepare_store(settings)
        server = CountingServerProcess(folder)
        stack.callback(server.stop)
        if drill.broker_url is None:
            stack.callback(stop_embedded, settings.home)
        else:
            stack.callback(remove_broker_traces, settings)
        fleet = Fleet(
            environment={f"PAIDONCE_{name.upper()}": value for name, value in given.items()},
            folder=folder,
            size=drill.workers,
            concurrency=drill.concurrency,
            pool=drill.pool,
        )
        stack.callback(fleet.stop)
        return _Course(drill, settings, server, fleet, say).carry_out()


def _prepare_store(settings: Settings) -> None:
    make_private_folder(settings.home, is_ours=True)
    database = open_store(settings)
    try:
        upgrade(database)
        with database.read() as connection:
            live = connection.execute(_LIVE_WORKERS).scalar_one()
    finally:
        database.close()
    if live:
        raise ConfigurationError(
            f"{live} worker(s) were seen in {database!r} within the last 15 s; a drill needs a store and a broker of "
            "its own: give it another --database-url, or stop them and try again in 15 s"
        )


class _Course:
    """One running drill."""

    def __init__(
        self,
        drill: CrashDrill,
        settings: Settings,
        server: CountingServerProcess,
        fleet: Fleet,
        say: Callable[[str], None],
    ) -> None:
        self._drill = drill
        self._settings = settings
        self._client = Client(settings)
        self._server = server
        self._fleet = fleet
        self._say = say
        self._chance = random.Random(drill.seed)
        self._kills: list[Kill] = []
        self._next_kill: float | None = None
        self._at_finished_steps = 0

    def carry_out(self) -> CrashReport:
        """Submit, kill, wait, gather."""
        self._wait_until_all_registered()
        began = time.monotonic()
        for number in range(self._drill.runs):
            self._client.submit(
                agents.drill_agent,
                {"server": self._server.url, "steps": self._drill.steps, "latency_ms": self._drill.latency_ms},
                key=f"drill-{number}",
            )
        self._say(f"{self._drill.runs} runs of {self._drill.steps} paid steps on {self._drill.workers} workers")
        while (unfinished := self._count(UNFINISHED_RUNS)) > 0:
            if time.monotonic() - began > self._drill.limit_seconds:
                self._say(f"{unfinished} runs have not finished within {self._drill.limit_seconds:.0f} s")
                break
            if len(self._kills) < self._drill.kills:
                self._kill_when_it_is_time(unfinished)
            elif self._drill.ends_with_the_kills and self._all_registered():
                break
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
        with self._client.database.read() as connection:
            evidence = gather_evidence(
                connection, self._server.requests(), self._kills, namespace=self._settings.namespace
            )
        report = CrashReport(
            evidence=evidence,
            runs=self._drill.runs,
            succeeded=self._count(_SUCCEEDED),
            seconds=seconds,
            kills=len(self._kills),
        )
        self._client.database.close()
        return report

    def _wait_until_all_registered(self) -> None:
        """Work that is done before the last worker has started would be over before a kill proves anything."""
        end = time.monotonic() + START_SECONDS
        while not self._all_registered():
            if time.monotonic() > end:
                self._say(f"not every worker has registered within {START_SECONDS:.0f} s; it is not waited for")
                return
            time.sleep(POLL_SECONDS)

    def _kill_when_it_is_time(self, unfinished: int) -> None:
        """The next kill comes after a random pause, or earlier if the work would be done before it."""
        now = time.monotonic()
        if self._next_kill is None:
            if self._all_registered():
                pause = self._chance.uniform(SOONEST_KILL_SECONDS, max(self._drill.every_seconds, SOONEST_KILL_SECONDS))
                if self._drill.ends_with_the_kills:
                    pause += SECONDS_TO_RECOVER
                self._next_kill = now + pause
                share = (len(self._kills) + self._chance.random()) / (self._drill.kills + 1)
                self._at_finished_steps = int(share * self._drill.runs * self._drill.steps)
        elif now >= self._next_kill or (
            not self._drill.ends_with_the_kills and self._count(_FINISHED_STEPS) > self._at_finished_steps
        ):
            self._kills.append(self._kill_one(unfinished))
            self._next_kill = None

    def _kill_one(self, unfinished: int) -> Kill:
        """Kill a whole worker; of a prefork worker also its parent alone, one of its children, or all of them."""
        busy = self._busy_processes()
        children_of = {
            number: self._fleet.children(number) if self._fleet.pool_of(number) == "prefork" else []
            for number in range(self._drill.workers)
        }
        working = [
            number for number, children in children_of.items() if busy & {self._fleet.processes[number].pid, *children}
        ]
        victim = self._chance.choice(working or range(self._drill.workers))
        left = f"({unfinished} runs unfinished)"
        children = children_of[victim]
        whom = self._chance.choice(["worker", "parent", "child", "children"]) if children else "worker"
        if whom == "child":
            child = self._chance.choice([pid for pid in children if pid in busy] or children)
            self._say(f"kill -9 of child {child} of worker {victim} {left}")
            return self._fleet.kill_child(child)
        if whom == "children":
            self._say(f"kill -9 of all {len(children)} children of worker {victim} {left}")
            return self._fleet.kill_children(victim)
        if whom == "parent":
            self._say(f"kill -9 of the parent alone of worker {victim} {left}")
            killed = self._fleet.kill_parent(victim)
        else:
            self._say(f"kill -9 of worker {victim} {left}")
            killed = self._fleet.kill(victim)
        self._fleet.restart(victim)
        return killed

    def _busy_processes(self) -> set[int]:
        """The processes that execute a step: killing any other proves nothing."""
        with self._client.database.read() as connection:
            found = connection.execute(_UNDER_WAY, {"namespace": self._settings.namespace}).scalars()
            return {process_of(worker) for worker in found}

    def _all_registered(self) -> bool:
        """Whether every worker of the fleet is registered: killing one that is still starting would prove nothing."""
        try:
            with self._client.database.read() as connection:
                found = connection.execute(_REGISTERED_PIDS, {"namespace": self._settings.namespace})
                registered = set(found.scalars())
        except StoreError:
            return False
        return all(process.pid in registered for process in self._fleet.processes)

    def _count(self, query: Select[int]) -> int:
        with self._client.database.read() as connection:
            return connection.execute(query, {"namespace": self._settings.namespace}).scalar_one()

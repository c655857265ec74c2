"""What a chaos test plays on: a fleet of real workers, the counting server, a client, and questions to the store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from paidonce.broker.publisher import Publisher
from paidonce.client import Client
from paidonce.costs import read_costs
from paidonce.drill import agents as drill_agents
from paidonce.drill.evidence import Evidence, Kill, gather_evidence, process_of
from paidonce.drill.fleet import CountingServerProcess, Fleet
from paidonce.embedded import stop_embedded
from paidonce.run_handle import RunHandle
from paidonce.settings import load_settings
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreError
from tests.chaos import agents as chaos_agents
from tests.chaos.engines import Engines
from tests.chaos.forked_fleet import ForkedFleet
from tests.services.waiting import wait_until

START_SECONDS = 60
END_SECONDS = 120
SHOWN_ROWS = 40

ALL_AGENTS = "paidonce.drill.agents,tests.chaos.agents"
WITH_POISON = f"{ALL_AGENTS},tests.chaos.poison_agents"
WITH_FAULTS = f"{ALL_AGENTS},tests.chaos.faults"

QUICK_LEASES = {"lease_seconds": "3", "frozen_seconds": "4", "heartbeat_seconds": "0.7", "sweep_seconds": "0.5"}
"""For tests in which leases run out often and their length is not what is tested."""
LONG_FREEZE = {**QUICK_LEASES, "frozen_seconds": "60"}
"""For tests in which nobody may be called lost: a busy machine may stop a process for seconds."""


@dataclass(frozen=True)
class AttemptRow:
    """An attempt as the store has it."""

    run_id: str
    position: int
    number: int
    worker: str
    claimed_at_seconds: float
    outcome: str | None
    error: str | None

    @property
    def pid(self) -> int:
        """The process that made it."""
        return process_of(self.worker)


class Stage:
    """Set up by the ``stage`` fixture, which also takes it down."""

    def __init__(self, folder: Path, engines: Engines, settings: Mapping[str, str]) -> None:
        """``settings`` by their names in lower case, for the workers and the client."""
        given = {"home": str(folder / "home"), "turn_seconds": engines.turn_seconds, **settings}
        if engines.database_url is not None:
            given["database_url"] = engines.database_url
        if engines.broker_url is not None:
            given["broker_url"] = engines.broker_url
        self.folder = folder
        self.engines = engines
        self.settings = load_settings(**given)
        self.settings.home.mkdir(parents=True, exist_ok=True)
        self.kills: list[Kill] = []
        self.handles: list[RunHandle] = []
        self.deaths = 0
        """How many workers have ended by themselves and were started anew."""
        self.environment = {f"PAIDONCE_{name.upper()}": value for name, value in given.items()}
        database = Database(self.settings.database_url, pool_size=1)
        upgrade(database)
        database.close()
        self.server = CountingServerProcess(folder)
        self.client = Client(self.settings)
        self.fleet: Fleet | None = None

    def start(
        self,
        workers: int = 2,
        *,
        concurrency: int = 8,
        pool: str | None = None,
        modules: str = ALL_AGENTS,
        environment: Mapping[str, str] | None = None,
        meanwhile: Callable[[], object] | None = None,
        new_interpreters: bool = False,
    ) -> Fleet:
        """Start the fleet and wait until all of it takes part; ``meanwhile`` something may happen to its servers.

        ``new_interpreters`` start in seconds, as in production: a worker that is forked is back at once after a
        death, and takes more messages along into the next one.
        """
        self.fleet = (Fleet if new_interpreters else ForkedFleet)(
            environment={**self.environment, "PYTHONWARNINGS": "ignore", **(environment or {})},
            folder=self.folder,
            size=workers,
            concurrency=concurrency,
            pool=pool,
            modules=modules,
        )
        if meanwhile is not None:
            meanwhile()
        self.wait_until_registered()
        return self.fleet

    def stop(self) -> None:
        """End everything."""
        if self.fleet is not None:
            self.fleet.stop()
        self.server.stop()
        self.client.database.close()
        if self.engines.broker_url is None:
            stop_embedded(self.settings.home)

    def use_publisher(self, publisher: Publisher) -> None:
        """Submit through this publisher from now on."""
        self.client.database.close()
        self.client = Client(self.settings, publisher=publisher)

    # -- doing -----------------------------------------------------------------------

    def submit(
        self, runs: int, *, steps: int, latency_ms: float, key: str = "run", free: bool = False
    ) -> list[RunHandle]:
        """Submit runs of the drill's agent, or of one whose calls are counted but cost nothing."""
        given = {"server": self.server.url, "steps": steps, "latency_ms": latency_ms}
        agent = chaos_agents.free_sequence if free else drill_agents.drill_agent
        handles = [self.client.submit(agent, given, key=f"{key}-{number}") for number in range(runs)]
        self.handles += handles
        return handles

    def restart_the_dead(self) -> None:
        """Start a worker in the place of each one that has ended by itself."""
        fleet = self.running_fleet()
        for number, process in enumerate(fleet.processes):
            if process.poll() is not None:
                self.deaths += 1
                fleet.restart(number)

    def wait_until_finished(self, timeout: float = END_SECONDS, *, restarting: bool = False) -> None:
        """Wait until every run that was submitted has ended; ``restarting`` workers that die meanwhile."""

        def finished() -> bool:
            if restarting:
                self.restart_the_dead()
            return self.unfinished() == 0

        try:
            wait_until(finished, f"all runs have ended; see the logs in {self.folder}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    # -- asking ----------------------------------------------------------------------

    def running_fleet(self) -> Fleet:
        """The fleet that was started."""
        if self.fleet is None:
            raise RuntimeError("start the fleet first")
        return self.fleet

    def wait_until_registered(self) -> None:
        """Wait until every worker of the fleet has said in the store what it holds."""
        fleet = self.running_fleet()

        def registered() -> bool:
            pids = {row[0] for row in self.rows("SELECT pid FROM workers WHERE stopped_at_us IS NULL")}
            return all(process.pid in pids for process in fleet.processes)

        wait_until(registered, f"the workers take part; see the logs in {self.folder}", START_SECONDS)

    def rows(self, query: str, **parameters: object) -> list[tuple[object, ...]]:
        """What a query finds; nothing while the store is away."""
        try:
            with self.client.database.read() as connection:
                return [tuple(row) for row in connection.execute(text(query), parameters)]
        except StoreError:
            return []

    def count(self, query: str, **parameters: object) -> int:
        """The one number that a query finds; -1 while the store is away."""
        rows = self.rows(query, **parameters)
        return int(str(rows[0][0])) if rows else -1

    def unfinished(self) -> int:
        """How many runs have not ended."""
        return self.count("SELECT count(*) FROM runs WHERE state NOT IN ('succeeded', 'failed', 'cancelled')")

    def finished_steps(self) -> int:
        """How many steps have a result."""
        return self.count("SELECT count(*) FROM steps WHERE state = 'succeeded'")

    def attempts(self) -> list[AttemptRow]:
        """All attempts in the order of their claims."""
        return [
            AttemptRow(str(run), int(str(position)), int(str(number)), str(worker), int(str(at)) / 1e6, *rest)  # type: ignore[arg-type]
            for run, position, number, worker, at, *rest in self.rows(
                "SELECT run_id, position, number, worker, claimed_at_us, outcome, error FROM attempts "
                "ORDER BY claimed_at_us"
            )
        ]

    def under_way(self) -> list[AttemptRow]:
        """The attempts that have not ended."""
        return [attempt for attempt in self.attempts() if attempt.outcome is None]

    def number_of(self, pid: int) -> int:
        """Which worker of the fleet is, or has forked, this process."""
        fleet = self.running_fleet()
        for number, process in enumerate(fleet.processes):
            if pid == process.pid or pid in fleet.children(number):
                return number
        raise LookupError(f"process {pid} belongs to no worker")

    def sweeping_worker(self) -> int | None:
        """The number of the worker that leads the sweeping."""
        rows = self.rows("SELECT leader FROM sweeps WHERE lease_expires_at_us > paidonce_now()")
        return self.number_of(process_of(str(rows[0][0]))) if rows else None

    def evidence(self) -> Evidence:
        """What the server and the store say about everything so far."""
        with self.client.database.read() as connection:
            return gather_evidence(connection, self.server.requests(), self.kills, namespace=self.settings.namespace)

    def describe(self) -> str:
        """What stands in the way of an end: for the message of a test that waited for it in vain."""
        tables = {
            "unfinished runs": "SELECT id, state, state_reason FROM runs "
            "WHERE state NOT IN ('succeeded', 'failed', 'cancelled')",
            "unfinished steps": "SELECT run_id, position, state, due_at_us - paidonce_now() FROM steps "
            "WHERE state NOT IN ('succeeded', 'failed', 'cancelled')",
            "attempts that were not accepted": "SELECT run_id, position, number, worker, outcome, cost_nanousd, error "
            "FROM attempts WHERE outcome IS NULL OR outcome != 'accepted'",
            "budget accounts": "SELECT * FROM budget_accounts",
            "workers": "SELECT * FROM workers",
        }
        lines: list[str] = []
        for name, query in tables.items():
            rows = self.rows(query)
            lines += [f"{name}: {len(rows)}", *("  " + " ".join(map(str, row)) for row in rows[:SHOWN_ROWS])]
        return "\n".join([*lines, "the end of the logs:", *self.log().splitlines()[-SHOWN_ROWS:]])

    def log(self) -> str:
        """What all workers have written."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("worker-*.log")))

    def assert_all_succeeded(self, steps: int) -> None:
        """Every run returned what it returns without any disturbance."""
        for handle in self.handles:
            assert handle.result(timeout=1) == steps

    def assert_ledger_adds_up(self) -> None:
        """By cause, agent, step, run, day or model, from kept sums or from rows: it is the same money."""
        ((calls, spent),) = self.rows("SELECT count(*), sum(cost_nanousd) FROM calls")
        ((attempts,),) = self.rows("SELECT sum(cost_nanousd) FROM attempts")
        assert attempts == spent
        for by in ("cause", "agent", "step", "run", "day", "model", "tag:user"):
            table = read_costs(self.client.database, by=[by], namespace=self.settings.namespace, limit=3)
            rows = [*table.rows, *([] if table.others is None else [table.others])]
            assert (table.total.calls, table.total.cost_nanousd) == (calls, spent), by
            assert sum(row.calls for row in rows) == calls, by
            assert sum(row.cost_nanousd or 0 for row in rows) == (spent or 0), by

    def assert_no_worker_ended(self) -> None:
        """Nothing but a signal ends a worker; others taking over its work must not hide that one died."""
        codes = [process.poll() for process in self.running_fleet().processes]
        assert codes == [None] * len(codes), f"exit codes {codes}; see the logs in {self.folder}"

    def assert_nothing_repeated(self) -> Evidence:
        """At the counting server and in the store: no finished step again, every request accounted for."""
        evidence = self.evidence()
        assert evidence.repeated == 0
        assert evidence.twice_accepted == 0
        assert evidence.unaccounted == 0, json.dumps(
            [vars(attempt) for attempt in self.attempts() if attempt.outcome != "accepted"], indent=1
        )
        return evidence


def seconds_since(moment: float) -> float:
    """For bounds on how long something took; ``moment`` from ``time.monotonic``."""
    return time.monotonic() - moment

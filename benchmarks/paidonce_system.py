"""Running Paidonce as a measured system, through its own command line and client."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import text

from benchmarks.services import Broker, wait_until
from benchmarks.systems import Fleet
from benchmarks.workloads import PAIDONCE, Case
from paidonce import Client, RunHandle
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database

_READY_SECONDS = 60.0
_CASE_SECONDS = 600.0
_POLL_SECONDS = 0.05


class Paidonce:
    """``processes`` workers of ``concurrency`` threads each, a store and a broker."""

    name = PAIDONCE

    def __init__(self, case: Case, database_url: str, broker: Broker, folder: Path) -> None:
        self._case = case
        self._fleet = Fleet(folder)
        self._environment = {
            "PAIDONCE_HOME": str(folder / "home"),
            "PAIDONCE_DATABASE_URL": database_url,
            "PAIDONCE_BROKER_URL": broker.url,
            "PAIDONCE_CACHE_SIZE": str(case.cache_size),
            "PAIDONCE_TURN_SECONDS": str(case.turn_seconds),
            "PAIDONCE_AGENTS": "benchmarks.agents",
        }
        self._client = Client(home=folder / "home", database_url=database_url, broker_url=broker.url)
        self._handles: list[RunHandle] = []
        self.variant = f"{case.processes} processes x {case.concurrency}"

    @property
    def trees(self) -> Sequence[int]:
        return self._fleet.process_ids

    @property
    def producers(self) -> Sequence[int]:
        return ()

    def start(self) -> None:
        """Makes the schema, starts the workers and waits until all have registered."""
        making = Database(self._client.settings.database_url, pool_size=1)
        upgrade(making)
        making.close()
        database = self._client.database
        paidonce = str(Path(sys.executable).parent / "paidonce")
        for _ in range(self._case.processes):
            command = [paidonce, "worker", "benchmarks.agents", "--concurrency", str(self._case.concurrency)]
            command += ["--loglevel", "WARNING"]  # as the plain workers: Celery's INFO is two lines a task
            self._fleet.start(command, self._environment)

        def all_registered() -> bool:
            self._fleet.check()
            with database.read() as connection:
                alive = connection.execute(text("SELECT count(*) FROM workers WHERE stopped_at_us IS NULL")).scalar()
            return alive == self._case.processes

        wait_until(all_registered, f"{self._case.processes} workers register", _READY_SECONDS)

    def run(self, case: Case) -> None:
        """Submits one run after the other, as a producer does, and asks for each by its id until it has ended."""
        self._handles = [
            self._submit(case.agent or case.shape, number, case.steps, case.wait_seconds, case.result_bytes)
            for number in range(1, case.runs + 1)
        ]
        if case.burst_steps:
            self._submit("chain", 0, case.burst_steps, 0.0, case.result_bytes)
        end = time.monotonic() + _CASE_SECONDS
        for handle in self._handles:
            while handle.state in ("pending", "running", "waiting"):
                if time.monotonic() > end:
                    raise TimeoutError(f"{handle} did not finish:\n{self._fleet.logs()}")
                time.sleep(_POLL_SECONDS)
            if handle.result(timeout=1) != case.steps:
                raise RuntimeError(f"{handle} returned something else than {case.steps}")

    def _submit(self, agent: str, number: int, steps: int, wait_seconds: float, result_bytes: int) -> RunHandle:
        given = {"run": number, "steps": steps, "wait_seconds": wait_seconds, "result_bytes": result_bytes}
        return self._client.submit(agent, given)

    def details(self) -> dict[str, object]:
        """What the store's own times tell: latencies in a chain, the length of turns in a conversation."""
        if self._case.shape == "chain" and self._case.steps > 1:
            return self._added_latency()
        if self._case.shape == "conversation" and self._case.steps >= 40:
            return self._turns()
        return {}

    def _added_latency(self) -> dict[str, object]:
        """Milliseconds between the ends of a run's steps, one after the other, beyond what the step itself waits."""
        query = text(
            "SELECT run_id, finished_at_us - lag(finished_at_us) OVER (PARTITION BY run_id ORDER BY position) "
            "FROM steps"
        )
        with self._client.database.read() as connection:
            rows = connection.execute(query).all()
        measured = {handle.id for handle in self._handles}
        waits_us = self._case.wait_seconds * 1e6
        added = sorted(between - waits_us for run_id, between in rows if run_id in measured and between is not None)
        if not added:
            return {}
        p50, p99 = (added[min(len(added) - 1, int(len(added) * share))] for share in (0.5, 0.99))
        return {"added_latency_ms": {"p50": round(p50 / 1000, 2), "p99": round(p99 / 1000, 2)}}

    def _turns(self) -> dict[str, object]:
        """Milliseconds of a turn around turn 10 and over the last tenth of the turns."""
        ended = [step.finished_at for step in self._handles[0].steps()]
        tenth = len(ended) // 10

        def turn_ms(first: int, last: int) -> float:
            begin, finish = ended[first], ended[last]
            if begin is None or finish is None:
                raise RuntimeError("a finished run has a step without an end")
            return round((finish - begin).total_seconds() * 1000 / (last - first), 3)

        return {"early_turn_ms": turn_ms(5, 15), "late_turn_ms": turn_ms(len(ended) - 1 - tenth, len(ended) - 1)}

    def stop(self) -> None:
        """The client's connections end with this process or with the dropped database."""
        self._fleet.stop()

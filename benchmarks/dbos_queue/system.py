"""Running DBOS as a measured system, in an environment of its own (``.bench-venv``) that is made at first use."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.systems import Fleet
from benchmarks.workloads import DBOS, Case

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".bench-venv"
REQUIREMENTS = ("dbos>=3.4,<4", "psycopg[binary]>=3.2,<4")


def dbos_interpreter() -> Path:
    """The interpreter that has DBOS; makes the environment if it is not there."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / ".ready").exists():
        print(f"making {ENVIRONMENT.name} with {', '.join(REQUIREMENTS)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(ENVIRONMENT)], check=True)
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *REQUIREMENTS]
        subprocess.run(install, check=True, stdout=sys.stderr)
        (ENVIRONMENT / ".ready").touch()
    return python


class DbosQueue:
    """Always at least two worker processes: that is how DBOS scales on one queue."""

    name = DBOS

    def __init__(self, case: Case, database_url: str, folder: Path) -> None:
        self._processes = max(2, case.processes)
        self._concurrency = max(1, case.processes * case.concurrency // self._processes)
        self._database_url = database_url
        self._fleet = Fleet(folder)
        self._clients = Fleet(folder / "client")
        self._client: subprocess.Popen[str] | None = None
        self.variant = f"queue, {self._processes} processes x {self._concurrency}"
        (folder / "client").mkdir()

    @property
    def trees(self) -> Sequence[int]:
        return self._fleet.process_ids

    @property
    def producers(self) -> Sequence[int]:
        return self._clients.process_ids

    def start(self) -> None:
        environment = {"PYTHONPATH": str(ENVIRONMENT.parent)}
        command = [str(dbos_interpreter()), "-m", "benchmarks.dbos_queue.program"]
        for _ in range(self._processes):  # one after the other: the first makes the schema
            worker = self._fleet.start(
                [*command, "worker", self._database_url, str(self._concurrency)], environment, conversation=True
            )
            self._expect_ready(worker)
        self._client = self._clients.start([*command, "client", self._database_url], environment, conversation=True)
        self._expect_ready(self._client)

    def run(self, case: Case) -> None:
        if self._client is None or self._client.stdin is None or self._client.stdout is None:
            raise RuntimeError("DBOS is not started")
        self._client.stdin.write(json.dumps(asdict(case)) + "\n")
        self._client.stdin.flush()
        answer = self._client.stdout.readline()
        if not answer or not json.loads(answer)["ok"]:
            raise RuntimeError(f"DBOS did not finish the case: {self._clients.logs()}{self._fleet.logs()}")

    def stop(self) -> None:
        self._clients.stop()
        self._fleet.stop()

    def _expect_ready(self, process: subprocess.Popen[str]) -> None:
        if process.stdout is None or process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"DBOS did not start:\n{self._clients.logs()}{self._fleet.logs()}")

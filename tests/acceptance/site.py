"""A place of its own where Paidonce runs: a home, workers as real processes, a client."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from paidonce.client import Client
from paidonce.declarations.registry import Registry
from paidonce.embedded import ensure_embedded_valkey, stop_embedded
from paidonce.run_handle import RunHandle
from paidonce.settings import Settings
from tests.acceptance.agents import journal
from tests.services import fork_server
from tests.services.fork_server import ForkedProcess
from tests.services.waiting import wait_until

ROOT = Path(__file__).parents[2]
READY_SECONDS = 40
STOP_SECONDS = 90
RUN_SECONDS = 120
"""How long a test waits for a run that takes a moment: the machine may be busy with other tests."""


class WorkerProcess:
    """One worker, started by Celery's command or by ours."""

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str], name: str) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("ab") as log:
            self.process = _begin(command, folder, environment, log.fileno())

    @property
    def log(self) -> str:
        """Everything it has said."""
        return self._log.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Until it consumes."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the worker {self.name} ended with {self.process.returncode}:\n{self.log}")
            return " ready." in self.log

        wait_until(ready, f"the worker {self.name} is ready", READY_SECONDS)

    def stop(self) -> int:
        """End it in order; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """End it at once, by SIGKILL."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_SECONDS)


def _begin(
    command: Sequence[str], folder: Path, environment: dict[str, str], log: int
) -> ForkedProcess | subprocess.Popen[bytes]:
    """A fork of an interpreter that has imported everything, unless the command asks for another program."""
    if list(command[:2]) == [sys.executable, "-m"]:
        return fork_server.start(
            command[2], command[3:], folder=folder, environment=environment, stdout=log, stderr=log
        )
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


class Site:
    """A home in a folder. ``settings`` are those of workers and client, in lower case without their prefix."""

    def __init__(self, folder: Path, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.settings = {
            "home": str(folder / "home"),
            "heartbeat_seconds": "1",
            "lease_seconds": "8",
            "sweep_seconds": "0.5",
            "drain_seconds": "0.3",
            **settings,
        }
        self.workers: list[WorkerProcess] = []
        self._journal = folder / "journal"

    def environment(self, modules: Sequence[str] = (), **settings: str) -> dict[str, str]:
        """The environment of a process of this site."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PAIDONCE_")}
        chosen = {f"PAIDONCE_{name.upper()}": value for name, value in {**self.settings, **settings}.items()}
        return {
            **kept,
            **chosen,
            "PAIDONCE_AGENTS": ",".join(modules),
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT), *filter(None, sys.path)]),
            "PYTHONWARNINGS": "ignore",  # Celery's about running as root
            "PYTHONDONTWRITEBYTECODE": "1",
            journal.VARIABLE: str(self._journal),
        }

    def worker(
        self,
        *modules: str,
        arguments: Sequence[str] = (),
        wait: bool = True,
        program: Sequence[str] = (),
        **settings: str,
    ) -> WorkerProcess:
        """Start ``celery -A paidonce_workers worker``, by ``program`` if need be, and wait until it consumes."""
        name = f"worker-{len(self.workers) + 1}"
        command = [*program, sys.executable, "-m", "celery", "-A", "paidonce_workers", "worker", "-n", f"{name}@%h"]
        return self._start([*command, "--loglevel", "INFO", *arguments], name, modules, wait, settings)

    def upgrade(self) -> None:
        """Bring the store to the current schema, as an operator does on PostgreSQL."""
        command = [sys.executable, "-m", "paidonce.cli", "db", "upgrade"]
        with (self.folder / "upgrade.log").open("ab") as log:
            upgrading = _begin(command, self.folder, self.environment(), log.fileno())
        assert upgrading.wait(60) == 0, (self.folder / "upgrade.log").read_text()

    def own_worker(self, *modules: str, arguments: Sequence[str] = (), **settings: str) -> WorkerProcess:
        """Start ``paidonce worker MODULE…`` and wait until it consumes."""
        name = f"worker-{len(self.workers) + 1}"
        command = [sys.executable, "-m", "paidonce.cli", "worker", *modules, *arguments]
        return self._start(command, name, (), True, settings)

    def _start(
        self, command: list[str], name: str, modules: Sequence[str], wait: bool, settings: dict[str, str]
    ) -> WorkerProcess:
        started = WorkerProcess(command, self.folder, self.environment(modules, **settings), name)
        self.workers.append(started)
        if wait:
            started.wait_ready()
        return started

    @functools.cached_property
    def client(self) -> Client:
        """A client that holds the code of the acceptance agents, as this process does."""
        return Client(Settings(**self.settings))  # type: ignore[arg-type]  # texts, as from an environment

    @functools.cached_property
    def stranger(self) -> Client:
        """A client that holds no agent's code."""
        return Client(Settings(**self.settings), registry=Registry())  # type: ignore[arg-type]  # as above

    @property
    def broker_url(self) -> str:
        """For producers that have only the broker."""
        return self.settings.get("broker_url") or ensure_embedded_valkey(Path(self.settings["home"]))

    def journal(self) -> list[str]:
        """What the steps have noted so far."""
        return self._journal.read_text().splitlines() if self._journal.exists() else []

    def wait_noted(self, line: str, timeout: float = RUN_SECONDS) -> str:
        """Wait for a line that begins like this; the whole line."""
        return wait_until(
            lambda: next((each for each in self.journal() if each.startswith(line)), ""),
            f"a step notes {line!r}",
            timeout,
        )

    def wait_state(self, handle: RunHandle, *states: str, timeout: float = RUN_SECONDS) -> str:
        """Wait until the run is in one of the states; fails with its steps and the workers' last words."""
        try:
            return wait_until(lambda: handle.state in states and handle.state, f"{handle} is {states}", timeout)
        except AssertionError as late:
            said = "\n".join(f"--- {worker.name}\n{worker.log[-3000:]}" for worker in self.workers)
            raise AssertionError(f"{late}\n{handle.view()}\n{handle.steps()}\n{said}") from None

    def close(self) -> None:
        """Stop everything that was started here."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGTERM)
        for worker in self.workers:
            try:
                worker.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
        for name in ("client", "stranger"):
            if name in self.__dict__ and self.__dict__[name]._database is not None:
                self.__dict__[name].database.close()
        stop_embedded(Path(self.settings["home"]))

"""A fleet of worker processes to be killed, and the counting server beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import paidonce_workers
from paidonce.drill import agents
from paidonce.drill.evidence import Kill
from paidonce_models.errors import ConfigurationError
from paidonce_models.privacy.private_files import make_private_folder, private_opener

START_SECONDS = 30.0
MIXED_POOLS = ("threads", "prefork")


class CountingServerProcess:
    """The counting server in a separate process."""

    def __init__(self, folder: Path) -> None:
        make_private_folder(folder)
        port_file = folder / "counting-server.port"
        port_file.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("counting_server.py")), str(port_file)],
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS
        while not port_file.exists():
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.stop()
                raise ConfigurationError("the counting server of the drill did not start; see its error above")
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{port_file.read_text(encoding='ascii')}"

    def requests(self) -> list[dict[str, object]]:
        """Every request that arrived, in order."""
        with urllib.request.urlopen(f"{self.url}/requests", timeout=30) as response:
            counted: list[dict[str, object]] = json.load(response)
        return counted

    def begin_outage(self, seconds: float) -> tuple[float, float]:
        """Let the server's tool fail from now on for ``seconds``; returns when that starts and ends."""
        request = urllib.request.Request(f"{self.url}/outage", data=json.dumps({"seconds": seconds}).encode())
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        return float(answer["began"]), float(answer["ends"])

    def stop(self) -> None:
        """End the server."""
        self.process.kill()
        self.process.wait()


class WorkerProcess(Protocol):
    """The part of ``subprocess.Popen`` that a fleet needs."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code; ``None`` while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises ``subprocess.TimeoutExpired``."""

    def kill(self) -> None:
        """SIGKILL."""

    def terminate(self) -> None:
        """SIGTERM."""

    def send_signal(self, sig: int, /) -> None:
        """Send a signal, if it still runs."""


class Fleet:
    """Worker processes by number; one that was killed is started again under the same number."""

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        folder: Path,
        size: int,
        concurrency: int,
        pool: str | None = None,
        modules: str = agents.__name__,
    ) -> None:
        """``environment`` are settings for the workers, in addition to this process's environment.

        ``pool`` is the pool of all of them; ``mixed`` alternates threads and prefork.
        """
        self._environment = {**os.environ, **environment, "PAIDONCE_AGENTS": modules}
        self._folder = folder
        self._arguments = ["--concurrency", str(concurrency), "--without-gossip", "--without-mingle", "-l", "INFO"]
        self._pool = pool
        self._groups: list[int] = []
        self.processes: list[WorkerProcess] = []
        for number in range(size):
            self.processes.append(self._start(number))

    def pool_of(self, number: int) -> str | None:
        """The pool that a worker is started with."""
        return MIXED_POOLS[number % len(MIXED_POOLS)] if self._pool == "mixed" else self._pool

    def add(self, environment: Mapping[str, str] | None = None) -> int:
        """Start one more worker, with additional settings; returns its number."""
        self.processes.append(self._start(len(self.processes), environment or {}))
        return len(self.processes) - 1

    def _start(self, number: int, environment: Mapping[str, str] = MappingProxyType({})) -> WorkerProcess:
        pool = self.pool_of(number)
        arguments = [*self._arguments, *(() if pool is None else ("--pool", pool))]
        name = f"drill{number}-{time.time_ns()}@%h"
        with open(self.log(number), "ab", opener=private_opener) as log:
            process = self._begin(
                ["-A", paidonce_workers.__name__, "worker", "-n", name, *arguments],
                {**self._environment, **environment},
                log.fileno(),
            )
        self._groups.append(process.pid)
        return process

    def _begin(self, arguments: Sequence[str], environment: Mapping[str, str], log: int) -> WorkerProcess:
        """Start Celery's command in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "celery", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def log(self, number: int) -> Path:
        """The log file of the workers with this number."""
        return self._folder / f"worker-{number}.log"

    def children(self, number: int) -> list[int]:
        """The processes that a worker has forked or started."""
        parents = _parents()
        return [pid for pid, parent in parents.items() if parent == self.processes[number].pid]

    def kill(self, number: int) -> Kill:
        """SIGKILL a worker with everything it started."""
        process = self.processes[number]
        pids = _descendants(process.pid)
        killed = time.time()
        _signal_group(process.pid)
        process.wait()
        return Kill(at_seconds=killed, pids=frozenset(pids))

    def kill_parent(self, number: int) -> Kill:
        """SIGKILL a worker's own process only; on Linux Celery's children die with it, elsewhere they finish."""
        process = self.processes[number]
        pids = _descendants(process.pid)
        killed = time.time()
        process.kill()
        process.wait()
        return Kill(at_seconds=killed, pids=frozenset(pids))

    def kill_child(self, pid: int) -> Kill:
        """SIGKILL one forked child; its parent starts another."""
        killed = time.time()
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended by itself
        return Kill(at_seconds=killed, pids=frozenset({pid}))

    def kill_children(self, number: int) -> Kill:
        """SIGKILL every child of a worker at once; the worker itself stays and starts others."""
        pids = self.children(number)
        killed = time.time()
        for pid in pids:
            self.kill_child(pid)
        return Kill(at_seconds=killed, pids=frozenset(pids))

    def restart(self, number: int) -> None:
        """Start a worker in place of one that has ended."""
        self.processes[number] = self._start(number)

    def stop(self) -> None:
        """End every worker at once, including orphans of killed parents."""
        for group in self._groups:
            _signal_group(group)
        for process in self.processes:
            process.wait()


def _signal_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass  # none of its processes is left


def _parents() -> dict[int, int]:
    """Each process's parent."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs: Sequence[list[str]] = [line.split() for line in listed.stdout.splitlines()]
    return {int(pid): int(parent) for pid, parent in pairs}


def _descendants(pid: int) -> set[int]:
    """The process and everything below it."""
    parents = _parents()
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found

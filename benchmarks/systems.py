"""What a measured system must offer, and the worker processes every one of them has."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.services import log_tail
from benchmarks.workloads import Case

_STOP_SECONDS = 20.0


class System(Protocol):
    """One way of doing a case's work. Used in this order: ``start``, ``run`` (warm-up), ``run``, ``stop``."""

    name: str
    variant: str

    @property
    def trees(self) -> Sequence[int]:
        """Roots of the workers' process trees."""

    @property
    def producers(self) -> Sequence[int]:
        """Processes that submit, where it is not this one."""

    def start(self) -> None:
        """Start the workers and return when they are ready."""

    def run(self, case: Case) -> None:
        """Submit the whole case and return when its last run has ended; raises if one failed."""

    def stop(self) -> None:
        """End every process that was started."""


class Fleet:
    """The worker processes of one measurement, with a log each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[tuple[subprocess.Popen[str], Path]] = []

    @property
    def process_ids(self) -> list[int]:
        """Of the started processes themselves."""
        return [process.pid for process, _ in self._processes]

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], *, conversation: bool = False
    ) -> subprocess.Popen[str]:
        """Start one process; in a ``conversation`` its standard input and output are pipes, else they are the log."""
        log = self._folder / f"process-{len(self._processes)}.log"
        with log.open("w") as sink:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE if conversation else subprocess.DEVNULL,
                stdout=subprocess.PIPE if conversation else sink,
                stderr=sink,
                text=True,
                start_new_session=True,
            )
        self._processes.append((process, log))
        return process

    def check(self) -> None:
        """Raise with the end of its log if a process has ended by itself."""
        for process, log in self._processes:
            if process.poll() is not None:
                raise RuntimeError(f"a worker ended with {process.returncode}:\n{log_tail(log)}")

    def logs(self) -> str:
        """The ends of all logs, for an error."""
        return "\n".join(log_tail(log) for _, log in self._processes)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for the whole session of each process."""
        for process, _ in self._processes:
            process.terminate()
        for process, _ in self._processes:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._processes.clear()

"""Starts the demo's processes, kills one on purpose, and leaves none behind.

Each child leads its own session: Ctrl-C reaches only the demo, and a signal to a child's group reaches everything that
the child started. What children print goes to files, in case something goes wrong.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from paidonce_models.privacy.private_files import private_opener

START_SECONDS = 20
STOP_SECONDS = 5
LINES_OF_LOG = 20


class DemoFailed(Exception):
    """A process of the demo failed; the message says what happened and where to look."""


class Child:
    """One process of the demo."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start the process; its errors, and what it prints after its first line, go to `log`."""
        self.name = name
        self.log = log
        with open(log, "ab", opener=private_opener) as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if name.endswith("server") else errors,
                stderr=errors,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def first_line(self) -> str:
        """Wait for the line that a server prints when it listens: its address."""
        output = self._process.stdout
        if output is not None and select.select([output], [], [], START_SECONDS)[0]:
            line = output.readline().decode().strip()
            if line:
                return line
        raise DemoFailed(f"the {self.name} did not start:\n{self.last_words()}")

    def kill(self) -> None:
        """SIGKILL the whole group, without a chance to clean up."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Request it to end, and kill what is left of its group after a few seconds."""
        if self.is_alive:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                pass  # killed below
        self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LINES_OF_LOG:]
        return "\n".join(lines) or f"(it printed nothing; see {self.log})"

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # the group has ended; macOS says EPERM for a group of zombies


class Stage:
    """All processes of one demo; leaving it stops them, last started first."""

    def __init__(self, folder: Path) -> None:
        """Logs go into `folder`."""
        self._folder = folder
        self._children: list[Child] = []

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Start a process that is stopped when the stage is left."""
        child = Child(name, command, environment or {}, self._folder / f"{name.replace(' ', '-')}.log")
        self._children.append(child)
        return child

    def start_server(self, name: str, module: str, *arguments: str) -> str:
        """Start one of the example servers and return its address."""
        return self.start(name, [sys.executable, "-m", module, *arguments]).first_line()

    def __enter__(self) -> Self:
        """Turn the signals that end a program into exceptions, so that the stage is always cleared."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything; a second Ctrl-C does not interrupt that."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.clear()

    def clear(self) -> None:
        """Stop every process that is still there."""
        while self._children:
            self._children.pop().stop()


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


class Deadline:
    """The time limit of everything that the demo waits for."""

    def __init__(self, seconds: float) -> None:
        """Start the clock."""
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self, waiting_for: str, child: Child) -> None:
        """Raise if the time is over or the process has died by itself."""
        if not child.is_alive:
            raise DemoFailed(f"{child.name} died while the demo waited for {waiting_for}:\n{child.last_words()}")
        if time.monotonic() > self._end:
            raise DemoFailed(f"waited {self._seconds:.0f} s without {waiting_for}; the worker's log is {child.log}")

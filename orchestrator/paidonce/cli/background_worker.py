"""The worker that ``paidonce run`` starts, and stops when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from paidonce.cli import attached_worker
from paidonce.cli.worker_program import worker_arguments, worker_environment
from paidonce.settings import Settings
from paidonce.store_access import make_folder
from paidonce_models.errors import ConfigurationError, PaidonceError
from paidonce_models.privacy.private_files import private_opener

MAX_STARTS = 5
_LINES_OF_LOG = 15
_MARGIN_SECONDS = 10.0
_ALONE = ("--without-mingle", "--without-gossip")
"""Looking for other workers takes Celery a second and changes nothing here."""


class BackgroundWorker:
    """One worker process in a session of its own, so that Ctrl-C reaches only us; started again if it is killed.

    Its log is a file under PAIDONCE_HOME, removed when all went well.
    """

    def __init__(self, settings: Settings, modules: Sequence[ModuleType], queues: Sequence[str]) -> None:
        self._settings = settings
        self._environment = worker_environment(modules)
        self._queues = queues
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self.log = settings.home / "logs" / f"run-{os.getpid()}.log"

    @property
    def is_started(self) -> bool:
        """Whether it was ever started."""
        return self._starts > 0

    def ensure(self) -> None:
        """Start it unless it runs. Raises ``PaidonceError`` with the end of its log if it exited on its own."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._close()
            if code >= 0 or self._starts >= MAX_STARTS:
                raise PaidonceError(
                    f"the worker of this command ended with code {code}; the end of {self.log}:\n{self.last_words()}",
                    log=self.last_words().split("\n"),
                )
        self._start()

    def stop(self) -> None:
        """End it with SIGTERM and wait; kill what is left after its drain time."""
        process = self._process
        if process is None:
            return
        try:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(self._settings.drain_seconds + _MARGIN_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # killed below
        finally:
            _kill_group(process)
            self._close()

    def forget_log(self) -> None:
        """Remove the log, after a successful end."""
        if self.log.is_relative_to(self._settings.home):
            self.log.unlink(missing_ok=True)

    def last_words(self) -> str:
        """The end of its log."""
        lines = _read(self.log).splitlines()[-_LINES_OF_LOG:]
        return "\n".join(lines) or "(it said nothing)"

    def _start(self) -> None:
        self._starts += 1
        name = f"paidonce-run-{os.getpid()}-{self._starts}"
        arguments = worker_arguments(
            name=name, log_level="INFO", concurrency=self._settings.concurrency, queues=self._queues
        )
        with self._open_log() as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", attached_worker.__name__, *arguments, *_ALONE],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _open_log(self) -> BinaryIO:
        """Where the home cannot be written (a container with a read-only root) the log is in memory, as it is short."""
        if not self.log.is_relative_to(self._settings.home):
            return open(self.log, "ab")
        try:
            make_folder(self.log.parent, self._settings, "the log of the worker that this command starts")
            return open(self.log, "ab", opener=private_opener)
        except ConfigurationError:
            if self._settings.broker_url is None or not hasattr(os, "memfd_create"):
                raise
            descriptor = os.memfd_create(self.log.name)
            self.log = Path(f"/proc/self/fd/{descriptor}")
            return open(os.dup(descriptor), "ab")

    def _close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End whatever is left of the worker's session, such as isolated steps."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended; macOS says EPERM for a group of zombies
    deadline = time.monotonic() + _MARGIN_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
